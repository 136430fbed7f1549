"""What a layout learns from its recordings: how observed numbers are standardised, how frames are, which bins numbers fall into;
and what of the recorded values is lost by that, for the screen.

All of it comes from a sample that is spread over all episodes: sessions differ, and the first ones say little of the last.

Dimension key: N rows of a sample, D numbers of a part.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from generalist.config.run import Config
from generalist.data.episodes import BrokenEpisode, Episode, Episodes
from generalist.data.formats.columns import Frames, decode
from generalist.data.formats.faults import BrokenRecord
from generalist.data.spread import spread
from generalist.tokenizers.continuous import Codec, Quantile, Uniform, fit_statistics
from generalist.tokenizers.image import to_frame
from generalist.tokenizers.part_rules import is_image
from generalist.tokenizers.parts import CLIP, ContinuousPart, TensorPart
from generalist.tokenizers.space_tree import leaves_of
from generalist.tokenizers.spaces import SpaceTokenizer, TaskLayout
from generalist.tokenizers.text import TextTokenizer

EPISODES = 400  # of a layout, from all over its data sets; at least LEAST of each
LEAST = 8
ROWS = 2**16  # of a part's numbers
BYTES = 2**26  # of a part's numbers, where one value is large
FRAMES = 800  # of each image part of a data set, so that a game's mean does not take a minute

LOSSY = 0.05
"""Share of a number's deviation by which a codec may be off, in the mean; above it the bins follow what was seen."""
LOSSY_CONSTANT = 0.01
"""The same of a number that never varies, as a share of its bounds' width, or of itself where there are none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """Recorded values of a layout, by the key of their part; (N, ...) each."""

    observations: Mapping[str, np.ndarray]
    actions: Mapping[str, np.ndarray]
    frames: Mapping[str, list[np.ndarray]]
    """uint8 (S, S, 3) each, of the image parts; empty where none was asked for."""


def fit_layout(
    config: Config,
    name: str,
    observation: gym.Space,
    action: gym.Space,
    offset: int,
    text: TextTokenizer | None,
    found: Sample | None,
) -> TaskLayout:
    """A layout by the run's settings.

    Args:
        offset: first column of the run's projection that the layout owns.
        text: None where no space has a Text.
        found: recorded values that statistics and bins are learnt from; None: nothing is learnt.

    Raises:
        ValueError: a part of a space does not fit the settings; the message names it.
    """
    vocabulary, acting = config.tokens.vocabulary(), config.data.suite_of(name).acting
    seen = functools.partial(
        SpaceTokenizer.from_space,
        observation,
        tensors=config.tokens.tensors,
        images=config.tokens.images,
        frame_size=config.model.frame_size,
        frame_tokens=config.model.frame_tokens,
        offset=offset,
        bounded="mu_law",
        vocabulary=vocabulary,
        text=text,
    )
    done = functools.partial(SpaceTokenizer.from_space, action, vocabulary=vocabulary, text=text)
    if found is None:
        return TaskLayout(name, seen(), done(), acting)
    seen = functools.partial(seen, statistics=statistics(found))
    return TaskLayout(
        name,
        seen(codecs=better_codecs(seen(), found.observations)),
        done(codecs=better_codecs(done(), found.actions)),
        acting,
    )


def sample(readers: Sequence[Episodes], observation: gym.Space, action: gym.Space, frame_size: int | None) -> Sample:
    """Steps from all over the data sets of a layout.

    Args:
        readers: the data sets.
        observation: space; numbers of its Boxes are kept.
        action: space; likewise.
        frame_size: side of the frames that images become; None leaves them out.
    """
    if len(readers) == 1 and readers[0].rows is not None:
        return _of_rows(readers[0], observation, action, frame_size)
    seen, done, frames = _Rows(observation), _Rows(action), {}
    each = max(LEAST, math.ceil(EPISODES / max(1, len(readers))))
    chosen = [(reader, spread(len(reader), each)) for reader in readers]
    steps = sum(int(reader.lengths[indices].sum()) for reader, indices in chosen)
    for rows in (seen, done):
        rows.stride(steps)
    for reader, indices in chosen:
        for index in indices.tolist():
            episode = reader[index]
            seen.add(episode.observations, len(episode))
            done.add(episode.actions, len(episode))
            if frame_size is not None:
                for key, image in _images(episode, math.ceil(FRAMES / len(indices))):
                    frames.setdefault(key, []).append(to_frame(image, frame_size))
    return Sample(observations=seen.joined(), actions=done.joined(), frames=frames)


def _of_rows(reader: Episodes, observation: gym.Space, action: gym.Space, frame_size: int | None) -> Sample:
    """The rows that the statistics of a whole data set collected, and frames from all over it."""
    assert reader.rows is not None
    numbers = [
        {key: rows[key] for key in _Rows(space).keys}
        for rows, space in zip(reader.rows, (observation, action), strict=True)
    ]
    frames: dict[str, list[np.ndarray]] = {}
    if frame_size is not None and any(is_image(leaf) for _, leaf in leaves_of(observation, ())):
        indices = spread(len(reader), EPISODES).tolist()
        for index in indices:
            try:
                for key, image in _images(reader[index], math.ceil(FRAMES / len(indices))):
                    frames.setdefault(key, []).append(to_frame(image, frame_size))
            except BrokenEpisode as error:
                reader.leave_out(error)
    return Sample(observations=numbers[0], actions=numbers[1], frames=frames)


class _Rows:
    """Every n-th value of each Box that is no image, n such that a sample stays small."""

    def __init__(self, space: gym.Space) -> None:
        leaves = [("/".join(path), leaf) for path, leaf in leaves_of(space, ())]
        self._leaves = {key: leaf for key, leaf in leaves if isinstance(leaf, gym.spaces.Box) and not is_image(leaf)}
        self._kept: dict[str, list[np.ndarray]] = {key: [] for key in self._leaves}
        self._every: dict[str, int] = {}
        self._passed = 0

    @property
    def keys(self) -> list[str]:
        """Of the Boxes."""
        return [*self._leaves]

    def stride(self, steps: int) -> None:
        """Sets how many of `steps` values are kept."""
        for key, leaf in self._leaves.items():
            size = 8 * max(1, int(np.prod(leaf.shape, dtype=np.int64)))
            self._every[key] = math.ceil(steps / max(1, min(ROWS, BYTES // size)))

    def add(self, columns: Mapping[str, Any], steps: int) -> None:
        """The next `steps` values, by key."""
        for key, kept in self._kept.items():
            every = self._every[key]
            values = np.array(columns[key][-self._passed % every :: every])
            # Other tools may store another type than the environment's, which is what acting sees.
            kept.append(values.astype(self._leaves[key].dtype) if values.dtype.kind == "f" else values)
        self._passed += steps

    def joined(self) -> dict[str, np.ndarray]:
        """All that was kept, (N, ...) in the type that it has on disk."""
        return {key: np.concatenate(kept) for key, kept in self._kept.items() if kept}


def _images(episode: Episode, most: int) -> Iterator[tuple[str, np.ndarray]]:
    """Up to `most` images of each image part, uint8 (H, W, C), from all over an episode."""
    for key, column in episode.observations.items():
        if isinstance(column, list | Frames):
            for index in spread(len(column), most).tolist():
                try:
                    image = decode(column[index : index + 1])[0]
                except BrokenRecord as error:
                    raise BrokenEpisode(episode.number, f"{episode.where}: {error}") from error
                yield key, image


def statistics(found: Sample) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and deviation of every observed Box, whatever its type, float64; of frames uint8 (S, S, 3)."""
    numbers = {key: fit_statistics(values) for key, values in found.observations.items()}
    frames = {}
    for key, several in found.frames.items():
        pixels = np.stack(several)
        frames[key] = tuple(np.rint(of(pixels, axis=0)).astype(np.uint8) for of in (np.mean, np.std))
    return numbers | frames


