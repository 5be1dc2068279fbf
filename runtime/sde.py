"""The diffusion process: how a clean token becomes noise, in closed form.

A process perturbs clean tokens z_0 to `z_t = alpha(t) z_0 + sigma(t) G e` with e standard normal and G the
noise shape per token (`fourier.noise_shape`; all ones in the time domain). t runs from 1 (noise) down to
`eps` (data). The functions take and return NumPy arrays or torch tensors alike, so that training, sampling
and tests share this one definition. Song et al. 2021 (arXiv 2011.13456), section 3.4 and appendix B.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.errors import OptionError, require

EPS = 1e-5  # the smallest time a network is trained at or asked for


def _exp(x: Any) -> Any:
    return np.exp(x) if isinstance(x, float | np.ndarray | np.generic) else x.exp()


def _expm1(x: Any) -> Any:
    return np.expm1(x) if isinstance(x, float | np.ndarray | np.generic) else x.expm1()


@dataclass(frozen=True)
class VP:
    """Variance preserving: alpha^2 + sigma^2 = 1, with a beta that grows linearly in t."""

    beta_0: float = 0.1
    beta_1: float = 20.0

    def __post_init__(self) -> None:
        require(
            0 < self.beta_0 <= self.beta_1 < float("inf"),
            "a VP process needs 0 < beta_0 <= beta_1",
            (self.beta_0, self.beta_1),
            "the usual values are 0.1 and 20",
        )

    def beta(self, t: Any) -> Any:
        """Rate of the forward process at time t; its drift is -beta z / 2, its diffusion sqrt(beta) G."""
        return self.beta_0 + t * (self.beta_1 - self.beta_0)

    def _log_alpha(self, t: Any) -> Any:
        return -0.25 * t * t * (self.beta_1 - self.beta_0) - 0.5 * t * self.beta_0

    def alpha(self, t: Any) -> Any:
        """Signal scale at time t, in (0, 1]."""
        return _exp(self._log_alpha(t))

    def sigma(self, t: Any) -> Any:
        """Noise scale at time t, in [0, 1)."""
        return (-_expm1(2.0 * self._log_alpha(t))) ** 0.5  # 1 - alpha^2 without cancellation near t = 0

    def drift(self, t: Any) -> Any:
        """f(t) of the forward process dz = f(t) z dt + g(t) G dw."""
        return -0.5 * self.beta(t)

    def diffusion(self, t: Any) -> Any:
        """g(t) of the forward process dz = f(t) z dt + g(t) G dw."""
        return self.beta(t) ** 0.5

    @property
    def prior_scale(self) -> float:
        """Standard deviation of the starting noise, in units of G."""
        return 1.0


@dataclass(frozen=True)
class VE:
    """Variance exploding: alpha = 1, and a sigma that grows geometrically in t."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        require(
            0 < self.sigma_min < self.sigma_max < float("inf"),
            "a VE process needs 0 < sigma_min < sigma_max",
            (self.sigma_min, self.sigma_max),
            "the usual values are 0.01 and 50",
        )

    def alpha(self, t: Any) -> Any:
        """Signal scale at time t: always 1."""
        return t * 0.0 + 1.0

    def sigma(self, t: Any) -> Any:
        """Noise scale at time t, from sigma_min to sigma_max."""
        return self.sigma_min * _exp(t * float(np.log(self.sigma_max / self.sigma_min)))

    def drift(self, t: Any) -> Any:
        """f(t) of the forward process dz = f(t) z dt + g(t) G dw: none."""
        return t * 0.0

    def diffusion(self, t: Any) -> Any:
        """g(t) of the forward process dz = f(t) z dt + g(t) G dw."""
        return self.sigma(t) * float(np.sqrt(2.0 * np.log(self.sigma_max / self.sigma_min)))

    @property
    def prior_scale(self) -> float:
        """Standard deviation of the starting noise, in units of G."""
        return self.sigma_max


Process = VP | VE


def process_from_facts(kind: str, parameters: dict[str, float]) -> Process:
    """The process a checkpoint or manifest names: kind `vp` or `ve` with that record's parameters."""
    kinds: dict[str, type[VP] | type[VE]] = {"vp": VP, "ve": VE}
    if kind not in kinds:
        raise OptionError(f"unknown process {kind!r}; the known ones are {', '.join(kinds)}")
    known = set(kinds[kind].__dataclass_fields__)
    if set(parameters) != known:
        raise OptionError(
            f"process {kind!r} takes the parameters {sorted(known)}, found {sorted(parameters)}; write exactly these"
        )
    return kinds[kind](**parameters)


def facts_from_process(process: Process) -> tuple[str, dict[str, float]]:
    """The inverse of `process_from_facts`, for writing a process down."""
    kind = "vp" if isinstance(process, VP) else "ve"
    return kind, {name: float(getattr(process, name)) for name in process.__dataclass_fields__}


def signal_to_noise(process: Process, t: Any) -> Any:
    """alpha / sqrt(alpha^2 + sigma^2) at time t: alpha itself for VP, and its like for VE."""
    alpha = process.alpha(t)
    return alpha / (alpha**2 + process.sigma(t) ** 2) ** 0.5
