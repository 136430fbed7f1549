"""Finding weights by name: a folder that `Generalist.save` wrote, a run's folder, or those that come with the package.

Does not import JAX, so that a wrong name is reported at once.
"""

import dataclasses
import json
from pathlib import Path

from generalist.config.run import Config
from generalist.config.versions import from_stored
from generalist.run.folder import missing_run
from generalist.weights.folder import WeightsError, read_json
from generalist.weights.open_flamingo import is_open_flamingo

SHIPPED = Path(__file__).parents[1] / "shipped"  # a folder that `Generalist.save` wrote, with a model card
ENCODER_FOLDER = "encoder"  # within a folder of weights: the frozen encoder, if it came from a folder
SHIPPED_NAME = "shipped"  # names the weights of the package; a folder of that name is written ./shipped


def run_settings(folder: Path) -> Config:
    """The settings of a run, also of one that was moved: `runs` and `name` are those of the folder.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: its settings are damaged, or of a newer format than this version reads.
    """
    path = folder / "config.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise missing_run(folder) from error
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error})") from error
    if isinstance(stored, dict) and "towers" in stored:
        raise ValueError(
            f"{folder} is a run of train.py contrastive, whose towers can't act or write: name another run"
        )
    config = from_stored(Config, stored, path)
    return dataclasses.replace(config, runs=folder.resolve().parent, name=folder.resolve().name)


def weights_folder(name: Path | str | None) -> Path:
    """The folder of weights that a name stands for.

    Args:
        name: a folder that `Generalist.save` wrote, a run's folder, or that of a published language model; `shipped` or None:
            the weights of the package.

    Raises:
        FileNotFoundError: there are no such weights.
    """
    if name is None or str(name) == SHIPPED_NAME:
        return shipped_weights()
    folder = Path(name)
    if is_published(folder):
        return folder
    if lacking := [name for name in ("config.json", "tokenizers.json") if not (folder / name).is_file()]:
        # Runs are often named without their folder, as in --run NAME.
        run = Path("runs") / folder
        near = f"did you mean {run}?" if (run / "tokenizers.json").is_file() else f"there is no {lacking[0]} in it"
        raise FileNotFoundError(
            f"no weights in {folder} ({near}): name a folder of `generalist export`, a run's folder such as runs/pocket "
            f"(`generalist runs` lists them), that of a published language model, or `{SHIPPED_NAME}`"
        )
    return folder


def is_published(folder: Path) -> bool:
    """Whether a folder is in HuggingFace's layout, such as a published language model's, or an OpenFlamingo's."""
    if (folder / "tokenizers.json").is_file():
        return False
    if is_open_flamingo(folder):
        return True
    if not (folder / "config.json").is_file():
        return False
    try:
        settings = read_json(folder / "config.json")
    except WeightsError:
        return True  # whoever opens it says what is wrong with it
    # What is no object is no run's either.
    return not isinstance(settings, dict) or "model_type" in settings or "architectures" in settings


def is_run(folder: Path) -> bool:
    """Whether a folder of weights is that of a run, whose weights are in its checkpoints."""
    return (folder / "tokenizers.json").is_file() and not (folder / "model.json").is_file()


def weights_settings(name: Path | str) -> Config:
    """The settings of weights by their name (see `weights_folder`), without reading the weights.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: their settings are damaged, or they are a published model, which has none.
    """
    folder = weights_folder(name)
    if is_published(folder):
        raise ValueError(
            f"{folder} is a published model, without settings of a run: train.py alone takes it, as training.start or model.trunk"
        )
    config = run_settings(folder)
    encoder = folder / ENCODER_FOLDER
    if not encoder.is_dir():
        return config
    # The settings name the encoder's folder on the machine that trained the weights. Its copy is among the weights.
    vision = dataclasses.replace(config.model.vision, encoder=str(encoder))
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vision=vision))


def shipped_weights() -> Path:
    """The folder of the weights that come with the package.

    Raises:
        FileNotFoundError: this installation has none.
    """
    if not SHIPPED.is_dir():
        raise FileNotFoundError(
            "no weights come with this installation: name a run's folder, or a folder of `generalist export`"
        )
    return SHIPPED
