"""Which kind of part a leaf of a space becomes.

Dimension key: D numbers of a value (or the axes of a frame).
"""

import dataclasses
from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np
from jaxtyping import Shaped

from generalist.tokenizers.continuous import Codec, MuLaw, Uniform
from generalist.tokenizers.discrete import DiscreteCodec
from generalist.tokenizers.parts import (
    ContinuousPart,
    DiscretePart,
    FramePart,
    ImagePart,
    OneHotPart,
    Part,
    PatchPart,
    Path,
    ProjectedPart,
    TensorPart,
    TextPart,
)
from generalist.tokenizers.pieces import Images
from generalist.tokenizers.text import TextTokenizer
from generalist.tokenizers.vocabulary import Vocabulary

# Bounds beyond this are nominal ("the largest float32"): of equal bins between them all but one would be empty.
_LARGEST_BOUND = 1e6
# One-hot vectors wider than this are a mistake in the space, not an observation: a projection row costs D floats per column.
WIDEST = 2**17

_SUPPORTED = "Box, Discrete, MultiDiscrete, MultiBinary, Text, Dict and Tuple can be tokenised"

Statistics = tuple[Shaped[np.ndarray, "*D"], Shaped[np.ndarray, "*D"]]
"""Mean and standard deviation of each number of a value."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """How the leaves of a space enter the sequence; see `SpaceTokenizer.from_space`."""

    tensors: Literal["tokens", "projected"]
    images: Images
    frame_size: int
    frame_tokens: int
    image_positions: int
    offset: int
    bounded: Literal["uniform", "mu_law"]

    def __post_init__(self) -> None:
        # Settings also come from JSON, which the types do not check.
        choices = {"tensors": ("tokens", "projected"), "images": get_args(Images), "bounded": ("uniform", "mu_law")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                known = " or ".join(f'"{one}"' for one in allowed)
                raise ValueError(f"{name} must be {known}, got {getattr(self, name)!r}")
        for name, least in (("frame_size", 1), ("frame_tokens", 1), ("image_positions", 1), ("offset", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learned:
    """What was learned from data for one leaf; None where nothing was."""

    text: TextTokenizer | None = None
    statistics: Statistics | None = None
    codec: Codec | None = None


def make_parts(path: Path, space: gym.Space, rules: Rules, vocabulary: Vocabulary, learned: Learned) -> list[Part]:
    """The part that a leaf becomes, or the two parts of an image that enters in both ways or is projected.

    `rules.offset` is the leaf's first projection column.

    Raises:
        ValueError: it can't be one; the message names its key, its space and the remedy.
    """
    if isinstance(space, gym.spaces.Text):
        if learned.text is None:
            raise _error(path, space, "has text, and there is no text tokenizer: pass one as text=")
        return [TextPart(path=path, shape=(), dtype="object", vocabulary=vocabulary, text=learned.text)]
    if not isinstance(space, (gym.spaces.Box, gym.spaces.Discrete, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary)):
        raise _error(path, space, f"can't be tokenised: {_SUPPORTED}, so turn it into these in a wrapper")
    common: dict[str, Any] = {
        "path": path,
        "shape": tuple(space.shape),
        "dtype": str(space.dtype),
        "vocabulary": vocabulary,
    }
    # np.prod of a shape with a 0 would otherwise give a part of no tokens, and the next part's position would be wrong.
    if 0 in space.shape:
        raise _error(path, space, "has no numbers: leave it out in a wrapper")
    if is_image(space):
        return _image(path, space, rules, learned, common)
    if rules.tensors == "projected":
        return [_projected(path, space, rules, learned, common)]
    return [_tokens(path, space, rules, learned, common)]


def _image(path: Path, space: gym.spaces.Box, rules: Rules, learned: Learned, common: dict[str, Any]) -> list[Part]:
    """The parts of an image, the marker first, so that the image's other positions cross-attend to it too."""
    # "patches+encoder" gives the same image two parts under one path.
    ways = rules.images.split("+")
    parts: list[Part] = [ImagePart(**common)] if {"encoder", "projected"} & {*ways} else []
    if "projected" in ways and rules.image_positions > 1:
        parts.append(ProjectedPart(**common, positions=rules.image_positions))
    if "patches" in ways:
        parts.append(PatchPart(**common))
    if "frame" in ways:
        mean, deviation = _frame_statistics(path, space, rules, learned.statistics)
        size, each = rules.frame_size, rules.frame_tokens
        parts.append(FramePart(**common, frame_size=size, frame_tokens=each, mean=mean, deviation=deviation))
    return parts


