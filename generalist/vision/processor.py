"""The image preparation of a published vision tower, as its folder configures it."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from generalist.vision.encoder import EvenPreparation, PaddedPreparation, Preparation
from generalist.weights.folder import WeightsError, WeightsFolder
from generalist.weights.tower import Family

MEANS = {"clip": (0.48145466, 0.4578275, 0.40821073), "siglip": (0.5, 0.5, 0.5)}
DEVIATIONS = {"clip": (0.26862954, 0.26130258, 0.27577711), "siglip": (0.5, 0.5, 0.5)}
LARGEST = 1 << 14  # pixels per side that an image is resized to
STEPS = ("do_resize", "do_center_crop")
"""Steps that must be done where a processor has them; only CLIP's crops the centre."""
EITHER = ("do_rescale", "do_normalize", "do_convert_rgb")
"""Steps that may be done or not: images are made RGB here whatever a file says."""
CROPPING, STRETCHING = ("CLIP", "Llava"), ("Siglip", "Gemma3", "Idefics")
"""What the names of processors begin with that crop the centre, and of those that stretch both sides."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processor:
    """From an image to standardised pixels."""

    preparation: Preparation
    mean: tuple[float, ...]
    """Mean and deviation of each colour, in 0..1, that standardise pixels."""
    deviation: tuple[float, ...]


def processor(
    folder: WeightsFolder, family: Family, size: int, *, stretched: bool = False, even: bool = False
) -> Processor:
    """The settings of `preprocessor_config.json` or, in newer folders, `processor_config.json`; else the family's defaults.

    CLIP resizes the shorter side and crops the centre, SigLIP stretches both sides.

    Args:
        size: input pixels per side of the tower.
        stretched: stretch both sides unless the file says otherwise.
        even: crop the centre as open_clip does, see `EvenPreparation`.

    Raises:
        WeightsError: it produces pixels of another size, or uses an unsupported setting.
    """
    stored = folder.beside("preprocessor_config.json") or folder.beside("processor_config.json").get("image_processor")
    stored = stored or {}
    if stretched:
        # IDEFICS' files have one number, by a name of their own.
        side = stored.get("image_size", size)
        usual = {"image_processor_type": "IdeficsImageProcessor", "size": {"height": side, "width": side}}
        stored = {**usual, **stored}
    try:
        if stored.get("image_num_channels", 3) != 3:
            raise ValueError(f"image_num_channels must be 3, got {stored['image_num_channels']!r}")
        found = _processor(stored, family, size)
    except (ValueError, TypeError, AttributeError) as error:
        raise WeightsError(f"{folder.folder} prepares images in an unsupported way: {error}") from error
    if not even or not found.preparation.crop:
        return found
    own = found.preparation
    cropped = EvenPreparation(size=own.size, crop=True, shortest=own.shortest, resample=own.resample)
    return dataclasses.replace(found, preparation=cropped)


def _processor(stored: Mapping[str, Any], family: Family, size: int) -> Processor:
    square = {"height": size, "width": size}
    kind = str(stored.get("image_processor_type", stored.get("feature_extractor_type")))
    cropping = kind.startswith(CROPPING) or (family == "clip" and not kind.startswith(STRETCHING))
    padded = kind.startswith("LlavaImage") and stored.get("do_pad") is True
    # Which images are cut, and how, is decided before: here each tile and each crop is prepared.
    cut = {"LlavaNext": ("do_pad",), "Gemma3": ("do_pan_and_scan",)}
    allowed = next((names for begin, names in cut.items() if kind.startswith(begin)), ("do_pad",) if padded else ())
    _check_steps(stored, cropping, allowed, square)
    resized = stored.get("size", {"shortest_edge": size} if cropping else square)
    # Older files have one number, whose meaning is the processor's.
    if isinstance(resized, int):
        resized = {"shortest_edge": resized} if cropping else {"height": resized, "width": resized}
    if not isinstance(resized, dict):
        raise ValueError(f"size must be {square} or a shortest_edge, got {resized!r:.60}")
    shortest = resized.get("shortest_edge") if cropping else None
    sides: tuple[Any, Any] = (resized.get("width"), resized.get("height")) if shortest is None else (shortest, shortest)
    # `type`, not isinstance: JSON's true is an int in Python.
    if not all(type(one) is int and 0 < one <= LARGEST for one in sides):
        raise ValueError(f"size must have whole numbers in 1..{LARGEST}, got {resized!r:.80}")
    if not cropping and resized != square:
        raise ValueError(f"size must be {square}, the tower's input, got {resized!r:.80}")
    cropped = stored.get("crop_size", size)
    if cropping and (shortest is not None or resized != square) and cropped not in (size, square):
        raise ValueError(f"crop_size must be {square}, the tower's input, got {cropped!r:.80}")
    mean, deviation = _standardisation(stored, family)
    usual: dict[str, Any] = {
        "size": size,
        "crop": shortest is not None,
        "shortest": shortest or 0,
        # The files store Pillow's own number; an unknown one is a ValueError.
        "resample": Image.Resampling(stored.get("resample", _usual_resample(stored))),
    }
    preparation = Preparation(**usual)
    if padded or (shortest is None and resized != square):
        colour = tuple(int(one * 255) for one in _colours(stored.get("image_mean", MEANS["clip"])))
        preparation = PaddedPreparation(
            **usual,
            background=(colour[0], colour[1], colour[2]) if padded else None,
            stretched=None if shortest is not None else sides,
        )
    return Processor(preparation=preparation, mean=mean, deviation=deviation)


def _check_steps(stored: Mapping[str, Any], cropping: bool, allowed: tuple[str, ...], square: dict[str, int]) -> None:
    """Raises `ValueError` if a file leaves out a step that is done here, or has another one."""
    for name in STEPS if cropping else STEPS[:1]:
        # A stretch to the tower's size leaves nothing to crop.
        if stored.get(name, True) is not True and not (name == "do_center_crop" and stored.get("size") == square):
            raise ValueError(f"{name} must be True, got {stored[name]!r:.60}")
    # Steps of other processors, such as cutting into tiles, give other images.
    for name, value in stored.items():
        if name.startswith("do_") and value and name not in (*STEPS, *EITHER, *allowed):
            raise ValueError(f"{name} = {value!r:.60} is not supported: it must be false")


def _standardisation(stored: Mapping[str, Any], family: Family) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of pixels in 0..1, which also stand for another factor than 1 / 255."""
    plain = {"image_mean": (0.0,) * 3, "image_std": (1.0,) * 3} if stored.get("do_normalize", True) is False else stored
    mean, deviation = (
        _colours(plain.get(name, usual[family])) for name, usual in (("image_mean", MEANS), ("image_std", DEVIATIONS))
    )
    factor = stored.get("rescale_factor", 1 / 255) if stored.get("do_rescale", True) is not False else 1
    if type(factor) not in (int, float) or not 0 < factor < math.inf:
        raise ValueError(f"rescale_factor must be a number above 0, got {factor!r:.60}")
    # Older files write the usual factor with few digits.
    if not math.isclose(factor, 1 / 255, rel_tol=1e-5):
        mean, deviation = (tuple(one / (255 * factor) for one in values) for values in (mean, deviation))
    if min(deviation) <= 0:  # pixels are divided by it
        raise ValueError(f"image_std must be above 0, got {deviation}")
    return mean, deviation


def _usual_resample(stored: Mapping[str, Any]) -> Image.Resampling:
    """The filter of the processor's own definition."""
    gemma3 = str(stored.get("image_processor_type")).startswith("Gemma3")
    return Image.Resampling.BILINEAR if gemma3 else Image.Resampling.BICUBIC


def _colours(values: Any) -> tuple[float, ...]:
    """One number per colour; a file may have one for all."""
    found = tuple(map(float, [values] * 3 if type(values) in (int, float) else values))
    if len(found) != 3 or not np.isfinite(found).all():
        raise ValueError(f"image_mean and image_std must be one number or three, got {values!r:.60}")
    return found
