"""Switches among the environment variables."""

import os


def is_on(variable: str) -> bool:
    """Whether a switch, which is on unless it is set, is on.

    Raises:
        ValueError: it is neither on nor off.
    """
    value = os.environ.get(variable, "on")
    if value not in ("on", "off"):
        raise ValueError(f"{variable} must be on or off, got {value!r}")
    return value == "on"
