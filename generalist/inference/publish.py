"""Weights whose language model is a published architecture, in the layout that other tools load."""

import dataclasses
from pathlib import Path
from typing import Any

from generalist.inference.weights import Weights
from generalist.system.files import whole_folder
from generalist.weights.folder import WeightsError
from generalist.weights.language import LanguageModel
from generalist.weights.language_saving import save_language_model
from generalist.weights.open_flamingo import is_open_flamingo


def save_published(weights: Weights, folder: Path, dtype: Any) -> list[str]:
    """See `Generalist.save_published`."""
    weights.check_saved()
    model = origin(weights)
    with whole_folder(folder) as whole:
        left_out = save_language_model(model, weights.arrays(dtype=None), whole, dtype)
    # What a published model has here beyond its files, rows for our marks and local positions that are zero, nothing reads.
    return [] if weights.tokenizers.published is not None else left_out


def origin(weights: Weights) -> LanguageModel:
    """The opened folder of the language model that the weights began with."""
    config, published = weights.config, weights.tokenizers.published is not None
    if config.model.trunk == "none" and not published:
        raise WeightsError(
            f"{config.name} is no published language model and has none as its trunk (model.trunk = none), so no other tool has "
            "its architecture: save it in our own layout"
        )
    folder = weights.tokenizers.folder if published else Path(config.model.trunk)
    assert folder is not None  # of a published model
    if is_open_flamingo(folder):
        raise WeightsError(
            f"{folder} is an OpenFlamingo, a checkpoint beside the models that it began with: no other tool loads it as "
            "one folder"
        )
    model = LanguageModel(folder, images=published or config.trunk_sees)
    model.check()
    shape = {name: getattr(config.model, name) for name in model.shape}
    if "vision" in shape and not published:
        # Fewer positions per image are a run's own choice, which changes no parameter.
        own = {"encoder": model.shape["vision"].encoder, "positions": model.shape["vision"].positions}
        shape["vision"] = dataclasses.replace(shape["vision"], **own)
    if shape != model.shape or config.tokens.text_pieces != model.vocabulary:
        raise WeightsError(f"{folder} holds another model than the one that {config.name} began with: restore it")
    return model
