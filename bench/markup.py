"""Sections and records as one HTML page: it asks nothing of the network, runs no script, follows the reader's theme.

Every table and figure names its record, every cell keeps its unrounded figure as a tooltip, and the records themselves
stand whole at the end. All that comes from a record is text, and escaped. The style sheets are `charts.css` and
`page.css`.
"""

import json
import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources

from bench.contenders import Way
from bench.figures import Figure
from bench.filed import Filed
from bench.records import Record
from bench.report import MAIN
from bench.rows import FLOOR, MEAN_SAMPLE
from bench.sections import Section
from bench.svg_files import chart_style
from bench.tables import Cell, Table, short_name

WORDS = {
    "N, C": "time steps and channels of a series; its spectrum has as many tokens as it has steps",
    "uncached": "every step asks the network about every token: the reference for speed and quality",
    "E2-CRF": "the cached sampler: the network is asked at few steps, closed form and cache do the rest",
    "fewer steps": "no cache: a good solver with so few steps that it costs as many passes; the honest rival",
    "fewer steps, as good": "the cheapest such way whose samples are as close to real series as the cached ones",
    "fixed interval": "a cache that refreshes every so many steps, as often as E2-CRF but not where it matters most",
    "plan without its fit": "the same refreshes, what they found held or extrapolated as it is",
    "stale features": "the same refreshes, but reusing what the published code reuses",
    FLOOR: "real series held against other real series: the distance that sampling error alone makes",
    MEAN_SAMPLE: "the mean of all real series, over and over: what a model must beat to be worth anything",
}
_OWN = (Way.CACHED, "full")  # the rows that a reader looks for first


def html_of(title: str, intro: str, sections: Sequence[Section], filed: Sequence[Filed]) -> str:
    """The page: its title and a sentence or two, the sections, and the records they are made of."""
    style = chart_style() + resources.files("bench").joinpath("page.css").read_text(encoding="utf-8")
    links = "".join(f'<li><a href="#{one.key}">{escape(_link_text(one))}</a></li>' for one in sections)
    return "\n".join([
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        '<link rel="icon" href="data:,">',
        f"<title>{escape(title)}</title>",
        f"<style>\n{style}</style>",
        "</head>",
        "<body>",
        f"<header><h1>{escape(title)}</h1><p>{escape(intro)}</p></header>",
        f'<nav aria-label="Contents"><ul>{links}<li><a href="#records">Records</a></li></ul></nav>',
        _words_html(),
        "<main>",
        *(_section_html(one) for one in sections),
        "</main>",
        _records_html(filed),
        "</body>",
        "</html>",
        "",
    ])  # fmt: skip


def _link_text(section: Section) -> str:
    return section.title + (f", {section.beside.split(',')[0]}" if section.beside.startswith("batch") else "")


def _words_html() -> str:
    words = {column.title: column.meaning for column in MAIN[2:]} | WORDS
    entries = "".join(f"<dt>{escape(word)}</dt><dd>{escape(meaning)}</dd>" for word, meaning in words.items())
    return f'<details><summary>The words used here</summary><dl class="words">{entries}</dl></details>'


def _section_html(section: Section) -> str:
    head = f"{escape(section.title)}<small>{escape(section.beside)}</small>"
    parts = [f'<section id="{section.key}" aria-labelledby="{section.key}-h"><h2 id="{section.key}-h">{head}</h2>']
    parts += [f'<p class="failed"><b>Failed:</b> {escape(failure)}.</p>' for failure in section.failures]
    if section.lead:
        parts.append(f'<p class="lead">{escape(section.lead)}</p>')
    shown = "".join(_table_html(caption, table, section) for caption, table in section.first)
    parts.append(f'<div class="side">{shown}</div>' if section.side_by_side else shown)
    parts.append(_from_html(section.sources))
    if section.notes:
        parts.append('<ul class="notes">' + "".join(f"<li>{escape(note)}</li>" for note in section.notes) + "</ul>")
    if section.command:
        parts.append(
            f'<p class="from">Repeat it with:</p><pre class="command"><code>{escape(section.command)}</code></pre>'
        )
    if section.figures:
        drawn = "".join(
            _figure_html(one, f"{section.key}-f{index}", section) for index, one in enumerate(section.figures)
        )
        parts.append(f'<div class="figures">{drawn}</div>')
    parts += [
        f"<details><summary>{escape(caption)}</summary>{_table_html('', table, section)}{_from_html(section.sources)}"
        "</details>"
        for caption, table in section.folded
    ]
    return "\n".join([*parts, "</section>"])


