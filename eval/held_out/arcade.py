"""Screens of Atari games: are things found, and is it the screen that tells?

Screens of episodes that training does not see; everything is asked again with another screen of the same game.

    point, alone       accuracy: share of boxes whose intersection over union with the true one is at least 0.5, and 0.8
    exists, relation   accuracy between yes and no
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from rich.progress import Progress

from generalist.data.arcade import ASKED, Screen, screen_of
from generalist.data.scene_questions import Asked, Kind
from generalist.envs.suites.atari_objects import GAMES
from generalist.eval.held_out.likelihood import LogLikelihood
from generalist.eval.held_out.scenes import Generate, Pair, choose, point_out
from generalist.tokenizers.sequence import Sequence

SEED = 0
SPLIT = "held out"
TRIES = 20  # screens per question: some games have no question of a kind


def questions(kind: Kind, game: str, items: int, *, is_asked_first: bool = False) -> list[Pair]:
    """Questions of one kind about one game, the same on every machine; none if the game has no such questions."""
    rng = np.random.default_rng([SEED, list(ASKED).index(kind), list(GAMES).index(game)])
    found: list[tuple[Screen, Asked]] = []
    for number in range(TRIES * items):
        screen = screen_of(game, SPLIT, rng, has_ball=number % 2 == 0 if kind == "exists" else None)
        if asked := ASKED[kind](screen, rng):
            found.append((screen, asked))
        if len(found) == items:
            break
        if not found and number == TRIES:
            return []
    # In random order: the wrong screen must say nothing about the right one.
    others = rng.permutation(len(found))
    following = dict(zip(others, np.roll(others, 1), strict=True))
    return [
        Pair(
            asked=asked,
            image=screen.image,
            wrong=found[following[number]][0].image,
            is_asked_first=is_asked_first,
        )
        for number, (screen, asked) in enumerate(found)
    ]


def evaluate_arcade(
    assemble: Callable[[list[Any]], Sequence],
    log_likelihood: LogLikelihood,
    generate: Generate,
    game: str,
    *,
    items: int,
    is_asked_first: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """All scores of one game, each with its interval and beside the score with a wrong screen.

    Args:
        assemble: parts of a document → sequence (`Assembler.document`).
        log_likelihood: scores sequences.
        generate: writes boxes.
        game: its ROM's name.
        items: questions per kind.
        is_asked_first: questions stand before the image.
        progress: gets one bar.

    Raises:
        MissingArcade: ale-py is not installed.
    """
    bar = progress.add_task(f"screens of {game}", total=len(ASKED)) if progress else None
    pointed, chosen = {}, {}
    for kind in ASKED:
        if asked := questions(kind, game, items, is_asked_first=is_asked_first):
            if kind in ("point", "alone"):
                pointed[kind] = point_out(asked, generate)
            else:
                chosen[kind] = choose(kind, asked, assemble, log_likelihood)
        if progress and bar is not None:
            progress.advance(bar)
    return {"point": pointed, "questions": chosen, "items": items, "asked_first": is_asked_first}
