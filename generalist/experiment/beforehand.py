"""Checks everything that a run's settings name before anything is recorded, so that a mistake costs seconds, not minutes."""

from pathlib import Path

import gymnasium as gym
from rich.console import Console

from generalist.config.data import NO_SOURCE
from generalist.config.run import Config
from generalist.data.loaders import check_loaders
from generalist.eval.parts import registry
from generalist.experiment.inherit import check_same_model
from generalist.experiment.layout_fit import fit_layout
from generalist.experiment.learn import ids_around_images
from generalist.experiment.prepare import check_same_encoder
from generalist.inference.generalist import Generalist
from generalist.model.config import ModelSpec
from generalist.run.folder import has_begun
from generalist.run.shapes import NO_IMAGE, batch_spec
from generalist.run.tasks import check_corrections, source_tasks, stored
from generalist.run.tokenizers import model_spec
from generalist.training.loss import KINDS
from generalist.training.sharding import make_mesh, own_shards
from generalist.vision.load import check_encoder, load_encoder
from generalist.weights.language import LanguageModel
from generalist.weights.peft_layout import PeftAdapter

# Metrics of every run in metrics.jsonl. Losses and accuracies by source and by kind of token come in addition.
METRICS = (
    *(
        "loss",
        "gradient_norm",
        "skipped",
        "learning_rate",
        "tokens_per_second",
        "mfu",
        "padding",
        "waiting",
        "step_seconds",
    ),
    *("gate/attention", "gate/feed_forward"),
)


def check(config: Config, console: Console) -> Generalist | None:
    """Opens everything that the settings name.

    Returns:
        The weights of `training.start`, if there are any and the run has not begun; otherwise None.

    Raises:
        ValueError: a setting does not fit the others, or what it names is damaged.
        FileNotFoundError, NotADirectoryError: what a setting names does not exist, or is not a folder.
        ImportError: a package that a setting needs is not installed.
    """
    # Cheap checks first, the weights last: opening them takes seconds.
    if not config.data.taking_part:
        raise ValueError(NO_SOURCE)
    source_tasks(config)  # raises if a pattern matches no task
    check_corrections(config)
    _check_sources(config, console)
    check_encoder(config.model.vision.encoder)
    if config.model.trunk != "none":
        trunk = LanguageModel(config.model.trunk, images=config.trunk_sees)
        ids_around_images(trunk, trunk.text())  # its tokenizer; `with_trunk` has checked its tensors
    _check_tuning(config)
    _check_sizes(config)
    _check_best_metric(config)
    for name, folder in (("data.folder", config.data.folder), ("training.checkpoints", Path(config.checkpoints))):
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"{name}: {folder} is a file: name a folder")
    if not config.training.start or has_begun(config.folder, config.training.checkpoints):
        return None
    return _open_start(config)


def _check_tuning(config: Config) -> None:
    """Checks the adapter that training begins with, and the number of layers that are trained."""
    config.training.tuning.lower(config.model.layers)
    lora = config.training.lora
    if lora.adapter and config.model.trunk == "none":
        raise ValueError(
            "training.lora.adapter is of a published language model, but the run begins with other weights: name the model with "
            "training.start or model.trunk, or leave the adapter out"
        )
    if lora.adapter:
        for _ in PeftAdapter(lora.adapter, LanguageModel(config.model.trunk)).arrays(lora):
            pass  # read to the end: recording comes between


def _check_sizes(config: Config) -> None:
    """Checks that the mesh covers the devices, and that the sizes of a batch divide among them."""
    check_loaders(config.data.loaders, len(own_shards(make_mesh(config.training), config.data.shards)))
    batch_spec(config, _some_spec(config), *NO_IMAGE)


def _some_spec(config: Config) -> ModelSpec:
    """The model's shape as far as it is known without data: one column of a tensor projection stands for any number of them, and
    one channel of features and one dimension of actions likewise."""
    projected, encoded = config.tokens.tensors == "projected", config.model.vision.encoder != "none"
    return model_spec(config, int(projected), int(encoded), int(config.tokens.actions == "parallel"))


def _check_sources(config: Config, console: Console) -> None:
    """Checks what the sources name, and what the parts of the evaluation need."""

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    data = config.data
    if data.check and not any(source.has_own_files for source in data.sources.values()):
        raise ValueError(
            "data.check reads your own documents, but no source names any: set data.documents.path, or leave data.check out"
        )
    # Sources that are left out are checked too: whoever names a file expects to hear that it is missing.
    opened = stored(config)
    for name, source in data.sources.items():
        source.check(name, opened, data.check, say)
    own: dict[str, tuple[str, tuple[gym.Space, gym.Space]]] = {}
    for name, source in data.taking_part.items():
        source.open_corrections(opened)
        recorded = {task for task, _ in source.recordings()}
        for task in source.task_list():
            if task not in recorded:  # a user's own, whose spaces nobody has tried with these settings
                spaces = task.make_spaces()
                other, known = own.setdefault(task.layout, (name, spaces))
                if spaces != known:
                    raise ValueError(
                        f"the sources {other} and {name} are both {task.layout}, by the names of their folders, but what they "
                        "observe or do differs: rename one of the folders, or let their mappings name the same fields"
                    )
                fit_layout(config, task.layout, *spaces, offset=0, text=None, found=None)
    for part in registry.PARTS:
        part.prepare(config)


def _check_best_metric(config: Config) -> None:
    """Raises `ValueError` if `training.best_metric` is used and is not a metric of this run."""
    best, sources = config.training.best_metric, [*config.data.taking_part]
    known = [*METRICS, *(f"{what}/{name}" for what in ("loss", "accuracy") for name in sources)]
    known += [f"loss/{kind}" for kind in KINDS]
    if config.training.keep_best and best not in known:
        raise ValueError(f"training.best_metric = {best} is not a metric of this run; there are: {', '.join(known)}")


def _open_start(config: Config) -> Generalist:
    """The weights of `training.start`.

    Raises:
        ValueError: they do not fit the run.
    """
    start = Generalist.load(config.training.start)
    check_same_model(config, start.config)
    # Opened here only if the names differ; `prepare` compares the encoders in any case.
    vision = config.model.vision
    if start.encoder is not None and vision.encoder != start.config.model.vision.encoder:
        check_same_encoder(config, start, load_encoder(vision.encoder, vision.size))
    return start
