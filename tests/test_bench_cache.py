"""Upstream's benchmark words: parsed, timed in turn, judged where real series are at hand, refused in a sentence."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from bench import ablation, cache, grid
from bench.cache import VARIED, CacheWords, bench_cache, told
from bench.latency import RaceOptions
from bench.quality import judge
from bench.reference import read_reference, reference_from_series
from bench.rows import FLOOR, policy_in_words, yardstick
from bench.words import record_from_words
from runtime.cache.options import E2CRF
from runtime.cache.plan import Plan
from runtime.cache.policy import Cache
from runtime.errors import OptionError
from runtime.sampler import Model, load
from tests.tiny import make_bundle, write_checkpoint

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Words:
    name: str = "latest"
    count: int = 10
    knobs: dict[str, Any] = field(default_factory=dict)
    quick: bool = False
    place: str | None = None


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder, _ = make_bundle(tmp_path_factory.mktemp("exported"))
    return load(folder, threads=1)


@pytest.fixture
def real() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((40, 15, 2)).astype(np.float32)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real: np.ndarray) -> Path:
    """A working folder with one run and the real series it was trained on."""
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "lightning_logs/tiny/checkpoints/last.ckpt")
    np.savez(tmp_path / "lightning_logs/tiny/reference.npz", train=real[:20], test=real[20:])
    return tmp_path


def run(main: Callable[..., None], monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Exit code of a module's command in this process."""
    from runtime.command import run_as_command

    monkeypatch.setattr(sys, "argv", ["command", *words])
    with pytest.raises(SystemExit) as stop:
        run_as_command(main)
    return int(stop.value.code or 0)


@pytest.mark.parametrize(
    ("words", "record"),
    [
        ([], Words()),
        (["count=3", "name=ecg-1f", "quick=true"], Words("ecg-1f", 3, quick=True)),
        (["name=123", "place=a=b.npz"], Words("123", place="a=b.npz")),
        (["knobs={K:5,R:10}"], Words(knobs={"K": 5, "R": 10})),
        (["knobs={ K: 5, tau_0: 1e-2, reuse: feature, 'a': 'b' }"],
         Words(knobs={"K": 5, "tau_0": 0.01, "reuse": "feature", "a": "b"})),
        (["+knobs.K=0.1", "++knobs.on=true", "knobs.none=null"], Words(knobs={"K": 0.1, "on": True, "none": None})),
        (["knobs={}"], Words()),
    ],
)  # fmt: skip
def test_words_become_a_record(words: list[str], record: Words) -> None:
    assert record_from_words(Words, words) == record


