"""BabyAI's grids seen whole, with exact truth: balls, keys, boxes and doors with their cells, as minigrid places and draws them.

A grid has 8 × 8 cells with walls around it and, in every second one, a wall through it with a gap. Doors are in the walls,
everything else is on the floor, and so is the agent, a red triangle of which nothing is asked. Six of the 24 pairs of a
colour and a thing, one per colour, never occur in training; the split `pairs` shows only these.

Dimension key: S pixels per side of a grid (128).
"""

from importlib.util import find_spec
from typing import Any

import numpy as np

from generalist.data.scenes import Placed, Scene, Split, choose_pair
from generalist.tokenizers.locations import Box

CELLS = 8  # per side
TILE = 16  # pixels per side of a cell: one patch
COLOURS = ("red", "green", "blue", "purple", "yellow", "grey")
THINGS = ("ball", "key", "box", "door")
ALIKE = 3  # of one thing in a grid: a wrong question must find another colour of it, and training shows four or five

Cell = tuple[int, int]
"""Column and row, minigrid's order."""


class MissingGrids(ImportError):
    """The package that draws grids is not installed."""

    def __init__(self) -> None:
        super().__init__("grids are drawn by minigrid, which is not installed: pip install 'generalist[envs]'")


def is_held_out(colour: str, thing: str) -> bool:
    """Whether training never shows the thing in that colour: one thing per colour, and one or two colours per thing."""
    return COLOURS.index(colour) % len(THINGS) == THINGS.index(thing)


def check_installed() -> None:
    """
    Raises:
        MissingGrids: minigrid is not installed.
    """
    if find_spec("minigrid") is None:
        raise MissingGrids


def draw_grid(split: Split, objects: int, rng: np.random.Generator, things: int = 0) -> Scene:
    """A grid with `objects` things, drawn by minigrid.

    Half of the things after the first share their colour or their kind with one before.

    Args:
        split: which pairs of colour and thing: `train` or `pairs`.
        objects: number of things, at most six.
        rng: for all random choices.
        things: has no meaning here: there are four.

    Raises:
        MissingGrids: minigrid is not installed.
    """
    check_installed()
    grid, placed = _walls(rng), list[Placed]()

    def fits(colour: str, thing: str) -> bool:
        alike = sum(one.thing == thing for one in placed)
        return is_held_out(colour, thing) == (split == "pairs") and alike < ALIKE

    for _ in range(objects):
        colour, thing = choose_pair(COLOURS, THINGS, fits, placed, rng)
        column, row = _any(_places(grid, "wall" if thing == "door" else None), rng)
        grid.set(column, row, _made(thing, colour, rng))
        sides = (row, column, row + 1, column + 1)
        placed.append(Placed(colour=colour, thing=thing, box=Box.of_pixels(*sides, height=CELLS, width=CELLS)))
    agent, direction = _any(_places(grid, None), rng), int(rng.integers(4))
    return Scene(
        image=grid.render(TILE, agent, direction), placed=tuple(placed), colours=COLOURS, is_held_out=is_held_out
    )


def _walls(rng: np.random.Generator) -> Any:
    """An empty grid, through half of which goes a wall with a gap."""
    from minigrid.core.grid import Grid

    grid = Grid(CELLS, CELLS)
    grid.wall_rect(0, 0, CELLS, CELLS)
    if rng.random() < 0.5:
        at, gap = int(rng.integers(2, CELLS - 2)), int(rng.integers(1, CELLS - 1))
        if rng.random() < 0.5:
            grid.vert_wall(at, 1, CELLS - 2)
            grid.set(at, gap, None)
        else:
            grid.horz_wall(1, at, CELLS - 2)
            grid.set(gap, at, None)
    return grid


def _places(grid: Any, kind: str | None) -> list[Cell]:
    """The cells with a wall, of which the corners are none, or with nothing (None)."""
    ends = (0, CELLS - 1)
    return [
        (column, row)
        for row in range(CELLS)
        for column in range(CELLS)
        if getattr(grid.get(column, row), "type", None) == kind and not (column in ends and row in ends)
    ]


def _made(thing: str, colour: str, rng: np.random.Generator) -> Any:
    """One of minigrid's objects; a door is open, closed or locked."""
    from minigrid.core.world_object import Ball, Box, Door, Key

    if thing == "door":
        state = int(rng.integers(3))
        return Door(colour, is_open=state == 0, is_locked=state == 2)
    return {"ball": Ball, "key": Key, "box": Box}[thing](colour)


def _any(cells: list[Cell], rng: np.random.Generator) -> Cell:
    return cells[int(rng.integers(len(cells)))]
