"""Codecs between continuous numbers and bins: μ-law (Gato), uniform and quantile. All decode to bin centres.

Dimension key: D numbers of a value, N values (any leading axes), E edges.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Float32, Float64, Int, Int32, Int64, Num, Shaped

Numbers = Num[np.ndarray, "*N D"]
Bins = Int[np.ndarray, "*N D"]


class Codec(Protocol):
    """Numbers ↔ bins. The last axis is the dimensions, in the order of the flattened tensor."""

    @property
    def bins(self) -> int:
        """Number of bins per dimension."""

    def encode(self, values: Numbers) -> Int32[np.ndarray, "*N D"]:
        """Bins in 0..bins-1 of numbers."""

    def decode(self, bins: Bins) -> Float[np.ndarray, "*N D"]:
        """Bin centres, float32 or float64."""

    def to_json(self) -> dict[str, Any]:
        """JSON values from which `codec_from_json` rebuilds the codec."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MuLaw:
    """Gato's code for unbounded numbers (section 2.1): sgn(x)·ln(μ|x| + 1) / ln(mμ + 1), cut to [-1, 1], in equal bins.

    Resolution is fine around zero and coarse far away; numbers beyond ±m are clipped.
    """

    mu: float = 100.0
    m: float = 256.0
    bins: int = 1024

    def __post_init__(self) -> None:
        _check_bins(self.bins)
        if not (0 < self.mu < math.inf and 0 < self.m < math.inf):
            raise ValueError(f"mu and m must be positive numbers, got mu={self.mu}, m={self.m}")

    def encode(self, values: Num[np.ndarray, "*N"]) -> Int32[np.ndarray, "*N"]:
        """Bins of numbers of any shape."""
        values = _finite(values)
        # log1p and expm1 keep the precision of numbers near zero, where the bins are narrowest.
        companded = np.sign(values) * np.log1p(self.mu * np.abs(values)) / math.log1p(self.m * self.mu)
        # An input of exactly m lands on the upper edge of the last bin, one past the end: hence the clip.
        return np.clip((companded + 1.0) * (0.5 * self.bins), 0, self.bins - 1).astype(np.int32)

    def decode(self, bins: Int[np.ndarray, "*N"]) -> Float32[np.ndarray, "*N"]:
        """Bin centres. The centre is taken in companded space, then the companding is inverted."""
        middle = (_in_range(bins, self.bins) + 0.5) * (2.0 / self.bins) - 1.0
        return (np.sign(middle) * np.expm1(np.abs(middle) * math.log1p(self.m * self.mu)) / self.mu).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        # "type" is part of the file format: renaming it would make existing weights unreadable.
        return {"type": "mu_law", "mu": self.mu, "m": self.m, "bins": self.bins}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uniform:
    """Equal bins between two bounds per dimension; numbers beyond are clipped. For bounded numbers such as actions."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    bins: int = 1024

    def __post_init__(self) -> None:
        _check_bins(self.bins)
        if len(self.low) != len(self.high) or not all(
            math.isfinite(low) and math.isfinite(high) and low <= high
            for low, high in zip(self.low, self.high, strict=True)
        ):
            raise ValueError(
                f"low and high must be equally long tuples of finite numbers with low ≤ high, got {self.low} and {self.high}"
            )

    @property
    def dimensions(self) -> int:
        """D: numbers per encoded value."""
        return len(self.low)

    @cached_property
    def _scale(self) -> tuple[Float64[np.ndarray, "D"], Float64[np.ndarray, "D"], Float64[np.ndarray, "D"]]:
        """Low, bin width, and bins per unit (0 where low = high)."""
        # In float64, or values on a bin's edge could change bins between training and acting.
        low, high = np.array(self.low, np.float64), np.array(self.high, np.float64)
        width = (high - low) / self.bins
        # A dimension with low = high has bins of no width: everything is encoded as bin 0 instead of dividing by 0.
        return low, width, np.divide(1.0, width, out=np.zeros_like(width), where=width > 0)

    def encode(self, values: Numbers) -> Int32[np.ndarray, "*N D"]:
        """Bins of numbers."""
        low, _, scale = self._scale
        return np.clip((_finite(values, len(self.low)) - low) * scale, 0, self.bins - 1).astype(np.int32)

    def decode(self, bins: Bins) -> Float32[np.ndarray, "*N D"]:
        """Centres of bins."""
        low, width, _ = self._scale
        return (low + (_in_range(bins, self.bins, len(self.low)) + 0.5) * width).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        return {"type": "uniform", "low": list(self.low), "high": list(self.high), "bins": self.bins}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantile:
    """Bins per dimension that hold equally many of the fitted numbers: fine where the data is dense.

    A number that occurs often (a saturated action) repeats as an edge and so gets a bin of zero width, which decodes to it
    exactly.
    """

    edges: tuple[tuple[float, ...], ...]
    """Ascending edges of each dimension, one more than bins; every dimension has the same number of edges."""

    def __post_init__(self) -> None:
        counts = {len(edges) for edges in self.edges}
        if len(counts) != 1 or counts.pop() < 2:
            raise ValueError("edges must have one tuple per dimension, all of one length of at least 2")
        edges = np.array(self.edges, np.float64)
        if not np.isfinite(edges).all() or (np.diff(edges, axis=1) < 0).any():
            raise ValueError("edges must be finite and ascending in every dimension")

    @classmethod
    def fit(cls, values: Num[np.ndarray, "N D"], bins: int = 1024, tail: float = 0.0) -> "Quantile":
        """Edges from numbers, leaving out a fraction `tail` of them at either end.

        Raises:
            ValueError: there are no numbers, or some are not finite.
        """
        _check_bins(bins)
        values = _finite(values)
        if values.ndim != 2 or not len(values):
            raise ValueError(f"quantiles need numbers of shape (N, D) with N at least 1, got shape {values.shape}")
        if not 0 <= tail < 0.5:
            raise ValueError(f"tail must be in [0, 0.5), got {tail}")
        edges = np.quantile(values, np.linspace(tail, 1 - tail, bins + 1), axis=0).T  # (E, D) → (D, E)
        # Interpolation between equal numbers can be off by a rounding error, which would make edges descend.
        return cls(edges=tuple(map(tuple, np.maximum.accumulate(edges, axis=1).tolist())))

    @classmethod
    def of_values(cls, values: Num[np.ndarray, "N D"]) -> "Quantile":
        """Bins that decode to each of the numbers exactly, and to the middle of two where neither was seen.

        Two bins per distinct number: meant for numbers of which there are few.

        Raises:
            ValueError: there are no numbers, or some are not finite.
        """
        # Each number twice is a bin of no width, which decodes to it; the bin between two numbers decodes to their middle.
        columns = [np.repeat(np.unique(column), 2).tolist() for column in _finite(values).T]
        # All dimensions have as many edges: shorter ones repeat their last number, to which all added bins decode.
        longest = max(map(len, columns))
        return cls(edges=tuple(tuple(column + column[-1:] * (longest - len(column))) for column in columns))

    @property
    def bins(self) -> int:
        """Bins per dimension."""
        return len(self.edges[0]) - 1

    @property
    def dimensions(self) -> int:
        """D: numbers per encoded value."""
        return len(self.edges)

    @cached_property
    def _edges(self) -> Float64[np.ndarray, "D E"]:
        return np.array(self.edges, np.float64)

    def encode(self, values: Numbers) -> Int32[np.ndarray, "*N D"]:
        """Bins of numbers."""
        values = _finite(values, len(self.edges))
        bins = np.empty(values.shape, np.int32)
        # One search per dimension: searchsorted takes a single sorted row, and D is small.
        for index, edges in enumerate(self._edges):
            first = np.searchsorted(edges, values[..., index], side="left")
            last = np.searchsorted(edges, values[..., index], side="right")
            # A repeated edge encloses bins of zero width: take the middle one, which decodes to the edge exactly.
            bins[..., index] = np.where(last - first > 1, (first + last - 2) // 2, last - 1)
        return np.clip(bins, 0, self.bins - 1)

    def decode(self, bins: Bins) -> Float64[np.ndarray, "*N D"]:
        """Centres of bins."""
        # Not float32: numbers that occur often must come back exactly, whatever their type.
        bins = _in_range(bins, self.bins, len(self.edges))
        dimension = np.arange(len(self.edges))
        return (self._edges[dimension, bins] + self._edges[dimension, bins + 1]) / 2

    def to_json(self) -> dict[str, Any]:
        return {"type": "quantile", "edges": [list(edges) for edges in self.edges]}


def codec_from_json(data: Mapping[str, Any]) -> Codec:
    """Rebuilds the codec that `to_json` described.

    Raises:
        ValueError: the description is damaged.
    """
    # The file may be damaged or edited by hand: every way in which it can be wrong becomes one ValueError.
    try:
        kind = data["type"]
        if kind == "mu_law":
            return MuLaw(mu=float(data["mu"]), m=float(data["m"]), bins=data["bins"])
        if kind == "uniform":
            return Uniform(low=_floats(data["low"]), high=_floats(data["high"]), bins=data["bins"])
        if kind == "quantile":
            return Quantile(edges=tuple(_floats(edges) for edges in data["edges"]))
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"the description of a codec is damaged ({type(error).__name__}: {error})") from error
    raise ValueError(f"unknown codec {kind!r}; known are mu_law, uniform and quantile")


def fit_statistics(values: Shaped[np.ndarray, "N *D"]) -> tuple[Shaped[np.ndarray, "*D"], Float64[np.ndarray, "*D"]]:
    """Mean and standard deviation over the first axis of numbers of any dtype.

    The mean is float64; that of 64-bit integers is an object array, with integers where float64 cannot hold them. A constant
    number gets a deviation of 1, so that dividing by it is safe.

    Numbers far beyond the bulk (20 times the range of the middle nine tenths) count as at that distance: one outlier must not
    make all others look the same.

    Raises:
        ValueError: there are no numbers, or some are not finite.
    """
    given = np.asarray(values)
    if given.ndim == 0 or not len(given):
        raise ValueError(f"statistics need at least one row of numbers, got shape {given.shape}")
    if given.dtype in (np.int64, np.uint64):
        # float64 holds 53 of the 64 bits: what varies is taken from differences, which wrap around to the right number.
        first = np.asarray(given[0])
        apart = (given.astype(np.uint64) - first.astype(np.uint64)).view(np.int64)
        mean, std = fit_statistics(apart.astype(np.float64))
        pairs = zip(first.reshape(-1).tolist(), np.asarray(mean).reshape(-1).tolist(), strict=True)
        whole = [one + round(more) if abs(one) > 2**52 else one + more for one, more in pairs]
        return np.array(whole, object).reshape(first.shape), std
    # Integers and booleans have no rounding errors; those of floats grow with the type's epsilon.
    rounding = 2 * float(np.finfo(given.dtype).eps) if given.dtype.kind == "f" else 0.0
    values = _finite(given)
    low, middle, high = np.quantile(values, (0.05, 0.5, 0.95), axis=0)
    reach = np.where(high > low, 20 * (high - low), np.inf)  # a number that hardly ever varies has no bulk
    values = np.clip(values, middle - reach, middle + reach)
    mean, std = values.mean(axis=0), values.std(axis=0)
    # What varies only by rounding errors is constant too: dividing by it would blow them up.
    constant = std <= rounding * np.abs(mean)
    return np.asarray(mean), np.where(constant, 1.0, std)


def _check_bins(bins: int) -> None:
    # A bool is an int to Python; 2**24 bins is where float32 stops telling neighbouring bins apart.
    if isinstance(bins, bool) or not isinstance(bins, int) or not 1 <= bins <= 2**24:
        raise ValueError(f"bins must be a whole number from 1 to {2**24}, got {bins!r}")


def _floats(values: Sequence[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _finite(values: Num[np.ndarray, "*N"], dimensions: int | None = None) -> Float64[np.ndarray, "*N"]:
    """The numbers as float64, checked: in float32 numbers near an edge would change bins."""
    values = np.asarray(values, np.float64)
    if dimensions is not None and (values.ndim == 0 or values.shape[-1] != dimensions):
        raise ValueError(f"the codec has {dimensions} dimensions but the numbers have shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(
            "a number is NaN or infinite and has no bin: check the environment or the recording that produced it"
        )
    return values


def _in_range(bins: Int[np.ndarray, "*N"], count: int, dimensions: int | None = None) -> Int64[np.ndarray, "*N"]:
    """The bins as int64, checked: a negative one would wrap around to another edge."""
    bins = np.asarray(bins)
    if dimensions is not None and (bins.ndim == 0 or bins.shape[-1] != dimensions):
        raise ValueError(f"the codec has {dimensions} dimensions but the bins have shape {bins.shape}")
    if bins.size and not (bins.min() >= 0 and bins.max() < count):
        raise ValueError(f"bins must be in 0..{count - 1}, got {bins.min()}..{bins.max()}")
    return bins.astype(np.int64)