@pytest.mark.parametrize("text", ["{K:5,R:10}", "{tau_0: 0.1, reuse: feature, on: true, none: null}", "{}", "{K: -1}"])
def test_braces_mean_what_they_mean_to_hydra(text: str) -> None:
    """Oracle: Hydra's own grammar, which upstream's commands use."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (override,) = OverridesParser.create().parse_overrides([f"knobs={text}"])
    assert record_from_words(Words, [f"knobs={text}"]).knobs == override.value()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["count"], r"options are words as key=value, found 'count'; write name="),
        (["cuont=3"], r"unknown key 'cuont'; the known ones are name, count, knobs, quick, place"),
        (["count.K=3"], r"unknown key 'count.K'"),
        (["count=many"], r"count must be a whole number, found 'many'; 10 is the default"),
        (["count=1.5"], r"count must be a whole number"),
        (["count=true"], r"count must be a whole number"),
        (["quick=1"], r"quick must be true or false, found '1'; false is the default"),
        (["knobs=K:5", "knobs=R:10"], r"knobs must be pairs in braces, found 'K:5'; .*with the quotes"),
        (["knobs={K=5}"], r"knobs must be pairs in braces"),
        (["count=1", "count=2"], r"count must be given once"),
    ],
)
def test_a_wrong_word_is_one_sentence(words: list[str], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        record_from_words(Words, words)


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (None, "every step"),
        (E2CRF(policy="never", alpha_prior=0.0), "every step"),
        (E2CRF(policy="never", alpha_prior=0.45), "every step from alpha 0.45"),
        (E2CRF(R=50, K=3), "R 50, K 3, residual, from alpha 0.2"),
        (E2CRF(reuse="data", alpha_prior=0.0), "interval, data"),
        (E2CRF.preset("readme"), "e2crf, R 10, K 5, feature"),
        (Plan(source_digest="", steps=20, solver="ddim", refreshes=(8,)), "plan of 1 refresh"),
        (Plan(source_digest="", steps=20, solver="ddim", refreshes=(8, 9), K=3, low_steps=(12,)),
         "plan of 2 refreshes, K 3 at 1 step"),
    ],
)  # fmt: skip
def test_a_policy_is_told_in_words(chosen: Cache | None, words: str) -> None:
    assert policy_in_words(chosen) == words


def test_both_are_drawn_in_turn_and_judged_in_the_same_row(model: Model, real: np.ndarray) -> None:
    words = CacheWords(num_samples=4, num_diffusion_steps=30, cache_kwargs={"K": 3, "R": 5}, ablations=False, rounds=1)
    turns: list[str] = []
    found = bench_cache(model, words, reference_from_series(real), lambda doing, share: turns.append(doing))
    baseline, cached, floor = found.rows
    assert (baseline.rival, cached.rival, floor.rival) == ("baseline", "E2-CRF", FLOOR)
    both, doing = ("baseline", "E2-CRF"), iter(turns)
    assert [next(doing) for _ in both] == [f"sampling: {name}" for name in both]
    assert list(doing) == [f"timing: {name}" for name in both] * 2  # a warm-up and a round
    assert (baseline.passes, baseline.hit_rate, baseline.speedup) == (30, 0, 1)
    assert cached.passes is not None
    assert cached.passes < 30
    assert found.baseline_s == pytest.approx((baseline.ms_per_sample or 0) * 4 / 1e3)
    assert found.speedup == pytest.approx(found.baseline_s / found.cached_s)  # of one round
    assert found.cache_stats["recompute_count"] + found.cache_stats["cache_hit_count"] == 4 * 30 * 15
    assert baseline.sw_time is not None
    assert cached.sw_frequency is not None
    assert (baseline.paired_error, (cached.paired_error or 0) > 0) == (None, True)
    text = told(found, words, model)
    assert "baseline (no cache)" in text
    assert f"speed-up             {found.speedup:.3g}x" in text
    assert "cache_kwargs {'K': 3, 'R': 5}" in text
    assert text.count("\n| ") == 5  # two of header, baseline, cached, floor


def test_the_ablations_vary_one_knob_at_a_time_where_the_model_can(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "RaceOptions", partial(RaceOptions, turn_s=0.0))
    words = CacheWords(num_samples=1, num_diffusion_steps=60, rounds=1)
    found = bench_cache(model, words, None)
    names = [row.rival for row in found.rows]
    assert names[:2] == ["baseline", "E2-CRF"]
    few = {("K", 10)}  # there are 8 frequencies
    assert names[2:] == [f"{k} = {v}" for k, values in VARIED.items() for v in values if (k, v) not in few]
    assert all(row.sw_time is None for row in found.rows)
    caches = {name: one.cache for name, one in cache.contenders(model, words)}
    assert (caches["baseline"], caches["E2-CRF"]) == (None, E2CRF())
    assert (caches["K = 5"], caches["R = 20"]) == (E2CRF(policy="e2crf", K=5), E2CRF(policy="e2crf", R=20))


def test_without_cache_kwargs_the_plan_is_taken_where_it_fits(tmp_path: Path) -> None:
    folder, checkpoint = make_bundle(tmp_path)
    Plan(source_digest=checkpoint.digest, steps=20, solver="ddim", refreshes=(8, 14)).write(folder / "plan.json")
    words = CacheWords(num_samples=2, num_diffusion_steps=20, solver="ddim", ablations=False, rounds=1)
    with load(folder) as planned:
        found = bench_cache(planned, words, None)
        assert found.rows[1].passes == 2
        assert "cache: the bundle's plan" in told(found, words, planned)


def test_the_command_in_upstreams_words(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """From a checkpoint alone: exported on demand, timed, judged by the series of the run."""
    words = ["model_id=latest", "num_samples=3", "num_diffusion_steps=10", "ablations=false", "rounds=1"]
    assert run(cache.main, monkeypatch, *words) == 0
    printed = capfd.readouterr().out
    assert printed.startswith("3 samples of 10 euler_maruyama steps, 1 at a time, median of 1 rounds in turn")
    assert FLOOR in printed
    assert Path("bundles/tiny/manifest.json").is_file()
    assert run(cache.main, monkeypatch, *words, "cache_kwargs={K:2,R:4}", "--json") == 0
    (line,) = capfd.readouterr().out.splitlines()
    assert [row["rival"] for row in json.loads(line)["rows"]] == ["baseline", "E2-CRF", FLOOR]


def test_quality_is_that_of_all_steps_where_only_some_were_timed(
    model: Model, real: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: as many samples drawn over all steps and judged alike."""
    monkeypatch.setattr("bench.cache.RaceOptions", lambda rounds: RaceOptions(rounds, limit_s=1e-6))
    reference = reference_from_series(real)
    words = CacheWords(num_samples=6, num_diffusion_steps=60, ablations=False, rounds=1)
    found = bench_cache(model, words, reference)
    row = found.rows[0]
    assert (row.measured_steps or 0) < 60
    assert row.passes == 60
    whole = model.sample(6, steps=60, solver=words.solver, cache=None, batch_size=1).series
    by = yardstick(reference, 6)
    assert row.sw_time == pytest.approx(judge(whole, by.reference, by.options).time.sliced)
    assert "* timed over fewer steps" in told(found, words, model)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["steps=3"], "unknown key 'steps'; the known ones are model_id, num_samples, num_diffusion_steps"),
        (["num_samples=0"], "num_samples must be at least 1"),
        (["cache_kwargs={L:3}"], "unknown name L in cache_kwargs"),
        (["model_id=gone"], "no model 'gone'"),
        (["rounds=0"], "rounds must be at least 1"),
        (["solver=rk4"], "unknown solver 'rk4'"),
        (["reference=gone.npz"], "no file gone.npz"),
    ],
)
def test_wrong_words_are_a_sentence_and_exit_code_2(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert run(cache.main, monkeypatch, *words) == 2
    printed = capfd.readouterr()
    assert says in " ".join(printed.err.split())
    assert "Traceback" not in printed.err
    assert printed.out == ""


def test_a_reference_of_junk_is_told_in_our_own_words(tmp_path: Path) -> None:
    """NumPy's words for such a file advise to load it unsafely."""
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "junk.npz").write_text("junk")
    for path in tmp_path.iterdir():
        with pytest.raises(OptionError, match="is not a whole npz or npy file of numbers that can be read; write it"):
            read_reference(path)


@pytest.mark.parametrize("module", [ablation, grid])
@pytest.mark.parametrize(
    ("options", "found", "remedy"),
    [
        (["-n", "4", "--steps", "40"], "--num-samples, --steps", "num_samples=..., num_diffusion_steps=..."),
        (["--seed", "0", "--solver", "ddim"], "--seed, --solver", "random_seed=..., solver=..."),  # 0 is the default
    ],
)
def test_words_and_options_of_the_same_meaning_are_refused_together(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], module: ModuleType,
    options: list[str], found: str, remedy: str,
) -> None:  # fmt: skip
    assert run(module.main, monkeypatch, "model_id=latest", *options) == 2
    said = " ".join(capfd.readouterr().err.split())
    assert f"what is sampled is named by words alone, found '{found}'; write {remedy}" in said


def test_the_modules_are_commands(workplace: Path) -> None:
    """A real process, as upstream's users type it."""
    words = ["model_id=latest", "num_samples=2", "num_diffusion_steps=100", "rounds=1", "ablations=false"]
    command, environment = [sys.executable, "-m", "bench.cache", *words], os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert "speed-up" in done.stdout
    assert "warning" not in done.stderr
