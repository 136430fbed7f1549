"""What a layout learns from its recordings: statistics that standardise observed numbers and frames, and bins for numbers that
uniform bins would represent badly. Also a report of what the recorded values lose.

Everything comes from a sample that is spread over all episodes, since recording sessions differ: the first say little about the
last.

Dimension key: N values of a sample, D numbers per value, H height, W width, C colours, S pixels per side of a frame.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from jaxtyping import Float, Num, UInt8

from generalist.config.run import Config
from generalist.data.episodes import BrokenEpisode, Episode, Episodes
from generalist.data.formats.columns import Frames, decode
from generalist.data.formats.faults import BrokenRecord
from generalist.data.spread import spread
from generalist.run.tokenizers import acting_in
from generalist.tokenizers.continuous import Codec, Quantile, Uniform, fit_statistics
from generalist.tokenizers.image import to_frame
from generalist.tokenizers.part_rules import is_image
from generalist.tokenizers.parts import CLIP, ContinuousPart, TensorPart
from generalist.tokenizers.space_tree import leaves_of
from generalist.tokenizers.spaces import SpaceTokenizer, TaskLayout
from generalist.tokenizers.text import TextTokenizer

EPISODES = 400  # sampled per layout, spread over its data sets
LEAST = 8  # episodes sampled per data set, however many data sets there are
ROWS = 2**16  # sampled values per part
BYTES = 2**26  # sampled bytes per part, counted in float64: fewer values if one of them is large
FRAMES = 800  # sampled per image part and data set: decoding all of a game would take a minute

LOSSY = 0.05
"""Mean error of a codec, as a share of a number's standard deviation, above which bins are fitted to the recorded numbers."""
LOSSY_CONSTANT = 0.01
"""The same for a number that never varies, as a share of the width of its bounds, or of itself if it has none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """Recorded values of a layout, by the key of their part."""

    observations: Mapping[str, Num[np.ndarray, "N ..."]]
    actions: Mapping[str, Num[np.ndarray, "N ..."]]
    frames: Mapping[str, list[UInt8[np.ndarray, "S S 3"]]]
    """Frames of the image parts; empty if images do not enter as frames."""


def fit_layout(
    config: Config,
    name: str,
    observation: gym.Space,
    action: gym.Space,
    offset: int,
    text: TextTokenizer | None,
    found: Sample | None,
) -> TaskLayout:
    """The layout of two spaces under the run's settings.

    Args:
        name: of the layout.
        offset: its first column in the run's tensor projection.
        text: may be None if neither space has text.
        found: recorded values to learn statistics and bins from; None: nothing is learned.

    Raises:
        ValueError: a part of a space does not fit the settings; the message names it.
    """
    vocabulary, acting = config.tokens.vocabulary(), acting_in(config, name, action)
    seen = functools.partial(
        SpaceTokenizer.from_space,
        observation,
        tensors=config.tokens.tensors,
        images=config.tokens.images,
        frame_size=config.model.frame_size,
        frame_tokens=config.model.frame_tokens,
        image_positions=config.model.vision.positions if config.tokens.images == "projected" else 1,
        offset=offset,
        bounded="mu_law",
        vocabulary=vocabulary,
        text=text,
    )
    done = functools.partial(SpaceTokenizer.from_space, action, vocabulary=vocabulary, text=text)
    if found is None:
        return TaskLayout(name, seen(), done(), acting)
    # Twice each: the default codecs decide which parts need others, and the second call gives them those.
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
        observation: observation space; the numbers of its Boxes are kept.
        action: action space; likewise.
        frame_size: side of the frames that images become, in pixels; None leaves images out.
    """
    if len(readers) == 1 and readers[0].rows is not None:
        return _of_rows(readers[0], observation, action, frame_size)
    # The stride must be known before the first value is kept, so the lengths of all chosen episodes are added up first.
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
    """Collects every n-th value of each Box that is no image, with n such that the sample stays small."""

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
        """Sets n for a total of `steps` values."""
        for key, leaf in self._leaves.items():
            size = 8 * max(1, int(np.prod(leaf.shape, dtype=np.int64)))
            self._every[key] = math.ceil(steps / max(1, min(ROWS, BYTES // size)))

    def add(self, columns: Mapping[str, Any], steps: int) -> None:
        """Adds the next `steps` values, by key."""
        for key, kept in self._kept.items():
            # Counted over all episodes: with n longer than an episode, not all of them give a value.
            every = self._every[key]
            values = np.array(columns[key][-self._passed % every :: every])
            # Other tools may store another float type than the environment's, in whose type acting sees the values.
            kept.append(values.astype(self._leaves[key].dtype) if values.dtype.kind == "f" else values)
        self._passed += steps

    def joined(self) -> dict[str, Num[np.ndarray, "N ..."]]:
        """All values that were kept, by key."""
        return {key: np.concatenate(kept) for key, kept in self._kept.items() if kept}


def _images(episode: Episode, most: int) -> Iterator[tuple[str, UInt8[np.ndarray, "H W C"]]]:
    """Up to `most` images of each image part, spread over an episode, each with its key."""
    for key, column in episode.observations.items():
        if isinstance(column, list | Frames):
            for index in spread(len(column), most).tolist():
                try:
                    image = decode(column[index : index + 1])[0]
                except BrokenRecord as error:
                    raise BrokenEpisode(episode.number, f"{episode.where}: {error}") from error
                yield key, image


def statistics(found: Sample) -> dict[str, tuple[Num[np.ndarray, "..."], Num[np.ndarray, "..."]]]:
    """Mean and standard deviation of every observed Box, float64; of frames per pixel, uint8 (S, S, 3)."""
    numbers = {key: fit_statistics(values) for key, values in found.observations.items()}
    frames = {}
    for key, several in found.frames.items():
        pixels = np.stack(several)  # (frames, S, S, 3)
        frames[key] = tuple(np.rint(of(pixels, axis=0)).astype(np.uint8) for of in (np.mean, np.std))
    return numbers | frames


def better_codecs(tokenizer: SpaceTokenizer, values: Mapping[str, Num[np.ndarray, "N ..."]]) -> dict[str, Codec]:
    """Codecs, by key, for the parts whose default codec loses too much: where bounds are missing or wide, or only a thousandth of
    their range is used. Their bins hold equal numbers of the recorded values.

    Args:
        tokenizer: has the default codecs.
        values: recorded values by key.
    """
    found: dict[str, Codec] = {}
    for part in tokenizer.parts:
        if isinstance(part, ContinuousPart) and part.key in values:
            seen, bins = (
                values[part.key].reshape(-1, part.size).astype(np.float64),
                part.vocabulary.continuous,
            )  # (N, D)
            if _is_lossy(part, part.codec, seen):
                # With few different values, each gets a bin of its own: between quantiles, rare values would share one.
                few = all(2 * len(np.unique(column)) <= bins for column in seen.T)
                found[part.key] = Quantile.of_values(seen) if few else Quantile.fit(seen, bins)
    return found


def _errors(codec: Codec, values: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
    """The distance of each number from the number that its token is decoded to."""
    return np.abs(codec.decode(codec.encode(values)).astype(np.float64) - values)


def _is_lossy(part: ContinuousPart, codec: Codec, values: Float[np.ndarray, "N D"]) -> bool:
    """Whether a codec loses too much of the values: one number that it loses is enough."""
    if np.dtype(part.dtype).kind != "f":  # decoded numbers are rounded: two choices must not become one
        return bool((_errors(codec, values) >= 0.5).any())
    off, deviation = _errors(codec, values).mean(axis=0), values.std(axis=0)  # (D,)
    width = np.array(part.high) - np.array(part.low)
    largest = np.abs(values).max(axis=0)
    scale = width if isinstance(codec, Uniform) else np.where(largest > 0, largest, 1.0)
    # Rounding alone gives a constant a tiny deviation, of which any error would be a large share.
    varies = deviation > 1e-6 * np.maximum(largest, 1e-6)
    return bool(np.where(varies, off > LOSSY * deviation, off > LOSSY_CONSTANT * scale).any())


def losses(layout: TaskLayout, found: Sample) -> list[str]:
    """Descriptions of what the recorded values lose as tokens, one per part; empty if they lose nothing worth a report."""
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
                        f"{name}: {cut.mean():.2%} of its numbers are cut off, {CLIP:g} standard deviations from their mean"
                    )
            elif isinstance(part, ContinuousPart):
                lines += _codec_losses(name, part, seen)
    return lines


def _codec_losses(name: str, part: ContinuousPart, seen: Float[np.ndarray, "N D"]) -> list[str]:
    """Descriptions of what numbers lose in the bins of their part.

    Args:
        name: of the part, for the user.
        seen: recorded values.
    """
    off = _errors(part.codec, seen)
    if isinstance(part.codec, Quantile):
        varies = seen.std(axis=0) > 0
        share = (off.mean(axis=0)[varies] / seen.std(axis=0)[varies]).max(initial=0.0)
        return [
            f"{name}: its bins are fitted to the recorded values, since uniform bins would lose too much; their error is "
            f"{off.mean():.3g} on average ({share:.1%} of a standard deviation), at most {off.max():.3g}"
        ]
    if _is_lossy(part, part.codec, seen):
        return [
            f"{name}: the error of its bins is {off.mean():.3g} on average, at most {off.max():.3g}: they were not fitted to "
            "this data"
        ]
    return []