def _frame_statistics(path: Path, space: gym.spaces.Box, rules: Rules, given: Statistics | None) -> tuple[bytes, bytes]:
    """Mean and deviation of a frame's pixels as bytes; empty where they are unknown."""
    # As bytes, not arrays: parts are frozen dataclasses, compared and hashed by value.
    if given is None:
        return b"", b""
    shape = (rules.frame_size, rules.frame_size, 3)
    mean, deviation = map(np.asarray, given)
    if any(one.shape != shape or one.dtype != np.uint8 for one in (mean, deviation)):
        raise _error(path, space, f"needs the mean and the deviation of its frames as uint8 {shape}")
    return mean.tobytes(), deviation.tobytes()


def _projected(path: Path, space: gym.Space, rules: Rules, learned: Learned, common: dict[str, Any]) -> Part:
    """The part of a tensor that enters as one embedding."""
    if isinstance(space, gym.spaces.Box):
        mean, std = _statistics(path, space, learned.statistics)
        return TensorPart(**common, offset=rules.offset, mean=mean, std=std)
    # Discrete values have no scale: a linear map of one-hot columns is a table of embeddings, summed.
    width = projection_size(space)
    if width > WIDEST:
        raise _error(
            path, space, f"would take {width} one-hot columns, more than {WIDEST}: make it coarser in a wrapper"
        )
    return OneHotPart(**common, offset=rules.offset, codec=_discrete(space))


def _tokens(path: Path, space: gym.Space, rules: Rules, learned: Learned, common: dict[str, Any]) -> Part:
    """The part of a tensor that enters as one token per number."""
    vocabulary: Vocabulary = common["vocabulary"]
    # A codec that was fitted to the data wins over the rule that small integer ranges become discrete tokens.
    if isinstance(space, gym.spaces.Box) and (learned.codec is not None or not _is_discrete(space, vocabulary)):
        codec = learned.codec if learned.codec is not None else _default_codec(space, rules, vocabulary)
        _check_codec(path, space, codec, vocabulary)
        low, high = (tuple(bound.astype(np.float64).reshape(-1).tolist()) for bound in (space.low, space.high))
        return ContinuousPart(**common, codec=codec, low=low, high=high)
    # Refused, not folded: two values with one id could not be told apart.
    discrete = _discrete(space)
    most = max(discrete.sizes)
    if most > vocabulary.discrete:
        remedy = 'raise it (--tokens.discrete-values); an observation may also enter with tensors="projected"'
        raise _error(path, space, f"has {most} values but vocabulary.discrete is {vocabulary.discrete}: {remedy}")
    return DiscretePart(**common, codec=discrete)


def is_image(space: gym.Space) -> bool:
    """Whether a space is read as an image: a Box of uint8, H×W×C, with 1, 3 or 4 channels."""
    return (
        isinstance(space, gym.spaces.Box)
        and space.dtype == np.uint8
        and len(space.shape) == 3
        and space.shape[-1] in (1, 3, 4)
    )


def projection_size(space: gym.Space) -> int:
    """Projection columns that a leaf takes with tensors="projected"."""
    # Must agree with `_projected`: columns are assigned before any tokenizer exists.
    if is_image(space) or isinstance(space, gym.spaces.Text):
        return 0
    if isinstance(space, gym.spaces.Box):
        return int(np.prod(space.shape, dtype=np.int64))
    if isinstance(space, (gym.spaces.Discrete, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary)):
        return _discrete(space).width
    raise ValueError(f"a space of type {type(space).__name__} can't be projected: {_SUPPORTED}")


