"""Boxes from memory against pixels: a thing's colour fills its box and is not around it, on many screens of random play."""

import numpy as np
import pytest

from generalist.envs.suites.atari import AtariEnv
from generalist.envs.suites.atari_objects import GAMES, HEIGHT, WIDTH, Seen

pytest.importorskip("ale_py")
SCREENS = 120


def played(game: str) -> list[tuple[np.ndarray, list[Seen]]]:
    """Screens of random held actions with what is known of them."""
    env, rng, found = AtariEnv(game), np.random.default_rng(6), []
    env.reset(seed=6)
    while len(found) < SCREENS:
        action = int(rng.integers(len(env.names)))
        for _ in range(int(rng.integers(1, 7))):
            env.step(action)
        if env.over:
            env.reset()
        elif (seen := GAMES[game].seen(env.memory)) is not None:
            found.append((env.screen, seen))
    return found


@pytest.mark.parametrize("game", GAMES)
def test_boxes_are_where_the_colours_are(game: str):
    screens = played(game)
    names, checked = {one.name for _, seen in screens for one in seen}, 0
    for name in sorted(names):
        rgb = next(one.rgb for _, seen in screens for one in seen if one.name == name)
        alike = np.stack([(screen == rgb).all(axis=-1) for screen, _ in screens])  # (screens, H, W)
        assert alike.shape[1:] == (HEIGHT, WIDTH)
        # Walls, lines and numbers may have the same colour, but stay where they are.
        moving = alike & ~(alike.mean(axis=0) > 0.1)
        for (_, seen), all_of_it, part in zip(screens, alike, moving, strict=True):
            for one in (one for one in seen if one.name == name):
                rows = slice(one.top, one.top + one.height)
                columns = slice(one.left, one.left + one.width)
                inside = all_of_it[rows, columns]
                # Colour in the first and the last two rows and columns: the box is no larger than the thing by more than a pixel.
                assert inside.mean() > 0.15 and inside[:2].any() and inside[-2:].any(), (name, one)
                assert inside[:, :2].any() and inside[:, -2:].any(), (name, one)
                outside = part.copy()
                outside[
                    max(0, one.top - 1) : one.top + one.height + 1, max(0, one.left - 1) : one.left + one.width + 1
                ] = 0
                near = outside[
                    max(0, one.top - 4) : one.top + one.height + 4, max(0, one.left - 4) : one.left + one.width + 4
                ]
                assert not near.any(), (name, one)
                checked += 1
    assert checked > SCREENS


def test_a_ball_that_is_not_listed_is_not_on_the_screen():
    for game in ("pong", "breakout"):
        ball, numbers = GAMES[game].ball, {True: 0, False: 0}
        for screen, seen in played(game):
            listed = any(one.name == ball for one in seen)
            numbers[listed] += 1
            rgb = (236, 236, 236) if game == "pong" else (200, 72, 72)
            there = (screen[93:183, 20:140] == rgb).all(axis=-1).any() if game == "breakout" else None
            if game == "pong":
                there = (screen[34:194, 20:140] == rgb).all(axis=-1).any()
            assert not there or listed
        assert min(numbers.values()) > 10, "balls are on some screens and not on others"
