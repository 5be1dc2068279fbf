"""What stands between a machine and the first sample: build, load, the first trajectory, the steady state, memory.

Every rival has a process of its own and draws the same: one batch, uncached, over `steps` steps of `ddim`, so over as
many full passes. The first and the next trajectories differ in what happens once: allocation, thread pools, capture.
A whole trajectory of a thousand steps would tell nothing more of that, and take PyTorch minutes.

*build* is once per model: the export of the graphs with its verification, the engines, compilation (with an empty
cache); *load* begins when the process is started, so that imports are in it, and ends when the network can be called.
*Peak memory* is the process's own, on the host, all of this included. PyTorch runs under its usual settings, not
under those that suit the machine best, which take a while to find. A rival that does not run here is left out with
its reason.

    found = measure_starts(StartOptions(bundle, checkpoint))
    found.starts, found.missing

This file is also the program of those processes, `python -m bench.startup '<JSON>'`: it imports what a rival needs
only when it is needed, since that is part of what is measured.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.on_gpu import OnGpu

if TYPE_CHECKING:
    from bench.records import Start
    from runtime.sampler import Model

_NEXT = 3  # trajectories after the first one


class StartRival(StrEnum):
    """Who is started."""

    EAGER = "pytorch eager"
    COMPILED = "torch.compile"
    STEP = "onnxruntime step"
    SPLIT = "onnxruntime split"
    CUDA = OnGpu.ORT.value
    TENSORRT = OnGpu.TENSORRT.value
    RTX = OnGpu.RTX.value

    @property
    def needs_checkpoint(self) -> bool:
        """Whether it runs the checkpoint and not the bundle."""
        return self in (StartRival.EAGER, StartRival.COMPILED)

    @property
    def built(self) -> str:
        """What is built for it."""
        is_engine = self in (StartRival.TENSORRT, StartRival.RTX)
        return self.value if is_engine else "nothing" if self.needs_checkpoint else "graphs"

    @property
    def needs_gpu(self) -> bool:
        """Whether it runs on an NVIDIA GPU only."""
        return self.value in list(OnGpu)


@dataclass(frozen=True)
class StartOptions:
    """What is started, and what it draws."""

    bundle: Path
    checkpoint: Path | None = None  # for PyTorch, and for the time of the export
    batch_size: int = 1
    steps: int = 10  # full passes of a trajectory
    threads: int | None = None  # None: as each library chooses
    limit_s: float = 300.0  # for one process

    def __post_init__(self) -> None:
        from runtime.errors import require

        require(self.batch_size >= 1, "batch_size must be at least 1", self.batch_size, "1 is the default")
        require(self.steps >= 2, "steps must be at least 2", self.steps, "10 is the default")


@dataclass(frozen=True)
class Starts:
    """What was measured, and why the others are missing."""

    starts: "tuple[Start, ...]"
    missing: tuple[str, ...]  # sentences


def measure_starts(
    options: StartOptions,
    rivals: tuple[StartRival, ...] = tuple(StartRival),
    on_rival: Callable[[str], None] = lambda name: None,
) -> Starts:
    """Start the rivals one after another; `on_rival` hears the name of each one."""
    from bench.records import Start
    from engines.gpu import visible_gpu
    from runtime.errors import BackendError

    starts, missing, has_gpu = [], [], visible_gpu() is not None
    built: dict[str, dict[str, Any]] = {}  # by what is built
    with tempfile.TemporaryDirectory() as folder:
        for rival in rivals:
            on_rival(rival)
            job = asdict(options) | {"rival": rival, "folder": Path(folder) / rival.built}
            try:
                if rival.needs_checkpoint and options.checkpoint is None:
                    raise BackendError("it needs the checkpoint, and none was given")
                if rival.needs_gpu and not has_gpu:
                    raise BackendError("it needs an NVIDIA GPU and its driver, and none was found here")
                if rival.built not in built:
                    built[rival.built] = _run_apart(build, job)
                found = _run_apart(run, job | built[rival.built])
            except BackendError as error:
                missing.append(f"{rival}: {error}")
            else:
                starts.append(Start(rival.value, **found))
    return Starts(tuple(starts), tuple(missing))


def _run_apart(phase: Callable[[dict[str, Any]], dict[str, Any]], job: dict[str, Any]) -> dict[str, Any]:
    """`phase` of a job in a process of its own; a `BackendError` with the reason if it ends without a result."""
    from runtime.errors import BackendError

    paths = {name: str(value.absolute()) for name, value in job.items() if isinstance(value, Path)}
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "TORCHINDUCTOR_CACHE_DIR": str(job["folder"].absolute()),  # empty: compilation is measured
    }
    told = json.dumps(job | paths | {"phase": phase.__name__, "begun": time.time()})
    try:
        ran = subprocess.run(
            [sys.executable, "-m", "bench.startup", told],
            capture_output=True, text=True, timeout=job["limit_s"], env=environment,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise BackendError(f"it took longer than {job['limit_s']:g} s; raise limit_s") from None
    lines = ran.stdout.splitlines()
    if ran.returncode == 0 and lines:
        found: dict[str, Any] = json.loads(lines[-1])
        return found
    said = ran.stderr.strip().splitlines()
    raise BackendError(said[-1] if said else f"its process ended with code {ran.returncode}")


def build(job: dict[str, Any]) -> dict[str, Any]:
    """Make what a rival runs in a folder of its own: how long that took, and which bundle is to be run."""
    bundle, folder, rival = Path(job["bundle"]), Path(job["folder"]), StartRival(job["rival"])
    if rival in (StartRival.TENSORRT, StartRival.RTX):
        import shutil

        shutil.copytree(bundle, folder, ignore=shutil.ignore_patterns("engines", "reports"))
        build_s = _seconds(lambda: OnGpu(rival).build(folder, job["batch_size"]))
        return {"build_s": build_s, "bundle": str(folder)}
    if rival.needs_checkpoint or job["checkpoint"] is None:
        return {"build_s": None}
    from bench.baseline import source_of
    from export.bundle import ExportOptions, export_bundle
    from export.manifest import read_manifest

    manifest = read_manifest(bundle)
    checkpoint, options = Path(job["checkpoint"]), ExportOptions(folder, precision=manifest.precision)
    return {"build_s": _seconds(lambda: export_bundle(source_of(checkpoint, manifest), options))}


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Load a rival and draw: the fields of its `Start`."""
    model, batch_size, build_s = _load(job), job["batch_size"], job["build_s"]

    def draw() -> None:
        model.sample(batch_size, steps=job["steps"], solver="ddim", cache=None, batch_size=batch_size)

    with model.network(batch_size) as network:
        call = network.call(model.manifest.network.num_tokens)  # opens the sessions
        load_s = time.time() - job["begun"]
        if job["rival"] == StartRival.COMPILED:
            call.t[...] = 0.5
            build_s = _seconds(call.run)
    return {
        "build_s": build_s,
        "load_s": load_s,
        "first_sample_s": _seconds(draw),
        "steady_s": statistics.median(_seconds(draw) for _ in range(_NEXT)),
        "peak_bytes": peak_bytes(),
    }


