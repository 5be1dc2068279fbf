"""The command line: a thin skin over the rooms.

The verbs are functions in `verbs`, listed here in the order of the line; how errors are said, and the exit
codes, are in `command`.
"""

import typer

from runtime.command import exit_with
from runtime.verbs import making, measuring, sampling, sharing

app = typer.Typer(
    name="e2crf",
    help="Export time-series diffusion models and sample them with E2-CRF caching.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
HYDRA = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}  # words are passed on

app.command(context_settings=HYDRA)(making.train)
app.command()(making.export)
app.command()(making.verify)
app.command()(making.build)
app.command()(sampling.sample)
app.command()(measuring.calibrate)
app.command()(measuring.bench)
app.command()(measuring.report)
app.command()(sharing.inspect)
app.command()(sharing.push)
app.command()(sharing.pull)
app.command()(sharing.doctor)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `e2crf`."""
    exit_with(lambda: app(arguments, standalone_mode=False))


if __name__ == "__main__":
    main()
