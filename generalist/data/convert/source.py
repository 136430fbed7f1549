"""The data set that is converted, opened with what its fields mean and what becomes of them."""

import dataclasses
import functools
from typing import Any, Literal

import numpy as np

from generalist.data.convert.images import Loaded, encoding, loaded
from generalist.data.convert.naming import Format, Kept, check_writable, kept_fields
from generalist.data.formats.columns import Column
from generalist.data.formats.detect import open_episodes
from generalist.data.formats.episodes import EpisodeSet, RawEpisode
from generalist.data.formats.faults import BrokenRecord
from generalist.data.mapping import FieldMapping, default_mapping, read_mapping
from generalist.data.recorded import opening

Images = Literal["video", "png"]
Codec = Literal["libsvtav1", "h264"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What the result of a conversion depends on."""

    source: str
    to: Format
    split: str = "train"
    mapping: str = ""
    """YAML file with what the fields mean; empty: by their known names."""
    without: tuple[str, ...] = ()
    """Keys of fields that are left out."""
    instruction: str = ""
    """Of episodes that carry none."""
    rate: float | None = None
    """Steps per second, of data sets that do not say it."""
    images: Images = "video"
    """Of LeRobot data sets."""
    codec: Codec = "libsvtav1"
    """Of videos."""


@dataclasses.dataclass(frozen=True)
class Source:
    """An open data set, and what is kept of it."""

    settings: Settings
    episodes: EpisodeSet
    mapping: FieldMapping
    kept: tuple[Kept, ...]
    rate: float | None

    @property
    def keys(self) -> list[str]:
        """All fields that are read, each once."""
        told = [self.mapping.instruction] if self.mapping.instruction else []
        return list(dict.fromkeys([*(one.field.key for one in self.kept), *told, *self.terminal]))

    @property
    def terminal(self) -> tuple[str, ...]:
        """The field that says whether an episode ended by itself, for data sets of RLDS; at most one."""
        # RLDS, Minari, D4RL, and what others call it. Not `dones`, which are set at a time limit too.
        known = ("is_terminal", "terminations", "terminals", "terminal")
        return tuple(key for key in known if key in self.episodes.fields)[:1] if self.settings.to == "rlds" else ()

    def read(self, number: int) -> RawEpisode:
        """An episode with all that is kept of it.

        Raises:
            BrokenRecord: it can't be read; the message names file and record.
        """
        # All at once: most formats read a record as a whole.
        raw = self.episodes.read(number, self.keys)
        if not len(raw):
            raise BrokenRecord(f"{self.episodes.where(number)}: it has no step")
        return raw

    def instructions(self, raw: RawEpisode) -> list[str]:
        """The instruction at each step."""
        key = self.mapping.instruction
        if key is None:
            told = [""] * len(raw)
        elif key in raw.values:
            told = [text(raw.values[key])] * len(raw)
        else:
            told = [text(value) for value in np.asarray(raw.columns[key], object)]
        # Only where the source has none.
        return [one or self.settings.instruction for one in told]


def text(value: Any) -> str:
    """A text of a file; some formats give bytes.

    Raises:
        BrokenRecord: it can't be written as UTF-8.
    """
    try:
        found = value.decode("utf-8") if isinstance(value, bytes) else str(value)
        found.encode("utf-8")  # JSON can have half a character
    except UnicodeError as error:
        raise BrokenRecord(f"a text is no UTF-8 ({error})") from error
    return found


@functools.lru_cache(maxsize=4)
def opened(settings: Settings) -> Source:
    """The data set, opened once per process.

    Raises:
        FileNotFoundError, ValueError, ImportError: it can't be read, its mapping does not fit, or a field can't be written.
    """
    episodes = open_episodes(settings.source, opening(settings.split))
    mapping = read_mapping(settings.mapping, episodes) if settings.mapping else default_mapping(episodes)
    kept = kept_fields(episodes, mapping, settings.to, settings.without)
    return Source(
        settings, episodes, mapping, tuple(_looked_at(episodes, kept, settings.to)), _rate(settings, episodes)
    )


def _rate(settings: Settings, episodes: EpisodeSet) -> float | None:
    # A rate can be added, not changed: timestamps would no longer be those of the recording.
    if settings.rate is not None and episodes.rate is not None and settings.rate != episodes.rate:
        raise ValueError(
            f"--rate {settings.rate:g}: {settings.source} says that it has {episodes.rate:g} steps per second: leave it out"
        )
    rate = episodes.rate if settings.rate is None else settings.rate
    if rate is None and settings.to == "lerobot":
        raise ValueError(
            f"{settings.source} does not say how many steps per second it has, which LeRobot needs: give it with --rate"
        )
    return rate


def _looked_at(episodes: EpisodeSet, kept: list[Kept], to: Format) -> list[Kept]:
    """The same fields; of images, with what the first one says about size and encoding."""
    cameras = [one for one in kept if one.field.kind == "image"]
    # Descriptions may leave sizes open, and say nothing of the encoding, which TFDS wants for a whole field.
    first = _first_images(episodes, [one.field.key for one in cameras])
    found = []
    for one in kept:
        if one in cameras:
            image, stored = first[one.field.key]
            # RLDS has images of several sizes in a field, LeRobot has not.
            is_open = to == "rlds" and one.field.level == "step"
            shape = one.field.shape if len(one.field.shape) == 3 else (None, None, None)
            known = shape if is_open else image.shape
            one = dataclasses.replace(
                one, shape=(*known[:2], image.shape[2]), encoding=(encoding(stored) if stored else None) or "png"
            )
            check_writable(one, to, episodes)
        found.append(one)
    return found


def _first_images(episodes: EpisodeSet, keys: list[str]) -> dict[str, Loaded]:
    """Of each field the first image that can be read."""
    if not keys:
        return {}
    reason, known = "it has no episode with a step in it", episodes.broken()
    for number in np.flatnonzero(episodes.lengths).tolist():
        if number in known:
            continue
        try:
            # Formats read at least one field of steps; all cameras may be of the episode.
            raw = episodes.read(number, [*keys, *_some_step_field(episodes)])
            return {key: next(loaded(column_of(raw, key)[:1])) for key in keys}
        except BrokenRecord as error:
            reason = f"{episodes.where(number)}: {error}"
    raise ValueError(f"{episodes.place}: no images can be read ({reason}): mend the data set")


def _some_step_field(episodes: EpisodeSet) -> list[str]:
    return [next(key for key, field in episodes.fields.items() if field.level == "step")]


def column_of(raw: RawEpisode, key: str) -> Column:
    """The values of a field's steps, or the single one of the episode."""
    if key in raw.columns:
        return raw.columns[key]
    value = raw.values[key]
    # (...) to (1, ...)
    return [value] if isinstance(value, bytes) else np.asarray(value)[None]
