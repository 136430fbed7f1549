"""Trains a preset and evaluates it: `train.py [PRESET] [--any.setting value]`; `--help` shows every setting.

`train.py contrastive` trains an image tower and a text tower instead (docs/vision.md), `train.py image_tokenizer` an image
tokenizer (docs/drawing.md).

The same command again goes on where the last one stopped, and reuses what was recorded.
"""

import os
import sys
from typing import TYPE_CHECKING

from generalist.system.huge_pages import use_huge_pages

if TYPE_CHECKING:
    from rich.console import Console


def main(arguments: list[str]) -> int:
    """Runs the command line; returns the exit status."""
    from generalist.config.presets import preset
    from generalist.config.run import check_complete
    from generalist.experiment.inherit import parse
    from generalist.run.drawn import with_image_tokenizer
    from generalist.run.trunk import with_trunk
    from generalist.system.compilation_cache import use_compilation_cache
    from generalist.system.console import TOLD, open_console, tell
    from generalist.system.gpu_flags import use_gpu_flags

    console = open_console()
    name, rest = (
        (arguments[0], arguments[1:]) if arguments and not arguments[0].startswith("-") else ("pocket", arguments)
    )
    try:
        use_compilation_cache()
        use_gpu_flags()
        if name == "contrastive":
            return train_contrastive(rest, console)
        if name == "image_tokenizer":
            return train_image_tokenizer(rest, console)
        config = parse(preset(name), rest, prog=f"train.py {name}", description=preset_help())
        check_complete(config)
        config = with_image_tokenizer(with_trunk(config))
        console.print(f"generalist: preset {name}, run {config.folder} ", highlight=False)
        from generalist.experiment.pipeline import run

        run(config, ["train.py", *arguments], console)
    except KeyboardInterrupt:
        console.print("\nstopped; the same command goes on from what is on disk")
        return 130
    except TOLD as error:
        return tell(error, console)
    return 0


def train_contrastive(arguments: list[str], console: "Console") -> int:
    """`train.py contrastive`."""
    import tyro

    from generalist.contrastive.config import ContrastiveConfig

    description = "Trains an image tower and a text tower so that images and their texts are found by each other."
    config = tyro.cli(ContrastiveConfig, args=arguments, prog="train.py contrastive", description=description)
    console.print(f"generalist: contrastive pretraining, run {config.folder}", highlight=False)
    from generalist.experiment.pipeline import run_contrastive

    run_contrastive(config, ["train.py", "contrastive", *arguments], console)
    return 0


def train_image_tokenizer(arguments: list[str], console: "Console") -> int:
    """`train.py image_tokenizer`."""
    import tyro

    from generalist.image_tokenizer.config import ImageTokenizerConfig

    description = "Trains an image tokenizer: images to codes, which a model can predict, and codes to images."
    config = tyro.cli(ImageTokenizerConfig, args=arguments, prog="train.py image_tokenizer", description=description)
    console.print(f"generalist: image tokenizer, run {config.folder}", highlight=False)
    from generalist.experiment.image_tokenizer import run_image_tokenizer

    run_image_tokenizer(config, ["train.py", "image_tokenizer", *arguments], console)
    return 0


def preset_help() -> str:
    """What stands at the head of `--help`."""
    from generalist.config.presets import PRESETS

    lines = [f"  {name}: {(build.__doc__ or '').strip().splitlines()[0]}" for name, build in PRESETS.items()]
    return (
        "Trains a preset and evaluates it. Presets (first argument, default pocket):\n"
        + "\n".join(lines)
        + "\n  contrastive: an image and a text tower; train.py contrastive --help"
        + "\n  image_tokenizer: images to codes and back; train.py image_tokenizer --help"
    )


if __name__ == "__main__":
    use_huge_pages()
    print("generalist: starting ...", flush=True)
    status = main(sys.argv[1:])
    if status == 130:
        # Readers' threads may still be in a native library, which then ends an orderly exit with an abort.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
