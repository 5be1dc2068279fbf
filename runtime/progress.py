"""Progress on a terminal, for what takes longer than a glance; quiet where nobody watches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from runtime.sampler import OnProgress

_UPDATE_EVERY = 10  # steps at least; moving a bar takes longer than a step without the network


@contextmanager
def steps_progress(num_samples: int, batch_size: int, num_steps: int) -> Iterator[OnProgress | None]:
    """A callback for `Model.sample(on_progress=...)` that moves a bar, or None where nobody watches."""
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
        batches = -(-num_samples // max(1, batch_size))  # what cannot be meant is refused by who samples
        task = bar.add_task("", total=batches * num_steps)

        waiting = 0

        def on_progress(steps: int) -> None:
            nonlocal waiting
            waiting += steps
            if waiting >= _UPDATE_EVERY:
                bar.advance(task, waiting)
                waiting = 0

        yield on_progress


@contextmanager
def stages() -> Iterator[Callable[[str], None]]:
    """Says which stage of a longer command is under way."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda stage: None
        return
    with console.status("") as status:
        yield status.update