def _from_html(sources: Iterable[Filed]) -> str:
    told = "; ".join(f'<a href="#{one.key}">{escape(one.name)}</a>, {escape(one.made)}' for one in sources)
    return f'<p class="from">From {told}.</p>'


def _table_html(caption: str, table: Table, section: Section) -> str:
    head = "".join(f'<th scope="col" title="{escape(meaning)}">{escape(title)}</th>' for title, meaning in table.titles)
    body = "".join(_row_html(row) for row in table.rows)
    named = f"<caption>{escape(caption)}</caption>" if caption else ""
    kind = ' class="narrow"' if section.side_by_side and caption else ""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption or section.title)}">'
        f"<table{kind}>{named}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _row_html(row: Sequence[Cell]) -> str:
    name = row[0].text
    own, yard = short_name(name) in _OWN, name in (FLOOR, MEAN_SAMPLE)
    kind = ' class="ours"' if own else ' class="yard"' if yard else ""
    return f'<tr{kind}><th scope="row">{escape(name)}</th>' + "".join(_cell_html(cell) for cell in row[1:]) + "</tr>"


def _cell_html(cell: Cell) -> str:
    source = f' title="{escape(cell.source)}"' if cell.source else ""
    shade = "" if cell.shade is None else f' class="shaded" style="--share:{cell.shade:.2f}"'
    return f"<td{shade}{source}>{escape(cell.text)}</td>"


def _figure_html(figure: Figure, key: str, section: Section) -> str:
    sources = ", ".join(f'<a href="#{one.key}">{escape(one.name)}</a>' for one in section.sources)
    return (
        f"<figure{' class=large' if figure.large else ''}><figcaption><b>{escape(figure.title)}</b>"
        f"{escape(figure.caption)} <span>From {sources}.</span></figcaption>"
        f"{figure.draw(key, figure.title, figure.description)}</figure>"
    )


def _records_html(filed: Sequence[Filed]) -> str:
    return (
        '<section id="records" aria-labelledby="records-h"><h2 id="records-h">Records<small>every figure above, '
        "unrounded, with all settings</small></h2>" + "".join(_record_html(one) for one in filed) + "</section>"
    )


def _record_html(one: Filed) -> str:
    machine = one.record.machine
    facts = [("kind", one.record.kind), ("made", one.made), ("processor", machine.cpu),
             ("cores", f"{machine.num_usable_cores} of {machine.num_cores}"), ("graphics", machine.gpu or "none"),
             ("system", machine.system), ("Python", machine.python), *machine.libraries.items(),
             ("load before", "" if machine.load_average is None else str(machine.load_average))]  # fmt: skip
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(str(value))}</td></tr>' for name, value in facts
    )
    return (
        f'<h3 id="{one.key}">{escape(one.name)}</h3><div class="scroll" role="region" tabindex="0" '
        f'aria-label="{escape(one.name)}"><table class="facts"><tbody>{rows}</tbody></table></div>'
        f"<details><summary>The whole record</summary><pre>{escape(_pretty(one.record))}</pre></details>"
    )


def _pretty(record: Record) -> str:
    """The record as JSON on many lines, lists of plain values on one."""
    text = json.dumps(json.loads(record.to_line()), indent=1, ensure_ascii=False)
    return re.sub(
        r"\[\n([^\[\]{}]*?)\n\s*\]", lambda found: "[" + re.sub(r"\s*\n\s*", " ", found[1]).strip() + "]", text
    )
