"""Weights by what names them: a folder of `Generalist.save`, a run's folder, or those that come with the package. No JAX."""

import dataclasses
import json
from pathlib import Path

from generalist.config.run import Config
from generalist.config.versions import from_stored
from generalist.run.folder import missing_run

SHIPPED = Path(__file__).parents[1] / "shipped"  # what `Generalist.save` wrote, with a model card
ENCODER_FOLDER = "encoder"  # of a folder of weights: the frozen encoder, where it came from a folder
SHIPPED_NAME = "shipped"  # what names them; a folder of that name is ./shipped


def run_settings(folder: Path) -> Config:
    """The settings of a run, with the folder where it is now.

    Raises:
        FileNotFoundError: there is no run in it.
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
        raise ValueError(f"{folder} is a run of train.py contrastive, whose towers are no agent: name another run")
    config = from_stored(Config, stored, path)
    return dataclasses.replace(config, runs=folder.resolve().parent, name=folder.resolve().name)


def weights_folder(name: Path | str | None) -> Path:
    """The folder of weights that a name means, the same everywhere: one that `Generalist.save` wrote, a run's, or `shipped` for
    those that come with the package, which None means too.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if name is None or str(name) == SHIPPED_NAME:
        return shipped_weights()
    folder = Path(name)
    if lacking := [name for name in ("config.json", "tokenizers.json") if not (folder / name).is_file()]:
        run = Path("runs") / folder
        near = f"did you mean {run}?" if (run / "tokenizers.json").is_file() else f"there is no {lacking[0]} in it"
        raise FileNotFoundError(
            f"no weights in {folder} ({near}): name a folder of `generalist export`, a run's folder such as runs/pocket "
            f"(`generalist runs` lists them), or `{SHIPPED_NAME}`"
        )
    return folder


def is_run(folder: Path) -> bool:
    """Whether a folder of weights is a run's, whose weights are in checkpoints."""
    return (folder / "tokenizers.json").is_file() and not (folder / "model.json").is_file()


def weights_settings(name: Path | str) -> Config:
    """The settings of weights, by what names them; no weight is read, and JAX is not needed.

    Raises:
        FileNotFoundError: there are none.
        ValueError: the settings are damaged.
    """
    folder = weights_folder(name)
    config = run_settings(folder)
    encoder = folder / ENCODER_FOLDER
    if not encoder.is_dir():
        return config
    vision = dataclasses.replace(config.model.vision, encoder=str(encoder))
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vision=vision))


def shipped_weights() -> Path:
    """The folder of weights that come with the package.

    Raises:
        FileNotFoundError: none do.
    """
    if not SHIPPED.is_dir():
        raise FileNotFoundError(
            "no weights come with this installation: name trained ones, a run's folder or one of `generalist export`"
        )
    return SHIPPED
