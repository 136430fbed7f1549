"""`generalist draw`: images of a text, or a part of an image drawn anew."""

import argparse
import io
from pathlib import Path

from rich.console import Console

from generalist.cli.weights import add_weights, load_weights, named_settings
from generalist.config.run import Config
from generalist.data.sources.drawing import TextToImage
from generalist.inference.drawing_settings import DrawingSettings, check_counts, check_text
from generalist.system.console import note
from generalist.system.files import write_new
from generalist.system.places import check_new_file
from generalist.system.progress import counting
from generalist.tokenizers.drawing import CANT_DRAW
from generalist.weights.folder import WeightsError

DESCRIPTION = "Draws images of a text with weights that were trained with an image tokenizer (docs/drawing.md)."
COLUMNS = 8  # images side by side
SETTINGS = ("guidance", "temperature", "top_k", "top_p", "min_p", "seed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `generalist draw`."""
    parser.add_argument("text", metavar="TEXT", help="what the image shows, such as 'a red heart'")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the PNG file that is written")
    parser.add_argument(
        "--count", type=int, default=1, metavar="N", help="images, side by side in the file (default 1)"
    )
    parser.add_argument(
        "--best-of", type=int, metavar="N", help="draw N images and keep the best, the best first (default: --count)"
    )
    parser.add_argument(
        "--towers", metavar="FOLDER", help="a run of train.py contrastive ranks the images, instead of the weights"
    )
    parser.add_argument(
        "--guidance", type=float, default=3.0, help="how far the text counts; 1: as much as the model says (default 3)"
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="of the draws (default 1)")
    parser.add_argument(
        "--top-k", type=int, default=0, help="draw only from the K likeliest codes (default 0: from all)"
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        help="draw only from the likeliest codes with this total probability (default 1)",
    )
    parser.add_argument(
        "--min-p",
        type=float,
        default=0.1,
        help="draw only codes at least this share as likely as the likeliest (default 0.1)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws (default 0)")
    parser.add_argument("--edit", type=Path, metavar="IMAGE", help="an image of which a part is drawn anew, with --box")
    parser.add_argument(
        "--box",
        type=int,
        nargs=4,
        metavar=("TOP", "LEFT", "BOTTOM", "RIGHT"),
        help="the part, in pixels of the image at the size of drawings; bottom and right are not part of it",
    )
    add_weights(parser)


def run(arguments: argparse.Namespace, rest: list[str], console: Console) -> int:
    """Draws and writes the file; returns the exit status.

    Raises:
        ValueError, ImportError, OSError: with a message for the user.
    """
    if rest:
        raise ValueError(f"generalist draw does not know {' '.join(rest)}: put the text in quotes")
    # Before the weights are loaded, which takes seconds.
    check_text(arguments.text)
    settings = {name: getattr(arguments, name) for name in SETTINGS}
    DrawingSettings(**settings)
    check_counts(arguments.count, arguments.count if arguments.best_of is None else arguments.best_of)
    if arguments.out.suffix.lower() != ".png":
        raise ValueError(f"--out {arguments.out} must end with .png")
    if not arguments.out.parent.is_dir():
        raise FileNotFoundError(f"--out: there is no folder {arguments.out.parent}: make it first")
    check_new_file(arguments.out, "--out")
    if arguments.edit is not None and not arguments.edit.is_file():
        raise FileNotFoundError(f"--edit: there is no image {arguments.edit}")
    if (arguments.edit is None) != (arguments.box is None):
        raise ValueError("--edit IMAGE and --box TOP LEFT BOTTOM RIGHT go together: give both, or neither")
    named = named_settings(arguments)
    if named is None or not named.tokens.image_codes:
        raise ValueError(CANT_DRAW)
    for told in not_learned(named, arguments):
        note(told)
    from PIL import Image
    from rich.markup import escape

    from generalist.contrastive.dual import DualEncoder
    from generalist.data.images import read_image
    from generalist.inference.drawing import grid

    image = read_image(arguments.edit) if arguments.edit is not None else None
    try:
        towers = DualEncoder.load(arguments.towers) if arguments.towers else None
    except WeightsError as error:
        raise WeightsError(f"--towers {arguments.towers} is no run of `train.py contrastive` ({error})") from error
    generalist = load_weights(arguments, console)
    assert generalist.tokenizers.codes is not None, "the settings were checked"
    size = generalist.tokenizers.codes.config.size
    if image is not None and image.shape[:2] != (size, size):
        height, width = image.shape[:2]
        note(f"{arguments.edit} has {height} × {width} pixels: it is resized to {size} × {size}, in which --box counts")
    with counting(console) as progress:
        bar = progress.add_task(f"drawing {escape(arguments.text)}", total=None)
        images = generalist.draw(
            arguments.text,
            count=arguments.count,
            best_of=arguments.best_of,
            towers=towers,
            image=image,
            box=tuple(arguments.box) if arguments.box is not None else None,
            progress=lambda done, total: progress.update(bar, completed=done, total=total),
            **settings,
        )
    file = io.BytesIO()
    Image.fromarray(grid(images, min(COLUMNS, len(images)))).save(file, "PNG")
    write_new(arguments.out, file.getvalue())
    console.print(f"wrote {arguments.out}", highlight=False)
    return 0


def not_learned(named: Config, arguments: argparse.Namespace) -> list[str]:
    """What is asked of the weights that their training did not teach."""
    drawing = [source for source in named.data.taking_part.values() if source.draws]
    if not drawing:
        return ["no source of the weights' own training draws: unless they began with weights that do, this is noise"]
    known = [source for source in drawing if isinstance(source, TextToImage)]
    if len(known) < len(drawing):  # what others teach is not known
        return []
    told = []
    if not any(source.without_text for source in known):
        ranked = (arguments.best_of or arguments.count) > arguments.count and not arguments.towers
        if arguments.guidance > 1 or ranked:
            told.append(
                "the weights were trained with data.drawing.without_text = 0, but guidance, and a ranking without --towers, "
                "compare with drawing without a text: use --guidance 1"
            )
    if arguments.edit is not None and not any(source.infilling for source in known):
        told.append(
            "the weights were trained with data.drawing.infilling = 0: they have not learned to draw a part of an image"
        )
    return told
