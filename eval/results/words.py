"""Counts and lists in the texts of results."""

from collections.abc import Sequence


def counted(number: int, what: str) -> str:
    """`1 episode`, `20 episodes`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first `most` names, and the number of the others."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
