"""The README tells the truth: its files, commands and targets exist, none is left out, and figures are of records."""

import math
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bench.contenders import Way
from bench.latency import speedup_of
from bench.readme import TABLE, pictures_of, with_tables
from bench.records import Record, Row, read_records
from bench.rows import FLOOR
from bench.steps import COMPILED
from bench.tables import row_of
from train.config import compose_config, options_from_config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ROOMS = ("train", "export", "engines", "runtime", "bench")


def _captioned() -> dict[str, set[str]]:
    """File names in the captioned list, by room."""
    listed: dict[str, set[str]] = {}
    room = ""
    for line in README.partition("## Files")[2].partition("## ")[0].splitlines():
        if title := re.match(r"\| \*\*(\w+)/\*\*", line):
            room = title[1]
        names = re.findall(r"`([\w/]+\.(?:py|c|h))`", line.split("|")[1] if "|" in line else "")
        folder = ""
        for name in names:
            folder = name.rpartition("/")[0] or folder
            listed.setdefault(room, set()).add(f"{folder}/{name.rpartition('/')[2]}".lstrip("/"))
    return listed


@pytest.mark.parametrize("room", ROOMS)
def test_every_file_has_a_caption_and_every_caption_a_file(room: str) -> None:
    sources = [path for form in ("*.py", "*.c", "*.h") for path in (ROOT / room).rglob(form)]
    files = {path.relative_to(ROOT / room).as_posix() for path in sources}
    assert _captioned().get(room, set()) == {name for name in files if not name.endswith("__init__.py")}


def test_the_two_commands_are_targets() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_ci_calls_the_tests() -> None:
    assert "make test" in (ROOT / ".ci/run").read_text(encoding="utf-8")


# What the prose of "What it saves" says of the committed records, to be filled anew when they are measured anew: every
# sentence with a figure is written by its record, and a figure that none of these writes is not allowed.


def times(value: float | None) -> str:
    """A speed-up in three digits."""
    assert value is not None
    return f"{float(f'{value:.3g}'):,g}x"


def per_cent(share: float, form: str = ".0f") -> str:
    """A share in per cent."""
    return f"{share * 100:{form}} %"


def row(record: Record, way: str) -> Row:
    """The row of a way of sampling, or a yardstick."""
    found = row_of(record, way)
    assert found is not None, way
    return found


def twin(record: Record, rival: str) -> Row:
    """The row of a way on another backend."""
    (found,) = (row for row in record.rows if row.rival == rival)
    return found


def loss_of(record: Record, domain: str) -> str:
    """How much caching changes the distance in a domain, with its interval."""
    loss = record.loss_time if domain == "time" else record.loss_frequency
    assert loss is not None
    change, low, high = (per_cent(share, "+.1f") for share in (loss.value, loss.low, loss.high))
    return f"{change} ({low} to {high})"


def further(record: Record, way: str) -> float:
    """How much further than the cached row another one is from the data: the mean of both domains."""
    cached, other = row(record, Way.CACHED), row(record, way)
    return sum(getattr(other, field) / getattr(cached, field) for field in ("sw_time", "sw_frequency")) / 2 - 1


def ahead_of_as_good(record: Record) -> float:
    """How many times as fast the cached row is as the few steps that are as good."""
    cached, others = (row(record, way).speedup for way in (Way.CACHED, Way.FEWER_AS_GOOD))
    assert cached is not None
    assert others is not None
    return cached / others


def by_medians(record: Record) -> float:
    """The speed-up of the cached row by the medians of rounds, PyTorch's over its own."""
    pytorch, cached = twin(record, f"pytorch, {Way.UNCACHED}").ms_per_sample, row(record, Way.CACHED).ms_per_sample
    assert pytorch is not None
    assert cached is not None
    return pytorch / cached


def number(value: float | None) -> str:
    """A small count in words, any other in digits."""
    assert value is not None
    return {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}.get(value, f"{value:.4g}")


def steps_of(record: Record) -> str:
    """What a step costs by its kind."""
    steps, uncached = record.steps, twin(record, f"pytorch, {Way.UNCACHED}").ms_per_sample
    assert steps is not None
    assert uncached is not None
    assert steps.low_by == COMPILED
    assert steps.full_over_low is not None
    return (
        f"a full step takes {1000 * steps.full_ms / uncached:.2f} of PyTorch's, "
        f"one of {number(steps.num_low_tokens)} tokens 1/{steps.full_over_low:.0f} of that, "
        f"an empty one 1/{steps.full_over_empty:.0f}"
    )


