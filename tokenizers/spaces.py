"""Conversion of any Gymnasium space to pieces and back.

Box of uint8, H×W×C      an image: patches, or one frame, or the frozen encoder by a marker or by projected positions, or two
other Box                one token per number (continuous, or discrete if whole and few), or projected
Discrete, MultiDiscrete, MultiBinary
                         one token per number, or projected as one-hot vectors
Text                     its ids and an end marker
Dict, Tuple              their parts in key order (Gato, section 2.1), nested keys joined with "/"

All projected parts of a step become one embedding, as in JAT (section 3). What an agent does often depends on the difference of
two parts, such as the positions of a gripper and a goal: one linear map computes it, attention between positions must learn it.

Dimension key: T steps, B rows, K tokens per step, n ids, D axes of a value.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from jaxtyping import Int, Int32, Shaped

from generalist.tokenizers.acting import Acting
from generalist.tokenizers.continuous import Codec, codec_from_json
from generalist.tokenizers.part_rules import Learned, Rules, Statistics, make_parts, projection_size
from generalist.tokenizers.parts import ContinuousPart, FramePart, Part, Path, TensorPart, TextPart
from generalist.tokenizers.pieces import Images, Modality, Piece
from generalist.tokenizers.space_json import png_pixels, png_text, space_from_json, space_to_json
from generalist.tokenizers.space_tree import assembled, commas, leaf_of, leaves_of, stacked
from generalist.tokenizers.space_values import checked
from generalist.tokenizers.text import TextTokenizer
from generalist.tokenizers.vocabulary import Vocabulary

Values = Mapping[str, Shaped[np.ndarray, "T *_D"]]
"""The values of T steps, by flat key."""

# The rules that are stored with a layout.
_SETTINGS = ("tensors", "images", "frame_size", "frame_tokens", "offset", "bounded")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpaceTokenizer:
    """Values of a space ↔ pieces; frozen with its codecs and statistics, so that training and acting cannot differ.

    Values are passed flat: key → array (T, ...), where "" is the key of a space that is itself a leaf.
    """

    parts: tuple[Part, ...]
    """The leaves in key order."""
    space: gym.Space = dataclasses.field(hash=False)
    vocabulary: Vocabulary
    rules: Rules

    @classmethod
    def from_space(
        cls,
        space: gym.Space,
        *,
        vocabulary: Vocabulary,
        text: TextTokenizer | None = None,
        tensors: Literal["tokens", "projected"] = "tokens",
        images: Images = "patches",
        frame_size: int = 84,
        frame_tokens: int = 1,
        image_positions: int = 1,
        offset: int = 0,
        statistics: Mapping[str, Statistics] | None = None,
        codecs: Mapping[str, Codec] | None = None,
        bounded: Literal["uniform", "mu_law"] = "uniform",
    ) -> "SpaceTokenizer":
        """The tokenizer of any space made of Box, Discrete, MultiDiscrete, MultiBinary, Text, Dict and Tuple.

        Args:
            space: the space.
            vocabulary: the id ranges.
            text: needed if the space has a Text.
            tensors: one token per number, or one projected embedding of all numbers of a step.
            images: 16×16 patches, one frame of `frame_size` pixels per side at `frame_tokens` positions, the frozen encoder
                (one marker position), or two of these; or its features projected into `image_positions` positions.
            offset: first column of the run's projection that projected parts own (see `assign_offsets`).
            statistics: by flat key, mean and deviation that standardise projected numbers, 0 and 1 where missing; for an image
                those of its frames' pixels, uint8 (frame_size, frame_size, 3), see `image.standardised`.
            codecs: continuous codecs by flat key, instead of the default ones.
            bounded: how numbers with two finite bounds become tokens by default: equal bins between the bounds, or μ-law
                unless the bounds lie in [-1, 1] (Gato's rule for observations). Unbounded numbers take μ-law.

        Raises:
            ValueError: a part cannot be tokenised; the message names its key, its space and the remedy.
        """
        rules = Rules(
            tensors=tensors,
            images=images,
            frame_size=frame_size,
            frame_tokens=frame_tokens,
            image_positions=image_positions,
            offset=offset,
            bounded=bounded,
        )
        leaves = list(leaves_of(space, ()))
        if not leaves:
            raise ValueError(f"{space} has no parts, so there is nothing to tokenise: add one in a wrapper")
        # A misspelt key would otherwise silently leave its part without statistics.
        _check_keys(statistics, leaves, "statistics")
        _check_keys(codecs, leaves, "codecs")
        parts: list[Part] = []
        for path, leaf in leaves:
            key = "/".join(path)
            leaf_rules = dataclasses.replace(rules, offset=offset)
            learned = Learned(text=text, statistics=(statistics or {}).get(key), codec=(codecs or {}).get(key))
            made = make_parts(path, leaf, leaf_rules, vocabulary, learned)
            parts += made
            # Each leaf starts at the column where the one before it ended; images and texts take none.
            offset += sum(part.projection_size for part in made)
        return cls(parts=tuple(parts), space=space, vocabulary=vocabulary, rules=rules)

    @property
    def projection_size(self) -> int:
        """Columns of the run's projection that belong to the projected parts."""
        return sum(part.projection_size for part in self.parts)

    @property
    def measured(self) -> int:
        """Number of standardised numbers per step."""
        return sum(part.size for part in self.parts if isinstance(part, TensorPart))

    @property
    def tokens_per_step(self) -> int | None:
        """Positions per step; None if there is a Text, whose length varies."""
        # All projected parts share one position, however many there are.
        counts = [part.tokens_per_step for part in self.parts if not part.projection_size]
        projected = int(self.projection_size > 0)
        return None if None in counts else projected + sum(count for count in counts if count is not None)

    def checked(self, value: Any, what: str) -> Any:
        """A copy of a value of the space, in the space's dtypes; keys that the space lacks are left out.

        Raises:
            ValueError: the value does not belong to the space (see `space_values.checked`).
        """
        return checked(self.space, value, what, exact=False)

    def flatten(self, value: Any) -> dict[str, Shaped[np.ndarray, "*_D"]]:
        """One value of the space as flat key → array, without the leading axis of `stack`."""
        return {key: array[0] if array.ndim > 1 else array.reshape(()) for key, array in self.stack([value]).items()}

    def stack(self, values: Sequence[Any]) -> dict[str, Shaped[np.ndarray, "T *_D"]]:
        """T values of the space as flat key → array.

        Raises:
            ValueError: a value lacks a part, or its parts differ in shape.
        """
        return {part.key: stacked([leaf_of(value, part) for value in values], part) for part in self.parts}

    def encode(self, values: Values) -> list[Piece]:
        """One piece per part, in key order, of T steps. All projected parts are one piece, which stands where the first of them
        would.

        Raises:
            ValueError: a part is missing, has another shape, or has a value outside the space.
        """
        return _as_one_tensor([self._encoded(part, values) for part in self.parts])

    def decode(self, tokens: Int[np.ndarray, "n"]) -> Any:
        """The value of the space that the ids of one step encode.

        Raises:
            ValueError: an id is outside `valid_ranges`, there are too few or too many, or a part has no tokens.
        """
        tokens = np.asarray(tokens)
        if self.tokens_per_step is not None:
            return self.decode_batch(tokens[None])[0]
        # A Text varies in length: each part takes its ids from where the one before it ended.
        leaves, at = {}, 0
        for part in self.parts:
            if isinstance(part, TextPart):
                string, count = part.decode_one(tokens[at:])
                leaves[part.path] = np.array([string], object)
            else:
                count = part.tokens_per_step or 0
                leaves[part.path] = self._decoded(part, tokens[None, at : at + count])
            at += count
        if at != len(tokens):
            raise ValueError(f"a value of {self.space} takes {at} ids here, got {len(tokens)}")
        return assembled(self.space, (), leaves, 0)

    def decode_batch(self, tokens: Int[np.ndarray, "B K"]) -> list[Any]:
        """One value per row of ids, decoded together; raises as `decode` does."""
        tokens = np.asarray(tokens)
        width = self.tokens_per_step
        if width is None:
            return [self.decode(row) for row in tokens]
        if tokens.ndim != 2 or tokens.shape[1] != width:
            raise ValueError(f"a value of {self.space} takes {width} ids, got ids of shape {tokens.shape}")
        # All rows at once: decoding row by row would dominate a step with many environments.
        leaves, at = {}, 0
        for part in self.parts:
            count = part.tokens_per_step or 0
            leaves[part.path] = self._decoded(part, tokens[:, at : at + count])
            at += count
        return [assembled(self.space, (), leaves, row) for row in range(len(tokens))]

    @cached_property
    def valid_ranges(self) -> Int32[np.ndarray, "K 2"]:
        """Ids that each position of a step may take: the first, and one past the last.

        Raises:
            ValueError: a part has no tokens, or is a Text, whose length varies.
        """
        ranges = []
        for part in self.parts:
            if part.ranges is None:
                raise ValueError(f"the part {part.key!r} of {self.space} has no fixed number of tokens, so no ranges")
            ranges.append(part.ranges)
        return np.concatenate(ranges)

    def to_json(self) -> dict[str, Any]:
        """All that `from_json` needs, as JSON values; the text tokenizer stays in its own file."""
        continuous = [part for part in self.parts if isinstance(part, ContinuousPart)]
        tensors = [part for part in self.parts if isinstance(part, TensorPart)]
        # Frames without statistics are left out: `from_json` gives them none again.
        frames = [part for part in self.parts if isinstance(part, FramePart) and part.mean]
        return {
            "space": space_to_json(self.space),
            "vocabulary": dataclasses.asdict(self.vocabulary),
            **dataclasses.asdict(self.rules),
            "codecs": {part.key: part.codec.to_json() for part in continuous},
            "statistics": {part.key: {"mean": list(part.mean), "std": list(part.std)} for part in tensors},
            "frames": {part.key: [png_text(pixels) for pixels in part.statistics] for part in frames},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], text: TextTokenizer | None = None) -> "SpaceTokenizer":
        """Rebuilds the tokenizer that `to_json` described. `text` is needed if its space has a Text.

        Raises:
            ValueError: the description is damaged.
        """
        try:
            numbers = {
                key: (np.array(both["mean"], object), np.array(both["std"], np.float64))
                for key, both in data["statistics"].items()
            }
            # Weights written before frames were standardised have no "frames".
            frames = {
                key: (png_pixels(mean, data["frame_size"]), png_pixels(deviation, data["frame_size"]))
                for key, (mean, deviation) in data.get("frames", {}).items()
            }
            return cls.from_space(
                space_from_json(data["space"]),
                vocabulary=Vocabulary(**data["vocabulary"]),
                text=text,
                statistics=numbers | frames,
                codecs={key: codec_from_json(codec) for key, codec in data["codecs"].items()},
                # Weights written before observed images could be projected have no number of positions.
                image_positions=data.get("image_positions", 1),
                **{name: data[name] for name in _SETTINGS},
            )
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(
                f"the description of a space tokenizer is damaged ({type(error).__name__}: {error})"
            ) from error

    def _encoded(self, part: Part, values: Values) -> Piece:
        if part.key not in values:
            raise ValueError(f"the values lack the part {part.key!r} of {self.space}: they have {sorted(values)}")
        # The shape is checked here, where the key is known, and not in every kind of part.
        array = np.asarray(values[part.key])
        if array.shape[1:] != part.shape or array.ndim == 0:
            raise ValueError(f"the part {part.key!r} must have shape (T, {commas(part.shape)}), got {array.shape}")
        if array.dtype.kind == "f" and array.dtype != part.dtype and np.dtype(part.dtype).kind == "f":
            array = array.astype(part.dtype)  # as acting has it: other tools store other types than the environment's
        try:
            return part.encode(array)
        except ValueError as error:
            raise ValueError(f"part {part.key!r}: {error}") from error

    def _decoded(self, part: Part, tokens: Int[np.ndarray, "B K"]) -> Shaped[np.ndarray, "B *D"]:
        """The values of one part that its ids encode."""
        ranges = part.ranges
        if ranges is None:
            return part.decode(tokens)  # raises with the reason
        if tokens.shape[1] != len(ranges):
            raise ValueError(f"the part {part.key!r} takes {len(ranges)} ids but {tokens.shape[1]} are left")
        # The model is confined to valid ids when it samples; ids from outside must not wrap around in a codec.
        outside = (tokens < ranges[:, 0]) | (tokens >= ranges[:, 1])
        if outside.any():
            row, column = np.argwhere(outside)[0]
            low, high = ranges[column]
            raise ValueError(
                f"id {tokens[row, column]} at position {column} of part {part.key!r} is outside {low}..{high - 1}: "
                "restrict sampling to valid_ranges"
            )
        return part.decode(tokens)


