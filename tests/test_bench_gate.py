"""The gate lets a correct cache pass and stops a crippled one: stale features, wrong tokens, shared keys and values.

The model is small and really trained, on signed clicks: whether a click points up or down is known from all
frequencies together, so that tokens have to attend to each other. The caches are crippled where they live, in the
backend, and everything is drawn from the same noise. The losses that stand beside the faults are those of three models
trained from other seeds; the correct caches are at 2 % and below, and the gate is set to 5 %.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.gate import failures_of
from bench.quality import Quality, QualityOptions, judge, loss, mean_sample
from bench.reference import Reference
from export.bundle import ExportOptions, export_bundle
from export.checkpoint import read_checkpoint
from export.manifest import read_manifest
from runtime.backends.ort import OrtBackend
from runtime.cache.options import E2CRF
from runtime.cache.policy import FIRST, Cache, Decision, Event, Needs, Step, first_network_step
from runtime.errors import OptionError
from runtime.sampler import Model
from runtime.sde import VP
from train.checkpoint import KEY, ModelFacts
from train.data import tokens_from_series
from train.datasets import Series
from train.losses import draw_times, score_matching_loss
from train.networks import NetworkOptions, TransformerScore

N, STEPS, SAMPLES, PRIOR = 24, 100, 400, 0.1
TOLERANCE = 0.05
QUICK = QualityOptions(num_directions=256, num_resamples=20, interval_directions=16)

Array = np.ndarray[Any, Any]
Call = Callable[[], None]
Fault = Callable[[Call, Array, list[Array], Array], None]


def clicks(n: int, seed: int) -> Array:
    """A click at step 7, up or down, in some noise: [n, N, 1]."""
    generator = np.random.default_rng(seed)
    height = generator.choice([-1, 1], (n, 1)) * generator.uniform(0.8, 1.2, (n, 1))
    shape = np.exp(-0.5 * ((np.arange(N) - 7) / 0.8) ** 2)
    return (height * shape + 0.03 * generator.standard_normal((n, N)))[..., None].astype(np.float32)


# Faults take a call of the network for tokens [B, S], its caches [B, H, N, Dh] and its scores [B, S, C].


def shared(call: Call, token: Array, caches: list[Array], score: Array) -> None:
    """All samples attend to what the first one left, as in the published code."""
    call()
    for cache in caches:
        cache[...] = cache[:1]


def forgotten(call: Call, token: Array, caches: list[Array], score: Array) -> None:
    """Tokens that are not computed have no keys and values."""
    if token.shape[1] < N:
        for cache in caches:
            cache[...] = 0.0
    call()


def misplaced_by(shift: int) -> Fault:
    """New keys and values of some tokens are written `shift` tokens further on."""

    def misplaced(call: Call, token: Array, caches: list[Array], score: Array) -> None:
        before = [cache.copy() for cache in caches]
        call()
        if token.shape[1] < N:
            samples = np.arange(len(token))[:, None]
            for cache, old in zip(caches, before, strict=True):
                new = cache[samples, :, token]
                cache[...] = old
                cache[samples, :, (token + shift) % N] = new

    return misplaced


def scores_of_others(call: Call, token: Array, caches: list[Array], score: Array) -> None:
    """Scores of some tokens are taken for those of the next ones."""
    call()
    if token.shape[1] < N:
        score[...] = np.roll(score, 1, axis=1)


class CrippledBackend(OrtBackend):
    """ONNX Runtime with a fault around each call."""

    def __init__(self, bundle: Path, fault: Fault) -> None:
        super().__init__(bundle, read_manifest(bundle).graphs, threads=1)
        self.fault = fault

    def bind(self, graph: str, inputs: dict[str, Any], outputs: dict[str, Any]) -> Call:  # type: ignore[override]
        call = super().bind(graph, inputs, outputs)
        caches = [array for name, array in outputs.items() if name.startswith("present")]
        return lambda: self.fault(call, inputs["token"], caches, outputs["score"])


@dataclass(frozen=True)
class InTurns:
    """A quarter of the frequencies at every step, each in its turn, against cached keys and values of the others."""

    reuse: str = "residual"
    needs = Needs.NOTHING
    feedback = 0.0

    def concrete(self, facts: Any, steps: list[Step]) -> Any:
        """The policy."""
        first = first_network_step(steps, PRIOR)
        quarters = [np.flatnonzero(facts.frequency % 4 == turn) for turn in range(4)]

        def policy(step: Step, signals: Any) -> Decision:
            if step.index < first:
                return Decision(Event.PRIOR, until=first)
            return FIRST if signals.since_refresh is None else Decision(Event.LOW, quarters[signals.since_refresh % 4])

        return policy


IN_TURNS, LOW = InTurns(), E2CRF(R=8, K=6, low_every=1, alpha_prior=PRIOR)
NEVER = E2CRF(policy="never", alpha_prior=PRIOR)


class Bench:
    """A trained model, the series it is judged against, and what is drawn without reusing anything."""

    def __init__(self, bundle: Path, reference: Reference) -> None:
        self.bundle, self.reference = bundle, reference
        self.uncached, self.without_reuse = self.quality(None), self.quality(NEVER)
        self.mean = mean_sample(reference, QUICK)

    def quality(self, cache: Cache | None, fault: Fault | None = None) -> Quality:
        """What samples of a cache are worth."""
        manifest = read_manifest(self.bundle)
        backend = CrippledBackend(self.bundle, fault) if fault else OrtBackend(self.bundle, manifest.graphs, threads=1)
        with Model(manifest, backend) as model:
            drawn = model.sample(SAMPLES, steps=STEPS, cache=cache, batch_size=SAMPLES)
        return judge(drawn.series, self.reference, QUICK)

    def failures(self, cache: Cache, fault: Fault | None = None) -> tuple[str, ...]:
        """What the gate objects to."""
        return failures_of(self.quality(cache, fault), self.uncached, self.mean, TOLERANCE, self.without_reuse)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A transformer of 2 layers after 350 batches, 4 s."""
    folder = tmp_path_factory.mktemp("clicks")
    series = Series(train=clicks(2000, 0), test=clicks(1000, 1))
    tokens = tokens_from_series(series, fourier_transform=True, standardize=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        options = NetworkOptions(N, 1, d_model=16, num_heads=2, num_layers=2, d_ff=32, dropout=0.0)
        network = TransformerScore(options)
        optimizer = torch.optim.Adam(network.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=350)
        clean, shape = torch.from_numpy(tokens.train), torch.from_numpy(tokens.noise_shape)
        for _ in range(350):
            batch = clean[torch.randint(len(clean), (64,))]
            noise = torch.randn(batch.shape)
            optimizer.zero_grad()
            score_matching_loss(
                network, batch, t=draw_times(64), noise=noise, process=VP(), noise_shape=shape
            ).backward()
            optimizer.step()
            schedule.step()
    mean, std = torch.from_numpy(tokens.mean), torch.from_numpy(tokens.std)
    facts = ModelFacts(options, VP(), "frequency", mean, std, "clicks", "gate")
    torch.save({"state_dict": network.state_dict(), KEY: facts.to_dict()}, folder / "clicks.ckpt")
    export_bundle(read_checkpoint(folder / "clicks.ckpt"), ExportOptions(folder / "bundle"))
    return Bench(folder / "bundle", Reference(series.test, series.train))


@pytest.mark.parametrize("cache", [IN_TURNS, LOW], ids=["in turns", "low"])
def test_a_correct_cache_passes(bench: Bench, cache: Cache) -> None:
    assert bench.failures(cache) == ()


@pytest.mark.parametrize(
    ("cache", "fault"),
    [
        pytest.param(InTurns(reuse="feature"), None, id="stale features"),  # 10, 12, 14 % larger
        pytest.param(IN_TURNS, scores_of_others, id="scores of other tokens"),  # 50 times as large
        pytest.param(IN_TURNS, misplaced_by(1), id="misplaced keys and values"),  # 15, 31, 52 %
        pytest.param(IN_TURNS, forgotten, id="forgotten keys and values"),  # 67, 72, 81 %
        pytest.param(IN_TURNS, shared, id="keys and values of sample 0"),  # 68, 98, 118 %
        pytest.param(LOW, scores_of_others, id="low, scores of other tokens"),  # 38 times as large
        pytest.param(LOW, shared, id="low, keys and values of sample 0"),  # 25, 26, 27 %
    ],
)
def test_a_crippled_cache_fails_in_both_domains(bench: Bench, cache: Cache, fault: Fault | None) -> None:
    failures = bench.failures(cache, fault)
    for domain in ("time", "frequency"):
        assert any(f"reuse alone makes the sliced Wasserstein distance in the {domain}" in f for f in failures)


def test_keys_and_values_in_each_others_places_change_no_sample(bench: Bench) -> None:
    # 12 tokens on from a real part is an imaginary part of the same quarter: attention sums over the same rows.
    right, wrong = bench.quality(IN_TURNS), bench.quality(IN_TURNS, misplaced_by(12))
    assert wrong.time.sliced == pytest.approx(right.time.sliced, rel=1e-4)


def test_what_the_prior_phase_gains_hides_no_fault_from_the_samples_without_reuse(bench: Bench) -> None:
    stale, without = bench.quality(InTurns(reuse="feature")), bench.without_reuse
    erring = judge(
        clicks(SAMPLES, 2) * 1.6, bench.reference, QUICK
    )  # as the uncached samples of a network that errs near t = 1
    assert without.time.sliced < stale.time.sliced < erring.time.sliced < bench.mean.time.sliced
    assert failures_of(stale, erring, bench.mean, TOLERANCE) == ()
    assert len(failures_of(stale, erring, bench.mean, TOLERANCE, without)) == 2


def test_the_gate_is_as_strict_as_it_is_told(bench: Bench) -> None:
    stale, without, mean = bench.quality(InTurns(reuse="feature")), bench.without_reuse, bench.mean
    grown = max(loss(getattr(stale, domain), getattr(without, domain)).value for domain in ("time", "frequency"))
    assert failures_of(stale, without, mean, grown * 1.001) == ()
    (failure,) = failures_of(stale, without, mean, grown * 0.999)
    assert "refresh more often or raise K" in failure
    assert failures_of(stale, without, mean, None) == ()


def test_samples_that_cannot_be_compared_are_an_error(bench: Bench) -> None:
    judged, fewer = (judge(clicks(n, 3), bench.reference, QUICK) for n in (50, 49))
    for baselines in ((fewer, None), (judged, fewer)):
        with pytest.raises(OptionError, match=r"as many samples of either kind, found \(50, 49\); judge as many"):
            failures_of(judged, baselines[0], bench.mean, TOLERANCE, baselines[1])
    other = judge(clicks(50, 3), bench.reference, replace(QUICK, num_resamples=7))
    with pytest.raises(OptionError, match=r"distances with as many resamples, found \(20, 7\); judge both alike"):
        failures_of(judged, other, bench.mean, TOLERANCE)