def as_good(record: Record) -> str:
    """What few steps take to be as good."""
    within, tried = per_cent(record.options["equal_within"]), f"{record.options['num_samples']:,}"
    if row_of(record, Way.FEWER_AS_GOOD) is None:
        return f"It did not come within {within} of the cached row on {tried} samples with up to eight passes."
    found = row(record, Way.FEWER_AS_GOOD)
    passes = f"{number(found.passes)} pass{'' if found.passes == 1 else 'es'}"
    return (
        f"To come within {within} of the cached row on {tried} samples it takes {passes}, "
        f"and is {times(found.speedup)} as fast as PyTorch."
    )


ECG, ECG_64, ECG_STEPS = "ecg-published-cpu", "ecg-published-batch64-cpu", "ecg-published-steps-cpu"
DISCHARGE_64, NASDAQ_64 = "nasa-discharge-batch64-cpu", "nasdaq-batch64-cpu"
DISCHARGE_ANEW, NASDAQ_ANEW = "nasa-discharge-anew-cpu", "nasdaq-anew-cpu"
DISCHARGE_RUNS = ("nasa-discharge-cpu", "nasa-discharge-again-cpu", "nasa-discharge-third-cpu")
SAID: tuple[tuple[str, Callable[[Record], str]], ...] = (
    (ECG, lambda found: f"median of {found.options['race']['rounds']} rounds"),
    (ECG, lambda found: f"{found.options['num_samples']:,} samples"),
    (ECG, lambda found: f"{row(found, Way.UNCACHED).num_samples:,} uncached"),
    (ECG, lambda found: f"{found.options['num_uncached']} where most steps ask the network"),
    (ECG, lambda found: f"against {row(found, FLOOR).num_samples} real test beats"),
    (ECG, lambda found: f"± half its {per_cent(found.options['quality']['level'])} interval"),
    (
        ECG,
        lambda found: (
            f"caching changes it by {loss_of(found, 'time')} in the time and "
            f"{loss_of(found, 'frequency')} in the frequency domain"
        ),
    ),
    (ECG, lambda found: f"{number(row(found, Way.CACHED).passes)} network calls in {found.options['steps']:,} steps"),
    (ECG, lambda found: f"{times(row(found, Way.CACHED).speedup)} the speed of PyTorch"),
    (ECG, lambda found: f"{per_cent(further(found, Way.FEWER))} further from the data"),
    (ECG, lambda found: as_good(found)),
    (ECG, lambda found: f"The plan is {ahead_of_as_good(found):.1f}x as fast as that"),
    (ECG, lambda found: f"comes closest at its cost, {per_cent(further(found, Way.INTERVAL))} further from the data"),
    (
        ECG,
        lambda found: (
            f"the quality of {number(row(found, Way.FEWER_AS_GOOD).passes)} passes "
            f"at the cost of {number(row(found, Way.CACHED).passes)}"
        ),
    ),
    (ECG, lambda found: f"PyTorch under the plan is {times(twin(found, f'pytorch, {Way.CACHED}').speedup)}"),
    (
        ECG_64,
        lambda found: (
            f"In batches of {found.options['batch_size']} the plan is {times(row(found, Way.CACHED).speedup)}, "
            f"few steps at equal passes {times(row(found, Way.FEWER).speedup)} and "
            f"few steps as good {times(row(found, Way.FEWER_AS_GOOD).speedup)}"
        ),
    ),
    (ECG_STEPS, steps_of),
    (
        DISCHARGE_64,
        lambda found: (
            f"on NASA discharge the plan is {times(row(found, Way.CACHED).speedup)}, "
            f"few steps as good {times(row(found, Way.FEWER_AS_GOOD).speedup)}"
        ),
    ),
    (
        NASDAQ_64,
        lambda found: (
            f"on NASDAQ {times(row(found, Way.CACHED).speedup)} and {times(row(found, Way.FEWER_AS_GOOD).speedup)}"
        ),
    ),
    (DISCHARGE_RUNS[0], lambda found: f"the plan is {ahead_of_as_good(found):.2f} times as fast as few steps as good"),
    (DISCHARGE_RUNS[1], lambda found: f"then {ahead_of_as_good(found):.2f} times"),
    (DISCHARGE_RUNS[2], lambda found: f"at last {ahead_of_as_good(found):.2f} times"),
    (
        DISCHARGE_ANEW,
        lambda found: (
            f"NASA discharge has {times(row(found, Way.CACHED).speedup)}, "
            f"{ahead_of_as_good(found):.2f} times as fast as few steps as good"
        ),
    ),
    (
        NASDAQ_ANEW,
        lambda found: f"NASDAQ {times(row(found, Way.CACHED).speedup)}, {ahead_of_as_good(found):.2f} times as fast",
    ),
    ("nasdaq-cpu", lambda found: f"NASDAQ is {times(by_medians(found))} in the table's run"),
    (NASDAQ_ANEW, lambda found: f"and {times(by_medians(found))} in this one"),
    (DISCHARGE_RUNS[0], lambda found: f"NASA discharge {times(by_medians(found))}"),
    (DISCHARGE_ANEW, lambda found: f"and {times(by_medians(found))}."),
)
RESULTS = ROOT / "bench/results"
SECTION = README.partition("## What it saves\n")[2].partition("\n## ")[0]
FIGURE = re.compile(r"[-+]?\d[\d,.]*(?:x\b| times\b| ?%| ?ms\b| passes\b)|\d+\.\d+")


