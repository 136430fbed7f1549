"""Settings that a pretrained trunk determines."""

import dataclasses
from typing import Any

from generalist.config.run import Config
from generalist.model.projector import check_pooled
from generalist.vision.vit import check_vit, vit_config
from generalist.weights.folder import WeightsError
from generalist.weights.language import LanguageModel


def with_trunk(config: Config) -> Config:
    """The settings with the shape and the vocabulary of the trunk `model.trunk`; unchanged if that is none.

    Raises:
        WeightsError: the folder holds no language model that can be loaded, or lacks some of its tensors.
        ValueError: rows are longer than the trunk's table of positions, or than its rotary positions stay the same; or its
            tower's features cannot be averaged to `model.vision.positions`.
    """
    if config.model.trunk == "none":
        return config
    trunk = LanguageModel(config.model.trunk, images=config.trunk_sees)
    shape = _with_images(config, trunk) if config.trunk_sees else trunk.shape
    trunk.check()  # now, and not when its tensors are read: recording comes between
    length, bounded = trunk.context
    if bounded and config.data.length > length:
        raise ValueError(
            f"data.length = {config.data.length}, but the trunk changes its rotary positions beyond {length}, which is not "
            "supported: lower it"
        )
    # Whatever was given for these settings is replaced: only the trunk's own fit its tensors.
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, **shape),
        tokens=dataclasses.replace(config.tokens, text_pieces=trunk.vocabulary),
    )


def _with_images(config: Config, trunk: LanguageModel) -> dict[str, Any]:
    """The fields of `ModelConfig` that the trunk determines, those for its images included; the number of positions per image is
    the run's.

    Raises:
        WeightsError: the trunk does not project images into the sequence, or its tower lacks a tensor.
        ValueError: its features cannot be averaged so.
    """
    if trunk.images is None:
        raise WeightsError(
            f"{trunk.named} does not project images into the sequence, as a Gemma 3, PaliGemma or LLaVA does: choose other ways "
            "for images (tokens.images and tokens.documents, such as frame), or name another model.vision.encoder"
        )
    check_vit(trunk.folder, trunk.images.tower)
    positions = config.model.vision.positions
    check_pooled(vit_config(trunk.folder, trunk.images.tower).outputs, positions)
    # By the name that it was given, by which the encoder is known as the trunk's own.
    vision = dataclasses.replace(trunk.shape["vision"], encoder=config.model.vision.encoder, positions=positions)
    # Those of a preset are another model's where this one has none.
    return {"blocks": "none"} | trunk.shape | {"vision": vision}
