"""What a bench ran on: enough to judge a figure by, nothing that says whose machine it was.

No host name, user or path is recorded, so that a record can be published as it is. The load average is
taken when asked for: take it before the bench, and a value near or above the number of cores says that
others were using the machine too.
"""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

LIBRARIES = ("numpy", "onnxruntime", "onnxruntime-gpu", "torch", "cuda-core", "tensorrt-cu13", "tensorrt-rtx-cu13")


@dataclass(frozen=True)
class Machine:
    """The facts of one machine at one moment."""

    cpu: str
    num_cores: int  # that the system has
    num_usable_cores: int  # that this process may use
    gpu: str | None  # name and driver of each, as nvidia-smi tells
    system: str  # kernel and architecture
    python: str
    libraries: dict[str, str]
    load_average: float | None  # over the last minute, before the bench


def describe_machine() -> Machine:
    """Look at this machine now."""
    return Machine(
        cpu=_cpu_model(),
        num_cores=os.cpu_count() or 1,
        num_usable_cores=num_usable_cores(),
        gpu=_gpu_model(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        libraries=_library_versions(LIBRARIES),
        load_average=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    )


def num_usable_cores() -> int:
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpu_model() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None  # a tool without a working driver
    return "; ".join(line.strip() for line in found.stdout.splitlines() if line.strip()) or None


def _library_versions(names: tuple[str, ...]) -> dict[str, str]:
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