def _read(name: str) -> Record:
    (record,) = read_records(RESULTS / f"{name}.json")
    return record


def _unheld(section: str) -> list[str]:
    """The figures of a section that stand in no table and no sentence of a record."""
    prose = " ".join(TABLE.sub("", section).split())
    for said in sorted((say(_read(name)) for name, say in SAID), key=len, reverse=True):  # one may be part of another
        prose = prose.replace(said, "")
    return FIGURE.findall(prose)


@pytest.mark.parametrize(("name", "say"), SAID)
def test_the_prose_says_what_the_record_says(name: str, say: Callable[[Record], str]) -> None:
    said = say(_read(name))
    assert said in " ".join(SECTION.split()), f"by {name}.json the README must say: {said}"


def test_no_figure_stands_in_the_prose_without_a_record() -> None:
    assert _unheld(SECTION) == []


def test_a_figure_that_no_record_writes_is_found() -> None:
    added = "On a watch it is 900x, 12 times or 3.5 faster, takes 1,200 ms and 7 passes, and loses -0.5 %."
    assert _unheld(f"{SECTION}\n{added}") == ["900x", "12 times", "3.5", "1,200 ms", "7 passes", "-0.5 %"]


def test_tables_are_their_records_digit_for_digit_and_stand_whole_somewhere() -> None:
    """No rival may be left out, nor a table stand without the records that wrote it."""
    tables = [(how_much, paths) for _, how_much, paths, _ in TABLE.findall(SECTION)]
    in_short, in_full = ({paths for how, paths in tables if how == wanted} for wanted in ("in short", "in full"))
    assert in_short
    assert in_short == in_full
    assert with_tables(README, ROOT) == README, "`python -m bench.readme README.md` writes the tables anew"
    assert [line for line in TABLE.sub("", SECTION).splitlines() if line.startswith("|")] == []


def test_pictures_are_as_their_records_draw_them() -> None:
    drawn = pictures_of(README, ROOT)
    assert sorted(drawn) == sorted(RESULTS.glob("*.svg"))
    for path, text in drawn.items():
        assert path.read_text(encoding="utf-8") == text, "`python -m bench.readme README.md` draws it anew"


def test_speed_ups_of_records_follow_from_their_rounds() -> None:
    rows = [one for path in RESULTS.glob("*.json") for record in read_records(path) for one in record.rows]
    rows = [one for one in rows if one.rounds_ms is not None]  # older records kept medians alone
    assert rows
    for one in rows:
        assert one.beside_ms is not None
        speedup, low, high = speedup_of(one.beside_ms, one.rounds_ms)
        assert one.speedup == pytest.approx(speedup, rel=2e-3)  # rounds are kept to four digits
        assert (one.low_speedup, one.high_speedup) == (pytest.approx(low, rel=2e-3), pytest.approx(high, rel=2e-3))
        assert one.ms_per_sample == pytest.approx(np.median(one.rounds_ms), rel=1e-3)


