"""Upstream's way of giving options, `key=value` words, as records: `num_samples=10 'cache_kwargs={K:5,R:10}'`.

The published commands are driven by Hydra. Of its grammar this reads what those commands take: plain values,
one level of braces, and the same with a dot (`cache_kwargs.K=5`). A record of options says which words there
are, by its fields, and of what kind, by their defaults. Needs nothing beyond the standard library.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeVar

from runtime.errors import OptionError

Record = TypeVar("Record")

_CONSTANTS = {"true": True, "false": False, "null": None}


def record_from_words(kind: type[Record], words: Sequence[str]) -> Record:
    """The record of options that the words describe, the rest of it by default; an `OptionError` for a wrong word."""
    usual = kind()
    known = {f.name: getattr(usual, f.name) for f in fields(kind)}  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.lstrip("+").partition("=")
        key, dot, inner = key.partition(".")
        if not equals:
            raise OptionError(f"options are words as key=value, found {word!r}; write {next(iter(known))}=...")
        if key not in known or (dot and not isinstance(known[key], dict)):
            raise OptionError(f"unknown key {key + dot + inner!r}; the known ones are {', '.join(known)}")
        if dot:
            given.setdefault(key, {})[inner] = _value(text)
        elif key in given:
            raise OptionError(
                f"{key} must be given once, found it twice; quote braces, so that a shell leaves them whole"
            )
        else:
            given[key] = _like(known[key], key, text)
    return kind(**given)


def _like(usual: Any, key: str, text: str) -> Any:
    """The value of a word, of the kind that its default has; text where that is text or None."""
    if isinstance(usual, dict):
        return _mapping(key, text)
    if usual is None or isinstance(usual, str):
        return text
    value = _value(text)
    if isinstance(value, bool) != isinstance(usual, bool) or not isinstance(value, int):
        raise OptionError(f"{key} must be {'true or false' if usual in (True, False) else 'a whole number'}, "
                          f"found {text!r}; {str(usual).lower()} is the default")  # fmt: skip
    return value


def _mapping(key: str, text: str) -> dict[str, Any]:
    pairs = [pair.partition(":") for pair in text.strip("{} ").split(",") if pair.strip()]
    if not (text.startswith("{") and text.endswith("}")) or any(not colon for _, colon, _ in pairs):
        raise OptionError(f"{key} must be pairs in braces, found {text!r}; write '{key}={{K:5,R:10}}', with the quotes")
    return {name.strip().strip("'\""): _value(value.strip()) for name, _, value in pairs}


def _value(text: str) -> Any:
    """A number, true, false or null, and text for anything else."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text.strip("'\"")
