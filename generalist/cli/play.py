"""`generalist play`: shows how the weights, an expert or random actions play a task, in a window or as a video."""

import argparse
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Console

from generalist.cli.weights import add_weights, load_weights
from generalist.envs import video
from generalist.envs.registry import get
from generalist.envs.rendering import frames_a_second, has_display, make
from generalist.envs.task import EVALUATION_SEED, Task
from generalist.envs.watching import Begin, Moment, chance, episode, expert
from generalist.run.tasks import is_own, task_of

DESCRIPTION = """Plays a task with trained weights, with its expert or with random actions, and shows it in a window, if there is
a display, or as a video. Every frame shows the instruction, the step and the sum of the rewards."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `generalist play`."""
    parser.add_argument(
        "task", help="a task such as metaworld/door-open, babyai/GoToObj, atari/freeway or classic/lunar-lander"
    )
    who = add_weights(parser)
    who.add_argument("--expert", action="store_true", help="let the task's scripted expert play; needs no weights")
    who.add_argument("--random", action="store_true", help="play uniformly random actions; needs no weights")
    parser.add_argument(
        "--video", type=Path, metavar="FILE", help="write .mp4 (extra video), .gif or .webp instead of opening a window"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=EVALUATION_SEED,
        help=f"seed of the first episode (default {EVALUATION_SEED:,}, which training does not use)",
    )
    parser.add_argument("--episodes", type=int, default=1, help="number of episodes, one after the other (default 1)")


def run(arguments: argparse.Namespace, rest: list[str], console: Console) -> int:
    """Plays; returns the exit status.

    Raises:
        ValueError, ImportError, OSError: with a message for the user.
    """
    if not is_own(arguments.task):
        get(arguments.task)  # raises if there is no such task, before anything is loaded
    if rest:
        raise ValueError(f"generalist play does not know {' '.join(rest)}")
    if arguments.episodes < 1 or arguments.seed < 0:
        raise ValueError(f"--episodes must be at least 1 and --seed 0, got {arguments.episodes} and {arguments.seed}")
    if arguments.video is not None:
        video.check_path(arguments.video)
    elif not has_display():
        raise ValueError("there is no display for a window: write a video with --video episode.mp4 (or .gif, .webp)")
    task, begin = _who(arguments, console)
    # One environment for all episodes; only their seeds differ.
    env = make(task)
    try:
        seeds = range(arguments.seed, arguments.seed + arguments.episodes)
        moments = itertools.chain.from_iterable(episode(task, env, begin, seed) for seed in seeds)
        shown, fps = _reported(task, moments, console), frames_a_second(env)
        if arguments.video is None:
            show(shown, fps, task.name)
        else:
            count = video.write(arguments.video, (moment.captioned() for moment in shown), fps)
            console.print(
                f"video: {arguments.video} ({count} frames, {count / fps:.1f} s)", highlight=False, soft_wrap=True
            )
    finally:
        env.close()
    return 0


def _who(arguments: argparse.Namespace, console: Console) -> tuple[Task, Begin]:
    """The task, and the player that the arguments choose."""
    if arguments.expert or arguments.random:
        if is_own(arguments.task):
            given = "--expert" if arguments.expert else "--random"
            raise ValueError(
                f"{arguments.task} is known only to the weights that were trained on it: name them with --run or --weights, and "
                f"leave {given} out"
            )
        return get(arguments.task), expert if arguments.expert else chance
    generalist = load_weights(arguments, console)
    task = task_of(arguments.task, generalist.config)
    from generalist.eval.control.policies import player

    return task, player(generalist, task)


def _reported(task: Task, moments: Iterable[Moment], console: Console) -> Iterator[Moment]:
    """The same moments. Prints the instruction when an episode begins, and its score when it ends."""
    for moment in moments:
        if moment.step == 0:
            console.print(f"{task.name}: {moment.instruction}", highlight=False, markup=False)
        if moment.score is not None:
            percent = task.normalized(moment.score)
            line = f"  {moment.step} steps, score {moment.score:z.4g}: {percent:z.0f}% of the way from random to expert"
            console.print(line, highlight=False)
        yield moment


def show(moments: Iterable[Moment], fps: float, title: str) -> None:
    """Shows a window until the episodes end, or until it is closed or Escape is pressed.

    Args:
        fps: frames per second, the environment's own pace.

    Raises:
        ImportError: pygame, which comes with the extra `envs`, is not installed.
    """
    try:
        import pygame
    except ImportError as error:
        raise ImportError("a window needs pygame: pip install 'generalist[envs]', or write a --video") from error
    clock, window = pygame.time.Clock(), None
    try:
        for moment in moments:
            picture = moment.captioned()  # (H, W, 3) uint8
            # Opened with the first frame, whose size it gets.
            if window is None:
                pygame.display.init()
                pygame.display.set_caption(title)
                window = pygame.display.set_mode(picture.shape[1::-1])
            # pygame's arrays are (W, H, 3).
            window.blit(pygame.surfarray.make_surface(picture.swapaxes(0, 1)), (0, 0))
            pygame.display.flip()
            for event in pygame.event.get():
                if event.type == pygame.QUIT or (event.type == pygame.KEYDOWN and event.key == pygame.K_ESCAPE):
                    return
            clock.tick(fps)
    finally:
        pygame.display.quit()
