"""What can go wrong in this room; every message says what, what was found, and what to do.

Exception
├── ValueError
│   └── RecipeError     an engine of that kind cannot be asked for: exit code 2
└── EngineError         an engine cannot be built, kept or read here: exit code 1
"""


class RecipeError(ValueError):
    """A value of a recipe is wrong."""

    exit_code = 2


class EngineError(Exception):
    """An engine could not be built, kept or read."""

    exit_code = 1
