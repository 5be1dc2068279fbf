"""The policy taken apart: one record of rows, curves and claims, which say what the rows and curves say."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import ablation
from bench.ablation import BASELINE, FULL, AblationOptions, ablate, ablations, by_third, claims, markdown_of
from bench.records import Chart, Curve, Kind, Record, Row, read_records
from bench.reference import reference_from_series
from runtime.cache.options import E2CRF
from runtime.errors import OptionError
from runtime.sampler import Model
from tests import opened
from tests.commands import QUICK, REAL, run, write_run

OPTIONS = AblationOptions(num_samples=5, steps=30, rounds=0, quality=QUICK)
model = opened.tiny


@pytest.fixture(scope="module")
def found(model: Model) -> Record:
    return ablate(model, reference_from_series(REAL), OPTIONS)


def test_every_ablation_is_a_row_of_cost_and_quality(found: Record) -> None:
    rows = {row.rival: row for row in found.rows}
    assert (found.kind, list(rows)) == (Kind.ABLATION, list(ablations(E2CRF.preset("paper"))))
    baseline, full = rows[BASELINE], rows[FULL]
    assert (baseline.passes, baseline.hit_rate, baseline.policy, baseline.ms_per_sample) == (30, 0, "every step", None)
    assert baseline.events == {"first": 1, "refresh": 29}
    assert (baseline.paired_error, (full.paired_error or 0) > 0) == (None, True)
    assert full.policy == "e2crf, R 50, K 0.1, feature"
    assert rows["fixed schedule"].policy == "R 50, K 0, feature"
    for row in rows.values():
        assert row.num_samples == 5
        assert row.sw_time is not None
        assert sum((row.events or {}).values()) == pytest.approx(30)  # every step of a sample is one event


@pytest.mark.parametrize("preset", ["readme", "paper", "paper-best"])
@pytest.mark.filterwarnings("ignore::runtime.errors.CacheWarning")
def test_naive_recomputes_the_lowest_frequencies_and_corrects_nothing(model: Model, preset: str) -> None:
    """Between the first step and the last, the same as an interval of low frequencies that is never refreshed."""
    naive = ablations(E2CRF.preset(preset))["naive"]
    assert naive is not None
    plain = E2CRF(R=10**6, K=naive.K, low_every=1, reuse=naive.reuse, alpha_prior=naive.alpha_prior)
    one, other = (model.sample(3, steps=30, cache=cache) for cache in (naive, plain))
    assert np.array_equal(one.stats.recomputed, other.stats.recomputed)
    np.testing.assert_allclose(one.z, other.z, rtol=1e-4, atol=1e-4 * np.abs(other.z).max())


def test_with_rounds_they_are_timed_against_the_baseline(model: Model) -> None:
    asked = replace(OPTIONS, rounds=1, steps=200, only="fixed schedule")
    baseline, fixed = ablate(model, reference_from_series(REAL), asked).rows
    assert baseline.speedup == 1
    assert (fixed.low_ms_per_sample or 0) <= (fixed.ms_per_sample or 0) <= (fixed.high_ms_per_sample or 0)
    assert (fixed.ms_per_sample or 0) < (baseline.ms_per_sample or 0)  # 4 passes of 200


@pytest.mark.filterwarnings("ignore::runtime.errors.CacheWarning")
def test_curves_are_what_the_sampler_recorded(found: Record, model: Model) -> None:
    """Oracle: the statistics of the same draw, step by step."""
    stats = model.sample(5, steps=30, seed=0, cache=E2CRF.preset("paper")).stats
    curves = {(curve.chart, curve.name): curve for curve in found.curves}
    hits = curves[Chart.HIT_RATE, FULL]
    assert hits.x == tuple(range(30))
    assert hits.y == pytest.approx(1 - stats.recomputed.sum(axis=1) / (5 * 15))
    intensity = np.array([np.nan if value is None else value for value in curves[Chart.INTENSITY, FULL].y])
    np.testing.assert_allclose(intensity, stats.intensity)
    assert (Chart.INTENSITY, BASELINE) not in curves  # no step of it is partial
    assert set(curves[Chart.HIT_RATE, BASELINE].y) == {0.0}


def test_long_curves_are_means_over_at_most_200_stretches() -> None:
    values = np.arange(1000, dtype=np.float64)
    values[995:] = np.nan
    curve = ablation._curve(Chart.HIT_RATE, "full", values)
    assert len(curve.x) == len(curve.y) == 200
    assert (curve.x[:2], curve.y[:2]) == ((2.0, 7.0), (2.0, 7.0))
    assert (curve.x[-1], curve.y[-1]) == (997.0, None)
    assert by_third([curve], Chart.HIT_RATE, "full")[0] == pytest.approx(np.mean(values[:335]))
    assert by_third([curve], Chart.INTENSITY, "full") == []


def _curve(chart: Chart, *values: float | None) -> Curve:
    return Curve(chart, FULL, tuple(range(len(values))), values)


@pytest.mark.parametrize(
    ("errors", "intensity", "hits", "holds"),
    [
        ((0.1, 0.2, 0.3), (0.9, 0.5, 0.1), (0.4, 0.6, 0.75), (True, True, True, True)),
        ((0.3, 0.2, 0.1), (0.1, None, 0.9), (0.6, 0.6, 0.6), (False, False, False, False)),
        ((None, 0.2, 0.1), (None, None, 0.1), (0.4, 0.6, 0.5), (None, False, None, None)),
        (
            (0.2, 0.2, 0.20001),
            (0.9, 0.5, 0.1),
            (0.4, 0.6, 0.75),
            (True, True, None, None),
        ),  # without them it is the same
    ],
)
def test_claims_say_what_rows_and_curves_say(errors: Any, intensity: Any, hits: Any, holds: Any) -> None:
    names = (FULL, "no error feedback", "no energy weighting")
    rows = [Row(name, paired_error=error) for name, error in zip(names, errors, strict=True)]
    curves = [_curve(Chart.INTENSITY, *intensity), _curve(Chart.HIT_RATE, *hits)]
    assert tuple(claims(rows, curves).values()) == holds


def test_claims_say_nothing_where_nothing_was_measured() -> None:
    assert set(claims([Row(BASELINE)], []).values()) == {None}


def test_what_is_told_is_the_record(found: Record) -> None:
    text = markdown_of(found)
    assert text.count("\n| ") == 1 + len(found.rows)
    for claim, holds in found.options["claims"].items():
        assert f"- {claim}: {({True: 'yes', False: 'no', None: 'cannot be said'})[holds]}" in text


def test_a_policy_that_the_model_cannot_do_is_refused_before_anything_is_drawn(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = replace(model.facts, tokens=replace(model.facts.tokens, obstacle="it has no K/V cache"))
    monkeypatch.setattr(model, "facts", without)
    monkeypatch.setattr(Model, "sample", lambda *_, **options: pytest.fail("drawn"))
    with pytest.raises(OptionError, match="the lowest frequencies alone, but it has no K/V cache; set K to 0"):
        ablate(model, reference_from_series(REAL), OPTIONS)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"only": "lazy"}, "unknown ablation 'lazy'; the known ones are baseline, full"),
        ({"preset": "mine"}, "unknown preset 'mine'"),
        ({"rounds": -1}, "rounds must not be negative"),
        ({"num_samples": 1}, "num_samples must be at least 2"),
    ],
)
def test_options_that_cannot_be_meant_are_a_sentence(change: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        AblationOptions(**change)


def test_the_command_takes_upstreams_words_and_its_own_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path)
    words = ["model_id=tiny", "num_samples=4", "num_diffusion_steps=8", "--rounds", "0", "--json"]
    assert run(ablation.main, monkeypatch, *words) == 0
    (line,) = capfd.readouterr().out.splitlines()
    rows = json.loads(line)["rows"]
    assert {(row["num_samples"], row["ms_per_sample"]) for row in rows} == {(4, None)}
    assert rows[0]["passes"] == 8
    (written,) = read_records(Path("bundles/tiny/reports/ablation.json"))
    assert written.to_line() == line
    own = ["latest", "-n", "2", "--steps", "5", "--only", "naive", "--rounds", "0", "--out", "mine.json"]
    assert run(ablation.main, monkeypatch, *own) == 0
    (written,) = read_records(Path("mine.json"))
    assert [(row.rival, row.num_samples, row.steps) for row in written.rows] == [("baseline", 2, 5), ("naive", 2, 5)]
    assert "- energy weighting helps: cannot be said" in capfd.readouterr().out
    assert run(ablation.main, monkeypatch, "model_id=tiny", "cache_kwargs={K:5}") == 2
    assert "unknown key 'cache_kwargs'" in " ".join(capfd.readouterr().err.split())
    os.remove("lightning_logs/tiny/reference.npz")
    assert run(ablation.main, monkeypatch, "model_id=tiny") == 2
    assert "name them with --reference" in " ".join(capfd.readouterr().err.split())
