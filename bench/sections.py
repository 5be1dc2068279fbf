"""What is shown of records: a section for each, which says its tables, figures, sentences and the command to repeat it.

Several benches have a section together, before their own. Nothing is written here: `markup` and `page` write them.
"""

import dataclasses
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bench import published, tables
from bench.contenders import Way
from bench.figures import Figure, charts_for
from bench.filed import Filed
from bench.records import Kind, Record, Row
from bench.report import at, conditions_of, details_of, milliseconds, number, times, verdicts_of
from bench.rows import FLOOR
from bench.tables import Table, name_of, row_of


@dataclass(frozen=True)
class Section:
    """What is shown of one record, or of several together."""

    key: str
    title: str
    beside: str
    sources: tuple[Filed, ...]
    lead: str = ""
    first: tuple[tuple[str, Table], ...] = ()  # tables by caption, in sight
    side_by_side: bool = False
    notes: tuple[str, ...] = ()
    command: str = ""
    figures: tuple[Figure, ...] = ()
    folded: tuple[tuple[str, Table], ...] = ()
    failures: tuple[str, ...] = ()


def sections_of(filed: Sequence[Filed]) -> Iterator[Section]:
    """The sections of a page: what several benches have in common first, then one by one."""
    benches = tuple(one for one in filed if one.record.kind == Kind.BENCH)
    if len(benches) > 1:
        yield Section(
            "data-sets",
            "The data sets side by side",
            "what caching saves on each, and what it costs in quality; real series against real ones are the floor",
            benches,
            first=(("", tables.data_sets([one.record for one in benches])),),
            notes=tuple(note for one in benches if (note := _unlike_counts(one.record))),
        )
    makers = {Kind.BENCH: _bench, Kind.ABLATION: _ablation, Kind.GRID: _grid, Kind.PARETO: _pareto}
    for index, one in enumerate(filed, 1):
        section = makers[Kind(one.record.kind)](one)
        figures = tuple(charts_for(one.record))
        yield dataclasses.replace(section, key=f"part-{index}", figures=figures, folded=_folded(section, one.record))


def _bench(one: Filed) -> Section:
    record, batch = one.record, one.record.options.get("batch_size")
    layers, width = (at(record.model, "network", name) for name in ("num_layers", "d_model"))
    facts = [f"batch {batch}" if batch is not None else "",
             f"{layers} layers of width {width}" if layers is not None else ""]  # fmt: skip
    return _section(
        one, "", ", ".join(filter(None, facts)), lead=_headline(record), first=(("", tables.of_rows(record.rows)),)
    )


def _ablation(one: Filed) -> Section:
    told = {True: "borne out", False: "not borne out", None: "cannot be said from these rows"}
    claims = one.record.options.get("claims")
    said = ([f"Claim: {claim}: {told.get(holds, str(holds))}." for claim, holds in claims.items()]
            if isinstance(claims, dict) else [])  # fmt: skip
    return _section(one, ": what each part of the policy is worth", "one part taken away at a time, same noise",
                    first=(("", tables.of_rows(one.record.rows)),), notes=said,
                    folded=(("As published, on ECG", tables.as_published(published.ABLATION)),))  # fmt: skip


def _grid(one: Filed) -> Section:
    matrices = tuple(tables.matrices(one.record).items())
    rows = tables.of_rows(one.record.rows)
    paper = "As published, on ECG", tables.as_published(published.GRID)
    beside = "K lowest frequencies between full refreshes every R steps; the stronger the colour, the better"
    return _section(one, ": K and R", beside,
                    first=matrices or (("", rows),), side_by_side=bool(matrices),
                    folded=(("All rows", rows), paper) if matrices else (paper,))  # fmt: skip


def _pareto(one: Filed) -> Section:
    record, rows = one.record, tables.of_rows(one.record.rows, tables.FRONTIER)
    best, chosen, within = tables.frontier(record), record.options.get("best"), record.options.get("equal_within")
    nearly = f" within {within:.0%} of the best quality" if isinstance(within, float) else " of nearly the best quality"
    return _section(
        one, ": speed against quality", f"{len(record.rows)} rows of one model",
        lead=f"The fastest way{nearly} is {chosen}." if chosen else "",
        first=(("Nothing as fast is better than these", tables.numbered(tables.of_rows(best, tables.FRONTIER))),)
        if best else (),
        folded=(("All ways", rows),),
    )  # fmt: skip


def _section(one: Filed, title: str, beside: str, *, notes: Iterable[str] = (), **shown: Any) -> Section:
    record = one.record
    all_notes = (*notes, *verdicts_of(record), *conditions_of(record))
    return Section("", name_of(record) + title, beside, (one,), notes=all_notes, command=command_of(record),
                   failures=record.failures, **shown)  # fmt: skip


def _folded(section: Section, record: Record) -> tuple[tuple[str, Table], ...]:
    found = list(section.folded)
    if columns := details_of(record.rows):
        found.append(("More figures of each row", tables.of_rows(record.rows, columns)))
    if record.steps is not None:
        found.append(("What each kind of step costs", tables.step_costs(record.steps)))
    if record.stages:
        found.append(("Where the time of a step goes", tables.stages(record.stages)))
    if record.starts:
        found.append(("From nothing to the first sample", tables.starts(record.starts)))
    return tuple(found)