@dataclasses.dataclass(frozen=True)
class TaskLayout:
    """The observation and action spaces shared by the tasks of one kind."""

    name: str
    observation: SpaceTokenizer
    action: SpaceTokenizer
    acting: Acting = Acting()
    """How the weights that know it act in it."""

    def __post_init__(self) -> None:
        # An action is predicted token by token; an embedding has no inverse.
        for part in self.action.parts:
            if part.ranges is None and not isinstance(part, TextPart):
                raise ValueError(
                    f"the action part {part.key!r} of {self.name} enters as an embedding, but actions are predicted as tokens: "
                    'use tensors="tokens", and no images in an action'
                )
        if self.acting.parallel and self.action.tokens_per_step is None:
            raise ValueError(
                f"the actions of {self.name} have text, whose length varies, so they can't be read from one position: "
                "use sequential actions"
            )
        if self.observation.vocabulary != self.action.vocabulary:
            raise ValueError(
                f"the observation and the action of {self.name} have different vocabularies: use one for both"
            )

    def action_positions(self, *, hidden: bool) -> int | None:
        """Positions that the action of a step takes in a sequence; None if actions have text, whose length varies."""
        count = self.action.tokens_per_step
        if count is None or not hidden:
            return count
        # One hidden token fewer than dimensions: the first is predicted from the position before, and so are all parallel ones.
        return 0 if self.acting.parallel else count - 1

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return {
            "name": self.name,
            "observation": self.observation.to_json(),
            "action": self.action.to_json(),
            "acting": self.acting.to_json(),
        }

    @classmethod
    def from_json(
        cls, data: Mapping[str, Any], text: TextTokenizer | None = None, acting: Acting | None = None
    ) -> "TaskLayout":
        """The layout that `to_json` described.

        Args:
            text: needed if one of its spaces has a Text.
            acting: for a description from before layouts carried it; None: the description must have it.

        Raises:
            ValueError: the description is damaged.
        """
        name = data.get("name") if isinstance(data, Mapping) else None
        try:
            observation, action = (SpaceTokenizer.from_json(data[key], text) for key in ("observation", "action"))
            acting = acting or Acting.from_json(data["acting"])
            if not isinstance(name, str):
                raise ValueError("it has no name")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"the task layout {name!r} is damaged ({error}): delete the run's folder and train again"
            ) from error
        return cls(name, observation, action, acting)


