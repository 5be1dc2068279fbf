"""One ONNX file -> the bytes of one engine: Polygraphy parses and configures, the library builds.

What the library says on the way is listened to, not printed. A warning that the parser goes on without an input
is an error here, as is a port that comes out of it with another name, type or shape: the engine would run, and
compute something else. Of a build that fails the first error is shown; those after it follow from it.
"""

import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engines.errors import EngineError
from engines.flavor import ALL_TARGETS, Flavor, Toolkit
from engines.key import Ingredients
from export.manifest import Graph, Tensor

Tell = Callable[[str], None]
_DROPPED = "unused input"  # the parser's words for an input that it goes on without
_ABOUT = "ModelImporter.cpp"  # the parser's lines around an error: where it is, not what
_NO_MEMORY = ("out of memory", "outofmemory", "insufficient memory", "cudaerrormemoryallocation")
_TYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "int64": "INT64"}
_SHOWN = 400  # characters of a cause
_LETTER = re.compile(r"^\[\w\]\s*")  # Polygraphy puts the level before a message


def engine_bytes(toolkit: Toolkit, path: Path, graph: Graph, ingredients: Ingredients, tell: Tell) -> bytes:
    """Build an engine; `tell` hears how far the build is. An `EngineError` names the first cause of a failure."""
    loaders, name = toolkit.loaders, ingredients.graph
    with _listening(toolkit) as heard:
        monitor = _monitor(toolkit, tell)
        try:
            builder, network, parser = loaders.network_from_onnx_path(str(path), strongly_typed=True)
            _check_ports(name, network, graph)
            config = _config(toolkit, builder, network, graph, ingredients, monitor)
            engine = loaders.engine_bytes_from_network((builder, network, parser), config)
            _check_nothing_dropped(name, heard)
        except (toolkit.failure, RuntimeError, TypeError) as error:  # the latter two: numbers that no binding takes
            if monitor.is_stopped:
                raise KeyboardInterrupt from error
            raise EngineError(_failure(toolkit, ingredients, heard, str(error))) from error
    return bytes(engine)


def _config(toolkit: Toolkit, builder: Any, network: Any, graph: Graph, ingredients: Ingredients, monitor: Any) -> Any:
    """The builder's configuration: profiles, targets, TF32; precision is in the graph."""
    loaders, trt = toolkit.loaders, toolkit.trt
    profiles = []
    for profile in ingredients.profiles:
        profiles.append(loaders.Profile())
        for name, (least, best, largest) in profile.shapes(graph).items():
            profiles[-1].add(name, min=least, opt=best, max=largest)
    options: dict[str, Any] = {"profiles": profiles, "progress_monitor": monitor}
    if toolkit.flavor is Flavor.RTX and ingredients.target != ALL_TARGETS:
        named = (target.split(".") for target in ingredients.target.split(", "))
        options["compute_capabilities"] = [(int(major), int(minor)) for major, minor in named]
    config = toolkit.create_config(builder, network, **options)
    (config.set_flag if ingredients.tf32 else config.clear_flag)(trt.BuilderFlag.TF32)  # the defaults differ
    return config


def _check_nothing_dropped(name: str, heard: list[logging.LogRecord]) -> None:
    for message in _messages(heard, logging.WARNING):
        if _DROPPED in message.lower():
            raise EngineError(
                f"an engine of {name} would leave out an input ({message}), and compute something else; this version "
                "of the library does not know the operator as it is used: take another one, or export the bundle again"
            )


def _check_ports(name: str, network: Any, graph: Graph) -> None:
    found = {
        "input": [_port(network.get_input(i)) for i in range(network.num_inputs)],
        "output": [_port(network.get_output(i)) for i in range(network.num_outputs)],
    }
    for side, tensors in (("input", graph.inputs), ("output", graph.outputs)):
        expected = [_expected(tensor) for tensor in tensors]
        if sorted(found[side]) != sorted(expected):
            wrong = sorted(set(found[side]) ^ set(expected))[0]
            raise EngineError(
                f"the parser changed {side} {wrong[0]} of {name}: expected {sorted(expected)}, found "
                f"{sorted(found[side])}; export the bundle again"
            )


def _port(tensor: Any) -> tuple[str, str, tuple[int, ...]]:
    return tensor.name, tensor.dtype.name, tuple(tensor.shape)


def _expected(tensor: Tensor) -> tuple[str, str, tuple[int, ...]]:
    return tensor.name, _TYPES[tensor.dtype], tuple(size if isinstance(size, int) else -1 for size in tensor.shape)


def _failure(toolkit: Toolkit, ingredients: Ingredients, heard: list[logging.LogRecord], last: str) -> str:
    """The sentence for a build that failed."""
    errors = [message for message in _messages(heard, logging.ERROR) if not message.startswith(_ABOUT)]
    cause = " ".join(next(iter(errors), last).split()).rstrip(".")
    largest = max(profile.batch[2] for profile in ingredients.profiles)
    remedy = "see which operator it names, or try another version of the library"
    if any(word in cause.lower() for word in _NO_MEMORY) and largest > 1:
        remedy = f"build with --batch {largest // 2}, or on a GPU with more memory"
    cause = cause if len(cause) <= _SHOWN else cause[:_SHOWN] + "..."
    return f"{toolkit.flavor.product} {toolkit.version} could not build {ingredients.graph}: {cause}; {remedy}"


def _messages(heard: list[logging.LogRecord], level: int) -> list[str]:
    return [_LETTER.sub("", record.getMessage()) for record in heard if record.levelno == level]


def _monitor(toolkit: Toolkit, tell: Tell) -> Any:
    """Tells how far a build is, and ends it on Ctrl-C, which would wait for its end otherwise."""

    class Monitor(toolkit.trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.is_stopped, self._steps = False, dict[str, int]()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                if phase_name in self._steps:
                    tell(f"{phase_name}, {step + 1} of {self._steps[phase_name]}")
            except KeyboardInterrupt:
                self.is_stopped = True
            return not self.is_stopped

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor()


@contextmanager
def _listening(toolkit: Toolkit) -> Iterator[list[logging.LogRecord]]:
    """What the library and Polygraphy log meanwhile."""
    heard: list[logging.LogRecord] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record)

    logger, words, listener = toolkit.logger, logging.getLogger("Polygraphy"), Listener()
    before = logger.use_python_logging_system, logger.colors, words.propagate
    logger.use_python_logging_system, logger.colors, words.propagate = True, False, False
    logger.once_logged.clear()  # else a warning of one graph would not be heard again of the next
    words.addHandler(listener)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Polygraphy gives RTX a timing cache, which has none
            yield heard
    finally:
        words.removeHandler(listener)
        logger.use_python_logging_system, logger.colors, words.propagate = before