def _headline(record: Record) -> str:
    """What a bench found, in sentences for those who read one thing."""
    cached, uncached, fewer = (row_of(record, way) for way in (Way.CACHED, Way.UNCACHED, Way.FEWER))
    if cached is None or cached.ms_per_sample is None:
        return ""
    first = record.rows[0]
    said = f"E2-CRF draws a series in {milliseconds(cached.ms_per_sample)} ms"
    if cached.speedup is not None and first is not cached:
        said += f", {times(cached.speedup)[:-1]} times faster than {first.rival}"
    if cached.passes is not None and uncached is not None and uncached.passes is not None:
        said += (
            f", with {number(cached.passes, '.4g')} passes of the network instead of {number(uncached.passes, '.4g')}"
        )
    sentences = [said]
    if cached.sw_time is not None:
        floor = row_of(record, FLOOR)
        beside = [f"{name} {number(row.sw_time, '.3g')}" + _of(row, cached)
                  for name, row in (("uncached", uncached), ("real series to each other", floor))
                  if row is not None and row.sw_time is not None]  # fmt: skip
        sentences.append(f"Its distance to real series is {number(cached.sw_time, '.3g')}"
                         + (f" ({'; '.join(beside)})" if beside else ""))  # fmt: skip
    if fewer is not None and fewer.speedup is not None:
        sentences.append("The honest rival, fewer steps without a cache at as many passes, is "
                         f"{times(fewer.speedup)[:-1]} times faster"
                         + (f", at distance {number(fewer.sw_time, '.3g')}" if fewer.sw_time else ""))  # fmt: skip
    for way, where in ((Way.FEWER_AS_GOOD, "To"), (Way.FEWER_SAME_PRIOR, "In the prior phase of the cache to")):
        as_good = row_of(record, way)
        if as_good is not None and as_good.speedup is not None:
            passes = number(as_good.passes, ".4g")
            sentences.append(f"{where} be as good it takes {passes} pass{'' if passes == '1' else 'es'} and is "
                             f"{times(as_good.speedup)[:-1]} times faster")  # fmt: skip
    return ". ".join(sentences) + "."


def _unlike_counts(record: Record) -> str:
    """Where the uncached samples are fewer, so that their distance is larger for that alone."""
    cached, uncached = (row_of(record, way) for way in (Way.CACHED, Way.UNCACHED))
    if cached is None or uncached is None or not uncached.num_samples or uncached.num_samples == cached.num_samples:
        return ""
    return (f"{name_of(record)}: uncached on {uncached.num_samples} samples, E2-CRF on {cached.num_samples}; "
            "a distance is smaller for more samples, so compare the loss in its own section.")  # fmt: skip


def _of(row: Row, cached: Row) -> str:
    """How many samples a distance is of, where they are fewer: it is smaller for more."""
    return f" on {row.num_samples} samples" if row.num_samples != cached.num_samples else ""


_REPEATED = ("--uncached", "--also")  # named once for every value


def command_of(record: Record) -> str:
    """The command that repeats a record, with its settings spelled out; empty where they are not told."""
    options = record.options
    if isinstance(command := options.get("command"), str):
        return command
    named = options.get("bundle") or at(record.model, "source", "run_id")
    common = {"-n": "num_samples", "--steps": "steps", "--solver": "solver", "--seed": "seed"}
    words: dict[str, tuple[str, dict[str, str]]] = {
        Kind.BENCH: ("e2crf bench", {**common, "--uncached": "uncached", "--num-uncached": "num_uncached",
                                     "--num-search": "num_search", "--most-passes": "most_passes",
                                     "--batch-size": "batch_size", "--part": "part",
                                     "--threads": "threads", "--max-sw-loss": "max_sw_loss"}),
        Kind.ABLATION: ("python -m bench.ablation", {**common, "--preset": "preset", "--reuse": "reuse",
                                                     "--alpha-prior": "alpha_prior", "--only": "only",
                                                     "--rounds": "rounds"}),
        Kind.GRID: ("python -m bench.grid", {**common, "-K": "K", "-R": "R", "--preset": "preset",
                                             "--rounds": "rounds"}),
        Kind.PARETO: ("python -m bench.pareto", {"-n": "num_samples", "--steps": "steps", "--solver": "solvers",
                                                 "--uncached": "uncached", "--part": "part", "--minutes": "minutes",
                                                 "--threads": "threads", "--seed": "seed", "--also": "also"}),
    }  # fmt: skip
    verb, flags = words[record.kind]
    given = {flag: options.get(name) for flag, name in flags.items()}
    if isinstance(race := options.get("race"), dict):
        given["--rounds"] = race.get("rounds")
        given["--limit-s"] = race.get("limit_s") if record.kind == Kind.BENCH else None
    settings = []
    for flag, value in given.items():
        each = value if isinstance(value, list) and flag in _REPEATED else [value]
        settings += [f"{flag} {_word(one)}" for one in each if one is not None]
    settings += ["--quick"] if options.get("quick") is True else []
    return " ".join([verb, _word(named or "BUNDLE"), *settings])


def _word(value: Any) -> str:
    """A setting as a shell takes it."""
    if isinstance(value, list):
        return shlex.quote(",".join(map(str, value)))
    return shlex.quote(f"{value:g}" if isinstance(value, float) else str(value))
