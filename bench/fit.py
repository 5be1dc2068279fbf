"""What is held between the refreshes of a plan, fitted to the model by least squares.

A *teacher* draws some samples with many refreshes and keeps the latents on their way. A plan of few refreshes is then
fitted on the same noise, one refresh after another and on its own latents, so that each corrects what the ones before
it left over: its function (`runtime.cache.hold`) is the one that brings the latents nearest to the teacher's at the
next refresh, or at the end. For each frequency and channel that is a regression on three numbers per sample and token
(ridge regression, towards holding the new value as it is, for where samples tell little).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.cache.hold import Floats, LinearHold
from runtime.cache.policy import Decision, Event, Needs, Policy, Reuse, Signals, Step, TokenFacts
from runtime.noise import NoiseStream
from runtime.sampler import DIVERGED_RMS, Model, StepInfo
from runtime.solvers import Solver, TimeGrid

_POINTS = (20, 200)  # steps at which the latents of a teacher are kept, so that refreshes may lie there
_MOST_NUMBERS = 2**27  # of a teacher's latents: half a gigabyte, unless the fewest points take more
_RIDGE = 1e-3  # the pull, of the energy of each regressor


class Teacher:
    """The latents of samples 0 .. n - 1 of a seed on their way, at some of the steps.

    `watch` is given every step of their trajectories, batch after batch.
    """

    def __init__(self, num_steps: int, seed: int, num_values: int) -> None:
        """Of `num_values` numbers a step, n N C."""
        self.num_steps, self.seed = num_steps, seed
        points = min(num_steps, int(np.clip(_MOST_NUMBERS // num_values, *_POINTS)))
        self.kept = np.unique(np.linspace(0, num_steps, points + 1).round().astype(int))[1:]
        self._wanted = frozenset(self.kept.tolist())
        self._z: dict[int, list[Floats]] = {}

    def watch(self, info: StepInfo) -> None:
        """Keep the latents that a step leaves, where they are wanted."""
        if info.index + 1 in self._wanted:
            self._z.setdefault(info.index + 1, []).append(info.z.copy())

    @property
    def num_samples(self) -> int:
        """n."""
        return sum(len(batch) for batch in self._z[self.num_steps])

    def before(self, step: int) -> Floats:
        """The latents that a step which is kept begins with, [n, N, C]."""
        return np.concatenate(self._z[step])

    def nearest(self, steps: Sequence[int]) -> tuple[int, ...]:
        """The kept steps nearest to these, rising; each once and none the end."""
        inner = self.kept[:-1]
        return tuple(sorted({int(inner[np.abs(inner - step).argmin()]) for step in steps}))


def fit(
    model: Model, teacher: Teacher, solver: Solver, grid: TimeGrid, refreshes: tuple[int, ...]
) -> tuple[LinearHold, ...]:
    """What is to be held after each of these refreshes, which the teacher must have kept."""
    cache = _Fitting(model, teacher, solver, grid, refreshes)
    model.sample(teacher.num_samples, steps=teacher.num_steps, solver=solver, grid=grid, seed=teacher.seed,
                 batch_size=teacher.num_samples, cache=cache)  # fmt: skip
    return tuple(cache.found)


class _Fitting:
    """A cache that fits what it holds at the moment of each refresh, to all samples of its one batch."""

    reuse, needs, feedback = Reuse.RESIDUAL_FITTED, Needs.NOTHING, 0.0

    def __init__(
        self, model: Model, teacher: Teacher, solver: Solver, grid: TimeGrid, refreshes: tuple[int, ...]
    ) -> None:
        self._schedule, self._leaps, _ = model.schedule(solver, teacher.num_steps, grid, Reuse.RESIDUAL_FITTED)
        self._model, self._teacher, self._refreshes = model, teacher, refreshes
        self.found: list[LinearHold] = []

    def concrete(self, facts: TokenFacts, steps: Sequence[Step]) -> Policy:
        """The policy of one `sample` call."""
        events = (*self._refreshes, self._teacher.num_steps)

        def policy(step: Step, signals: Signals) -> Decision:
            i = step.index
            until = next(event for event in events if event > i)
            if i < events[0]:
                return Decision(Event.PRIOR, until=until)
            if i not in events:
                return Decision(Event.REUSE, until=until)
            hold = _Fitted(lambda *features: self._fit(i, until, *features))
            return Decision(Event.FIRST if i == events[0] else Event.REFRESH, hold=hold)

        return policy

    def _fit(self, i: int, j: int, value: Floats, before: Floats, z: Floats) -> Floats:
        """Fit what is held from step i up to j; it, for these samples."""
        frequency = self._model.facts.tokens.frequency
        wanted = self._wanted(i, j, value, z) if j > i + 1 else value  # which is used up at once
        found = regress(wanted, (value, before, z), frequency)
        self.found.append(found)
        return found.of(value, before, z)

    def _wanted(self, i: int, j: int, value: Floats, z: Floats) -> Floats:
        """What would have to be held for the latents at step j to be the teacher's."""
        schedule, leap = self._schedule, self._leaps.get(i + 1, j, prior=False)
        data = value + schedule.gaussian[i] * z
        reached = schedule.step_latent[i] * z + schedule.step_data[i] * data
        noise = NoiseStream(self._teacher.seed, np.arange(len(z)), z.shape[1:], schedule.num_steps)
        if schedule.is_stochastic:
            reached += schedule.step_noise[i] * noise.step(i)
        reached *= leap.latent
        if leap.noise is not None:
            noise.add_weighted(i + 1, j, leap.noise, reached)
        assert leap.value is not None
        wanted: Floats = (self._teacher.before(j) - reached) / leap.value
        return wanted


