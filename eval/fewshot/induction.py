"""Tasks whose rule only the shots tell, drawn offline, after tasks of VL-ICL Bench (Zong et al., 2024, section 3).

Shots of a query are of its group, within which one rule holds. From image and question alone no answer is better than a guess:

    open-names  what is this?       two kinds of drawings with made-up names, new ones in every group
    operators   what is the result? two digits with a question mark between: plus, minus or times, one per group
    counting    how many?           coloured shapes, of which one colour, shape or size counts, one per group
    matching    do they match?      two drawings side by side: yes if they are of the group's two kinds, one of each

A task is a folder in the layout `jsonl` of `generalist.eval.fewshot.published`, so other systems can be asked the same.

Dimension key: H height, W width.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from generalist.data.emoji import SIZE, Drawing, variant
from generalist.data.new_words import classes, draw_instances, made_up_names
from generalist.system.files import whole_folder

Picture = UInt8[np.ndarray, "H W 3"]
Drawn = tuple[Picture, str, str]
"""An image, its group and its answer."""

SEED = 0
GROUPS = 50  # of made-up names, and of pairs of kinds
SUPPORTS, QUERIES = 40, 4  # per such group: 2,000 supports and 200 queries, as many as an evaluation takes by default
DIGITS = 10
CRITERIA_SUPPORTS, CRITERIA_QUERIES = 200, 25  # per criterion
MOST_SHAPES = 9
SIDE = 128  # of drawn scenes, in pixels
VARIANTS = 60  # of each drawing: many enough that a query is none of its shots

COLOURS = {"red": (214, 40, 40), "green": (44, 160, 44), "blue": (31, 98, 200)}
SHAPES = ("circle", "square", "triangle")
SIZES = {"small": 11, "large": 16}  # half of a shape's side, in pixels
OPERATORS: Mapping[str, Callable[[int, int], int]] = {
    "plus": lambda first, second: first + second,
    "minus": lambda first, second: first - second,
    "times": lambda first, second: first * second,
}


def draw_task(name: str, folder: Path) -> None:
    """Draws a task into a new folder, complete or not at all; the same one on every machine with the same drawings.

    Args:
        name: in `TASKS`.
        folder: gets `train.jsonl`, `val.jsonl` and `images/`.

    Raises:
        FileExistsError: the folder exists.
        MissingImages: the packages with the drawings are not installed.
    """
    question, examples = TASKS[name]
    with whole_folder(folder) as whole:
        (whole / "images").mkdir()
        lines: dict[str, list[str]] = {"train": [], "val": []}
        for number, (split, (picture, group, answer)) in enumerate(examples(np.random.default_rng(SEED))):
            image = f"images/{number:05d}.png"
            Image.fromarray(picture).save(whole / image)
            entry = {"image": image, "question": question, "answer": answer, "group": group}
            lines[split].append(json.dumps(entry))
        for split, several in lines.items():
            (whole / f"{split}.jsonl").write_text("\n".join(several) + "\n", encoding="utf-8")


def _split(number: int, supports: int) -> str:
    return "train" if number < supports else "val"


def _open_names(rng: np.random.Generator) -> Iterator[tuple[str, Drawn]]:
    pool, names = classes("names"), [name.strip() for name in made_up_names("heldout")]
    for group in range(GROUPS):
        things = rng.choice(list(pool), 2, replace=False)
        words = rng.choice(names, 2, replace=False)
        each = (SUPPORTS + QUERIES) // 2
        pictures = [_different(pool[thing], each, rng) for thing in things]
        # In turns, so that supports and queries have as many of each.
        for number in range(SUPPORTS + QUERIES):
            kind, at = number % 2, number // 2
            yield _split(number, SUPPORTS), (pictures[kind][at], str(group), str(words[kind]))


def _different(several: Sequence[Drawing], count: int, rng: np.random.Generator) -> list[Picture]:
    """Images of one kind that differ in their pixels: two variants, and even two drawings, may be the same image."""
    instances = draw_instances(several, len(several) * VARIANTS, VARIANTS, rng)
    distinct = {picture.tobytes(): picture for picture in (variant(*one) for one in instances[: 2 * count])}
    return list(distinct.values())[:count]


def _operators(rng: np.random.Generator) -> Iterator[tuple[str, Drawn]]:
    for name, apply in OPERATORS.items():
        results = {pair: apply(*pair) for pair in itertools.product(range(DIGITS), repeat=2)}
        # None below 0: answers are compared without punctuation, as those to questions are.
        pairs = [pair for pair, result in results.items() if result >= 0]
        for number, at in enumerate(rng.permutation(len(pairs))):
            first, second = pair = pairs[int(at)]
            # A third of the pairs is asked about: none of them is a shot.
            yield _split(number, len(pairs) * 2 // 3), (written(f"{first} ? {second}"), name, str(results[pair]))


def _counting(rng: np.random.Generator) -> Iterator[tuple[str, Drawn]]:
    for wanted in (*COLOURS, *SHAPES, *SIZES):
        for number in range(CRITERIA_SUPPORTS + CRITERIA_QUERIES):
            picture, things = scene(rng)
            yield _split(number, CRITERIA_SUPPORTS), (picture, wanted, str(sum(wanted in thing for thing in things)))


def _matching(rng: np.random.Generator) -> Iterator[tuple[str, Drawn]]:
    pool = classes("names")
    for group in range(GROUPS):
        kinds = rng.choice(list(pool), 2, replace=False).tolist()
        others = [thing for thing in pool if thing not in kinds]
        for number in range(SUPPORTS + QUERIES):
            match = number % 2 == 0
            # Without a match one of the two kinds stays, so that neither side decides alone.
            pair = kinds if match else [kinds[int(rng.integers(2))], str(rng.choice(others))]
            pair = [pair[int(at)] for at in rng.permutation(2)]
            sides = [variant(*draw_instances(pool[thing], 1, VARIANTS, rng)[0]) for thing in pair]
            yield _split(number, SUPPORTS), (np.concatenate(sides, axis=1), str(group), "yes" if match else "no")


TASKS: Mapping[str, tuple[str, Callable[[np.random.Generator], Iterator[tuple[str, Drawn]]]]] = {
    "open-names": ("what is this?", _open_names),
    "operators": ("what is the result?", _operators),
    "counting": ("how many?", _counting),
    "matching": ("do they match?", _matching),
}
"""Name of a task → its question, and its examples with their split."""


def written(text: str) -> UInt8[np.ndarray, "72 144 3"]:
    """Black text in the middle of a white image."""
    image = Image.new("RGB", (2 * SIZE, SIZE), "white")
    font = ImageFont.load_default(SIZE // 2)  # comes with Pillow
    ImageDraw.Draw(image).text((SIZE, SIZE // 2), text, fill="black", font=font, anchor="mm")
    return np.asarray(image)


def scene(rng: np.random.Generator) -> tuple[UInt8[np.ndarray, "128 128 3"], list[tuple[str, str, str]]]:
    """One to nine shapes that do not touch, on white; and the colour, shape and size of each."""
    image = Image.new("RGB", (SIDE, SIDE), "white")
    draw, cells = ImageDraw.Draw(image), 3
    things = []
    for cell in rng.permutation(cells * cells)[: rng.integers(1, MOST_SHAPES + 1)]:
        colour, shape, size = (str(rng.choice(list(one))) for one in (COLOURS, SHAPES, SIZES))
        half, middle = SIZES[size], (np.array(divmod(int(cell), cells)) + 0.5) * SIDE / cells
        x, y = (middle + rng.uniform(-4, 4, 2)).tolist()  # the largest shape stays within its cell
        box = (x - half, y - half, x + half, y + half)
        match shape:
            case "circle":
                draw.ellipse(box, fill=COLOURS[colour])
            case "square":
                draw.rectangle(box, fill=COLOURS[colour])
            case _:
                draw.polygon([(x, y - half), (x - half, y + half), (x + half, y + half)], fill=COLOURS[colour])
        things.append((colour, shape, size))
    return np.asarray(image), things
