"""Weights whose language model is a published architecture, and their adapters, in the layouts that other tools load."""

from pathlib import Path
from typing import Any

import numpy as np

from generalist.config.run import Config
from generalist.inference.weights import Weights, checkpoint_shapes
from generalist.model.params import flat, nested
from generalist.model.tuned import ADAPTER
from generalist.run.tokenizers import Tokenizers
from generalist.system.files import whole_folder
from generalist.weights.folder import WeightsError
from generalist.weights.language import LanguageModel
from generalist.weights.language_saving import save_language_model
from generalist.weights.peft_layout import PeftAdapter, save_adapter


def save_published(weights: Weights, folder: Path, dtype: Any) -> list[str]:
    """See `Generalist.save_published`."""
    model = _origin(weights)
    with whole_folder(folder) as whole:
        left_out = save_language_model(model, weights.arrays(dtype=None), whole, dtype)
    # What a published model has here beyond its files, rows for our marks and local positions that are zero, nothing reads.
    return [] if weights.tokenizers.published is not None else left_out


def save_run_adapter(config: Config, folder: Path, step: int | None = None) -> int:
    """Writes the adapters of a run alone, in PEFT's layout; the folder is complete or absent.

    Args:
        config: of the run.
        step: which checkpoint; None: the newest.

    Returns:
        The step of the adapters.

    Raises:
        FileExistsError: the folder exists.
        FileNotFoundError: there is no such checkpoint.
        WeightsError: the run has no adapters, or none of a published language model, or that model's folder is gone.
    """
    from generalist.training.checkpoint import restore_params  # a second to import

    lora = config.training.lora
    if lora.rank is None:
        raise WeightsError(
            f"{config.name} has no adapters (training.lora.rank): export its weights in another layout, or train with adapters"
        )
    model = _opened(config, config.model.trunk)
    params, _ = checkpoint_shapes(Tokenizers.load(config.folder, config), config)
    wanted = nested({path: leaf for path, leaf in flat(params).items() if ADAPTER.fullmatch(path)})
    found, _, step = restore_params(config.checkpoints, wanted, {}, step, mean=config.training.ema > 0)
    with whole_folder(folder) as whole:
        save_adapter(model, {path: np.asarray(array) for path, array in flat(found).items()}, lora, whole)
    return step


def with_adapter(weights: Weights, folder: Path) -> dict[str, Any]:
    """The parameters of weights with an adapter in PEFT's layout merged into them, by their paths in files; see
    `Generalist.with_adapter`."""
    adapter = PeftAdapter(folder, _origin(weights))
    return {path: adapter.merged(path, array) for path, array in weights.arrays(dtype=None)}


def _origin(weights: Weights) -> LanguageModel:
    """The opened folder of the language model that the weights began with."""
    published = weights.tokenizers.published is not None
    folder = weights.tokenizers.folder if published else weights.config.model.trunk
    assert folder is not None  # of a published model
    return _opened(weights.config, folder)


def _opened(config: Config, folder: Path | str) -> LanguageModel:
    """The folder of the language model that weights with these settings began with."""
    if str(folder) == "none":
        raise WeightsError(
            f"{config.name} is no published language model and has none as its trunk (model.trunk = none), so no other tool has "
            "its architecture: save it in our own layout"
        )
    model = LanguageModel(folder)
    model.check()
    shape = {name: getattr(config.model, name) for name in model.shape}
    if shape != model.shape or config.tokens.text_pieces != model.vocabulary:
        raise WeightsError(f"{folder} holds another model than the one that {config.name} began with: restore it")
    return model
