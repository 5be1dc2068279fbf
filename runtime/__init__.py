"""The runtime room: a bundle becomes samples, with NumPy and ONNX Runtime and nothing else.

import runtime
model = runtime.load("bundles/ecg")
out = model.sample(1000, steps=1000, cache=runtime.E2CRF())
"""

from export.manifest import ManifestError
from runtime.cache.options import E2CRF
from runtime.cache.plan import Plan
from runtime.errors import BackendError, BackendWarning, CacheWarning, OptionError
from runtime.sampler import Model, Samples, StepInfo, load

__all__ = [
    "E2CRF",
    "BackendError",
    "BackendWarning",
    "CacheWarning",
    "ManifestError",
    "Model",
    "OptionError",
    "Plan",
    "Samples",
    "StepInfo",
    "load",
]