def assign_offsets(spaces: Mapping[str, gym.Space]) -> tuple[dict[str, int], int]:
    """First projection column of each layout, by name, and the projection's width, given the layouts' observation spaces.

    Layouts are placed in sorted order, so that the same layouts always get the same columns.
    """
    # Widths follow from the spaces alone, so all hosts of a run compute the same columns without communication.
    offsets, width = {}, 0
    for name in sorted(spaces):
        offsets[name] = width
        width += sum(projection_size(leaf) for _, leaf in leaves_of(spaces[name], ()))
    return offsets, width


def action_dimensions(space: gym.Space) -> int | None:
    """Number of tokens of an action of this space; None if it has a Text, whose length varies."""
    leaves = [leaf for _, leaf in leaves_of(space, ())]
    if any(isinstance(leaf, gym.spaces.Text) for leaf in leaves):
        return None
    return sum(math.prod(leaf.shape or ()) for leaf in leaves)


def _as_one_tensor(pieces: list[Piece]) -> list[Piece]:
    """The pieces with all tensors, whose columns are adjacent, merged into one."""
    tensors = [piece for piece in pieces if piece.modality == Modality.TENSOR]
    if len(tensors) < 2:
        return pieces
    # (T, size) each → (T, sum of sizes).
    payload = np.concatenate([piece.payload for piece in tensors if piece.payload is not None], axis=1)
    first = [piece.modality for piece in pieces].index(Modality.TENSOR)
    others = [piece for piece in pieces if piece.modality != Modality.TENSOR]
    # The first tensor's offset is that of the merged one, since columns were assigned in key order.
    return [*others[:first], dataclasses.replace(tensors[0], payload=payload), *others[first:]]


def _check_keys(given: Mapping[str, Any] | None, leaves: list[tuple[Path, gym.Space]], what: str) -> None:
    keys = {"/".join(path) for path, _ in leaves}
    for key in given or {}:
        if key not in keys:
            raise ValueError(f"{what} has the key {key!r}, but the space has the parts {sorted(keys)}")