def _error(path: Path, space: gym.Space, what: str) -> ValueError:
    return ValueError(f"the part {'/'.join(path)!r} is {' '.join(str(space).split()):.200}, which {what}")


def _is_discrete(space: gym.spaces.Box, vocabulary: Vocabulary) -> bool:
    """Whether a Box holds integers that all have an id."""
    if space.dtype.kind == "f":
        return False
    # In float64: the difference of two int64 bounds may overflow.
    return bool((space.high.astype(np.float64) - space.low.astype(np.float64) < vocabulary.discrete).all())


def _discrete(space: gym.Space) -> DiscreteCodec:
    """The codec of a space of integers, row-major."""
    if isinstance(space, gym.spaces.Discrete):
        return DiscreteCodec(sizes=(int(space.n),), starts=(int(space.start),))
    if isinstance(space, gym.spaces.MultiDiscrete):
        sizes, starts = space.nvec.reshape(-1).tolist(), space.start.reshape(-1).tolist()
    elif isinstance(space, gym.spaces.MultiBinary):
        count = int(np.prod(space.shape))
        sizes, starts = [2] * count, [0] * count
    else:
        low, high = space.low.reshape(-1).tolist(), space.high.reshape(-1).tolist()
        # Python ints: the size of a full int64 range does not fit an int64.
        starts, sizes = [int(value) for value in low], [int(b) - int(a) + 1 for a, b in zip(low, high, strict=True)]
    return DiscreteCodec(sizes=tuple(sizes), starts=tuple(starts))


def _default_codec(space: gym.spaces.Box, rules: Rules, vocabulary: Vocabulary) -> Codec:
    """The codec of a Box that no data was fitted to: equal bins between finite bounds, else μ-law."""
    bins = vocabulary.continuous
    low, high = space.low.astype(np.float64).reshape(-1), space.high.astype(np.float64).reshape(-1)
    within_one = bool((low >= -1).all() and (high <= 1).all())
    # Gato's rule for observations: numbers already in [-1, 1] skip the companding (section 2.1).
    if within_one and rules.bounded == "mu_law":
        return Uniform(low=(-1.0,) * len(low), high=(1.0,) * len(low), bins=bins)
    finite = bool((np.abs(low) < _LARGEST_BOUND).all() and (np.abs(high) < _LARGEST_BOUND).all())
    if finite and rules.bounded == "uniform":
        return Uniform(low=tuple(low.tolist()), high=tuple(high.tolist()), bins=bins)
    return MuLaw(bins=bins)


def _check_codec(path: Path, space: gym.spaces.Box, codec: Codec, vocabulary: Vocabulary) -> None:
    if codec.bins > vocabulary.continuous:
        bins = vocabulary.continuous
        raise _error(
            path, space, f"has a codec of {codec.bins} bins but vocabulary.continuous is {bins}: use fewer bins"
        )
    # Only codecs fitted per dimension have `dimensions`; μ-law is the same for every number.
    dimensions = getattr(codec, "dimensions", None)
    size = int(np.prod(space.shape, dtype=np.int64))
    if dimensions not in (None, size):
        raise _error(path, space, f"has {size} numbers but its codec has {dimensions} dimensions: fit it to this space")


def _statistics(
    path: Path, space: gym.spaces.Box, given: Statistics | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each number, row-major; 0 and 1 where nothing was learned."""
    # Without statistics numbers pass unchanged, as for a space that was never recorded.
    size = int(np.prod(space.shape, dtype=np.int64))
    if given is None:
        return (0.0,) * size, (1.0,) * size
    # As objects: whole numbers of 64 bits stay whole.
    mean, std = np.asarray(given[0], object).reshape(-1), np.asarray(given[1], np.float64).reshape(-1)
    if len(mean) != size or len(std) != size or not np.isfinite(mean.astype(np.float64)).all() or not (std > 0).all():
        raise _error(
            path,
            space,
            f"needs {size} finite means and {size} positive deviations as its statistics: compute them with fit_statistics",
        )
    return tuple(mean.tolist()), tuple(std.tolist())
