"""The errors of this room; every message says what, what was found, and what to do.

    Exception
    ├── ValueError
    │   └── OptionError     an argument is wrong: unknown word, impossible number, knobs that contradict
    ├── BackendError        a backend cannot be opened, or failed while running
    ├── HubError            the Hugging Face Hub refuses, or cannot be reached
    └── Warning
        ├── CacheWarning    a cache did not do what a cache is for
        └── BackendWarning  a backend runs, but slower than it should

A damaged or missing bundle is an `export.manifest.ManifestError`. The command line turns these into one
sentence; anything else is a bug and keeps its traceback.
"""

import operator
from enum import StrEnum
from numbers import Real
from typing import TypeVar

Word = TypeVar("Word", bound=StrEnum)


class OptionError(ValueError):
    """A value the caller chose is wrong."""


class BackendError(Exception):
    """A backend could not be opened or could not run."""


class HubError(Exception):
    """The Hugging Face Hub refused, or could not be reached."""

    exit_code = 1


class CacheWarning(UserWarning):
    """A cache that never reused anything, was never refreshed, or has thresholds that nothing can pass."""


class BackendWarning(UserWarning):
    """A backend that runs, but not in its fastest form."""


def parse_word(words: type[Word], value: str, what: str) -> Word:
    """The member of a closed set of words, or an error that lists the right ones."""
    try:
        return words(value)
    except ValueError:
        raise OptionError(f"unknown {what} {value!r}; the known ones are {', '.join(words)}") from None


def whole(value: object, what: str) -> int:
    """A whole number of any kind, such as NumPy's, as Python's own; an `OptionError` for anything else."""
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        remedy = "leave out what follows the point" if isinstance(value, Real) else "give an integer"
        raise OptionError(f"{what} must be a whole number, found {value!r}; {remedy}") from None


def require(ok: bool, what: str, found: object, remedy: str) -> None:
    """Raise an `OptionError` of the three parts unless `ok`."""
    if not ok:
        raise OptionError(f"{what}, found {found!r}; {remedy}")
