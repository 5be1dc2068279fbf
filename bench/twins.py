"""The same ways of sampling elsewhere: PyTorch in its forms, the split graphs, and whatever opens on a GPU.

A twin draws what its original draws, so that its samples are not judged again: how nearly it draws them is its paired
error, in the batch that is timed. What does not open says why.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.contenders import Contender, Progress, open_pytorch
from bench.forms import Form
from bench.on_gpu import openers
from engines.gpu import visible_gpu
from runtime.backends.base import BackendName
from runtime.errors import BackendError
from runtime.sampler import Model
from runtime.score import Graphs


@dataclass
class Twins:
    """The twins of the uncached and of the cached way."""

    of_uncached: list[Contender] = field(default_factory=list)
    of_cached: list[Contender] = field(default_factory=list)
    settings: list[str] = field(default_factory=list)  # that PyTorch runs under
    missing: list[str] = field(default_factory=list)  # sentences: what could not be opened, and why


@dataclass(frozen=True)
class TwinOptions:
    """What twins are opened from, and for which batch."""

    bundle: Path
    checkpoint: Path | None  # the one the bundle was exported from; None: no PyTorch
    batch_size: int
    forms: Sequence[Form]  # of PyTorch


def open_twins(
    uncached: Contender, cached: Contender, options: TwinOptions, opened: ExitStack, progress: Progress, *, whole: bool
) -> Twins:
    """All twins that open here, to be closed with `opened`; `whole`: the cached way asks for all tokens or none."""
    twins, model = Twins(), uncached.model
    checkpoint, size = options.checkpoint, options.batch_size
    for form in options.forms:
        progress(f"preparing: pytorch {form}", 0.0)
        try:
            pytorch = opened.enter_context(open_pytorch(checkpoint, model, size, form))
        except BackendError as error:
            twins.missing.append(f"PyTorch {form}: {error}")
            continue
        if pytorch is not None:
            twins.settings.append(f"{form}: {pytorch.choice}")
            twins.of_uncached.append(replace(uncached, model=pytorch.model))
            if whole:
                twins.of_cached.append(replace(cached, model=pytorch.model))
    if not whole and checkpoint is not None:  # a few tokens, against the cached rest
        keeps = opened.enter_context(open_pytorch(checkpoint, model, size, Form.KV))
        assert keeps is not None
        twins.of_cached.append(replace(cached, model=keeps.model))
    if "embed" in model.manifest.graphs and model.backend.name == BackendName.ONNXRUNTIME:
        split = Model(model.manifest, model.backend, graphs=Graphs.SPLIT)
        twins.of_uncached.append(replace(uncached, model=split))
        twins.of_cached.append(replace(cached, model=split))
    if model.backend.name != BackendName.FAKE and visible_gpu() is not None:
        _add_gpu(twins, uncached, cached, options, opened, progress)
    return twins


def _add_gpu(
    twins: Twins,
    uncached: Contender,
    cached: Contender,
    options: TwinOptions,
    opened: ExitStack,
    progress: Progress,
) -> None:
    """What opens on the GPU and draws a batch each way; of the rest why it does not."""
    bundle, size = options.bundle, options.batch_size
    for backend, open_model in openers(bundle, options.checkpoint).items():
        if backend == uncached.model.backend.name:
            continue
        progress(f"preparing: {backend}", 0.0)
        with ExitStack() as tried:
            try:
                model = tried.enter_context(open_model())
                on_gpu = replace(uncached, model=model), replace(cached, model=model)
                replace(on_gpu[0], steps=2).draw(size, size)
            except Exception as error:  # drivers and the libraries over them raise types of their own
                twins.missing.append(f"{backend}: {_why(error, bundle)}")
                continue
            opened.enter_context(tried.pop_all())
        twins.of_uncached.append(on_gpu[0])
        try:
            on_gpu[1].draw(size, size)
        except Exception as error:
            twins.missing.append(f"{on_gpu[1].name}: {_why(error, bundle)}")
            continue
        twins.of_cached.append(on_gpu[1])


def _why(error: Exception, bundle: Path) -> str:
    """An error in one line, without the folder that the bundle lies in."""
    kind = "" if isinstance(error, BackendError) else f"{type(error).__name__}: "
    return kind + " ".join(str(error).replace(str(bundle), bundle.name).split())
