"""The runtime room: a bundle becomes samples, with NumPy and ONNX Runtime and nothing else.

import runtime
model = runtime.load("bundles/ecg")
out = model.sample(1000, steps=1000, cache=runtime.E2CRF())
"""

from export.manifest import ManifestError
from runtime.cache.policy import E2CRF
from runtime.errors import BackendError, OptionError
from runtime.sampler import Model, Samples, StepInfo, load

__all__ = ["E2CRF", "BackendError", "ManifestError", "Model", "OptionError", "Samples", "StepInfo", "load"]
