"""Makes the moving picture of the README: the weights play a task of each domain and name drawings.

    python benchmarks/showcase.py [--weights FOLDER] [--out docs/showcase.webp]

Every episode is that of the first evaluation seed, which no recording used. The drawings are held out from training: three that
the weights name correctly and one that they do not. Needs the extras envs, atari and images.

Dimension key: H, W height and width of a picture in pixels.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console

from generalist.cli.weights import add_weights, load_weights
from generalist.data.emoji import CAPTION, QUESTION, drawings
from generalist.envs.registry import get
from generalist.envs.rendering import make
from generalist.envs.task import EVALUATION_SEED
from generalist.envs.video import check_path, small_webp
from generalist.envs.watching import Moment, episode
from generalist.eval.control.policies import player
from generalist.inference.generalist import Generalist

# Task → decisions between two frames, so that most of an episode passes in one round of the film.
TASKS = {
    "metaworld/door-open": 2,
    "babyai/BlockedUnlockPickup": 1,
    "atari/up_n_down": 4,
    "fetch/pick-and-place": 1,
    "classic/lunar-lander": 5,
}
DOMAINS = {"metaworld": "Meta-World", "babyai": "BabyAI", "atari": "Atari", "fetch": "Fetch", "classic": "Box2D"}
DRAWINGS = (
    ("1f3c2", QUESTION),
    ("1f6b5", CAPTION),
    ("1f44e", CAPTION),
    ("1f408", QUESTION),
)  # the last one's name is wrong
FRAMES, FPS = 64, 8.0  # of one round
SIDE, STRIP, COLUMNS = 208, 40, 3  # pixels of a panel's picture and of the text below it; panels in a row
BYTES = 1_000_000
BACK, TEXT, STATUS = (24, 26, 31), (240, 240, 240), (150, 190, 255)


def main() -> None:
    """Plays, asks and writes the film."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_weights(parser)
    parser.add_argument("--out", type=Path, default=Path("docs/showcase.webp"), help="an animated .webp")
    arguments, console = parser.parse_args(), Console()
    check_path(arguments.out)
    generalist = load_weights(arguments, console)
    panels = [played(generalist, name, every, console) for name, every in TASKS.items()]
    panels.append(named(generalist, console))
    film = [grid([panel[number] for panel in panels]) for number in range(FRAMES)]
    arguments.out.write_bytes(small_webp(film, FPS, BYTES))
    console.print(f"{arguments.out}: {arguments.out.stat().st_size / 1000:.0f} kB")


def played(generalist: Generalist, name: str, every: int, console: Console) -> list[np.ndarray]:
    """`FRAMES` panels (H, W, 3) uint8 of a task's first evaluation episode; the last one is held where it ends earlier."""
    task = get(name)
    env = make(task)
    try:
        moments = list(
            episode(task, env, player(generalist, task), EVALUATION_SEED, every=every, steps=every * (FRAMES - 1))
        )
    finally:
        env.close()
    last = moments[-1]
    percent = "not over yet" if last.score is None else f"{task.normalized(last.score):.0f}% of the expert"
    console.print(f"{name}: {last.step} steps, reward {last.reward:.4g}, {percent}", highlight=False)
    panels = [panel(fitted(one.picture), one.instruction, _status(name, one)) for one in moments[:FRAMES]]
    return panels + [panels[-1]] * (FRAMES - len(panels))


def _status(name: str, moment: Moment) -> str:
    domain = DOMAINS[name.partition("/")[0]]
    return f"{domain}, step {moment.step}" + ("" if moment.score is None else ", done")


def named(generalist: Generalist, console: Console) -> list[np.ndarray]:
    """`FRAMES` panels of drawings one after the other, each with what is asked and what the weights write, letter by letter."""
    by_code = {drawing.code: drawing for drawing in drawings("drawings")}
    panels: list[np.ndarray] = []
    share = FRAMES // len(DRAWINGS)
    for code, asked in DRAWINGS:
        drawing = by_code[code]
        answer = generalist.prompt([drawing.path, asked]).strip()
        console.print(f"{drawing.name}: {asked} {answer}", highlight=False)
        image = fitted(
            np.asarray(Image.fromarray(drawing.image()).resize((160, 160), Image.Resampling.LANCZOS)), (255,) * 3
        )
        for number in range(share):
            # Written in the first half of its time, to be read in the second.
            letters = round(min(1.0, 2 * number / share) * len(answer))
            panels.append(panel(image, asked, answer[:letters], answer_colour=True))
    return panels + [panels[-1]] * (FRAMES - len(panels))


def fitted(picture: np.ndarray, ground: tuple[int, ...] = BACK) -> Image.Image:
    """A picture (H, W, 3) uint8 in the middle of a square of `SIDE` pixels, as large as fits."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    if max(image.size) != 160:  # drawings keep a margin
        scale = SIDE / max(image.size)
        way = Image.Resampling.NEAREST if scale > 1.5 else Image.Resampling.LANCZOS
        image = image.resize((round(scale * image.width), round(scale * image.height)), way)
    square = Image.new("RGB", (SIDE, SIDE), ground)
    square.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
    return square


def panel(picture: Image.Image, instruction: str, status: str, *, answer_colour: bool = False) -> np.ndarray:
    """A square picture over two lines of text, (SIDE + STRIP, SIDE, 3) uint8."""
    canvas = Image.new("RGB", (SIDE, SIDE + STRIP), BACK)
    canvas.paste(picture)
    draw = ImageDraw.Draw(canvas)
    for row, (text, colour) in enumerate(((instruction, TEXT), (status, (255, 205, 90) if answer_colour else STATUS))):
        draw.text((4, SIDE + 4 + 17 * row), text, colour, ImageFont.load_default(11))
    return np.asarray(canvas)


def grid(panels: Sequence[np.ndarray]) -> np.ndarray:
    """Panels of one size in rows of `COLUMNS`, with a margin between them."""
    padded = [np.pad(one, ((2, 2), (2, 2), (0, 0)), constant_values=255) for one in panels]
    rows = [np.concatenate(padded[start : start + COLUMNS], axis=1) for start in range(0, len(padded), COLUMNS)]
    return np.concatenate(rows)


if __name__ == "__main__":
    main()
