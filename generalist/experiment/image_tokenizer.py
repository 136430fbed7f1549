"""A whole run of `train.py image_tokenizer`: check, train, export, score."""

import os
import shutil

from rich.console import Console

from generalist.config.run import Config
from generalist.config.versions import to_stored
from generalist.image_tokenizer.config import ImageTokenizerConfig, check_effective
from generalist.run.drawn import is_to_be_learned, tokenizer_folder
from generalist.run.folder import begin_anew, check_same_settings, forget_unless_measured
from generalist.system.files import write_json
from generalist.training.cluster import several_expected


def run_image_tokenizer(config: ImageTokenizerConfig, command: list[str], console: Console) -> None:
    """Trains to `training.steps`, exports the tokenizer, and scores it on held-out images.

        runs/<name>/config.json  checkpoints/  metrics.jsonl  tensorboard/  results.json
                    held_out.json   names of held-out images, if `images` names a folder
                    tokenizer/   config.json and model.safetensors, for `ImageTokenizer.load`

    Args:
        command: the command line, which the results file keeps.

    Raises:
        ValueError, ImportError, OSError, FloatingPointError: with a message for the user.
        KeyboardInterrupt: the run was stopped; everything finished so far is on disk.
    """
    check_effective(config)
    if several_expected(os.environ):
        raise ValueError(
            "an image tokenizer is trained in one process, but the launcher started several: start one, which uses all "
            "devices of its machine"
        )
    again = check_same_settings(config)  # before JAX is loaded: other settings are reported at once
    console.print("loading JAX ...", highlight=False)
    from generalist.eval.held_out.image_tokenizer import evaluate, show
    from generalist.image_tokenizer.data import open_batches, open_images, record_names, recorded_names
    from generalist.image_tokenizer.train import train, trained
    from generalist.training.interrupt import Interrupted
    from generalist.training.sharding import make_mesh
    from generalist.vision.image_tokenizer import ImageTokenizer

    recorded = recorded_names(config) if again else frozenset()
    images, heldout = open_images(config, recorded)
    make_mesh(config.training)
    if not again:
        begin_anew(config, console)
        config.folder.mkdir(parents=True, exist_ok=True)
        write_json(config.folder / "config.json", to_stored(config))
    record_names(config, heldout, recorded)
    try:
        state = train(config, open_batches(config, images), console)
    except Interrupted as interrupted:
        console.print(str(interrupted), highlight=False)
        raise KeyboardInterrupt from interrupted
    except BaseException:
        forget_unless_measured(config)
        raise
    folder = config.folder / "tokenizer"
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier command that trained fewer steps
    trained(config, state).save(folder)
    # The exported folder is read again: what is scored is what users get.
    results = evaluate(ImageTokenizer.load(folder), images, heldout, console)
    write_json(config.folder / "results.json", {"command": command, "step": int(state.step), **results})
    show(results, console)
    console.print(f"the image tokenizer: {folder}", highlight=False)
    console.print(f"all results: {config.folder / 'results.json'}", highlight=False)


def learn_image_tokenizer(config: Config, console: Console) -> None:
    """Trains the image tokenizer of `tokens.image_tokenizer = learned` as `train.py image_tokenizer` does by default, unless it
    is there.

    Raises:
        ValueError: the folder of its run holds another one.
        ImportError, OSError, FloatingPointError, KeyboardInterrupt: as `run_image_tokenizer`.
    """
    if not is_to_be_learned(config):
        return
    folder = tokenizer_folder(config)
    console.print(f"no image tokenizer in {folder}: training it first", highlight=False, markup=False, soft_wrap=True)
    run_image_tokenizer(ImageTokenizerConfig(runs=config.runs), ["train.py", "image_tokenizer"], console)
