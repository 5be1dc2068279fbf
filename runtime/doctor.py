"""What this machine can do, room by room, and what to install for the rest: `e2crf doctor`."""

import importlib.util
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from runtime.backends.base import CUDA_PROVIDER_REMEDY
from runtime.backends.few_tokens import what_computes_them

_ROOMS = {
    "train": ("torch", "lightning", "hydra-core", "aeon", "pandas"),
    "export": ("torch", "onnx"),
    "bench": ("torch", "matplotlib"),
}


def examine(gpu: str | None) -> tuple[dict[str, Any], str]:
    """Facts and text; `sample.ready` says whether the embedded default works here. `gpu` is the one that CUDA sees."""
    result: dict[str, Any] = {
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "sample": _examine_sampling(),
        "gpu": _examine_gpu(gpu),
    }
    for room, packages in _ROOMS.items():
        result[room] = {name: _version(name) for name in packages}
    lines = [f"python {result['python']}, {result['cores']} cores"]
    sampling = result["sample"]
    lines.append(f"sample  {'ready' if sampling['ready'] else 'NOT ready'}: {sampling['detail']}")
    lines += [f"        {sampling['few_tokens']}"] if sampling["ready"] else []
    for room in _ROOMS:
        missing = [name for name, found in result[room].items() if found is None]
        state = f"lacks {', '.join(missing)}; pip install 'e2crf[{room}]'" if missing else "ready"
        lines.append(f"{room:<7} {state}")
    lines.append(f"gpu     {result['gpu']}")
    return result, "\n".join(lines)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _examine_sampling() -> dict[str, Any]:
    """Whether ONNX Runtime imports and offers its CPU provider."""
    if importlib.util.find_spec("onnxruntime") is None:
        return {"ready": False, "detail": "ONNX Runtime is not installed; pip install onnxruntime"}
    try:
        import onnxruntime
    except ImportError as error:
        detail = (
            f"ONNX Runtime is installed and cannot be imported ({error}); pip install --force-reinstall onnxruntime"
        )
        return {"ready": False, "detail": detail}
    providers = onnxruntime.get_available_providers()
    ready = "CPUExecutionProvider" in providers
    return {
        "ready": ready,
        "detail": f"ONNX Runtime {onnxruntime.__version__} with {', '.join(providers)}",
        "few_tokens": f"steps of few tokens by {what_computes_them()}",
    }


def _examine_gpu(gpu: str | None) -> str:
    if gpu is None:
        return "no NVIDIA GPU with a driver found; everything here runs on the CPU"
    text = f"{gpu}; sample with --backend tensorrt or --device cuda, check with `make gpu-check`"
    if importlib.util.find_spec("onnxruntime") is None:
        return text
    import onnxruntime

    has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    return text if has_cuda else f"{text}; for --device cuda {CUDA_PROVIDER_REMEDY}"
