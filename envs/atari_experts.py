"""Hand-written Atari experts: functions from the console's 128 bytes of memory to the name of an action.

They read only what the screen shows as well (positions of the ball, the players, the flags), and remember at most the last
decision, so that a policy that sees a few frames can imitate them. The addresses were found by watching the memory.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

Memory = Sequence[int]


class Rule(Protocol):
    """An expert within one episode."""

    def __call__(self, memory: Memory) -> str:
        """The action for what the memory (128 bytes) shows."""


def move(right: float, down: float, *, slack: tuple[float, float] = (2, 2), fire: bool = False) -> str:
    """The joystick towards a point `right` and `down` of here, with a slack each way and the button or not."""
    vertical = "DOWN" if down > slack[1] else "UP" if down < -slack[1] else ""
    horizontal = "RIGHT" if right > slack[0] else "LEFT" if right < -slack[0] else ""
    return (vertical + horizontal + ("FIRE" if fire else "")) or "NOOP"


class Pong:
    """Follows the ball, one decision ahead."""

    BALL_Y, BALL_X, PADDLE_Y = 54, 49, 51

    def __init__(self) -> None:
        self._ball: int | None = None
        self._paddle: int | None = None

    def __call__(self, memory: Memory) -> str:
        """LEFT moves the paddle down, RIGHT up."""
        ball, paddle = memory[self.BALL_Y], memory[self.PADDLE_Y]
        ball_speed = 0 if self._ball is None else ball - self._ball
        paddle_speed = 0 if self._paddle is None else paddle - self._paddle
        self._ball, self._paddle = ball or None, paddle
        if ball == 0:  # between two points
            return "NOOP"
        distance = ball + ball_speed - (paddle + 6) - paddle_speed
        return "LEFT" if distance > 6 else "RIGHT" if distance < -6 else "NOOP"


class Breakout:
    """Goes where the ball will come down; otherwise stays under it. Which end of the paddle it offers follows the ball's
    direction, which keeps the ball from running in circles."""

    BALL_X, BALL_Y, PADDLE_X = 99, 101, 72
    LEFT_WALL, RIGHT_WALL, PADDLE_Y = 57, 200, 185

    def __init__(self) -> None:
        self._ball: tuple[int, int] | None = None

    def __call__(self, memory: Memory) -> str:
        """FIRE serves."""
        x, y = memory[self.BALL_X], memory[self.BALL_Y]
        if y == 0 or y > 200:
            self._ball = None
            return "FIRE"
        speed_x, speed_y = (0, 0) if self._ball is None else (x - self._ball[0], y - self._ball[1])
        self._ball = (x, y)
        target = float(x)
        if 0 < speed_y < 30:
            target = self._reflect(x + speed_x * max(0, (self.PADDLE_Y - y) / speed_y))
        centre = memory[self.PADDLE_X] + 8 + (4 if speed_x > 0 else -4)
        return move(target - centre, 0, slack=(4, 0))

    def _reflect(self, x: float) -> float:
        """Folds a path through the side walls back into the field."""
        width = self.RIGHT_WALL - self.LEFT_WALL
        folded = (x - self.LEFT_WALL) % (2 * width)
        return self.LEFT_WALL + min(folded, 2 * width - folded)


class Freeway:
    """Up, always: being hit costs less time than waiting."""

    def __call__(self, memory: Memory) -> str:
        return "UP"


class Boxing:
    """Keeps at arm's length, level with the opponent, and punches in every second decision (an arm has to come back)."""

    X, Y, OTHER_X, OTHER_Y = 32, 34, 33, 35
    NEAR, FAR = 16, 24
    REACH = (28, 14)

    def __init__(self) -> None:
        self._beat = False

    def __call__(self, memory: Memory) -> str:
        """FIRE punches."""
        self._beat = not self._beat
        right, down = memory[self.OTHER_X] - memory[self.X], memory[self.OTHER_Y] - memory[self.Y]
        within_reach = abs(right) <= self.REACH[0] and abs(down) <= self.REACH[1]
        if within_reach and self._beat:
            return "FIRE"
        side = right if abs(right) > self.FAR else -right if abs(right) < self.NEAR else 0
        return move(side, down, slack=(0, 6 if within_reach else 4))


