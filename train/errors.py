"""What can go wrong while training, each a sentence in three parts: what, what was found, what to do.

`exit_code` is what the command line makes of it: 2 for wrong use or bad input, 1 for a run that failed.
"""


class TrainError(Exception):
    """Any failure of the world that training can explain; the base of the others."""

    exit_code = 2


class DataError(TrainError):
    """A data set is missing, damaged, or not what its name promises."""


class ConfigError(TrainError):
    """The configuration names something that does not exist or asks for something impossible."""


class RunError(TrainError):
    """The folder of a run is in the way, or not there to resume from."""


class DivergedError(TrainError):
    """The loss is no longer a finite number."""

    exit_code = 1


class InterruptedRun(TrainError):
    """Ctrl-C, after the run was put away safely."""

    exit_code = 130
