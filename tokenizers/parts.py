"""The parts of a space: how the values of each become a piece, and how tokens become its values again.

Dimension key: T steps, K tokens per step, D numbers of a value, n ids, S pixels per side of a frame.
"""

import abc
import dataclasses
import math
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float64, Int, Int32, Shaped, UInt8, UInt64

from generalist.tokenizers.continuous import Codec
from generalist.tokenizers.discrete import DiscreteCodec
from generalist.tokenizers.image import frame_piece, image_piece, patch_count, patch_piece, standardised
from generalist.tokenizers.pieces import Modality, Piece
from generalist.tokenizers.text import TextTokenizer
from generalist.tokenizers.vocabulary import Vocabulary

Path = tuple[str, ...]
"""Keys and indices from a space down to a leaf; empty for a space that is itself a leaf."""

CLIP = 10.0
"""Standardised numbers are clipped to ±CLIP deviations: one outlier must not dominate an embedding."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part(abc.ABC):
    """A leaf of a space: the values under one key.

    `encode` takes values (T, *shape); `decode` takes ids (T, tokens per step) and returns such values.
    """

    path: Path
    shape: tuple[int, ...]
    """Shape of one value."""
    dtype: str
    """NumPy dtype of its numbers; "object" for text."""
    vocabulary: Vocabulary

    @cached_property
    def key(self) -> str:
        """The path joined with slashes."""
        return "/".join(self.path)

    @property
    def size(self) -> int:
        """Numbers per value."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    @abc.abstractmethod
    def tokens_per_step(self) -> int | None:
        """Positions per step; None if it varies."""

    @property
    def projection_size(self) -> int:
        """Columns of the run's projection that belong to this part."""
        return 0

    @abc.abstractmethod
    def encode(self, values: Shaped[np.ndarray, "T ..."]) -> Piece:
        """The piece that represents values (T, *shape)."""

    @property
    def ranges(self) -> Int32[np.ndarray, "K 2"] | None:
        """Ids that each position may take, the second exclusive; None if it has no tokens."""
        return None

    def decode(self, tokens: Int[np.ndarray, "T K"]) -> Shaped[np.ndarray, "T ..."]:
        """Values (T, *shape) of ids, which lie in `ranges`."""
        raise ValueError(f"the part {self.key!r} enters as an embedding, which can't be decoded")

    def _lengths(self, steps: int) -> Int32[np.ndarray, "T"]:
        return np.full((steps,), self.tokens_per_step, np.int32)

    def _pads(self, steps: int) -> Int32[np.ndarray, "T"]:
        return np.full((steps,), self.vocabulary.pad, np.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContinuousPart(Part):
    """A Box as one token per number, row-major (Gato, section 2.1)."""

    codec: Codec
    low: tuple[float, ...]
    """Bounds of the space; decoded numbers are clipped to them."""
    high: tuple[float, ...]

    @property
    def tokens_per_step(self) -> int:
        return self.size

    @cached_property
    def _first(self) -> int:
        return self.vocabulary.range("continuous").start

    def encode(self, values: Shaped[np.ndarray, "T ..."]) -> Piece:
        bins = self.codec.encode(values.reshape(len(values), self.size))  # (T, D)
        # np.int32 keeps the sum int32: a Python int would be promoted differently by NumPy 1 and 2.
        return Piece(Modality.CONTINUOUS, bins.reshape(-1) + np.int32(self._first), self._lengths(len(values)))

    @property
    def ranges(self) -> Int32[np.ndarray, "K 2"]:
        return np.tile(np.array([[self._first, self._first + self.codec.bins]], np.int32), (self.size, 1))

    def decode(self, tokens: Int[np.ndarray, "T K"]) -> Shaped[np.ndarray, "T ..."]:
        numbers = self.codec.decode(tokens - self._first).astype(np.float64)  # (T, D)
        if np.dtype(self.dtype).kind != "f":
            numbers = np.rint(numbers)
        # The codec's range may exceed the space's bounds, and a float32 centre may miss them by a rounding error.
        return np.clip(numbers, self.low, self.high).astype(self.dtype).reshape(len(tokens), *self.shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscretePart(Part):
    """Integers as one token each."""

    codec: DiscreteCodec

    @property
    def tokens_per_step(self) -> int:
        return self.size

    @cached_property
    def _first(self) -> int:
        return self.vocabulary.range("discrete").start

    def encode(self, values: Shaped[np.ndarray, "T ..."]) -> Piece:
        counted = self.codec.encode(values.reshape(len(values), self.size))  # (T, D)
        return Piece(Modality.DISCRETE, counted.reshape(-1) + np.int32(self._first), self._lengths(len(values)))

    @property
    def ranges(self) -> Int32[np.ndarray, "K 2"]:
        # Each integer has its own number of values: ids beyond it would decode to values outside the space.
        sizes = np.array(self.codec.sizes, np.int32)
        return np.stack([np.full_like(sizes, self._first), self._first + sizes], axis=1)

    def decode(self, tokens: Int[np.ndarray, "T K"]) -> Shaped[np.ndarray, "T ..."]:
        return self.codec.decode(tokens - self._first).astype(self.dtype).reshape(len(tokens), *self.shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextPart(Part):
    """A text as its ids followed by the end marker."""

    text: TextTokenizer

    @property
    def tokens_per_step(self) -> None:
        return None

    def encode(self, values: Shaped[np.ndarray, "T"]) -> Piece:
        end = np.array([self.vocabulary.eos], np.int32)
        # The end marker is needed because texts vary in length: it separates one step's text from what follows.
        ids = [self.text.encode(_string(value)) for value in values.tolist()]
        tokens = np.concatenate([part for step in ids for part in (step, end)]) if ids else end[:0]
        return Piece(Modality.TEXT, tokens, np.array([len(step) + 1 for step in ids], np.int32))

    def decode_one(self, tokens: Int[np.ndarray, "n"]) -> tuple[str, int]:
        """The text at the start of ids, and the number of ids it takes including the end marker.

        Raises:
            ValueError: there is no end marker.
        """
        ends = np.flatnonzero(tokens == self.vocabulary.eos)
        if not len(ends):
            raise ValueError(f"the text of part {self.key!r} has no end marker (id {self.vocabulary.eos})")
        return self.text.decode(tokens[: ends[0]]), int(ends[0]) + 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorPart(Part):
    """A Box as standardised numbers in the projection columns of this part."""

    offset: int
    mean: tuple[float, ...]
    """Of each number; whole where values are of 64 bits."""
    std: tuple[float, ...]

    @property
    def tokens_per_step(self) -> int:
        return 1

    @property
    def projection_size(self) -> int:
        return self.size

    @cached_property
    def _standard(self) -> tuple[Float64[np.ndarray, "D"], Float64[np.ndarray, "D"]]:
        # Multiplied by the inverse instead of divided: this runs per training example.
        return np.array(self.mean, np.float64), 1.0 / np.array(self.std, np.float64)

    @cached_property
    def _whole_mean(self) -> tuple[UInt64[np.ndarray, "D"], Float64[np.ndarray, "D"]] | None:
        """The mean as a whole number, modulo 2^64, and the rest, where values are of 64 bits: float64 holds 53 of them."""
        if np.dtype(self.dtype) not in (np.int64, np.uint64):
            return None
        whole = [math.floor(one) for one in self.mean]
        rest = np.array([one - below for one, below in zip(self.mean, whole, strict=True)], np.float64)
        return np.array([one % 2**64 for one in whole], np.uint64), rest

    def encode(self, values: Shaped[np.ndarray, "T ..."]) -> Piece:
        mean, scale = self._standard
        flat = values.reshape(len(values), self.size)  # (T, D)
        if self._whole_mean is not None and flat.dtype.kind in "iu":
            whole, rest = self._whole_mean
            # Modulo 2^64, so that the difference of two large numbers is exact.
            centred = (flat.astype(np.uint64) - whole).view(np.int64).astype(np.float64) - rest
        else:
            # In float64: a float32 near its limits would overflow here before it is clipped.
            centred = flat.astype(np.float64) - mean
        numbers = centred * scale
        if not np.isfinite(numbers).all():
            raise ValueError("a number is NaN or infinite: check the environment or the recording that produced it")
        payload = np.clip(numbers, -CLIP, CLIP).astype(np.float32)
        steps = len(values)
        return Piece(Modality.TENSOR, self._pads(steps), self._lengths(steps), payload=payload, offset=self.offset)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneHotPart(Part):
    """Integers as one-hot vectors side by side in the projection columns of this part."""

    offset: int
    codec: DiscreteCodec

    @property
    def tokens_per_step(self) -> int:
        return 1

    @property
    def projection_size(self) -> int:
        return self.codec.width

    def encode(self, values: Shaped[np.ndarray, "T ..."]) -> Piece:
        payload = self.codec.one_hot(values.reshape(len(values), self.size))
        steps = len(values)
        return Piece(Modality.TENSOR, self._pads(steps), self._lengths(steps), payload=payload, offset=self.offset)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchPart(Part):
    """An image as 16×16 patches in raster order (Gato, section 2.1)."""

    @property
    def tokens_per_step(self) -> int:
        return patch_count(*self.shape[:2])

    def encode(self, values: UInt8[np.ndarray, "T H W C"]) -> Piece:
        return patch_piece(values, pad=self.vocabulary.pad)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FramePart(Part):
    """An image as one frame of fixed size, at one or a few positions; standardised if statistics are known."""

    frame_size: int
    frame_tokens: int
    # Bytes, not arrays: parts are compared and hashed by value.
    mean: bytes = b""
    """Mean pixels as the bytes of uint8 (frame_size, frame_size, 3); empty: frames are not standardised."""
    deviation: bytes = b""
    """Standard deviation of the pixels, in the same form."""

    @property
    def tokens_per_step(self) -> int:
        return self.frame_tokens

    def encode(self, values: UInt8[np.ndarray, "T H W C"]) -> Piece:
        pad = self.vocabulary.pad
        piece = frame_piece(values, pad=pad, frame_size=self.frame_size, frame_tokens=self.frame_tokens)
        # `frame_piece` always has a payload; the test is for the type checker.
        if not self.mean or piece.payload is None:
            return piece
        return dataclasses.replace(piece, payload=standardised(piece.payload, *self.statistics))

    @property
    def statistics(self) -> tuple[UInt8[np.ndarray, "S S 3"], UInt8[np.ndarray, "S S 3"]]:
        """Mean and deviation of the pixels."""
        shape = (self.frame_size, self.frame_size, 3)
        mean, deviation = (np.frombuffer(pixels, np.uint8).reshape(shape) for pixels in (self.mean, self.deviation))
        return mean, deviation


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImagePart(Part):
    """An image for the frozen encoder: one marker position (Flamingo, section 2.4) or, where images are projected, the first of
    its positions."""

    @property
    def tokens_per_step(self) -> int:
        return 1

    def encode(self, values: UInt8[np.ndarray, "T H W C"]) -> Piece:
        return image_piece(values, marker=self.vocabulary.image)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProjectedPart(Part):
    """The other positions of an image that is projected, behind its `ImagePart`, which has its payload."""

    positions: int
    """Of the image, the first one included."""

    @property
    def tokens_per_step(self) -> int:
        return self.positions - 1

    def encode(self, values: UInt8[np.ndarray, "T H W C"]) -> Piece:
        count, each = len(values), self.tokens_per_step
        return Piece(Modality.PROJECTED, self._pads(count * each), self._lengths(count))


def _string(value: Any) -> str:
    """A text as str: recordings store texts as bytes."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if not isinstance(value, str):
        raise ValueError(f"expected a text, got {type(value).__name__}")
    return value
