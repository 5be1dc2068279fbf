"""The gate: how much worse caching may make the samples before a bench fails.

It looks at the distance of the cached samples to the real series against that of the uncached samples,
drawn from the same noise, in either domain. Both contain the floor, so that with few samples a given loss
is harder to reach: ask for more samples when the answer matters.

A loss means nothing against samples that are broken themselves. A briefly trained network often errs near
t = 1, which only the uncached sampler asks it about, and then any cache looks like a gain: so the uncached
samples must at least be closer to the real series than their mean is.
"""

from bench.quality import Quality, loss


def failures_of(cached: Quality, uncached: Quality, mean_sample: Quality, max_sw_loss: float | None) -> tuple[str, ...]:
    """What the gate objects to, in sentences: none if it is passed, or not asked for."""
    if max_sw_loss is None:
        return ()
    failures = []
    for domain in ("time", "frequency"):
        baseline, least = getattr(uncached, domain), getattr(mean_sample, domain)
        if not baseline.sliced < least.sliced:
            failures.append(
                f"the uncached samples are further from the real series in the {domain} domain "
                f"({baseline.sliced:.3g}) than their mean is ({least.sliced:.3g}), so that a loss says nothing; "
                "train longer"
            )
        grown = loss(getattr(cached, domain), baseline).value
        if not grown <= max_sw_loss:
            failures.append(
                f"caching makes the sliced Wasserstein distance in the {domain} domain {grown:.1%} larger, "
                f"allowed are {max_sw_loss:.1%}; refresh more often or raise K"
            )
    if cached.num_left_out > uncached.num_left_out:
        failures.append(
            f"{cached.num_left_out} of {cached.num_samples} samples are not finite with the cache and "
            f"{uncached.num_left_out} without it; refresh more often"
        )
    return tuple(failures)
