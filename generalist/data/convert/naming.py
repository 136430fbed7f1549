"""Which fields of a data set a conversion keeps, and what they are called in the new one.

role                 RLDS                       LeRobot
observation `state`  observation/state          observation.state
observation `front`  observation/front          observation.images.front     (an image)
action               action, or action/NAME     action, or action.NAME
instruction          language_instruction       the step's task
reward               reward                     next.reward
anything else        its own key                its own key, with `.` for `/`
"""

import dataclasses
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Literal

import numpy as np

from generalist.data.formats.episodes import EpisodeSet, Field
from generalist.data.mapping import BARE, FieldMapping

Format = Literal["rlds", "lerobot"]
INSTRUCTION, TERMINAL, REWARD = "language_instruction", "is_terminal", "reward"
"""Fields of RLDS."""
SCALARS = (REWARD, "discount", TERMINAL)
"""Fields of RLDS that are single numbers; LeRobot has them with the shape (1,)."""
# RLDS: what its own steps have. LeRobot: columns that it makes itself or reads in a way of its own; `.` and `..`
# as folders of videos lead out of the data set.
RESERVED: Mapping[Format, tuple[str, ...]] = {
    "rlds": ("steps", "is_first", "is_last", INSTRUCTION),
    "lerobot": (
        *("timestamp", "frame_index", "episode_index", "index", "task_index", "task"),
        *("language_persistent", "language_events", "", ".", ".."),
    ),
}
"""Keys with a meaning of their own; a field of another meaning is called `source.KEY`."""
LEROBOT_NUMBERS = ("bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))
# The `datasets` library has Array2D to Array5D.
MOST_DIMENSIONS = 5
"""Of a LeRobot feature."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kept:
    """A field that the new data set has too."""

    field: Field
    """As the source has it; an image's shape as far as it is known."""
    key: str
    """In the new data set."""
    shape: tuple[int | None, ...]
    """Of a value in the new data set."""
    is_action: bool = False
    encoding: Literal["png", "jpeg"] = "png"
    """Of images that are stored as they are."""


def kept_fields(episodes: EpisodeSet, mapping: FieldMapping, to: Format, without: Collection[str]) -> list[Kept]:
    """The fields that a conversion keeps, in the order of their new keys.

    Raises:
        ValueError: a field of `without` is not there, or is the action; or one can't be written in that format.
    """
    if unknown := [key for key in without if key not in episodes.fields]:
        raise ValueError(f"--without {unknown[0]}: there is no such field, only {', '.join(sorted(episodes.fields))}")
    # Without an action nothing could learn from it, and our own readers refuse it.
    if needed := [key for key in without if key in mapping.action.values()]:
        raise ValueError(f"--without {needed[0]}: this is the action, which every data set needs")
    named = dict(_mapped(episodes.fields, mapping, to))
    # The instruction is written as the format's own, not as one more text.
    dropped = {*episodes.derived, *without, *([mapping.instruction] if mapping.instruction else [])}
    found: dict[str, Kept] = {}
    # Fields with a known meaning get their names first; another field that has such a name gets a new one.
    mapped_first = [*named, *(key for key in episodes.fields if key not in named)]
    for source in mapped_first:
        if source in dropped:
            continue
        field = episodes.fields[source]
        key = _free(named.get(source) or _own(source, to), to, found)
        found[key] = Kept(
            field=field, key=key, shape=_shape(field, key, to), is_action=source in mapping.action.values()
        )
    # Before any episode is read.
    for one in found.values():
        check_writable(one, to, episodes)
    return [found[key] for key in sorted(found)]


def _mapped(fields: Mapping[str, Field], mapping: FieldMapping, to: Format) -> Iterator[tuple[str, str]]:
    """(key, new key) of the fields whose meaning is known."""
    join: Callable[[str, str], str] = "{}/{}".format if to == "rlds" else "{}.{}".format
    for name, key in mapping.observation.items():
        if name in BARE and "state" not in mapping.observation:
            name = "state"  # what policies look for
        # LeRobot's policies find cameras by the prefix `observation.images`.
        is_camera = to == "lerobot" and fields[key].kind == "image"
        yield key, _own(join("observation.images" if is_camera else "observation", name), to)
    for name, key in mapping.action.items():
        yield key, _own(join("action", name), to) if name else "action"
    if mapping.reward is not None:
        yield mapping.reward, REWARD if to == "rlds" else "next.reward"


def _own(key: str, to: Format) -> str:
    # Keys of LeRobot are names of folders too, and may have no slash.
    return key if to == "rlds" else re.sub(r"[^\w.-]", "_", key.replace("/", "."))


def _free(key: str, to: Format, taken: Collection[str]) -> str:
    """A key, or another one made of it where it has a meaning of its own or there is one such already."""
    # Again and again: `source.KEY` itself may be taken.
    while key in RESERVED[to] or key in taken or (to == "rlds" and _is_nested(key, taken)):
        key = f"source.{key.replace('/', '.')}"
    return key


def _is_nested(key: str, taken: Collection[str]) -> bool:
    """Whether one of the keys would have to be a field and a folder of fields at once."""
    return any(key.startswith(f"{other}/") or other.startswith(f"{key}/") for other in taken)


def _shape(field: Field, key: str, to: Format) -> tuple[int | None, ...]:
    if field.kind != "number":
        return field.shape
    if to == "lerobot":
        # LeRobot has no shape (): single numbers are vectors of one.
        return field.shape or (1,)
    return () if key in SCALARS and field.shape == (1,) else field.shape


def check_writable(kept: Kept, to: Format, episodes: EpisodeSet) -> None:
    """
    Raises:
        ValueError: the format has no such fields; the message says how to go on without it.
    """
    if problem := _problem(kept, to):
        raise ValueError(
            f"{episodes.place}: the field {kept.field.key!r} can't be written, since {problem}: leave it out with "
            f"--without {kept.field.key}"
        )


def _problem(kept: Kept, to: Format) -> str:
    field = kept.field
    if field.kind == "number":
        # Neither format's readers take numbers whose count differs between steps.
        if None in field.shape or 0 in field.shape:
            return f"its shape {field.shape} differs between steps or is empty"
        if to == "lerobot" and len(field.shape) > MOST_DIMENSIONS:
            return f"LeRobot has at most {MOST_DIMENSIONS} dimensions, and it has {len(field.shape)}"
        if np.dtype(field.dtype).name not in (*LEROBOT_NUMBERS, "float16", "float32", "float64"):
            return f"{field.dtype} is no type that the format has"
    if field.kind == "image" and to == "lerobot":
        if field.level == "episode":
            return "LeRobot has no images of whole episodes"
        if kept.shape and kept.shape[-1] not in (None, 1, 3):
            return f"LeRobot has images with 1 or 3 channels, and its have {kept.shape[-1]}"
    return ""


def size(shape: tuple[int | None, ...]) -> int:
    """Numbers of a value."""
    return math.prod(count or 0 for count in shape)
