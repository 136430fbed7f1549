"""How published models cut images into several before their vision tower sees them: tiles of LLaVA 1.6, crops of Gemma 3."""

import math
from typing import Any

from PIL import Image

from generalist.tokenizers.shown import PanAndScan, Tiles
from generalist.weights.folder import WeightsFolder
from generalist.weights.language_settings import LanguageSettings

PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
"""Heights and widths that images of a LLaVA 1.6 are resized to, unless its files say otherwise."""
PAN_AND_SCAN: dict[str, float] = {
    "pan_and_scan_min_crop_size": 256,
    "pan_and_scan_max_num_crops": 4,
    "pan_and_scan_min_ratio_to_activate": 1.2,
}


def prepared(folder: WeightsFolder) -> dict[str, Any]:
    """The settings of a folder's image processor; empty without any."""
    stored = folder.beside("preprocessor_config.json") or folder.beside("processor_config.json").get("image_processor")
    return stored if isinstance(stored, dict) else {}


def pan_and_scan(settings: LanguageSettings) -> PanAndScan | None:
    """How a Gemma 3 cuts long images, if its folder says that it does.

    Raises:
        WeightsError: a number is not above 0.
    """
    stored = prepared(settings.folder)
    if not stored.get("do_pan_and_scan"):
        return None
    # Null stands for the processor's own numbers.
    found: dict[str, Any] = {
        name: usual if stored.get(name) is None else stored[name] for name, usual in PAN_AND_SCAN.items()
    }
    for name, value in found.items():
        whole = name != "pan_and_scan_min_ratio_to_activate"
        if type(value) not in ((int,) if whole else (int, float)) or not 0 < value < math.inf:
            raise settings.refused(f"prepares images with {name} = {value!r:.40}: it must be a number above 0")
    smallest, most, ratio = found.values()
    return PanAndScan(smallest=smallest, most=most, ratio=ratio)


def tiles_of(settings: LanguageSettings, positions: int) -> Tiles:
    """How a LLaVA 1.6 cuts images.

    Args:
        positions: of a tile.

    Raises:
        WeightsError: a setting is unsupported or contradicts another.
    """
    stored, size = prepared(settings.folder), settings.folder.setting("vision_config.image_size", default=224)
    grid = math.isqrt(positions)
    if grid * grid != positions:
        raise settings.refused(
            f"has a tower of {positions} positions, which are no square grid: set vision_feature_select_strategy so that the "
            "class position is left out"
        )
    given = settings.folder.setting("image_grid_pinpoints", list, default=PINPOINTS)
    if stored.get("image_grid_pinpoints", PINPOINTS) != given:
        raise settings.refused("has another image_grid_pinpoints in config.json than in the settings of its processor")
    sides = range(size, 64 * size, size)
    for pair in given:
        if not (isinstance(pair, list) and len(pair) == 2 and all(type(one) is int and one in sides for one in pair)):
            raise settings.refused(
                f"has {pair!r:.40} in image_grid_pinpoints: a height and a width must be multiples of the tower's {size} pixels"
            )
    if not given:
        raise settings.refused("has no sizes in image_grid_pinpoints")
    shortest = stored.get("size", {"shortest_edge": size})
    if shortest not in ({"shortest_edge": size}, {"height": size, "width": size}):
        raise settings.refused(f"prepares images with size = {shortest!r:.60}: it must be the tower's {size} pixels")
    try:
        resample = Image.Resampling(stored.get("resample", Image.Resampling.BICUBIC))
    except ValueError as error:
        raise settings.refused(f"prepares images with resample: {error}") from error
    return Tiles(size=size, grid=grid, sizes=tuple((pair[0], pair[1]) for pair in given), resample=resample)
