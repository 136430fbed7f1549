"""What a cell of a frozen encoder tells: the thing and the colour that it shows, read by a linear map (ridge regression).

    python benchmarks/cells.py

Scenes of 24 things (docs/pointing.md), of which the map learns from those that training shows and is scored on pairs of a colour
and a thing that training never shows. A cell is the one with the centre of a thing's box.
"""

import argparse
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from generalist.data.scenes import COLOURS, Scene, Split, draw_scene, names
from generalist.eval.results.scores import proportion
from generalist.vision.load import PACKAGED, load_encoder

SIZE, THINGS, MOST = 192, 24, 4
STRENGTHS = (30.0, 300.0, 3000.0)  # of the ridge; the best is kept for each encoder


def scenes(split: Split, count: int, seed: int) -> list[Scene]:
    """Scenes of one to four things."""
    rng = np.random.default_rng(seed)
    return [draw_scene(split, int(rng.integers(1, MOST + 1)), rng, THINGS) for _ in range(count)]


def cells(encoder: str, drawn: Sequence[Scene]) -> Float[np.ndarray, "n F"]:
    """The features of the cell at the centre of every thing."""
    loaded = load_encoder(encoder, SIZE)
    assert loaded is not None
    encode, found = loaded.compiled(), list[np.ndarray]()
    side = round(loaded.cells**0.5)
    for start in range(0, len(drawn), 32):
        some = drawn[start : start + 32]
        grid = np.asarray(encode(loaded(np.stack([scene.image for scene in some])))).reshape(len(some), side, side, -1)
        for features, scene in zip(grid, some, strict=True):
            for one in scene.placed:
                row, column = ((one.box.top + one.box.bottom) / 2, (one.box.left + one.box.right) / 2)
                found.append(features[min(int(row * side), side - 1), min(int(column * side), side - 1)])
    return np.stack(found).astype(np.float64)


def right(
    train: tuple[Float[np.ndarray, "n F"], Sequence[str]],
    test: tuple[Float[np.ndarray, "m F"], Sequence[str]],
    known: Sequence[str],
) -> int:
    """How many of the test cells the best map names rightly."""
    mean, deviation = train[0].mean(0), train[0].std(0) + 1e-3
    x, other = (train[0] - mean) / deviation, (test[0] - mean) / deviation
    y = np.array([[label == one for one in known] for label in train[1]], np.float64)
    gram, product = x.T @ x, x.T @ (y - y.mean(0))
    labels = np.array([known.index(label) for label in test[1]])
    maps = (np.linalg.solve(gram + strength * np.eye(len(gram)), product) for strength in STRENGTHS)
    return max(int(((other @ one + y.mean(0)).argmax(1) == labels).sum()) for one in maps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=3000, help="scenes to learn from; a fifth of it to score with")
    count = parser.parse_args().scenes
    learnt, tested = scenes("train", count, 0), scenes("pairs", count // 5, 1)
    for encoder in PACKAGED:
        x, other = cells(encoder, learnt), cells(encoder, tested)
        for part, known in (("colour", tuple(COLOURS)), ("thing", names("train", THINGS))):
            labels, others = (
                [getattr(one, part) for scene in some for one in scene.placed] for some in (learnt, tested)
            )
            share = proportion(right((x, labels), (other, others), known), len(others))
            print(f"{encoder}: {part} of {len(known)}: {share} % of {len(others)} cells")


if __name__ == "__main__":
    main()
