"""Loading of a frozen encoder by its name or folder."""

import shutil
from pathlib import Path

from generalist.vision.efficientnet import load_efficientnet, load_pyramid, weights_file
from generalist.vision.encoder import VisionEncoder
from generalist.vision.vit import check_vit, load_vit, preparation, tower_tensors
from generalist.weights.folder import WeightsError, WeightsFolder, save_tensors
from generalist.weights.language_images import own_tower
from generalist.weights.tower import Tower

PACKAGED = {"efficientnet_lite0": load_efficientnet, "efficientnet_lite0_pyramid": load_pyramid}
"""Encoders whose weights pip brings, by their names."""


def load_encoder(encoder: str, size: int) -> VisionEncoder | None:
    """The encoder that `model.vision.encoder` names; None for "none".

    Args:
        encoder: "none", "efficientnet_lite0", "efficientnet_lite0_pyramid", or a folder in HuggingFace's layout.
        size: input pixels per side of the encoders by name.

    Raises:
        ImportError: its package is not installed.
        WeightsError: the folder does not exist or holds something else.
    """
    if encoder == "none":
        return None
    if encoder in PACKAGED:
        return PACKAGED[encoder](size)
    return load_vit(*_opened(encoder))


def check_encoder(encoder: str) -> None:
    """Checks that `load_encoder` can load what `model.vision.encoder` names, without reading weights.

    Raises:
        ImportError, WeightsError: as `load_encoder`.
    """
    if encoder in PACKAGED:
        weights_file()
    elif encoder != "none":
        check_vit(*_opened(encoder))


def crops_images(encoder: str) -> bool:
    """Whether the encoder that `model.vision.encoder` names sees the centre of an image; no weights are read.

    Raises:
        WeightsError: as `load_encoder`.
    """
    return encoder not in ("none", *PACKAGED) and preparation(*_opened(encoder)).cuts


def save_encoder(encoder: VisionEncoder, to: Path) -> None:
    """Copies what `load_encoder` reads of the encoder's folder into a new one: of a larger model its tower alone.

    Raises:
        FileNotFoundError: its files are gone.
    """
    assert encoder.folder is not None  # an encoder of a package is not copied
    if not (encoder.folder / "config.json").is_file():
        raise FileNotFoundError(f"the files of the frozen encoder are gone from {encoder.folder}: restore them")
    folder, tower = _opened(str(encoder.folder))
    to.mkdir()
    # As they are: an encoder alone is known by a hash of its files.
    kept = [*encoder.folder.glob("*.json"), *(encoder.folder.glob("*.safetensors") if tower is None else ())]
    for file in kept:
        if tower is None or not file.name.endswith(".index.json"):  # of shards, which become one file
            shutil.copyfile(file, to / file.name)
    if tower is not None:
        save_tensors({name: folder.tensor(name) for name in tower_tensors(folder, tower)}, to / "model.safetensors")


def _opened(encoder: str) -> tuple[WeightsFolder, Tower | None]:
    """The folder, and where it has the tower of a larger model."""
    if not Path(encoder).is_dir():
        raise WeightsError(
            f"there is no folder {encoder}: model.vision.encoder is a local folder with config.json and *.safetensors, or one of "
            f"none, {', '.join(PACKAGED)}"
        )
    folder = WeightsFolder(Path(encoder))
    return folder, own_tower(folder)
