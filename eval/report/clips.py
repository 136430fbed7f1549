"""A short film a task: the weights play an episode of the first evaluation seed."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from rich.console import Console

from generalist.envs.rendering import NoGraphics, frames_a_second, make
from generalist.envs.task import EVALUATION_SEED, MissingExtra
from generalist.envs.video import small_webp
from generalist.envs.watching import episode
from generalist.eval.control.policies import player
from generalist.eval.results.file import check_weights
from generalist.run.tasks import task_of
from generalist.system.progress import counting

if TYPE_CHECKING:
    from generalist.inference.generalist import Generalist

SIDE = 176  # pixels at most, of width and height
FRAMES = 90  # of a clip at most
SECONDS = 6.0
BYTES = 150_000


def play_tasks(
    generalist: "Generalist", results: Mapping[str, Any], names: Sequence[str], console: Console
) -> dict[str, bytes | str]:
    """An animated WebP of every task, or the reason why there is none.

    Args:
        generalist: the weights that the results are of.
        results: as `report.load` gives them.
        names: of the tasks.
        console: gets the progress.

    Raises:
        ValueError: the results are of other weights.
    """
    check_weights(results, generalist)
    shown: dict[str, bytes | str] = {}
    with counting(console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("playing for the report", total=len(names))
        for name in names:
            try:
                shown[name] = _clip(name, generalist)
            except (MissingExtra, NoGraphics, FileNotFoundError, ValueError) as error:
                shown[name] = str(error)
            progress.advance(bar)
    return shown


def _clip(name: str, generalist: "Generalist") -> bytes:
    """One task's episode: its beginning, if it takes longer than a clip may."""
    task = task_of(name, generalist.config)
    env = make(task)
    try:
        fps = frames_a_second(env)
        steps = min(task.max_steps, round(SECONDS * fps))
        every = max(1, -(-steps // FRAMES))
        moments = episode(task, env, player(generalist, task), EVALUATION_SEED, every=every, steps=steps)
        frames = [_small(moment.picture) for moment in moments]
        return small_webp(frames, fps / every, BYTES)
    finally:
        env.close()


def _small(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 within `SIDE`."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    image.thumbnail((SIDE, SIDE))
    return np.asarray(image)
