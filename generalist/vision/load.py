"""Loading of a frozen encoder by its name or folder."""

from pathlib import Path

from generalist.vision.efficientnet import load_efficientnet, weights_file
from generalist.vision.encoder import VisionEncoder
from generalist.vision.vit import check_vit, load_vit
from generalist.weights.folder import WeightsFolder


def load_encoder(encoder: str, size: int) -> VisionEncoder | None:
    """The encoder that `model.vision.encoder` names; None for "none".

    Args:
        encoder: "none", "efficientnet_lite0", or a folder in HuggingFace's layout.
        size: input pixels per side of efficientnet_lite0.

    Raises:
        ImportError: its package is not installed.
        WeightsError: the folder does not exist or holds something else.
    """
    if encoder == "none":
        return None
    if encoder == "efficientnet_lite0":
        return load_efficientnet(size)
    return load_vit(WeightsFolder(Path(encoder)))


def check_encoder(encoder: str) -> None:
    """Checks that `load_encoder` can load what `model.vision.encoder` names, without reading weights.

    Raises:
        ImportError, WeightsError: as `load_encoder`.
    """
    if encoder == "efficientnet_lite0":
        weights_file()
    elif encoder != "none":
        check_vit(WeightsFolder(Path(encoder)))
