"""Samples of what weights draw, the worst ones too: the picture of docs/drawing.md.

    python benchmarks/drawing_samples.py RUN --judge JUDGE [--towers TOWERS] [--out docs/drawn.webp]

Draws names of training drawings and recombined names, as the evaluation does. The judge orders the drawings by how much more
similar its own name is to each than the most similar of all other drawn names; the picture shows the best, the middle and the
worst ones above the real drawings.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from generalist import Generalist
from generalist.contrastive.dual import DualEncoder
from generalist.data.emoji import Drawing, drawings
from generalist.inference.best_of import text_embeddings

SHOWN = 8  # drawings side by side
SIDE, LABEL, GAP = 72, 12, 6  # pixels
WIDEST = 13  # characters of a label


def main() -> None:
    """Draws, judges and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="weights that draw")
    parser.add_argument("--judge", required=True, help="a run of train.py contrastive that orders the drawings")
    parser.add_argument("--towers", help="another one that ranks the drawings of a name; left out: the weights do")
    parser.add_argument("--names", type=int, default=48, help="names per kind (default 48)")
    parser.add_argument("--guidance", type=float, default=2.0, help="default 2")
    parser.add_argument("--best-of", type=int, default=8, help="default 8")
    parser.add_argument("--out", type=Path, default=Path("docs/drawn.webp"), help="default docs/drawn.webp")
    arguments = parser.parse_args()
    generalist, judge = Generalist.load(arguments.run), DualEncoder.load(arguments.judge)
    towers = DualEncoder.load(arguments.towers) if arguments.towers else None
    bands = []
    for title, asked in (
        ("known names", chosen("train", arguments)),
        ("recombined names", chosen("drawings", arguments)),
    ):
        drawn = [
            generalist.draw(
                f"a {one.name}", guidance=arguments.guidance, best_of=arguments.best_of, towers=towers, seed=number
            )[0]
            for number, one in enumerate(asked)
        ]
        order = np.argsort(-margins(judge, drawn, asked), kind="stable")
        middle = len(order) // 2 - SHOWN // 2
        for which, found in (
            ("best", order[:SHOWN]),
            ("middle", order[middle : middle + SHOWN]),
            ("worst", order[-SHOWN:]),
        ):
            bands.append(band(f"{title}: {which}", [(asked[index], drawn[index]) for index in found]))
    Image.fromarray(np.concatenate(bands)).save(arguments.out, quality=80)
    print(f"wrote {arguments.out}")


def chosen(split: str, arguments: argparse.Namespace) -> list[Drawing]:
    """Drawings with different names, drawn at random."""
    listed = list({one.name: one for one in drawings(split)}.values())
    return [listed[index] for index in np.random.default_rng(1).permutation(len(listed))[: arguments.names]]


def margins(judge: DualEncoder, drawn: list[np.ndarray], asked: list[Drawing]) -> np.ndarray:
    """How much more similar each image's own name is than the most similar other one, (N,)."""
    similar = judge.embed_images(drawn) @ text_embeddings(judge, [one.name for one in asked]).T  # (N, N)
    own = np.diag(similar).copy()
    np.fill_diagonal(similar, -np.inf)
    return own - similar.max(axis=1)


def band(title: str, shown: list[tuple[Drawing, np.ndarray]]) -> np.ndarray:
    """Drawn images above the real ones, with names."""
    width, height = SHOWN * (SIDE + GAP) + GAP, 2 * LABEL + 2 * SIDE + 3 * GAP
    canvas = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(canvas)
    pen.text((GAP, 1), f"{title} (above: drawn; below: real)", fill="black")
    for number, (one, image) in enumerate(shown):
        left = GAP + number * (SIDE + GAP)
        pen.text((left, LABEL), one.name[:WIDEST], fill=(90, 90, 90))
        for row, pixels in enumerate((image, one.image())):
            resized = Image.fromarray(pixels).resize((SIDE, SIDE))
            canvas.paste(resized, (left, 2 * LABEL + GAP + row * (SIDE + GAP // 2)))
    return np.asarray(canvas)


if __name__ == "__main__":
    main()
