"""The rivals of a cached contender: what each of them is, that it costs as much, and that the best form is chosen."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from contending import PASSES, PRIORS, STEPS, contender_of
from tiny import gaussian, make_bundle

from bench.contenders import (
    ROUGHLY,
    TAYLOR_STEPS,
    Contender,
    Way,
    fixed_interval,
    miss_from,
    prior_of,
    rivals_of,
    taylor,
    whole_passes,
)
from bench.few_steps import fewer_steps
from bench.quality import judge
from bench.reference import Reference, Series
from bench.spectra import CORRELATION_SLACK, SPECTRAL_SLACK, excess
from runtime.cache.hold import LinearHold
from runtime.cache.options import E2CRF
from runtime.cache.plan import Plan
from runtime.cache.policy import UNFITTED, Reuse
from runtime.sampler import Model, load
from runtime.sde import VP
from runtime.solvers import Solver, TimeGrid


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with load(make_bundle(tmp_path_factory.mktemp("contenders"))[0], threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def cached(tiny: Model) -> Contender:
    return contender_of(tiny)


def reference(model: Model) -> Reference:
    network = model.manifest.network
    real = np.random.default_rng(0).standard_normal((40, network.num_tokens, network.num_channels)).astype(np.float32)
    return Reference(real[:20], real[20:])


def drawn_rivals(cached: Contender, passes: float = PASSES) -> dict[Way, tuple[Contender, float]]:
    """Every rival by its way, and the passes it took; the first variant of each is called the best."""
    plain = replace(cached, way=Way.UNCACHED, cache=None, solver=Solver.ANCESTRAL)
    few = fewer_steps(cached, Solver.DPMPP_2M, TimeGrid.UNIFORM, whole_passes(passes))
    with rivals_of(cached, passes, plain, few, lambda rival: 0.0, threads=1) as rivals:
        found = {rival.way: (rival, rival.draw(3, 2).stats.passes) for rival in rivals}
    assert len(found) == len(rivals)  # each names a row of its own
    return found


@pytest.fixture(scope="module")
def found(cached: Contender) -> dict[Way, tuple[Contender, float]]:
    return drawn_rivals(cached)


def test_every_rival_costs_what_the_cache_costs_or_says_that_it_cannot(
    found: dict[Way, tuple[Contender, float]],
) -> None:
    assert set(found) == {
        Way.INTERVAL, Way.STALE, Way.TAYLOR, Way.TAYLOR_SECOND, Way.TAYLOR_PLANNED, Way.KV_FEWER, Way.KV_ONLY,
        Way.PUBLISHED,
    }  # fmt: skip
    for way, (_, passes) in found.items():
        if way.has_own_cost:
            assert passes > 2 * PASSES, way
        elif way is Way.KV_FEWER:  # spares what it can
            assert PASSES - 1 < passes < PASSES
        else:
            assert passes == PASSES, way


def test_the_published_form_is_the_readme_preset_as_it_stands(found: dict[Way, tuple[Contender, float]]) -> None:
    published, _ = found[Way.PUBLISHED]
    assert published.cache == E2CRF.preset("readme")
    assert isinstance(published.cache, E2CRF)
    assert (published.cache.reuse, published.cache.alpha_prior) == ("feature", 0.0)
    assert (published.steps, published.solver) == (STEPS, Solver.ANCESTRAL)  # of the uncached contender


def test_taylor_rivals_reuse_what_they_are_named_for_and_drop_the_guard(
    cached: Contender, found: dict[Way, tuple[Contender, float]]
) -> None:
    at_plan, even = (found[way][0].cache for way in (Way.TAYLOR_PLANNED, Way.TAYLOR))
    assert isinstance(at_plan, Plan)
    assert isinstance(even, Plan)
    assert isinstance(cached.cache, Plan)
    assert at_plan == replace(cached.cache, reuse="feature-linear", surprise=())
    assert even.reuse == "feature-linear"
    intervals = np.diff([*even.refreshes, even.steps])
    assert intervals.max() - intervals.min() <= 1


@pytest.fixture(scope="module")
def fitted(cached: Contender) -> Contender:
    """The same refreshes with what is fitted, made up."""
    assert isinstance(cached.cache, Plan)
    ones = np.ones((15, 2), np.float32)
    fit = (LinearHold(ones, ones, ones, ones),) * len(cached.cache.refreshes)
    return replace(cached, cache=replace(cached.cache, reuse="residual-fitted", fit=fit))


def test_a_fitted_plan_leaves_its_fit_to_itself(
    cached: Contender, fitted: Contender, found: dict[Way, tuple[Contender, float]]
) -> None:
    """Its rivals are those of the plan without, and that plan itself, without a guard that knew the fit."""
    rivals = drawn_rivals(fitted)
    unfitted, passes = rivals.pop(Way.UNFITTED)
    assert {way: one.cache for way, (one, _) in rivals.items()} == {way: one.cache for way, (one, _) in found.items()}
    assert isinstance(cached.cache, Plan)
    assert unfitted.cache == replace(cached.cache, reuse=Reuse.FEATURE, surprise=())  # the first of the modes
    assert (unfitted.steps, unfitted.solver, passes) == (STEPS, Solver.DDIM, PASSES)
    assert unfitted.name == "onnxruntime, plan without its fit"


@pytest.mark.parametrize("liked", UNFITTED)
def test_a_plan_without_its_fit_reuses_whatever_misses_least(fitted: Contender, liked: str) -> None:
    def miss(rival: Contender) -> float:
        return float(getattr(rival.cache, "reuse", "") != liked)

    with rivals_of(fitted, PASSES, fitted, fitted, miss, threads=1) as rivals:
        (unfitted,) = (rival for rival in rivals if rival.way is Way.UNFITTED)
    assert isinstance(unfitted.cache, Plan)
    assert unfitted.cache.reuse == liked


@pytest.mark.parametrize("steps", [TAYLOR_STEPS, 1000])
@pytest.mark.parametrize("passes", [1, 2, 3, 5, 7])
def test_taylor_takes_as_many_passes_as_it_may_and_begins_where_the_prior_phase_ends(
    cached: Contender, steps: int, passes: int
) -> None:
    """Oracle: alpha of VP on the even time grid."""
    rival = taylor(cached, passes, steps, 1, of_noise=True)
    assert isinstance(rival.cache, Plan)
    first = rival.cache.refreshes[0]
    at_plan = VP().alpha(np.linspace(1.0, 1e-5, STEPS)[24])
    signal = VP().alpha(np.linspace(1.0, 1e-5, steps)[[first - 1, first]])
    assert signal[0] < at_plan <= signal[1] * (1 + 1e-9)
    assert len(rival.cache.refreshes) == passes


@pytest.mark.parametrize(
    ("passes", "ways"),
    [
        (1.0, set()),
        (2.0, {Way.TAYLOR, Way.TAYLOR_PLANNED}),
        (2.5, {Way.TAYLOR, Way.TAYLOR_PLANNED, Way.TAYLOR_SECOND}),
        (3.0, {Way.TAYLOR, Way.TAYLOR_PLANNED, Way.TAYLOR_SECOND}),
    ],
)
def test_an_expansion_needs_a_pass_more_than_its_order(cached: Contender, passes: float, ways: set[Way]) -> None:
    assert isinstance(cached.cache, Plan)
    cheap = replace(cached, cache=replace(cached.cache, refreshes=(24, 36, 46)[: math.ceil(passes)], surprise=()))
    rivals = drawn_rivals(cheap, passes)
    assert {way for way in rivals if way.startswith("Taylor")} == ways
    for way in ways:
        assert rivals[way][1] == math.ceil(passes)


def test_without_keys_and_values_only_rivals_of_whole_steps_are_left() -> None:
    made = gaussian(12, VP(), "frequency").model
    cached = Contender(Way.CACHED, made, E2CRF(R=10, K=0), STEPS, Solver.DDIM, 0)
    ways = set(drawn_rivals(cached))
    assert ways == {Way.INTERVAL, Way.STALE, Way.TAYLOR, Way.TAYLOR_SECOND, Way.TAYLOR_PLANNED}


@pytest.mark.parametrize("liked", PRIORS[:-2])  # the last two leave too few of 60 steps for an interval of four passes
def test_a_fixed_interval_and_taylor_choose_their_prior_phase(cached: Contender, liked: float) -> None:
    """A step of 50 even ones from there: alpha of VP grows by less than 0.05."""
    with rivals_of(cached, PASSES, cached, cached, lambda rival: abs(prior_of(rival) - liked), threads=1) as rivals:
        chosen = {rival.way: rival for rival in rivals}
        passes = {way: chosen[way].draw(2, 2).stats.passes for way in (Way.INTERVAL, Way.TAYLOR, Way.TAYLOR_SECOND)}
    assert prior_of(chosen[Way.INTERVAL]) == prior_of(chosen[Way.TAYLOR_SECOND]) == liked
    assert liked <= prior_of(chosen[Way.TAYLOR]) < liked + 0.05
    assert passes == dict.fromkeys(passes, PASSES)
    assert isinstance(cached.cache, Plan)
    assert isinstance(plan := chosen[Way.TAYLOR_PLANNED].cache, Plan)  # at the plan's steps
    assert plan.refreshes == cached.cache.refreshes


def test_stale_features_are_reused_at_the_plan_s_steps_or_at_a_constant_interval(cached: Contender) -> None:
    """A measure that likes plans, and one that likes long prior phases."""
    assert isinstance(cached.cache, Plan)
    for miss in (lambda one: float(not isinstance(one.cache, Plan)), lambda one: -prior_of(one)):
        with rivals_of(cached, PASSES, cached, cached, miss, threads=1) as rivals:
            (stale,) = (one for one in rivals if one.way is Way.STALE)
        assert getattr(stale.cache, "reuse", "") == Reuse.FEATURE
        if isinstance(stale.cache, Plan):
            assert stale.cache.refreshes == cached.cache.refreshes
        else:
            assert prior_of(stale) == max(PRIORS)
        assert miss(stale) == min(miss(stale), miss(cached))


@pytest.mark.parametrize("passes", [1, PASSES])
def test_a_fixed_interval_reuses_what_misses_least(cached: Contender, passes: int) -> None:
    """Every mode that needs no fit; of one pass none that extrapolates."""
    tried = set[str]()

    def miss(rival: Contender) -> float:
        if isinstance(rival.cache, E2CRF) and rival.cache.R is not None:
            tried.add(str(rival.cache.reuse))
        return float(getattr(rival.cache, "reuse", "") != Reuse.DATA)

    with rivals_of(cached, passes, cached, cached, miss, threads=1) as rivals:
        (interval,) = (one for one in rivals if one.way is Way.INTERVAL)
    assert isinstance(interval.cache, E2CRF)
    assert interval.cache.reuse == Reuse.DATA
    assert interval.draw(2, 2).stats.passes == passes
    assert tried == {mode for mode in UNFITTED if passes > 1 or not mode.is_linear}


def test_the_variant_that_misses_least_is_the_rival(cached: Contender) -> None:
    """A measure that likes many steps, and noise to be extrapolated."""

    def miss(rival: Contender) -> float:
        return -rival.steps - (getattr(rival.cache, "reuse", "") == "noise-linear")

    with rivals_of(cached, PASSES, cached, fixed_interval(cached, PASSES), miss, threads=1) as rivals:
        chosen = {rival.way: rival for rival in rivals}
    assert getattr(chosen[Way.INTERVAL].cache, "reuse", "") == "noise-linear"
    for way in (Way.TAYLOR, Way.TAYLOR_PLANNED):
        assert isinstance(plan := chosen[way].cache, Plan)
        assert plan.reuse == "noise-linear"
    assert chosen[Way.TAYLOR].steps == chosen[Way.TAYLOR_SECOND].steps == max(TAYLOR_STEPS, STEPS)


def test_a_contender_misses_by_its_distance_over_that_of_the_target(cached: Contender) -> None:
    target = cached.draw(6, 3).series
    miss = miss_from(target, reference(cached.model), batch_size=3)
    assert miss(cached) == 1.0
    assert miss(fewer_steps(cached, Solver.DDIM, TimeGrid.UNIFORM, 1)) != 1.0


@dataclass(frozen=True)
class Walks:
    """Random walks: real ones, two more sets of the same law, and the real ones with 10 dB less at high frequencies."""

    reference: Reference
    target: Series
    honest: Series
    smooth: Series

    def miss(self, cached: Contender, series: Series, target: Series, patch: pytest.MonkeyPatch) -> float:
        """By how much a contender that draws `series` misses."""
        drawn = replace(cached.draw(2, 2), series=series)
        with patch.context() as patched:
            patched.setattr(Contender, "draw", lambda *_: drawn)
            return miss_from(target, self.reference, batch_size=200)(cached)

    def ratio(self, series: Series, target: Series) -> float:
        """What sliced Wasserstein alone says."""
        found, aim = (judge(one, self.reference, ROUGHLY) for one in (series, target))
        return max(found.time.sliced / aim.time.sliced, found.frequency.sliced / aim.frequency.sliced)


@pytest.fixture(scope="module")
def walks() -> Walks:
    real, target, honest = np.random.default_rng(0).standard_normal((3, 200, 15, 2)).cumsum(axis=2).astype(np.float32)
    spectrum = np.fft.rfft(real, axis=1)
    spectrum[:, 4:] *= 10**-0.5
    smooth = np.fft.irfft(spectrum, n=15, axis=1).astype(np.float32)
    return Walks(Reference(real, target), target, honest, smooth)


def test_a_rival_that_is_too_smooth_loses_though_sliced_wasserstein_prefers_it(
    cached: Contender, walks: Walks, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert walks.ratio(walks.smooth, walks.target) < 0.6 * walks.ratio(walks.honest, walks.target)
    honest, smooth = (walks.miss(cached, series, walks.target, monkeypatch) for series in (walks.honest, walks.smooth))
    assert honest < 1.25 < smooth


def test_within_the_slack_of_the_spectrum_only_the_distance_counts(
    cached: Contender, walks: Walks, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = 1.3 * walks.target  # further off than the honest one, its spectrum by 2.3 dB
    found = walks.miss(cached, walks.honest, target, monkeypatch)
    assert found == walks.ratio(walks.honest, target) < 0.9


@pytest.mark.parametrize(("time", "frequency"), [(0.9, 1.5), (1.4, 0.8)])
def test_the_worse_of_both_domains_counts(
    cached: Contender, walks: Walks, monkeypatch: pytest.MonkeyPatch, time: float, frequency: float
) -> None:
    """The target's distances are made to be 2 in either domain, the rival's so many times as far."""
    aim = judge(walks.target, walks.reference, ROUGHLY)
    target, rival = (
        replace(aim, time=replace(aim.time, sliced=2 * one), frequency=replace(aim.frequency, sliced=2 * other))
        for one, other in ((1.0, 1.0), (time, frequency))
    )
    judged = iter((target, rival))
    monkeypatch.setattr("bench.contenders.judge", lambda *_: next(judged))
    assert miss_from(walks.target, walks.reference, batch_size=3)(cached) == pytest.approx(max(time, frequency))


def test_what_spectra_lose_beyond_their_slack_counts_as_a_growth() -> None:
    assert excess((4.0, 0.2), (1.0, 0.2)) == pytest.approx((4.0 - 1.0 - SPECTRAL_SLACK) / 10)
    assert excess((1.0, 0.3), (1.0, 0.2)) == pytest.approx(0.1 - CORRELATION_SLACK)
    assert excess((1.9, 0.22), (1.0, 0.2)) == -math.inf
    assert excess((np.nan, 0.3), (np.nan, 0.2)) == pytest.approx(0.1 - CORRELATION_SLACK)
    assert excess((4.0, np.nan), (1.0, np.nan)) == pytest.approx((4.0 - 1.0 - SPECTRAL_SLACK) / 10)
    assert excess((np.inf, 0.2), (1.0, 0.2)) > 1e6


def test_real_series_without_spectrum_or_autocorrelation_leave_the_distance_alone(cached: Contender) -> None:
    target = cached.draw(6, 3).series
    zero = np.zeros_like(target)
    assert miss_from(target, Reference(zero, zero), batch_size=3)(cached) == 1.0


def test_a_contender_that_diverges_altogether_misses_by_infinity(
    cached: Contender, monkeypatch: pytest.MonkeyPatch
) -> None:
    miss = miss_from(cached.draw(4, 4).series, reference(cached.model), batch_size=4)
    drawn = cached.draw(4, 4)
    lost = replace(drawn, series=np.full_like(drawn.series, np.nan))
    monkeypatch.setattr(Contender, "draw", lambda *_: lost)
    assert miss(cached) == math.inf


def test_the_graph_of_a_k_v_rival_is_gone_with_its_session(
    cached: Contender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with rivals_of(cached, PASSES, cached, cached, lambda rival: 0.0, threads=1):
        assert list(tmp_path.glob("*/*.onnx"))
    assert not list(tmp_path.iterdir())
