"""Screens of Atari games with exact truth: the console's memory tells what is where (`generalist.envs.suites.atari_objects`).

The games are played at random, by actions that are held for a while; training and evaluation see different episodes. What is
asked depends on the image alone: of these games, a thing's place says which one it is, and most sides never change.

    point     point to the white ball:
    alone     point to the ball:                                     of which there is one
    exists    is there a white ball? answer:                         it is on half of the screens
    relation  is the white ball above the orange paddle? answer:     along the direction in which things pass each other

Dimension key: S pixels per side of a screen (160).
"""

import atexit
import dataclasses
import functools
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Any

import numpy as np
from PIL import Image

from generalist.data.scene_examples import SceneExamples
from generalist.data.scene_questions import SIDES, YES_NO, Asked, Kind, point
from generalist.data.scenes import APART, Placed, Scene
from generalist.envs.suites.atari_objects import GAMES, HEIGHT, LANES, WIDTH, Seen
from generalist.envs.task import EVALUATION_SEED
from generalist.tokenizers.locations import Box, box_text

SIDE = WIDTH  # the screen's rows are shrunk to as many as it has columns
EPISODES, STARTS = 8, 16  # episodes per game, and moments of each from which a screen is a few decisions away
BETWEEN_STARTS, MOST_AFTER = 20, 24  # decisions
HELD = 8  # decisions for which an action is held, at most
EXISTS = 0.25  # of the screens of games with a ball: whether it is there is asked


