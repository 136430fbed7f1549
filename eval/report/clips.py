"""A short clip per task: the weights play the episode of the first evaluation seed.

Dimension key: H height, W width of a picture, h and w of a frame.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
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

# A report embeds a clip per task, and must stay small enough to be sent around.
SIDE = 176  # maximum width and height in pixels
FRAMES = 90  # maximum per clip
SECONDS = 6.0
BYTES = 150_000  # maximum per clip


def play_tasks(
    generalist: "Generalist", results: Mapping[str, Any], names: Sequence[str], console: Console
) -> dict[str, bytes | str]:
    """An animated WebP of every task, or the reason why there is none.

    Args:
        generalist: the weights that were evaluated.
        results: as `generalist.eval.results.file.load` returns them.
        names: of the tasks.
        console: shows the progress.

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
            # One task's missing package must not keep the others from the report; its page says why.
            except (MissingExtra, NoGraphics, FileNotFoundError, ValueError) as error:
                shown[name] = str(error)
            progress.advance(bar)
    return shown


def _clip(name: str, generalist: "Generalist") -> bytes:
    """One task's episode, or its beginning if it is longer than a clip may be."""
    task = task_of(name, generalist.config)
    env = make(task)
    try:
        fps = frames_a_second(env)
        steps = min(task.max_steps, round(SECONDS * fps))
        # Every n-th step, played at an n-th of the rate: real time with fewer frames.
        every = max(1, -(-steps // FRAMES))
        moments = episode(task, env, player(generalist, task), EVALUATION_SEED, every=every, steps=steps)
        frames = [_small(moment.picture) for moment in moments]
        return small_webp(frames, fps / every, BYTES)
    finally:
        env.close()


def _small(picture: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """The picture, shrunk to at most `SIDE` pixels per side."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    image.thumbnail((SIDE, SIDE))
    return np.asarray(image)
