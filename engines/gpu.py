"""The GPU that CUDA would use, asked of the driver itself: needs no package, makes no context, is None without one."""

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass

_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute, cuda.h
_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


@dataclass(frozen=True)
class Gpu:
    """The first visible GPU (CUDA_VISIBLE_DEVICES counts)."""

    name: str
    capability: tuple[int, int]
    driver: int  # newest CUDA the driver knows, 13000 is 13.0

    @property
    def target(self) -> str:
        """What a TensorRT engine is bound to: the model of the GPU and its compute capability."""
        return f"{self.name} ({self.capability[0]}.{self.capability[1]})"


def visible_gpu() -> Gpu | None:
    """The GPU that a CUDA program started here would get, None if there is none."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return None
    count, device, version = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    major, minor, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    calls: tuple[Callable[[], int], ...] = (
        lambda: driver.cuInit(0),
        lambda: driver.cuDeviceGetCount(ctypes.byref(count)) or int(count.value == 0),
        lambda: driver.cuDeviceGet(ctypes.byref(device), 0),
        lambda: driver.cuDeviceGetName(name, len(name), device),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(major), _CAPABILITY_MAJOR, device),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(minor), _CAPABILITY_MINOR, device),
        lambda: driver.cuDriverGetVersion(ctypes.byref(version)),
    )
    if any(call() for call in calls):  # the first that fails ends it
        return None
    return Gpu(name.value.decode(errors="replace"), (major.value, minor.value), version.value)
