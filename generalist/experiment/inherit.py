"""The settings of a command line. A run that begins with other weights takes over their model and tokens by default."""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import tyro

from generalist.config.data import read_mixture
from generalist.config.plain import plain
from generalist.config.run import Config, TrainingConfig
from generalist.config.versions import from_stored
from generalist.experiment.help import shared_once
from generalist.model.config import REQUIRED, ModelConfig
from generalist.run.folder import flatten, has_begun
from generalist.run.named_weights import is_published, weights_settings
from generalist.weights.folder import WeightsError
from generalist.weights.language import LanguageModel

# Settings of the model that do not change the meaning of its parameters. Encoders are compared by their fingerprints instead,
# since one encoder may have several names; a larger number of layers is handled by `generalist.experiment.warm_start`.
FREE = ("trunk", "trunk_frozen", "stochastic_depth", "remat", "layers_unrolled", "vision.encoder")
# Settings of parts that a model may lack: prefix of their names → the way in that the part is for.
PARTS = {"vision.": "encoder", "frame_": "frame", "patch_": "patches", "tensor_hidden": "projected"}
VOCABULARY = ("text_pieces", "continuous_bins", "discrete_values", "image_codes", "locations")


def parse(default: Config, arguments: Sequence[str], *, prog: str, description: str | None = None) -> Config:
    """The settings of a command line. With `training.start`, settings of `model` and `tokens` that are not given are those of the
    weights.

    Args:
        default: the preset.
        arguments: the command line after the preset.
        prog: the command, for `--help`.
        description: text at the beginning of `--help`.

    Raises:
        FileNotFoundError: the weights of `training.start` do not exist.
        WeightsError: they are a published model that is no language model that can be loaded.
        ValueError: settings do not fit each other, or the settings of the weights are damaged.
        SystemExit: after `--help`, or for an unknown setting.
    """
    # These few settings decide the defaults of others, so they are looked up first; tyro parses and checks them with the rest.
    found = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    asked = (("training.start", default.training.start), ("name", default.name), ("runs", default.runs))
    ways = {"tokens.images": default.tokens.images, "tokens.documents": default.tokens.documents}
    of_images = (*ways.items(), ("model.vision.encoder", default.model.vision.encoder))
    for name, value in (*asked, ("data.mixture", default.data.mixture), *of_images):
        found.add_argument(f"--{name}", dest=name, nargs="?", default=value)
    given = vars(found.parse_known_args(list(arguments))[0])
    if given["data.mixture"]:
        path = Path(given["data.mixture"])
        default = dataclasses.replace(
            default, data=dataclasses.replace(default.data, mixture=path, sources=read_mixture(path))
        )
    if {"-h", "--help"} & set(arguments):
        default = shared_once(default)
    elif given["training.start"] and is_published(Path(given["training.start"])):
        # A preset may have a trunk that its user is to name, as these weights do.
        entering = [given[name] for name in ways]
        model = _with_own_eyes(default.model, given["training.start"], given["model.vision.encoder"], entering)
        # At once: ways of images without an encoder, or the reverse, are refused.
        tokens = dataclasses.replace(default.tokens, images=entering[0], documents=entering[1])
        training = _starting(default, given["training.start"])
        default = dataclasses.replace(default, model=model, tokens=tokens, training=training)
    elif given["training.start"]:
        # A run that has begun stores these settings itself. It continues even if the weights it began with are gone.
        begun = Path(given["runs"] or "") / (given["name"] or "")
        known = _begun_settings(begun, given["training.start"]) or weights_settings(given["training.start"])
        # The parameters of a pretrained trunk are among the weights by now. Settings that say how to train stay the preset's.
        how = {name: getattr(default.model, name) for name in ("remat", "layers_unrolled", "stochastic_depth")}
        model = dataclasses.replace(known.model, trunk="none", trunk_frozen=True, **how)
        training = _starting(default, given["training.start"])
        default = dataclasses.replace(default, model=model, tokens=known.tokens, training=training)
    return _from_published(tyro.cli(Config, default=default, args=list(arguments), prog=prog, description=description))


