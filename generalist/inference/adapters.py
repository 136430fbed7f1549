"""Low-rank adapters apart from the weights that they belong to, in PEFT's layout."""

from pathlib import Path
from typing import Any

import numpy as np

from generalist.config.run import Config
from generalist.inference.publish import origin
from generalist.inference.weights import Weights, checkpoint_shapes
from generalist.model.params import flat, nested
from generalist.model.tuned import ADAPTER
from generalist.run.tokenizers import Tokenizers
from generalist.system.files import whole_folder
from generalist.weights.folder import WeightsError
from generalist.weights.language import LanguageModel
from generalist.weights.peft_layout import PeftAdapter, save_adapter


def with_adapter(weights: Weights, folder: Path) -> dict[str, Any]:
    """The parameters of weights with an adapter merged into them, by their paths in files; see `Generalist.with_adapter`."""
    adapter = PeftAdapter(folder, origin(weights))
    return {path: adapter.merged(path, array) for path, array in weights.arrays(dtype=None)}


def save_run_adapter(config: Config, folder: Path, step: int | None = None) -> int:
    """Writes the adapters of a run alone; the folder is complete or absent.

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

    lora, trunk = config.training.lora, config.model.trunk
    if lora.rank is None or trunk == "none":
        lacking = "training.lora.rank" if lora.rank is None else "model.trunk"
        raise WeightsError(
            f"{config.name} has no adapters of a published language model ({lacking} is none): choose another layout"
        )
    model = LanguageModel(trunk)
    if any(getattr(config.model, name) != value for name, value in model.shape.items()):
        raise WeightsError(f"{trunk} holds another model than the one that {config.name} began with: restore it")
    params, _ = checkpoint_shapes(Tokenizers.load(config.folder, config), config)
    wanted = nested({path: leaf for path, leaf in flat(params).items() if ADAPTER.fullmatch(path)})
    found, _, step = restore_params(config.checkpoints, wanted, {}, step, mean=config.training.ema > 0)
    with whole_folder(folder) as whole:
        save_adapter(model, {path: np.asarray(array) for path, array in flat(found).items()}, lora, whole)
    return step
