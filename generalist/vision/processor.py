"""The image preparation of a published vision tower, as its folder configures it."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from generalist.vision.encoder import Preparation
from generalist.weights.folder import WeightsError, WeightsFolder
from generalist.weights.tower import Family

MEANS = {"clip": (0.48145466, 0.4578275, 0.40821073), "siglip": (0.5, 0.5, 0.5)}
DEVIATIONS = {"clip": (0.26862954, 0.26130258, 0.27577711), "siglip": (0.5, 0.5, 0.5)}
STEPS = {"do_resize": True, "do_rescale": True, "do_center_crop": True, "rescale_factor": 1 / 255}
"""Switches with the one value that is supported; only CLIP crops the centre."""
EITHER = ("do_normalize", "do_convert_rgb")
"""Switches that may be on or off: images are made RGB here whatever a file says."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processor:
    """From an image to standardised pixels."""

    preparation: Preparation
    mean: tuple[float, ...]
    """Mean and deviation of each colour, in 0..1, that standardise pixels."""
    deviation: tuple[float, ...]


def processor(folder: WeightsFolder, family: Family, size: int, *, stretched: bool = False) -> Processor:
    """The settings of `preprocessor_config.json` or, in newer folders, `processor_config.json`; else the family's defaults.

    CLIP resizes the shorter side and crops the centre, SigLIP stretches both sides.

    Args:
        size: input pixels per side of the tower.
        stretched: stretch both sides unless the file says otherwise.

    Raises:
        WeightsError: it produces pixels of another size, or uses an unsupported setting.
    """
    stored = folder.beside("preprocessor_config.json") or folder.beside("processor_config.json").get("image_processor")
    stored = stored or {}
    if stretched:
        # IDEFICS' files have one number, by a name of their own.
        side = stored.get("image_size", size)
        stored = {"size": {"height": side, "width": side}, **stored}
    try:
        if stored.get("image_num_channels", 3) != 3:
            raise ValueError(f"image_num_channels must be 3, got {stored['image_num_channels']!r}")
        return _processor(stored, family, size)
    except (ValueError, TypeError, AttributeError) as error:
        raise WeightsError(f"{folder.folder} prepares images in an unsupported way: {error}") from error


def _processor(stored: Mapping[str, Any], family: Family, size: int) -> Processor:
    square = {"height": size, "width": size}
    for name, value in STEPS.items():
        if family == "siglip" and name == "do_center_crop":
            continue
        given = stored.get(name, value)
        # Older files write the factor with few digits.
        same = given == value or (isinstance(given, float) and math.isclose(given, value, rel_tol=1e-5))
        # A stretch to the tower's size leaves nothing to crop.
        if not same and not (name == "do_center_crop" and stored.get("size") == square):
            raise ValueError(f"{name} must be {value}, got {given!r}")
    # Steps of other processors, such as padding to a square or cutting into tiles, give other images.
    for name, value in stored.items():
        if name.startswith("do_") and value and name not in (*STEPS, *EITHER):
            raise ValueError(f"{name} = {value!r:.60} is not supported: it must be false")
    resized = stored.get("size", {"shortest_edge": size} if family == "clip" else square)
    # Older files have one number, whose meaning is the family's.
    if isinstance(resized, int):
        resized = {"shortest_edge": resized} if family == "clip" else {"height": resized, "width": resized}
    shortest = resized.get("shortest_edge") if family == "clip" else None
    cropped = stored.get("crop_size", size)
    if shortest is None and resized != square:
        raise ValueError(f"size must be {square}, the tower's input, got {resized!r}")
    if shortest is not None and cropped not in (size, square):
        raise ValueError(f"crop_size must be {square}, the tower's input, got {cropped!r}")
    # `type`, not isinstance: JSON's true is an int in Python.
    if shortest is not None and not (type(shortest) is int and shortest > 0):
        raise ValueError(f"size.shortest_edge must be a whole number above 0, got {shortest!r}")
    # Without normalisation, pixels stay in 0..1: mean 0 and deviation 1.
    plain = {"image_mean": (0.0,) * 3, "image_std": (1.0,) * 3} if stored.get("do_normalize", True) is False else stored
    mean = _colours(plain.get("image_mean", MEANS[family]))
    deviation = _colours(plain.get("image_std", DEVIATIONS[family]))
    if min(deviation) <= 0:  # pixels are divided by it
        raise ValueError(f"image_std must be above 0, got {deviation}")
    return Processor(
        preparation=Preparation(
            size=size,
            crop=shortest is not None,
            shortest=shortest or 0,
            # The files store Pillow's own number; an unknown one is a ValueError.
            resample=Image.Resampling(stored.get("resample", _usual_resample(stored))),
        ),
        mean=mean,
        deviation=deviation,
    )


def _usual_resample(stored: Mapping[str, Any]) -> Image.Resampling:
    """The filter of the processor's own definition."""
    gemma3 = str(stored.get("image_processor_type")).startswith("Gemma3")
    return Image.Resampling.BILINEAR if gemma3 else Image.Resampling.BICUBIC


def _colours(values: Any) -> tuple[float, ...]:
    """One number per colour."""
    found = tuple(map(float, values))
    if len(found) != 3 or not np.isfinite(found).all():
        raise ValueError(f"image_mean and image_std must be three numbers, got {values!r:.60}")
    return found
