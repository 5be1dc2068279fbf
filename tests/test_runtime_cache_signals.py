"""What a policy is shown: each signal is its formula over what the network gave."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from export.manifest import Standardisation
from runtime.cache.options import E2CRF
from runtime.cache.policy import Decision, Event, Reuse
from runtime.sampler import Model, StepInfo
from runtime.sde import VP
from tests import opened
from tests.cache_doubles import MIXED, Listening, N, Scripted, Watched, anything, close

tiny = opened.tiny


def test_energy_is_weighted_by_the_spectrum_of_the_data(tiny: Model) -> None:
    """Oracle: z squared times the variance of its token over the mean variance; 1e-5 of the largest."""
    cache, latents = Watched(MIXED), []
    tiny.sample(3, steps=30, cache=cache, on_step=lambda info: latents.append(info.z.copy()))
    variance = np.square(np.asarray(tiny.manifest.standardisation.std))  # [N, C]
    for z, seen in zip(latents[:-1], cache.seen[1:], strict=True):
        close(seen["energy"], (np.square(z) * variance / variance.sum() * N).sum(axis=2), 1e-5)


def test_the_units_of_the_data_change_no_decision(tiny: Model) -> None:
    """Data in a tenth of the unit: the same tokens at the same steps, and ten times the series (1e-5)."""
    scale = tiny.manifest.standardisation
    mean, std = (10.0 * np.asarray(values) for values in (scale.mean, scale.std))
    scaled = Model(replace(tiny.manifest, standardisation=Standardisation(mean.tolist(), std.tolist())), tiny.backend)
    for cache in (MIXED, E2CRF(policy="e2crf", K=1, R=30, tau_0=2.0, trigger="impact", tolerance=0.05)):
        one, ten = (model.sample(4, steps=60, cache=cache) for model in (tiny, scaled))
        assert one.stats.event_counts["chosen"] > 40
        assert one.stats.event_counts["trigger"] > 0
        assert np.array_equal(one.stats.recomputed, ten.stats.recomputed)
        assert np.array_equal(one.stats.events, ten.stats.events)
        close(ten.series, 10 * one.series, 1e-5)


def test_change_is_the_squared_way_since_the_token_was_recomputed(tiny: Model) -> None:
    """Oracle: eq. 15 from the latents that `on_step` hears of; 1e-5 of the largest."""
    cache = Watched(MIXED)
    latents: dict[int, NDArray[np.float32]] = {}
    tiny.sample(3, steps=30, cache=cache, on_step=lambda info: latents.__setitem__(info.index + 1, info.z.copy()))
    for i in range(20, 30):
        made = i - cache.seen[i]["token_age"]  # [B, N]
        then = np.stack([[latents[int(made[b, k])][b, k] for k in range(N)] for b in range(3)])
        close(cache.seen[i]["change"], np.square(latents[i] - then).sum(axis=2), 1e-5)


def test_intensity_is_the_relative_change_of_the_features_recomputed(tiny: Model) -> None:
    """Oracle: eq. 14 over what the graph gave, each token once; 1e-5. And 0 after a refresh."""
    listening = Listening(tiny.backend)
    cache = Watched(Scripted(anything))
    Model(tiny.manifest, listening).sample(1, steps=40, cache=cache)
    features, calls = np.zeros((N, tiny.manifest.network.d_model)), iter(listening.heard)
    expected = 0.0
    stats = []
    for seen, decisions in zip(cache.seen, cache.decided, strict=True):
        assert seen["intensity"][0] == pytest.approx(expected, rel=1e-5)
        assert isinstance(decisions, list)
        if decisions[0].event in (Event.PRIOR, Event.REUSE):
            continue
        call = next(calls)
        tokens, where = np.unique(call["token"][0], return_index=True)
        hidden = call["hidden"][0, where]
        if decisions[0].event.is_full:
            expected = 0.0
        else:
            old = features[tokens]
            expected = np.square(hidden - old).sum() / (np.square(old).sum() + 1e-6)
            stats.append(expected)
        features[tokens] = hidden
    assert len(stats) > 10
    assert next(calls, None) is None


def test_impact_adds_up_what_the_probes_missed(tiny: Model) -> None:
    """Oracle: alpha_s^2 v / sigma_t^2 rms of the probe error, over the steps since the refresh; 1e-4.

    In mode `data` the probe error of a token is how far its data prediction moved.
    """
    infos: list[StepInfo] = []
    cache = Watched(Scripted(anything, Reuse.DATA))
    tiny.sample(1, steps=40, cache=cache, on_step=lambda info: infos.append(replace(info, data=info.data.copy())))
    times = np.linspace(1, 1e-5, 40)
    alpha, sigma = VP().alpha(times), VP().sigma(times)
    alpha_s, sigma_s = np.append(alpha[1:], 1.0), np.append(sigma[1:], 0.0)
    v = sigma**2 - (alpha / alpha_s * sigma_s) ** 2
    weight = np.square(np.asarray(tiny.manifest.standardisation.std))
    impact = error = surprise = 0.0
    is_begun, largest = False, 0.0
    for i, (seen, decisions) in enumerate(zip(cache.seen, cache.decided, strict=True)):
        assert seen["impact"][0] == pytest.approx(impact, rel=1e-4)
        assert seen["surprise"][0] == pytest.approx(surprise, rel=1e-4)
        assert isinstance(decisions, list)
        event, tokens = decisions[0].event, decisions[0].tokens
        moved = infos[i].data[0] - infos[i - 1].data[0]
        if event.is_full:
            if is_begun:
                surprise = float(np.sqrt((weight * moved**2).sum() / weight.sum()))
            is_begun, impact, error = True, 0.0, 0.0
        elif tokens is not None:
            error = float(np.sqrt((weight * moved**2)[tokens].sum() / weight[tokens].sum()))
        impact += alpha_s[i] ** 2 * v[i] / sigma[i] ** 2 * error
        largest = max(largest, impact)
    assert largest > 0
    assert surprise > 0


def test_a_surprise_before_the_second_refresh_of_a_sample_is_zero(tiny: Model) -> None:
    """Also where its neighbour in the batch is refreshed for the second time."""

    def script(sample: int, step: int) -> Decision:
        begin = 8 if sample == 0 else 12
        return Decision(Event.PRIOR) if step < begin else Decision(Event.REFRESH)

    cache = Watched(Scripted(script))
    tiny.sample(2, steps=16, cache=cache)
    surprise = np.stack([seen["surprise"] for seen in cache.seen])
    assert (surprise[:10, 0] == 0).all()
    assert (surprise[10:, 0] > 0).all()
    assert (surprise[:14, 1] == 0).all()
    assert (surprise[14:, 1] > 0).all()