@dataclass(frozen=True)
class _Fitted:
    """A hold that is found when it is asked for."""

    find: Callable[[Floats, Floats, Floats], Floats]

    def of(self, value: Floats, before: Floats, z: Floats) -> Floats:
        return self.find(value, before, z)


def regress(wanted: Floats, regressors: tuple[Floats, Floats, Floats], frequency: NDArray[np.int64]) -> LinearHold:
    """The linear function of (value, before, z) that is nearest to `wanted`, [n, N, C] each.

    The coefficients are those of a frequency [N] and a channel, the offset is a token's own. Samples that have left
    the data have no say; where all have, the new value is held as it is.
    """
    columns = np.stack(regressors, axis=-1).astype(np.float64)  # [n, N, C, 3]
    held = np.array([1.0, 0.0, 0.0])  # the new value, as it is
    z_rms = np.sqrt(np.square(columns[..., 2]).mean(axis=(1, 2)))
    sane = (z_rms <= DIVERGED_RMS) & np.isfinite(columns).all(axis=(1, 2, 3)) & np.isfinite(wanted).all(axis=(1, 2))
    if not sane.any():
        return LinearHold(*(np.full(wanted.shape[1:], number, np.float32) for number in (*held, 0.0)))
    columns, target = columns[sane], wanted[sane].astype(np.float64)
    means, level = columns.mean(axis=0), target.mean(axis=0)
    columns -= means
    missing = target - level - columns @ held
    num_frequencies, num_channels = frequency.max() + 1, target.shape[2]
    gram, moment = np.zeros((num_frequencies, num_channels, 3, 3)), np.zeros((num_frequencies, num_channels, 3))
    np.add.at(gram, frequency, np.einsum("ntcp,ntcq->tcpq", columns, columns))
    np.add.at(moment, frequency, np.einsum("ntcp,ntc->tcp", columns, missing))
    energy = np.einsum("fcpp->fcp", gram)
    pull = _RIDGE * energy + np.where(energy > 0, 0.0, 1.0)  # what never varies keeps its coefficient
    solved = np.linalg.solve(gram + pull[..., None] * np.eye(3), moment[..., None])[..., 0]
    found = (held + solved)[frequency]  # [N, C, 3]
    offset = level - (means * found).sum(axis=-1)
    value, before, latent, offset = (a.astype(np.float32) for a in (*np.moveaxis(found, -1, 0), offset))
    return LinearHold(value, before, latent, offset)