def _load(job: dict[str, Any]) -> "Model":
    bundle, rival, threads = Path(job["bundle"]), StartRival(job["rival"]), job["threads"]
    if rival.needs_checkpoint:
        import torch

        from bench.baseline import Settings, Tuned, source_of
        from bench.forms import Form
        from export.manifest import read_manifest
        from runtime.sampler import Model

        manifest = read_manifest(bundle)
        network = source_of(Path(job["checkpoint"]), manifest).network
        settings = Settings(rival is StartRival.EAGER, threads or torch.get_num_threads())
        form = Form.COMPILED if rival is StartRival.COMPILED else Form.EAGER
        return Model(manifest, Tuned(network, form, settings))
    if rival.needs_gpu:
        return OnGpu(rival).open(bundle)
    from runtime.sampler import load

    return load(bundle, threads=threads, graphs="split" if rival is StartRival.SPLIT else "step")


def peak_bytes() -> int:
    """The most memory that this process has had resident.

    Of getrusage a started process inherits what its parent had, on Linux; so there it is the kernel's other count.
    """
    with suppress(OSError):
        status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def main(told: str) -> None:
    """Do one job and print what it found as the last line; what hinders it is the last line of stderr."""
    job = json.loads(told)
    try:
        found = {"build": build, "run": run}[job["phase"]](job)
    except Exception as error:
        sys.exit(" ".join(f"{error}".split()) or type(error).__name__)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
