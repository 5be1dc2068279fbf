"""Upstream's way of giving options, `key=value` words, as records: `num_samples=10 'cache_kwargs={K:5,R:10}'`.

The published commands are driven by Hydra. Of its grammar this reads what those commands take: plain values,
one level of braces, and the same with a dot (`cache_kwargs.K=5`). A record of options says which words there
are, by its fields, and of what kind, by their defaults.

The commands of this room that sample one model against its real series are driven either by such words
(`ModelWords`) or by the name of the model and options of their own; `opened` opens what was named.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, TypeVar

import typer

from bench.reference import Reference, reference_of_run
from runtime.compat import bundle_of
from runtime.errors import OptionError, require
from runtime.sampler import Model, load
from runtime.solvers import Solver

Record = TypeVar("Record")


@dataclass(frozen=True)
class ModelWords:
    """What is sampled, and how: upstream's names, which stand for options of other names."""

    model_id: str = "latest"  # a run, a bundle or a checkpoint file
    num_samples: int = 20
    num_diffusion_steps: int = 100
    random_seed: int = 0
    solver: str = Solver.EULER_MARUYAMA


_WORDS = {"num_samples": "num_samples", "steps": "num_diffusion_steps", "seed": "random_seed", "solver": "solver"}
Named = Annotated[list[str], typer.Argument(help="Bundle or run, or words: " + ", ".join(asdict(ModelWords())))]


def words_for(
    context: typer.Context, named: Sequence[str], num_samples: int, steps: int, seed: int, solver: str
) -> ModelWords:
    """The words that were given, or those that a name and options come to; an `OptionError` for both at once."""
    if len(named) > 1 or "=" in named[0]:
        both = [option for option in _WORDS if _is_given(context, option)]
        require(not both, "beside words, what is sampled is named by words alone",
                ", ".join(f"--{option.replace('_', '-')}" for option in both),
                f"write {', '.join(f'{_WORDS[option]}=...' for option in both)}")  # fmt: skip
        return record_from_words(ModelWords, named)
    return ModelWords(named[0], num_samples, steps, seed, solver)


def _is_given(context: typer.Context, option: str) -> bool:
    source = context.get_parameter_source(option)
    return source is not None and source.name == "COMMANDLINE"


@contextmanager
def opened(model_id: str, reference: str | None, threads: int | None) -> Iterator[tuple[Model, Reference]]:
    """A model by its name, and the real series of its run or of a file; an `OptionError` without any."""
    with load(bundle_of(model_id), threads=threads) as model:
        if (real := reference_of_run(model.manifest.source.run_id, reference)) is None:
            raise OptionError(f"{model_id} must be judged by real series, found none of its run here; "
                              "name them with --reference")  # fmt: skip
        yield model, real


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
