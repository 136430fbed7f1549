"""The settings that a run takes from the weights it begins with: by default, its model is theirs."""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import tyro

from generalist.config.data import read_mixture
from generalist.config.plain import plain
from generalist.config.run import Config
from generalist.config.versions import from_stored
from generalist.run.folder import flatten, has_begun
from generalist.run.named_weights import weights_settings

# Settings of the model that change nothing of what its parameters mean. Of the encoder its own fingerprint decides, and of more
# layers `generalist.experiment.warm_start`.
FREE = ("trunk", "trunk_frozen", "stochastic_depth", "remat", "layers_unrolled", "vision.encoder")
# Settings of a part that a model may lack: the beginning of their names, and the way in that the part is for.
PARTS = {"vision.": "encoder", "frame_": "frame", "patch_": "patches", "tensor_hidden": "projected"}
VOCABULARY = ("text_pieces", "continuous_bins", "discrete_values")


def parse(default: Config, arguments: Sequence[str], *, prog: str, description: str | None = None) -> Config:
    """The settings of a command line. With `training.start`, the settings of `model` and `tokens` that are not given are those of
    the weights; of a run that has begun, its own, since the weights may be gone by then.

    Args:
        default: the preset.
        arguments: what stands after it.
        prog: the command, for `--help`.
        description: what stands at the head of `--help`.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: a setting does not fit another one, or the weights' settings are damaged.
        SystemExit: for `--help`, or an unknown setting.
    """
    found = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    asked = (("training.start", default.training.start), ("name", default.name), ("runs", default.runs))
    for name, value in (*asked, ("data.mixture", default.data.mixture)):
        found.add_argument(f"--{name}", dest=name, nargs="?", default=value)
    given = vars(found.parse_known_args(list(arguments))[0])
    if given["data.mixture"]:
        path = Path(given["data.mixture"])
        default = dataclasses.replace(
            default, data=dataclasses.replace(default.data, mixture=path, sources=read_mixture(path))
        )
    if given["training.start"] and not {"-h", "--help"} & set(arguments):
        begun = Path(given["runs"] or "") / (given["name"] or "")
        known = _begun_settings(begun, given["training.start"]) or weights_settings(given["training.start"])
        # What they had of a pretrained trunk is among their own parameters by now; how they were trained is another matter.
        how = {name: getattr(default.model, name) for name in ("remat", "layers_unrolled", "stochastic_depth")}
        model = dataclasses.replace(known.model, trunk="none", trunk_frozen=True, **how)
        default = dataclasses.replace(default, model=model, tokens=known.tokens)
    return tyro.cli(Config, default=default, args=list(arguments), prog=prog, description=description)


def _begun_settings(folder: Path, start: str) -> Config | None:
    """The settings of a run that has begun with these weights; None if there is none."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        stored = from_stored(Config, json.loads(path.read_text(encoding="utf-8")), path)
    except ValueError:
        return None  # `check_same_settings` tells
    return stored if stored.training.start == start and has_begun(folder, stored.training.checkpoints) else None


def check_same_model(config: Config, weights: Config) -> None:
    """Whether a run can begin with weights of these settings.

    Raises:
        ValueError: a setting of the model or of the vocabulary is another one; the message has all of them.
    """
    ways = [
        set(f"{one.tokens.images}+{one.tokens.documents}+{one.tokens.tensors}".split("+")) for one in (config, weights)
    ]
    lacking = tuple(name for name, way in PARTS.items() if not all(way in one for one in ways))
    run, given = (flatten(plain(one.model)) for one in (config, weights))
    deeper = run["layers"] % given["layers"] == 0  # then `generalist.experiment.warm_start` says what else it takes
    differing = [
        f"model.{name} = {given[name]}, not {run[name]}"
        for name in run
        if run[name] != given[name]
        and name not in FREE
        and not name.startswith(lacking or ("-",))
        and not (deeper and name in ("layers", "vision.every") and run["layers"] != given["layers"])
    ]
    differing += [
        f"tokens.{name} = {getattr(weights.tokens, name)}, not {getattr(config.tokens, name)}"
        for name in VOCABULARY
        if getattr(weights.tokens, name) != getattr(config.tokens, name)
    ]
    if differing:
        raise ValueError(
            f"training.start: {config.training.start} has {'; '.join(differing)}: leave such settings out, which are then those "
            "of the weights, or begin without training.start"
        )
