"""Progress on a terminal, for what takes longer than a glance; quiet where nobody watches.

A bar of steps is told of every one of them. So those that need no network are taken one by one, not together: on a
terminal a model whose network is cheap may sample at half its speed. The benches time without a bar.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from runtime.sampler import OnStep, StepInfo

_UPDATE_EVERY = 10  # steps; moving a bar takes longer than a step without the network


@contextmanager
def steps_progress(num_samples: int, batch_size: int, num_steps: int) -> Iterator[OnStep | None]:
    """A callback for `Model.sample(on_step=...)` that moves a bar, or None where nobody watches."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("sampling"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=-(-num_samples // batch_size) * num_steps)

        def on_step(info: StepInfo) -> None:
            if (info.index + 1) % _UPDATE_EVERY == 0:
                bar.advance(task, _UPDATE_EVERY)

        yield on_step


@contextmanager
def stages() -> Iterator[Callable[[str], None]]:
    """Says which stage of a longer command is under way."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda stage: None
        return
    with console.status("") as status:
        yield status.update