def test_half_of_all_ratios_repeat_within_a_twentieth_and_every_one_within_a_fifth() -> None:
    """Three runs of one bench, one after the other: the largest ratio over the least."""
    runs = [_read(name) for name in DISCHARGE_RUNS]
    assert runs[0].created < runs[1].created < runs[2].created
    assert runs[0].model == runs[1].model == runs[2].model
    rows = [{one.rival: one for one in run.rows if one.speedup is not None} for run in runs]
    assert rows[0].keys() == rows[1].keys() == rows[2].keys()
    apart = []
    for name in rows[0]:
        assert len({one[name].sw_time for one in rows}) == 1, f"{name} drew other samples"
        speedups = [one[name].speedup or math.nan for one in rows]
        apart.append(max(speedups) / min(speedups) - 1)
    others = sorted(apart)[1:]  # the first way is its own measure
    assert len(others) == 20
    assert others[len(others) // 2] < 0.05
    assert others[-1] < 0.2


def test_every_committed_record_is_named() -> None:
    records = sorted(path.relative_to(ROOT).as_posix() for path in RESULTS.glob("*.json"))
    assert records
    assert [path for path in records if f"`{path}`" not in README] == []


def _dry_run(*words: str) -> list[str]:
    """The commands that make would run."""
    told = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", *words], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return told.replace("\\\n", " ").splitlines()


NEEDS_MAKE = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@NEEDS_MAKE
@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("ecg", ECG),
        ("nasdaq", "nasdaq-cpu"),
        ("nasa-charge", "nasa-charge-cpu"),
        ("nasa-discharge", "nasa-discharge-cpu"),
        ("usdroughts", "usdroughts-cpu"),
    ],
)
def test_a_data_set_of_the_paper_is_made_as_its_record_was(data: str, name: str) -> None:
    record, commands = _read(name), _dry_run("paper", f"SET={data}", "DATA=raw")
    network, source = record.model["network"], record.model["source"]
    (trained,) = (shlex.split(line)[2:] for line in commands if "e2crf train" in line)
    options = options_from_config(compose_config(trained))
    facts = options.score_model.network(network["num_tokens"], network["num_channels"]).to_dict()
    shared = set(facts) & set(network)  # dropout is no part of what samples, the backbone of what trains
    assert {fact: facts[fact] for fact in shared} == {fact: network[fact] for fact in shared}
    assert {"num_layers", "d_model", "num_heads", "d_ff"} <= shared
    assert source["data"].partition("/")[0] == trained[0].removeprefix("datamodule=")
    (benched,) = (shlex.split(line) for line in commands if "e2crf bench" in line)
    told = dict(zip(benched[3::2], benched[4::2], strict=True))
    assert told["--part"] == record.options["part"]


@NEEDS_MAKE
def test_another_data_set_is_refused_in_a_sentence() -> None:
    told = subprocess.run(["make", "--dry-run", "paper", "SET=nope"], cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 2
    assert "SET must be one of ecg, nasdaq, nasa-charge, nasa-discharge and usdroughts, found 'nope'" in told.stderr


@NEEDS_MAKE
@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["bench"], "e2crf bench latest"),
        (["bench", "MODEL=ecg"], "e2crf bench ecg"),
        (["bench", "BUNDLE=elsewhere/ecg", "OLD=old.json"], "e2crf bench elsewhere/ecg --compare old.json"),
        (["export", "MODEL=ecg", "BUNDLE=elsewhere/ecg"], "e2crf export ecg --bundle elsewhere/ecg"),
        (["sample", "BUNDLE=elsewhere/ecg"], "e2crf sample elsewhere/ecg --num-samples 64 --out samples.npz"),
        (["report"], "e2crf report  --out report"),
        (["report", "RECORDS=a.json b.json", "REPORT=page"], "e2crf report a.json b.json --out page"),
    ],
)
def test_targets_take_a_model_by_name_or_a_bundle_by_folder(words: list[str], command: str) -> None:
    assert _dry_run(*words)[-1].strip().endswith(command)