def better_codecs(tokenizer: SpaceTokenizer, values: Mapping[str, np.ndarray]) -> dict[str, Codec]:
    """Codecs by key for the parts that lose too much in their own: where bounds are missing or wide, or a thousandth of them is
    used, bins hold equally many of the numbers seen.

    Args:
        tokenizer: with its default codecs.
        values: what was seen, (N, ...) by key.
    """
    found: dict[str, Codec] = {}
    for part in tokenizer.parts:
        if isinstance(part, ContinuousPart) and part.key in values:
            seen, bins = values[part.key].reshape(-1, part.size).astype(np.float64), part.vocabulary.continuous
            if _is_lossy(part, part.codec, seen):
                few = all(2 * len(np.unique(column)) <= bins for column in seen.T)
                found[part.key] = Quantile.of_values(seen) if few else Quantile.fit(seen, bins)
    return found


def _errors(codec: Codec, values: np.ndarray) -> np.ndarray:
    """How far each number (N, D) is from what it is decoded to."""
    return np.abs(codec.decode(codec.encode(values)).astype(np.float64) - values)


def _is_lossy(part: ContinuousPart, codec: Codec, values: np.ndarray) -> bool:
    if np.dtype(part.dtype).kind != "f":  # what is decoded is rounded: two choices must not become one
        return bool((_errors(codec, values) >= 0.5).any())
    off, deviation = _errors(codec, values).mean(axis=0), values.std(axis=0)
    width = np.array(part.high) - np.array(part.low)
    largest = np.abs(values).max(axis=0)
    scale = width if isinstance(codec, Uniform) else np.where(largest > 0, largest, 1.0)
    varies = deviation > 1e-6 * np.maximum(largest, 1e-6)
    return bool(np.where(varies, off > LOSSY * deviation, off > LOSSY_CONSTANT * scale).any())


def losses(layout: TaskLayout, found: Sample) -> list[str]:
    """What of the recorded values is lost in the layout's tokens, a line per part; none where all come through."""
    lines = []
    for kind, tokenizer, values in (
        ("observation", layout.observation, found.observations),
        ("action", layout.action, found.actions),
    ):
        for part in tokenizer.parts:
            if part.key not in values:
                continue
            name = f"{layout.name}, {kind} part {part.key!r}"
            seen = values[part.key].reshape(-1, part.size).astype(np.float64)
            if isinstance(part, TensorPart):
                cut = np.abs((seen - np.array(part.mean, np.float64)) / np.array(part.std)) > CLIP
                if cut.any():
                    lines.append(
                        f"{name}: {cut.mean():.2%} of its numbers are cut off, {CLIP:g} deviations from their mean"
                    )
            elif isinstance(part, ContinuousPart):
                lines += _codec_losses(name, part, seen)
    return lines


def _codec_losses(name: str, part: ContinuousPart, seen: np.ndarray) -> list[str]:
    off = _errors(part.codec, seen)
    if isinstance(part.codec, Quantile):
        varies = seen.std(axis=0) > 0
        share = (off.mean(axis=0)[varies] / seen.std(axis=0)[varies]).max(initial=0.0)
        return [
            f"{name}: bins follow what was recorded, since equal ones would lose too much; they are off by "
            f"{off.mean():.3g} in the mean ({share:.1%} of a deviation), at most {off.max():.3g}"
        ]
    if _is_lossy(part, part.codec, seen):
        return [
            f"{name}: its bins are off by {off.mean():.3g} in the mean, at most {off.max():.3g}: they were not "
            "learnt from this data"
        ]
    return []
