"""How a layout is acted in: stored with it, since weights act well only in the way that they were trained."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Acting:
    """What acting needs of the settings that a layout was trained with; the defaults are those of a new suite."""

    steps: int = 8
    """Environment steps of context: those of a training window."""
    hide_actions: bool = True
    """Past actions are not fed back, and all dimensions of an action are decoded at once."""
    parallel: bool = False
    """All dimensions of an action are read from one position; otherwise each is read from a position of its own."""
    temperature: float = 0.0
    """Actions are sampled at this temperature; 0 takes the likeliest, and of a continuous number the median."""
    prompt_steps: int = 4
    """Environment steps of a demonstration that is shown as a prompt."""

    def __post_init__(self) -> None:
        for name in ("steps", "prompt_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1 environment step, got {getattr(self, name)}")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be a number of at least 0, got {self.temperature}")

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Acting":
        """What `to_json` described.

        Raises:
            ValueError: a value is missing, unknown, of another type, or out of its range.
        """
        # Layouts that were stored before actions could be parallel have none that are.
        data = {"parallel": False} | data if isinstance(data, dict) else data
        # The defaults' types are the fields': the file is outside input, which annotations do not check.
        kinds = {field.name: type(field.default) for field in dataclasses.fields(cls)}
        if not isinstance(data, Mapping) or data.keys() != kinds.keys():
            raise ValueError(f"acting must have {', '.join(kinds)}, got {data!r}")
        for name, kind in kinds.items():
            # A whole number is a valid temperature; a flag is no number.
            if type(data[name]) is not kind and not (kind is float and type(data[name]) is int):
                raise ValueError(f"acting.{name} must be of type {kind.__name__}, got {data[name]!r}")
        return cls(**{**data, "temperature": float(data["temperature"])})
