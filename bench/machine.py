"""What a bench ran on: enough to judge a figure by, nothing that says whose machine it was.

No host name, user or path is recorded, so that a record can be published as it is. Load average and clocks are
taken when asked for: take them before the bench. A load near or above the number of cores says that others were
using the machine too; clocks that the system does not tell, as in most virtual machines, are None.
"""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

LIBRARIES = ("numpy", "onnxruntime", "onnxruntime-gpu", "torch", "cuda-core", "tensorrt-cu13", "tensorrt-rtx-cu13")
_CPUINFO, _CPUFREQ = Path("/proc/cpuinfo"), Path("/sys/devices/system/cpu/cpu0/cpufreq")


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
    cpu_mhz: float | None = None  # mean over cores, now
    cpu_max_mhz: float | None = None
    governor: str | None = None  # what sets the clocks: "performance", "powersave"
    memory_bytes: int | None = None  # that the system has
    gpu_clocks: str | None = None  # of each: processors now and at most, memory


def describe_machine() -> Machine:
    """Look at this machine now."""
    return Machine(
        cpu=_cpu_model(),
        num_cores=os.cpu_count() or 1,
        num_usable_cores=num_usable_cores(),
        gpu=_nvidia_smi("name", "driver_version"),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        libraries=_library_versions(LIBRARIES),
        load_average=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        cpu_mhz=_cpu_mhz(),
        cpu_max_mhz=_max_mhz(),
        governor=_text(_CPUFREQ / "scaling_governor"),
        memory_bytes=_memory_bytes(),
        gpu_clocks=_nvidia_smi("clocks.sm", "clocks.max.sm", "clocks.mem"),
    )


def num_usable_cores() -> int:
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_model(cpuinfo: Path = _CPUINFO) -> str:
    return next(iter(_cpu_facts("model name", cpuinfo)), platform.processor() or platform.machine())


def _cpu_mhz(cpuinfo: Path = _CPUINFO) -> float | None:
    """The mean clock of all cores."""
    found = [float(value) for value in _cpu_facts("cpu MHz", cpuinfo)]
    return round(sum(found) / len(found), 1) if found else None


def _max_mhz(cpufreq: Path = _CPUFREQ) -> float | None:
    khz = _text(cpufreq / "cpuinfo_max_freq")
    return None if khz is None else float(khz) / 1e3


def _cpu_facts(name: str, cpuinfo: Path) -> list[str]:
    """What Linux says under `name`, for every core."""
    lines = (_text(cpuinfo) or "").splitlines()
    return [line.partition(":")[2].strip() for line in lines if line.startswith(name)]


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _memory_bytes() -> int | None:
    known = getattr(os, "sysconf_names", {})
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if "SC_PHYS_PAGES" in known else None


def _nvidia_smi(*names: str) -> str | None:
    """What the driver's tool says under these names, a line for every GPU joined; None without a GPU."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
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
