"""What every command line of ours does: errors as one sentence, exit codes, warnings in words.

    run_as_command(main)      # main: a function with typer's annotations

Exit codes: 0 done, 1 a check failed or the run broke, 2 wrong use, 130 Ctrl-C. A bug keeps its traceback.
"""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console

from export.manifest import ManifestError
from runtime.errors import BackendError, BackendWarning, CacheWarning, OptionError

STOPPED = 130  # exit code of Ctrl-C
_OURS = (CacheWarning, BackendWarning)


def say(line: str) -> None:
    """A line on stderr."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(line, markup=False)


def _told(error: Exception) -> int | None:
    """Exit code of an error that is meant for the user, None for a bug."""
    if isinstance(error, OptionError | ManifestError):
        return 2
    if isinstance(error, BackendError | OSError | MemoryError):
        return 1
    code = getattr(error, "exit_code", None)  # errors of rooms that are not imported here
    return code if isinstance(code, int) else None


def run_as_command(function: Callable[..., None]) -> None:
    """Run a function as a command line of its own, with the same errors and exit codes."""
    own = typer.Typer(add_completion=False, rich_markup_mode=None)
    own.command()(function)
    exit_with(lambda: own(standalone_mode=False))


def exit_with(command: Callable[[], Any]) -> None:
    """Run a command and leave the process with its exit code."""
    with warnings_in_words():
        code = _run(command)
    sys.exit(code)


@contextmanager
def warnings_in_words() -> Iterator[None]:
    """Say warnings of ours as sentences, each once; those of others stay as they are."""
    with warnings.catch_warnings():
        for ours in _OURS:
            warnings.simplefilter("always", ours)
        show, said = warnings.showwarning, set[str]()

        def tell(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if not issubclass(category, _OURS):
                show(message, category, *place, **more)
            elif str(message) not in said:
                said.add(str(message))
                say(f"warning: {message}")

        warnings.showwarning = tell
        yield


def _run(command: Callable[[], Any]) -> int:
    try:
        code = command()
        if code == STOPPED:  # typer's word for Ctrl-C
            say("stopped; nothing else was changed")
        return code if isinstance(code, int) else 0
    except ModuleNotFoundError as error:
        if (extra := _EXTRAS.get(str(error.name).partition(".")[0])) is None:
            raise
        say(f"this command needs the package {error.name!r}, which is not installed; pip install 'e2crf[{extra}]'")
        return 2
    except Exception as error:
        code = _told(error)
        if code is None:
            raise
        is_help = type(error).__name__ == "NoArgsIsHelpError"  # the command line alone: click's word for it
        say(_usage(error) if is_help else f"error: {_sentence(error)}")
        return code


def _usage(error: Any) -> str:
    """The commands there are, and where the help of each is."""
    return f"{error.format_message()}\n\nSee `{error.ctx.command_path} <command> --help`."


def _sentence(error: Exception) -> str:
    """What an error says; for wrong use of a command also where its help is."""
    if isinstance(error, MemoryError):
        return f"not enough memory: {error or 'no more was to be had'}; take a smaller --batch-size, or fewer steps"
    if isinstance(error, OSError):
        what = f"cannot write or read {error.filename}" if error.filename else "cannot write or read a file"
        return f"{what}: {error.strerror or error}; nothing was replaced: make room or choose another place"
    if not hasattr(error, "format_message"):
        return str(error)
    context = getattr(error, "ctx", None)
    path = "e2crf" if context is None else context.command_path
    return f"{error.format_message().rstrip('.')}; see `{path} --help`"


_EXTRAS = {
    "torch": "export",
    "onnx": "export",
    "lightning": "train",
    "hydra": "train",
    "omegaconf": "train",
    "aeon": "train",
    "matplotlib": "bench",
    "huggingface_hub": "hub",
    "filelock": "rtx",
    "cuda": "gpu",
}
