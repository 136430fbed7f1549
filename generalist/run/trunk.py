"""Settings that follow from a pretrained trunk."""

import dataclasses

from generalist.config.run import Config
from generalist.weights.language import LanguageModel


def with_trunk(config: Config) -> Config:
    """The settings with the shape and the vocabulary of the trunk that `model.trunk` names; unchanged without one.

    Raises:
        WeightsError: the folder holds no language model that can be loaded, or not its tensors.
        ValueError: rows are longer than the trunk's table of positions.
    """
    if config.model.trunk == "none":
        return config
    trunk = LanguageModel(config.model.trunk)
    trunk.check()  # here, before data are made for it
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, **trunk.shape),
        tokens=dataclasses.replace(config.tokens, text_pieces=trunk.vocabulary),
    )