class MissingArcade(ImportError):
    """The package that plays Atari games is not installed."""

    def __init__(self) -> None:
        super().__init__(
            "screens of Atari games are drawn by ale-py, which is not installed: pip install 'generalist[envs]'"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Screen(Scene):
    """A screen and everything that is asked about on it."""

    game: str
    """Its ROM's name."""


def check_installed() -> None:
    """
    Raises:
        MissingArcade: ale-py is not installed.
    """
    if find_spec("ale_py") is None:
        raise MissingArcade


def draw_screen(split: str, objects: int, rng: np.random.Generator, things: int = 0) -> Screen:
    """A screen of any game. Where a game has a ball, it is on half of the screens.

    Args:
        split: `train`, or anything else for the episodes of the evaluation.
        objects, things: have no meaning here: the game decides.
        rng: for all random choices.

    Raises:
        MissingArcade: ale-py is not installed.
    """
    game = tuple(GAMES)[int(rng.integers(len(GAMES)))]
    return screen_of(game, split, rng, has_ball=bool(rng.random() < 0.5))


def screen_of(game: str, split: str, rng: np.random.Generator, *, has_ball: bool | None = None) -> Screen:
    """A screen of a game.

    Args:
        game: its ROM's name.
        split: as in `draw_screen`.
        rng: for all random choices.
        has_ball: whether the game's ball is there, in games that have one; None: as it comes.

    Raises:
        MissingArcade: ale-py is not installed.
    """
    check_installed()
    env, starts = _opened(game, split == "train")
    while True:
        env.restore(starts[int(rng.integers(len(starts)))])
        _play(env, int(rng.integers(1, MOST_AFTER + 1)), rng)
        seen = GAMES[game].seen(env.memory)
        ball = GAMES[game].ball
        if env.over or seen is None or (ball and has_ball not in (None, any(one.name == ball for one in seen))):
            continue
        image = np.asarray(Image.fromarray(env.screen).resize((SIDE, SIDE), Image.Resampling.BOX))
        return Screen(image=image, placed=tuple(_placed(one) for one in seen), game=game)


def _placed(seen: Seen) -> Placed:
    sides = (seen.top, seen.left, seen.top + seen.height, seen.left + seen.width)
    return Placed(colour=seen.colour, thing=seen.thing, box=Box.of_pixels(*sides, height=HEIGHT, width=WIDTH))


# Restoring a moment and playing on costs a hundredth of playing a game up to there.
@functools.cache
def _opened(game: str, is_training: bool) -> tuple[Any, tuple[Any, ...]]:
    """A game and moments of several episodes from which screens are played; the same on every machine."""
    from generalist.envs.suites.atari import AtariEnv

    env, starts = AtariEnv(game), []
    for number in range(EPISODES):
        seed = number if is_training else EVALUATION_SEED + number
        env.reset(seed=seed)
        rng = np.random.default_rng(seed)
        for _ in range(STARTS):
            if env.over:
                break
            starts.append(env.snapshot())
            _play(env, BETWEEN_STARTS, rng)
    return env, tuple(starts)


# Games that are open when the process ends are reported as leaks by ale-py.
atexit.register(_opened.cache_clear)


def _play(env: Any, decisions: int, rng: np.random.Generator) -> None:
    """Plays random actions, each held for 1 to 8 decisions; the last one updates the screen."""
    action, left = 0, 0
    for number in range(decisions):
        if left == 0:
            action, left = int(rng.integers(env.action_space.n)), int(rng.integers(1, HELD + 1))
        left -= 1
        env.advance(action) if number + 1 < decisions else env.step(action)


def alone(screen: Screen, rng: np.random.Generator) -> Asked | None:
    """Where is the only one of its kind?"""
    things = [one.thing for one in screen.placed]
    once = [one for one in screen.placed if things.count(one.thing) == 1]
    if not once:
        return None
    one = once[int(rng.integers(len(once)))]
    text = f"point to the {one.thing}:"
    return Asked(kind="alone", text=text, answer=box_text(one.box), target=one, about=(one,), meant=(one,))


def exists(screen: Screen, rng: np.random.Generator) -> Asked | None:
    """Is the ball there?"""
    if (ball := GAMES[screen.game].ball) is None:
        return None
    there = tuple(one for one in screen.placed if one.name == ball)
    answer, text, meant = YES_NO[not there], f"is there a {ball}? answer:", there or (None,)
    return Asked(kind="exists", text=text, answer=answer, choices=YES_NO, about=there, meant=meant)


def relation(screen: Screen, rng: np.random.Generator) -> Asked | None:
    """Is one thing on a side of another?"""
    across = GAMES[screen.game].across
    pairs = [
        (one, other, distance)
        for one in screen.placed
        for other in screen.placed
        if abs(distance := one.centre[across] - other.centre[across]) >= APART
    ]
    if not pairs:
        return None
    one, other, distance = pairs[int(rng.integers(len(pairs)))]
    # Both orders and both sides are as likely, so the words say nothing.
    is_second = bool(rng.random() < 0.5)
    side = SIDES[2 * (not across) + is_second]
    answer = YES_NO[is_second != (distance > 0)]
    text = f"is the {one.name} {side} the {other.name}? answer:"
    both = (one, other)
    return Asked(kind="relation", text=text, answer=answer, choices=YES_NO, about=both, meant=both)


ASKED: dict[Kind, Callable[[Any, np.random.Generator], Asked | None]] = {
    "point": point,
    "alone": alone,
    "exists": exists,
    "relation": relation,
}
"""How each kind is asked; None: the screen allows no such question."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScreenExamples(SceneExamples):
    """Endless screens, each with several questions or with the names and places of all things."""

    def questions_about(self, scene: Scene, rng: np.random.Generator) -> list[Asked]:
        """Questions of random kinds, no two about the same thing."""
        # Before all others, which a ball that is there could have been asked about, and one that is not could not.
        first = ASKED["exists"](scene, rng) if rng.random() < EXISTS else None
        found: list[Asked] = [] if first is None else [first]
        for kind in rng.choice(["point", "alone", "relation"], 3 * self.questions, p=[0.55, 0.22, 0.23]):
            if len(found) == self.questions:
                break
            one = ASKED[kind](scene, rng)
            if one is None or any(thing in before.about for before in found for thing in one.about):
                continue
            if one.kind == "relation" and any(before.kind == "relation" for before in found):
                continue
            found.append(one)
        return found or [point(scene, rng)]


def training_texts() -> Iterable[str]:
    """Texts like those of the questions, for training the text tokenizer."""
    names = [f"{colour} car" for colour in LANES]
    names += ["left chicken", "white ball", "red ball", "green paddle", "orange paddle", "red paddle"]
    names += ["red player", "blue player"]
    for number, name in enumerate(names):
        yield f"point to the {name}: is there a {name}? answer: yes no"
        yield f"is the {name} {SIDES[number % len(SIDES)]} the {name}? answer: no; detect: noise"
        yield f"point to the {name.split()[-1]}:"
