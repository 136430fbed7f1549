"""Where things are on the screens of some Atari games, from the console's 128 bytes of memory.

The addresses of positions are those of AtariARI (Anand et al., 2019) and OCAtari (Delfosse et al., 2023); how they become pixels
was measured on ale-py's screens, and tests/envs/test_atari_objects.py compares boxes and pixels. Only what is certain is listed.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

Memory = Sequence[int]
HEIGHT, WIDTH = 210, 160
"""Rows and columns of the full screen."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """A thing on the full screen: its outline in pixels, and the colour of its pixels."""

    colour: str
    thing: str
    rgb: tuple[int, int, int]
    top: int
    left: int
    height: int
    width: int

    @property
    def name(self) -> str:
        """Colour and thing, such as `white ball`."""
        return f"{self.colour} {self.thing}"

    def within(self, top: int, bottom: int, left: int = 0, right: int = WIDTH) -> list["Seen"]:
        """The part within a field of rows and columns, unless it is less than a quarter of the thing."""
        first, column = max(self.top, top), max(self.left, left)
        rows = min(self.top + self.height, bottom) - first
        columns = min(self.left + self.width, right) - column
        if rows <= 0 or columns <= 0 or 4 * rows * columns < self.height * self.width:
            return []
        return [dataclasses.replace(self, top=first, left=column, height=rows, width=columns)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Game:
    """What is known of a game's screens."""

    seen: Callable[[Memory], list[Seen] | None]
    """The things on the screen; None while the memory does not tell where one of them is."""
    ball: str | None = None
    """The name of a ball that is on some screens; None: the same things are on all of them."""
    across: bool = True
    """Whether things pass each other from left to right. If not, they do so up and down: sides that never change say nothing."""


def pong(memory: Memory) -> list[Seen]:
    """The ball and two paddles, on a field of rows 34 to 193."""
    # The right paddle is drawn on every second row.
    right = memory[51] - 13 - (memory[51] + 1) % 2
    green = Seen(colour="green", thing="paddle", rgb=(92, 186, 92), top=right, left=140, height=16, width=4)
    left = memory[50] - 15
    orange = Seen(colour="orange", thing="paddle", rgb=(213, 130, 74), top=left, left=16, height=16, width=4)
    found = [green, orange]
    if memory[54] and memory[49]:
        row, column = memory[54] - 14, memory[49] - 49
        found.append(Seen(colour="white", thing="ball", rgb=(236, 236, 236), top=row, left=column, height=4, width=2))
    return [part for one in found for part in one.within(34, 194)]


def breakout(memory: Memory) -> list[Seen] | None:
    """The ball and the paddle, between walls."""
    red, row = (200, 72, 72), memory[101] + 9
    paddle = Seen(colour="red", thing="paddle", rgb=red, top=189, left=memory[72] - 47, height=4, width=16)
    found = paddle.within(0, HEIGHT, 8, 152)
    if memory[101] == 0:
        return found
    # Among the bricks and beside the paddle, which have its colour, it can't be told from them.
    if not 93 <= row < 182:
        return None
    return [*found, Seen(colour="red", thing="ball", rgb=red, top=row, left=memory[99] - 49, height=4, width=2)]


LANES = {
    "red": (167, 26, 26),
    "lime": (180, 231, 117),
    "olive": (105, 105, 15),
    "pink": (228, 111, 111),
    "navy": (24, 26, 167),
    "brown": (162, 98, 33),
    "blue": (84, 92, 214),
    "crimson": (184, 50, 50),
    "green": (135, 183, 84),
    "yellow": (210, 210, 64),
}
"""The colours of Freeway's cars, from the upper lane down."""


def freeway(memory: Memory) -> list[Seen]:
    """The chicken that is played, and one car on each of ten lanes."""
    row = 193 - memory[14]
    found = [Seen(colour="left", thing="chicken", rgb=(252, 252, 84), top=row, left=44, height=8, width=6)]
    for lane, (colour, rgb) in enumerate(LANES.items()):
        column = memory[117 - lane] - 3 + (lane == 4)
        # A car that leaves the screen on one side enters it on the other: it is listed when it is there as a whole.
        if 8 <= column <= WIDTH - 9:
            found.append(Seen(colour=colour, thing="car", rgb=rgb, top=28 + 16 * lane, left=column, height=8, width=8))
    return found


def tennis(memory: Memory) -> list[Seen] | None:
    """Two players, who change ends."""
    # A swung racket reaches beyond the outline of one who runs: the near player swings while the first is 1 or 2, and in all
    # swings of the far one that were seen the second was 255.
    if memory[66] in (1, 2) or memory[76] == 255:
        return None
    red, blue = ("red", (240, 128, 128)), ("blue", (117, 128, 240))
    far, near = (blue, red) if memory[80] else (red, blue)
    found = []
    # Rows are counted from below; a player who looks to the right is drawn four columns further right.
    for (colour, rgb), row, column, looks in ((far, 166 - memory[24], 26, 56), (near, 167 - memory[25], 27, 57)):
        left = memory[column] + (2 if memory[looks] else -2)
        found.append(Seen(colour=colour, thing="player", rgb=rgb, top=row, left=left, height=23, width=12))
    return [part for one in found for part in one.within(15, HEIGHT, 8)]


GAMES: Mapping[str, Game] = {
    "pong": Game(seen=pong, ball="white ball", across=False),
    "breakout": Game(seen=breakout, ball="red ball"),
    "freeway": Game(seen=freeway),
    "tennis": Game(seen=tennis),
}
"""By the names of their ROMs."""
