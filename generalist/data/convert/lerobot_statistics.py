"""The statistics that LeRobot keeps of each episode and of the whole: min, max, mean, std, count and five quantiles.

Dimension key: T steps, D numbers of a value, C channels.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Int, Num, UInt8
from PIL import Image

# Names as in LeRobot's `compute_stats`.
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
# LeRobot's numbers (`estimate_num_samples`), so that statistics are comparable with those of its own sets.
LEAST, MOST, POWER = 100, 10_000, 0.75
"""How many images of an episode are looked at: T^0.75, within these."""
LARGE, NARROWED = 300, 150
"""Images from so many pixels of a side on are thinned to about so many."""
LEVELS = 256

Numbers = dict[str, np.ndarray]
"""Statistic → float64 values of the feature's shape in the statistics; `count` int64 (1,)."""


def of_numbers(values: Num[np.ndarray, "T ..."] | Bool[np.ndarray, "T ..."]) -> Numbers:
    """Of numbers (T, ...), for each of the last dimension's; those that are not finite are left out, and 0 where none is left."""
    rows = values.reshape(-1, values.shape[-1] if values.ndim > 1 else 1).astype(np.float64)  # (T, D)
    # A column without a finite number becomes zeros, where the functions that skip NaN would warn and give NaN,
    # which JSON has not.
    finite = np.isfinite(rows)
    rows = np.where(finite | (finite.sum(axis=0) > 0), np.where(finite, rows, np.nan), 0.0)
    quantiles = np.nanquantile(rows, list(QUANTILES.values()), axis=0)
    return {
        "min": np.nanmin(rows, axis=0),
        "max": np.nanmax(rows, axis=0),
        "mean": np.nanmean(rows, axis=0),
        "std": np.nanstd(rows, axis=0),
        # Of steps, as in LeRobot, also where some numbers are left out.
        "count": np.array([len(values)], np.int64),
        **dict(zip(QUANTILES, quantiles, strict=True)),
    }


def sampled_steps(length: int) -> set[int]:
    """The steps whose images are looked at."""
    count = max(min(LEAST, length), min(int(length**POWER), MOST))
    # Spread evenly from the first to the last.
    return set(np.round(np.linspace(0, length - 1, count)).astype(int).tolist())


class ImageStatistics:
    """Of images with C channels, from 0 to 1, added one by one."""

    def __init__(self, channels: int):
        # A histogram of 256 levels holds all that the statistics need, in place of the pixels of ten thousand
        # images.
        self._levels: Int[np.ndarray, "C 256"] = np.zeros((channels, LEVELS), np.int64)
        self._count = 0

    def add(self, image: UInt8[np.ndarray, "H W C"]) -> None:
        """Counts the levels of an image."""
        height, width, _ = image.shape
        # Every n-th pixel, as LeRobot thins its images too.
        every = max(height, width) // NARROWED if max(height, width) >= LARGE else 1
        thinned = np.ascontiguousarray(image[::every, ::every])
        # Pillow counts ten times as fast as NumPy.
        counted = Image.fromarray(thinned[..., 0] if thinned.shape[-1] == 1 else thinned).histogram()
        self._levels += np.array(counted, np.int64).reshape(self._levels.shape)
        self._count += 1

    def found(self) -> Numbers:
        """Each (C, 1, 1)."""
        # (256,): the values 0 to 1 that the levels stand for
        scale = np.arange(LEVELS) / (LEVELS - 1)
        below = np.cumsum(self._levels, axis=1)  # (C, 256)
        # (C, 1)
        total = below[:, -1:]
        mean = (self._levels * scale).sum(axis=1) / total[:, 0]
        squares = (self._levels * scale**2).sum(axis=1) / total[:, 0]
        # The least level up to which at least this share of the pixels is.
        several = {name: scale[(below >= share * total).argmax(axis=1)] for name, share in QUANTILES.items()}
        several |= {
            "min": scale[(self._levels > 0).argmax(axis=1)],
            "max": scale[LEVELS - 1 - (self._levels[:, ::-1] > 0).argmax(axis=1)],
            "mean": mean,
            # Rounding may leave a tiny negative variance of images of one colour.
            "std": np.sqrt(np.maximum(0, squares - mean**2)),
        }
        # (C,) to (C, 1, 1), which broadcasts over images (C, H, W)
        shaped = {name: values.reshape(-1, 1, 1) for name, values in several.items()}
        return {**shaped, "count": np.array([self._count], np.int64)}


@dataclasses.dataclass
class Whole:
    """The statistics of a feature over all episodes, added episode by episode (Chan et al. 1983).

    Quantiles of a whole can't be had from those of its parts: as in LeRobot, the lower ones are the least and the upper ones the
    greatest of any episode.
    """

    numbers: Numbers | None = None

    def add(self, episode: Mapping[str, np.ndarray]) -> None:
        """Adds an episode."""
        if self.numbers is None:
            self.numbers = dict(episode)
            return
        whole, count = self.numbers, self.numbers["count"] + episode["count"]
        # Mean and variance of a whole follow exactly from those of its parts, without a second pass.
        share = episode["count"] / count
        difference = episode["mean"] - whole["mean"]
        variance = whole["std"] ** 2 * (1 - share) + episode["std"] ** 2 * share + difference**2 * share * (1 - share)
        self.numbers = {
            name: np.maximum(whole[name], episode[name])
            if name in ("max", "q90", "q99")
            else np.minimum(whole[name], episode[name])
            for name in ("min", "max", *QUANTILES)
        }
        self.numbers |= {"mean": whole["mean"] + difference * share, "std": np.sqrt(variance), "count": count}
