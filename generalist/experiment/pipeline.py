"""Whole runs: check, record, train, evaluate. Every stage is skipped if it is already done."""

import os

from rich.console import Console

from generalist.config.run import Config
from generalist.config.versions import to_stored
from generalist.contrastive.config import ContrastiveConfig, check_effective
from generalist.run.drawn import is_to_be_learned, tokenizer_folder
from generalist.run.folder import begin_anew, check_same_settings, forget_unless_measured
from generalist.run.tasks import record_missing
from generalist.system.files import write_json
from generalist.tokenizers.text import TextTokenizer
from generalist.training.cluster import join, several_expected


def run(config: Config, command: list[str], console: Console) -> None:
    """Records what is missing, trains to `training.steps`, and scores the weights.

    If there are several processes, the first one records and all of them train. The same command in one process then scores.

    Args:
        command: the command line, which the results file keeps.

    Raises:
        ValueError, ImportError, OSError, FloatingPointError: with a message for the user.
        KeyboardInterrupt: the run was stopped; everything finished so far is on disk.
    """
    # First of all: JAX fixes the number of processes when it looks for devices.
    several = join(config.cluster, console)
    console.print("loading JAX ...", highlight=False)
    # Imported here because they import JAX, which takes seconds: mistakes in the settings are reported before.
    from generalist.experiment.beforehand import check
    from generalist.experiment.image_tokenizer import learn_image_tokenizer
    from generalist.experiment.prepare import prepare
    from generalist.training.hosts import is_first, wait_for_all
    from generalist.training.interrupt import Interrupted
    from generalist.training.tokens import train

    if several and is_to_be_learned(config):
        raise ValueError(
            f"tokens.image_tokenizer = learned, but {tokenizer_folder(config)} is not there, and it is trained in one process: "
            f"first run `train.py image_tokenizer --runs {config.runs}` in a single process"
        )
    config = with_micro_batches_decided(config, console)
    start = None
    if is_first():
        begun = check_same_settings(config)
        start = check(config, console)
        if not begun:
            begin_anew(config, console)
        record_missing(config, console)
        learn_image_tokenizer(config, console)
    wait_for_all("recorded")  # the others read what the first process has recorded
    try:
        prepared = prepare(config, console, start)
        train(
            config,
            prepared.tokenizers.model_spec(),
            prepared.batch_spec,
            prepared.iterator,
            prepared.sources,
            console,
            prepared.encoder,
            prepared.start,
        )
    except Interrupted as interrupted:
        console.print(str(interrupted), highlight=False)
        raise KeyboardInterrupt from interrupted
    except BaseException:
        # A run that failed at once must not stand in the way of the next try, with corrected settings.
        if is_first():
            forget_unless_measured(config)
        raise
    if several:
        console.print("trained; the same command in one process scores the weights", highlight=False)
        return
    from generalist.eval.run import evaluate

    evaluate(config, command, console)


def with_micro_batches_decided(config: Config, console: Console) -> Config:
    """The settings with a number in place of `training.micro_batches = auto`, which the run's folder then keeps."""
    if config.training.micro_batches != "auto":
        return config
    import jax

    from generalist.plan.micro_batches import decided, device_memory
    from generalist.run.shapes import without_data

    found = decided(config, without_data(config), jax.devices(), device_memory())
    console.print(f"training.micro_batches = auto: {found.training.parts}", highlight=False)
    return found


def run_contrastive(config: ContrastiveConfig, command: list[str], console: Console) -> None:
    """Contrastive pretraining: trains both towers to `training.steps`, exports the image tower, and scores held-out pairs.

        runs/<name>/config.json  text.model  checkpoints/  metrics.jsonl  tensorboard/  results.json
                    encoder/            the image tower in SigLIP's format, for --model.vision.encoder
                    towers.safetensors  all weights, for `DualEncoder.load`

    Args:
        command: the command line, which the results file keeps.

    Raises:
        ValueError, ImportError, OSError, FloatingPointError: with a message for the user.
        KeyboardInterrupt: the run was stopped; everything finished so far is on disk.
    """
    check_effective(config)
    if several_expected(os.environ):
        raise ValueError(
            "contrastive pretraining runs in one process, but the launcher started several: start one, which uses all devices "
            "of its machine"
        )
    again = check_same_settings(config)  # before JAX is loaded: other settings are reported at once
    console.print("loading JAX ...", highlight=False)
    from generalist.contrastive.data import check_batch, learn_text, open_batches, open_heldout, open_pairs
    from generalist.contrastive.dual import DualEncoder
    from generalist.contrastive.train import export, final_params, train
    from generalist.eval.held_out.contrastive import evaluate, show
    from generalist.training.interrupt import Interrupted
    from generalist.training.sharding import make_mesh

    pairs = open_pairs(config)
    heldout = open_heldout(config)
    check_batch(len(pairs), config.batch)
    make_mesh(config.training)
    if not again:
        begin_anew(config, console)
        console.print("learning the text tokenizer ...", highlight=False)
        text = learn_text(config, pairs)
        config.folder.mkdir(parents=True, exist_ok=True)
        text.save(config.folder / "text.model")
        # The settings last: a folder that has them is complete.
        write_json(config.folder / "config.json", to_stored(config))
    else:
        text = TextTokenizer.load(config.folder / "text.model")
    try:
        state = train(config, open_batches(config, pairs, text), console)
    except Interrupted as interrupted:
        console.print(str(interrupted), highlight=False)
        raise KeyboardInterrupt from interrupted
    except BaseException:
        forget_unless_measured(config)
        raise
    # Exported first: the evaluation reads the exported folder, and so tests what users get.
    export(config, final_params(config, state))
    results = evaluate(DualEncoder.load(config.folder), heldout, console)
    write_json(config.folder / "results.json", {"command": command, "step": int(state.step), **results})
    show(results, console)
    console.print(f"the encoder, for --model.vision.encoder: {config.folder / 'encoder'}", highlight=False)
    console.print(f"all results: {config.folder / 'results.json'}", highlight=False)
