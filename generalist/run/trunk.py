"""Settings that a pretrained trunk determines."""

import dataclasses

from generalist.config.run import Config
from generalist.weights.language import LanguageModel


def with_trunk(config: Config) -> Config:
    """The settings with the shape and the vocabulary of the trunk `model.trunk`; unchanged if that is none.

    Raises:
        WeightsError: the folder holds no language model that can be loaded, or lacks some of its tensors.
        ValueError: rows are longer than the trunk's table of positions, or than its rotary positions stay the same.
    """
    if config.model.trunk == "none":
        return config
    trunk = LanguageModel(config.model.trunk)
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
        model=dataclasses.replace(config.model, **trunk.shape),
        tokens=dataclasses.replace(config.tokens, text_pieces=trunk.vocabulary),
    )
