"""Records as one page: a self-contained HTML file and the same in Markdown.

    write_report([Path("bench/results"), Path("bundles/ecg")], Path("report"))   # report.html, report.md

A record becomes a `Section` (`sections`), which says what is shown before anything is drawn; the page (`markup`) and
the Markdown are two ways of writing the same sections. All that comes from a record is text: it is checked when it is
read (`records`), and escaped where it is shown.
"""

from collections.abc import Sequence
from pathlib import Path

from bench.filed import Filed, read_filed
from bench.markup import html_of
from bench.records import write_whole
from bench.report import markdown_text
from bench.sections import Section, sections_of
from bench.tables import name_of

PAGE_FILE, SUMMARY_FILE = "report.html", "report.md"


def write_report(paths: Sequence[Path], out: Path) -> list[Path]:
    """Write the page and its Markdown of records in files or folders into `out`; the files made.

    A `RecordError`, before anything is written, for a file that is no record of this version, or if there are none.
    """
    filed = read_filed(paths)
    title, intro, sections = _title(filed), _intro(filed), list(sections_of(filed))
    written = {
        PAGE_FILE: html_of(title, intro, sections, filed),
        SUMMARY_FILE: markdown_of(title, intro, sections),
    }
    for name, text in written.items():
        write_whole(out / name, text)
    return [out / name for name in written]


def _title(filed: Sequence[Filed]) -> str:
    names = list(dict.fromkeys(name_of(one.record) for one in filed))
    return "Bench report: " + ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _intro(filed: Sequence[Filed]) -> str:
    count = "one record" if len(filed) == 1 else f"{len(filed)} records"
    return (
        "Time series sampled by diffusion models, with and without the E2-CRF cache: how long that takes, and how far "
        f"the samples are from real series. Made from {count}, whole on the page with machine, versions and settings; "
        "there a number tells all its digits when pointed at."
    )


def markdown_of(title: str, intro: str, sections: Sequence[Section]) -> str:
    """The same in Markdown, without the charts."""
    parts = [f"# {markdown_text(title)}", intro, f"With charts: [{PAGE_FILE}]({PAGE_FILE})."]
    for section in sections:
        parts += [f"## {markdown_text(section.title)}", markdown_text(section.beside)]
        parts += [f"**Failed:** {markdown_text(failure)}." for failure in section.failures]
        parts.append(markdown_text(section.lead))
        for caption, table in (*section.first, *section.folded):
            parts += [f"**{markdown_text(caption)}**" if caption else "", table.markdown()]
        parts.append("\n".join(f"- {markdown_text(note)}" for note in section.notes))
        parts.append(f"```sh\n{section.command.replace('`', '')}\n```" if section.command else "")
        sources = "; ".join(f"[{markdown_text(one.name)}]({PAGE_FILE}#{one.key}), {markdown_text(one.made)}"
                            for one in section.sources)  # fmt: skip
        parts.append(f"From {sources}.")
    return "\n\n".join(part for part in parts if part) + "\n"