def _with_own_eyes(model: ModelConfig, start: str, encoder: str, ways: Sequence[str]) -> ModelConfig:
    """The preset's model for the folder of a published one, whose own tower and projector see where images are projected and no
    other encoder is named. An encoder that the preset leaves to its user is left out if no image enters through one.

    Args:
        encoder: as the command line or the preset names it.
        ways: how images enter.

    Raises:
        WeightsError: the folder holds no language model that can be loaded, or one that does not see where it has to.
    """
    vision = dataclasses.replace(model.vision, encoder=encoder)
    if "projected" in ways and (encoder in ("none", REQUIRED) or Path(encoder) == Path(start)):
        try:
            images = LanguageModel(Path(start), images=True).images
        except WeightsError as error:
            raise WeightsError(f"training.start: {error}") from error
        if images is None:
            raise WeightsError(
                f"training.start: {start} has no vision tower whose features it projects into the sequence, as a Gemma 3, "
                "PaliGemma or LLaVA has: let images enter another way (--tokens.images frame --tokens.documents frame), or name "
                "the folder of a CLIP or SigLIP as --model.vision.encoder"
            )
        # A preset for such a model chooses the number of positions; otherwise it is the model's own.
        chosen = model.vision.encoder == REQUIRED
        positions = vision.positions if chosen else images.shape["vision"].positions
        vision = dataclasses.replace(vision, encoder=start, positions=positions)
    elif encoder == REQUIRED and not any("encoder" in way for way in ways):
        model = dataclasses.replace(model, blocks="none")
        vision = dataclasses.replace(vision, encoder="none")
    return dataclasses.replace(model, trunk="none", trunk_frozen=True, vision=vision)


def _starting(default: Config, start: str) -> TrainingConfig:
    # Named together with the model: a preset's adapters are refused where nothing is to begin with.
    return dataclasses.replace(default.training, start=start)


def _from_published(config: Config) -> Config:
    """The settings with a published language model that `training.start` names as the trunk; unchanged if it names none.

    Raises:
        WeightsError: the folder holds no language model that can be loaded.
    """
    start = config.training.start
    if not start or not is_published(Path(start)):
        return config
    try:
        LanguageModel(Path(start))
    except WeightsError as error:
        raise WeightsError(f"training.start: {error}") from error
    model = dataclasses.replace(config.model, trunk=start, trunk_frozen=config.training.tuning.freezes)
    # At once, since both names together are refused.
    return dataclasses.replace(config, model=model, training=dataclasses.replace(config.training, start=""))


def _begun_settings(folder: Path, start: str) -> Config | None:
    """The settings of the run in `folder`, if it has begun with the weights `start`; otherwise None."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        stored = from_stored(Config, json.loads(path.read_text(encoding="utf-8")), path)
    except ValueError:
        return None  # `check_same_settings` reports the error
    return stored if stored.training.start == start and has_begun(folder, stored.training.checkpoints) else None


def _ways(config: Config) -> set[str]:
    """The ways in that a model has. A projected image is one through the encoder; tensors may be projected too."""
    images = f"{config.tokens.images}+{config.tokens.documents}".replace("projected", "encoder")
    return set(f"{images}+{config.tokens.tensors}".split("+"))


def check_same_model(config: Config, weights: Config) -> None:
    """Checks that a run can begin with weights of these settings.

    Raises:
        ValueError: settings of the model or of the vocabulary differ; the message names all of them.
    """
    # A part that one of the two models lacks has no parameters in common, so its settings may differ.
    ways = [_ways(one) for one in (config, weights)]
    lacking = tuple(name for name, way in PARTS.items() if not all(way in one for one in ways))
    run, given = (flatten(plain(one.model)) for one in (config, weights))
    deeper = (
        run["layers"] % given["layers"] == 0
    )  # further conditions are checked by `generalist.experiment.warm_start`
    differing = [
        f"model.{name} = {given[name]}, not {run[name]}"
        for name in run
        if run[name] != given[name]
        and name not in FREE
        and not name.startswith(lacking)
        and not (deeper and name in ("layers", "vision.every", "vision.first") and run["layers"] != given["layers"])
    ]
    differing += [
        f"tokens.{name} = {getattr(weights.tokens, name)}, not {getattr(config.tokens, name)}"
        for name in VOCABULARY
        if getattr(weights.tokens, name) != getattr(config.tokens, name)
    ]
    # Its codes are those of the weights: another one would be ignored.
    named = [one.tokens.image_tokenizer for one in (weights, config)]
    if weights.tokens.image_codes and named[0] != named[1]:
        differing.append(f"tokens.image_tokenizer = {named[0]}, not {named[1]}")
    if differing:
        raise ValueError(
            f"training.start: {config.training.start} has {'; '.join(differing)}: leave these settings out, so that they are "
            "those of the weights, or begin without training.start"
        )
