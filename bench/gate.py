"""The gate: how much worse caching may make the samples before a bench fails.

It looks at the distance of the cached samples to the real series against that of the uncached samples,
drawn from the same noise, in either domain. Both contain the floor, so that with few samples a given loss
is harder to reach: ask for more samples when the answer matters.

Sliced Wasserstein is made of what has energy. Series that are too smooth hide in it, so that the spectral and the
autocorrelation distance may not grow by more than a slack either.

A loss means nothing against samples that are broken themselves. A briefly trained network often errs near
t = 1, which only the uncached sampler asks it about, and then any cache looks like a gain: so the uncached
samples must at least be closer to the real series than their mean is. Even above that bar, what the prior phase
gains hides what a faulty cache loses. A gate that is to catch faults also takes the samples `without_reuse`: the same
prior phase, solver and noise, and the network for all tokens at every later step
(`E2CRF(policy="never", alpha_prior=...)`). What is left between them and the cached ones is reuse alone.

What it cannot see is what does not change the samples: keys and values in each other's places, for one, since
attention sums over them in any order, or a fault that frequent full refreshes repair. Whether a cache computes what it
says is for the tests of the cache.
"""

from bench.quality import Quality, loss
from bench.spectra import CORRELATION_SLACK, SPECTRAL_SLACK
from runtime.errors import require


def failures_of(
    cached: Quality,
    uncached: Quality,
    mean_sample: Quality,
    max_sw_loss: float | None,
    without_reuse: Quality | None = None,
) -> tuple[str, ...]:
    """What the gate objects to, in sentences: none if it is passed, or not asked for.

    All but the mean sample are judged on as many samples of the same noise, else an `OptionError`.
    """
    if max_sw_loss is None:
        return ()
    baselines = {"caching": uncached} | ({"reuse alone": without_reuse} if without_reuse is not None else {})
    for baseline in baselines.values():
        counts = cached.num_samples, baseline.num_samples
        require(counts[0] == counts[1], "the gate compares as many samples of either kind", counts, "judge as many")
    failures = []
    for domain in ("time", "frequency"):
        found, least = getattr(uncached, domain).sliced, getattr(mean_sample, domain).sliced
        if not found < least:
            failures.append(
                f"the uncached samples are further from the real series in the {domain} domain "
                f"({found:.3g}) than their mean is ({least:.3g}), so that a loss says nothing; train longer"
            )
        for cause, baseline in baselines.items():
            grown = loss(getattr(cached, domain), getattr(baseline, domain)).value
            if not grown <= max_sw_loss:
                failures.append(
                    f"{cause} makes the sliced Wasserstein distance in the {domain} domain {grown:.1%} larger, "
                    f"allowed are {max_sw_loss:.1%}; refresh more often or raise K"
                )
    for cause, baseline in baselines.items():
        for name, unit, slack in (("spectral", " dB", SPECTRAL_SLACK), ("autocorrelation", "", CORRELATION_SLACK)):
            before, after = getattr(baseline, name), getattr(cached, name)
            if after > before + slack:
                failures.append(
                    f"{cause} takes the {name} distance from {before:.2g}{unit} to {after:.2g}{unit}, allowed are "
                    f"{slack:g}{unit} more: the series are too smooth or too rough; refresh more often or earlier"
                )
    if cached.num_left_out > uncached.num_left_out:
        failures.append(
            f"{cached.num_left_out} of {cached.num_samples} samples are not finite with the cache and "
            f"{uncached.num_left_out} without it; refresh more often"
        )
    return tuple(failures)
