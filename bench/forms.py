"""What PyTorch may run as a rival, by name; the rivals themselves, and torch, are in `baseline`."""

from enum import StrEnum


class Form(StrEnum):
    """What PyTorch runs."""

    EAGER = "eager"
    COMPILED = "compiled"
    KV = "keys and values"  # eager, any tokens against the cached rest