class Skiing:
    """Steers towards the middle of the next pair of flags; the heading wanted grows with the distance to it."""

    X, Y, HEADING, AHEAD = 25, 26, 15, 8
    KINDS, ROWS, COLUMNS, SHIFTS, HEIGHTS = 70, 54, 62, 78, 86
    FLAG, GAP = 2, 18

    def __call__(self, memory: Memory) -> str:
        """LEFT and RIGHT turn the skis by one of sixteen headings."""
        below = []
        for slot in range(8):
            if memory[self.KINDS + slot] != self.FLAG or memory[self.ROWS + slot] in (0, 255):
                continue
            y = 178 - memory[self.HEIGHTS + slot]
            if memory[self.Y] - 78 < y <= 177:
                below.append((y, memory[self.COLUMNS + slot] + 1 + 3 * (memory[self.SHIFTS + slot] == 4)))
        target = min(below)[1] + self.GAP if below else 80
        distance = target - (memory[self.X] + 5)
        turn = 0 if abs(distance) < 3 else min(5, 1 + abs(distance) // 6)
        wanted = self.AHEAD + (turn if distance > 0 else -turn)
        heading = memory[self.HEADING]
        return "RIGHT" if heading < wanted else "LEFT" if heading > wanted else "NOOP"


class Asterix:
    """Values the eight lanes by what runs in them, goes to the best one, and steps aside for a lyre that comes near."""

    X, LANE, OBJECT_X, KIND, STATE, COLLECTABLE = 41, 39, 42, 29, 18, 73
    EMPTY = 11

    def __init__(self) -> None:
        self._before: list[int] | None = None

    def __call__(self, memory: Memory) -> str:
        """Moves in any direction; a lane is 16 pixels high."""
        x, lane = memory[self.X], memory[self.LANE]
        places = [memory[self.OBJECT_X + one] for one in range(8)]
        speeds = [now - then for now, then in zip(places, self._before or places, strict=True)]
        self._before = places
        worth = [self._worth(memory, one) for one in range(8)]

        def danger(one: int) -> bool:
            ahead = places[one] + 2 * speeds[one]
            return 0 <= one < 8 and worth[one] < 0 and min(abs(places[one] - x), abs(ahead - x)) < 20

        def value(one: int) -> float:
            distance, lanes = abs(places[one] - x), abs(lane - one)
            total = -0.35 * lanes
            approaching = (speeds[one] > 0) == (x > places[one])
            if worth[one] < 0 and distance < 26 + 8 * lanes and (approaching or distance < 16):
                total -= 10
            if worth[one] > 0:
                total += worth[one] + (distance < 40) - distance / 80
            return total

        best = max(range(8), key=value)
        down = best - lane
        right = places[best] - x if worth[best] > 0 else 80 - x if abs(80 - x) > 30 else 0
        if down and danger(lane + (1 if down > 0 else -1)):
            down = 0
        if danger(lane):
            down = next((side for side in (-1, 1) if 0 <= lane + side < 8 and not danger(lane + side)), down)
        return move(right if down == 0 or abs(right) > 8 else 0, down, slack=(3, 0))

    def _worth(self, memory: Memory, lane: int) -> int:
        """What touching the lane's object brings: 0 for none, negative for a lyre."""
        if memory[self.STATE - lane] == self.EMPTY:
            return 0
        if memory[self.COLLECTABLE + lane]:
            return 3
        return -3 if memory[self.KIND + lane] % 2 == 1 else 2


class Gopher:
    """Keeps above the gopher, a little ahead of it, and shovels in every second decision (a stroke needs a new press)."""

    X, GOPHER_X = 31, 41

    def __init__(self) -> None:
        self._before: int | None = None
        self._shovel = False

    def __call__(self, memory: Memory) -> str:
        """LEFT, RIGHT, and FIRE to shovel."""
        gopher = memory[self.GOPHER_X]
        speed = 0 if self._before is None else gopher - self._before
        self._before = gopher
        self._shovel = not self._shovel
        lead = 3 * speed if abs(speed) < 12 else 0  # a larger jump is the gopher going round the edge
        return move(gopher + lead - (memory[self.X] - 12), 0, slack=(8, 99), fire=self._shovel)


RULES: dict[str, Callable[[], Rule]] = {
    "pong": Pong,
    "breakout": Breakout,
    "freeway": Freeway,
    "boxing": Boxing,
    "skiing": Skiing,
    "asterix": Asterix,
    "gopher": Gopher,
}
