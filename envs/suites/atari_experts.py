"""Hand-written Atari experts: functions from the console's 128 bytes of memory to the name of an action.

They read only what the screen shows too (positions of the ball, the players, the flags), and remember at most the last decision,
so that a policy that sees a few frames can imitate them. The addresses were found by observing the memory.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

Memory = Sequence[int]


class Rule(Protocol):
    """An expert for one episode."""

    def __call__(self, memory: Memory) -> str:
        """The name of the action for the state of the memory (128 bytes)."""


def move(right: float, down: float, *, slack: tuple[float, float] = (2, 2), fire: bool = False) -> str:
    """The joystick action towards a point `right` and `down` of here, in pixels; within `slack` an axis rests."""
    vertical = "DOWN" if down > slack[1] else "UP" if down < -slack[1] else ""
    horizontal = "RIGHT" if right > slack[0] else "LEFT" if right < -slack[0] else ""
    return (vertical + horizontal + ("FIRE" if fire else "")) or "NOOP"


def column(byte: int) -> int:
    """The column that a byte in the format of the video chip encodes: 15 pixels per unit of its low half, minus its high half."""
    fine = byte >> 4
    return 15 * (byte & 15) - (fine - 16 if fine > 7 else fine)


class Pong:
    """Keeps a point below the paddle's centre at the ball's height, one decision ahead. Within a slack the paddle rests: hit
    off-centre the ball returns steeply, and a late action costs little."""

    BALL_Y, PADDLE_Y = 54, 51  # addresses in the memory
    POINT, SLACK = 7, 7

    def __init__(self) -> None:
        self._ball: int | None = None

    def __call__(self, memory: Memory) -> str:
        """LEFT moves the paddle down, RIGHT up."""
        ball = memory[self.BALL_Y]
        speed = 0 if self._ball is None else ball - self._ball
        # 0 between two points: a speed across it would be wrong.
        self._ball = ball or None
        if ball == 0:
            return "NOOP"
        distance = ball + speed - memory[self.PADDLE_Y] - self.POINT
        return "LEFT" if distance > self.SLACK else "RIGHT" if distance < -self.SLACK else "NOOP"


class Breakout:
    """Goes where the ball will come down; otherwise stays under it. It hits the ball with the end of the paddle that lies in the
    ball's direction, which keeps the ball out of endless loops."""

    BALL_X, BALL_Y, PADDLE_X = 99, 101, 72
    LEFT_WALL, RIGHT_WALL, PADDLE_Y = 57, 200, 185

    def __init__(self) -> None:
        self._ball: tuple[int, int] | None = None

    def __call__(self, memory: Memory) -> str:
        """FIRE serves."""
        x, y = memory[self.BALL_X], memory[self.BALL_Y]
        # No ball in play: lost below the paddle, or not served yet.
        if y == 0 or y > 200:
            self._ball = None
            return "FIRE"
        speed_x, speed_y = (0, 0) if self._ball is None else (x - self._ball[0], y - self._ball[1])
        self._ball = (x, y)
        target = float(x)
        # A larger speed is a new ball, not a motion.
        if 0 < speed_y < 30:
            target = self._reflect(x + speed_x * max(0, (self.PADDLE_Y - y) / speed_y))
        # The paddle is 16 pixels wide; the ball is met half-way between its middle and the leading end.
        centre = memory[self.PADDLE_X] + 8 + (4 if speed_x > 0 else -4)
        return move(target - centre, 0, slack=(4, 0))

    def _reflect(self, x: float) -> float:
        """Folds a path through the side walls back into the field."""
        width = self.RIGHT_WALL - self.LEFT_WALL
        folded = (x - self.LEFT_WALL) % (2 * width)
        return self.LEFT_WALL + min(folded, 2 * width - folded)


class Freeway:
    """Always moves up: being hit costs less time than waiting."""

    def __call__(self, memory: Memory) -> str:
        return "UP"


class Boxing:
    """Keeps at arm's length, level with the opponent, and punches unless an arm is nearly stretched: it must first come back."""

    X, Y, OTHER_X, OTHER_Y = 32, 34, 33, 35
    ARMS, STRETCHED = (55, 57), 41  # how far each arm is stretched, and from where on a press has no effect
    NEAR, FAR = 20, 26
    REACH = (28, 14)

    def __call__(self, memory: Memory) -> str:
        """FIRE punches."""
        right, down = memory[self.OTHER_X] - memory[self.X], memory[self.OTHER_Y] - memory[self.Y]
        within_reach = abs(right) <= self.REACH[0] and abs(down) <= self.REACH[1]
        if within_reach and all(memory[arm] < self.STRETCHED for arm in self.ARMS):
            return "FIRE"
        # Closer if too far away, back if too near; in between it only stays level.
        side = right if abs(right) > self.FAR else -right if abs(right) < self.NEAR else 0
        return move(side, down, slack=(0, 3 if within_reach else 4))


class Skiing:
    """Steers towards the middle of the next pair of flags, with a heading that grows with the distance. Neighbouring headings are
    accepted, since they look the same."""

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
            # Flags above the skier are passed; below 177 they are not on the screen yet.
            if memory[self.Y] - 78 < y <= 177:
                below.append((y, memory[self.COLUMNS + slot] + 1 + 3 * (memory[self.SHIFTS + slot] == 4)))
        # Between the two flags of the nearest pair; without one, the middle of the slope.
        target = min(below)[1] + self.GAP if below else 80
        distance = target - (memory[self.X] + 5)
        # At most five headings off straight ahead: across the slope the skier hardly moves on.
        turn = 0 if abs(distance) < 3 else min(5, 1 + abs(distance) // 8)
        wanted = self.AHEAD + (turn if distance > 0 else -turn)
        heading = memory[self.HEADING]
        return "RIGHT" if heading < wanted - 1 else "LEFT" if heading > wanted + 1 else "NOOP"


class Asterix:
    """Values the eight lanes by their objects, goes to the best one, and steps aside for an approaching lyre."""

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
            # Now or two decisions from now.
            ahead = places[one] + 2 * speeds[one]
            return 0 <= one < 8 and worth[one] < 0 and min(abs(places[one] - x), abs(ahead - x)) < 20

        def value(one: int) -> float:
            distance, lanes = abs(places[one] - x), abs(lane - one)
            # Changing lanes takes time, and leads through the lanes between.
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
        # It never steps into a lyre, but out of its way.
        if down and danger(lane + (1 if down > 0 else -1)):
            down = 0
        if danger(lane):
            down = next((side for side in (-1, 1) if 0 <= lane + side < 8 and not danger(lane + side)), down)
        return move(right if down == 0 or abs(right) > 8 else 0, down, slack=(3, 0))

    def _worth(self, memory: Memory, lane: int) -> int:
        """Value of touching the lane's object: 0 without one, negative for a lyre."""
        if memory[self.STATE - lane] == self.EMPTY:
            return 0
        if memory[self.COLLECTABLE + lane]:
            return 3
        return -3 if memory[self.KIND + lane] % 2 == 1 else 2


class Gopher:
    """Stays above the gopher, a little ahead of it, and shovels again one decision after a stroke has ended on the screen: each
    stroke needs a new press. After a lost life, when nothing moves, a press continues the game."""

    X, GOPHER_X = 31, 41
    STROKE, BUTTON = 47, 70  # raw frames of the current stroke; 0 once a press counts as a new one

    def __init__(self) -> None:
        self._before: int | None = None
        self._stroke = 0

    def __call__(self, memory: Memory) -> str:
        """LEFT, RIGHT, and FIRE to shovel."""
        gopher, stroke = memory[self.GOPHER_X], memory[self.STROKE]
        speed = 0 if self._before is None else gopher - self._before
        stands_still = stroke != 0 and stroke == self._stroke
        self._before, self._stroke = gopher, stroke
        lead = 3 * speed if abs(speed) < 12 else 0  # a larger jump: the gopher leaves one edge and enters at the other
        shovel = memory[self.BUTTON] == 0 or stands_still
        return move(gopher + lead - (memory[self.X] - 12), 0, slack=(8, 99), fire=shovel)


class Tennis:
    """Stays under the ball on either side of the net, swinging the racket all the time."""

    BALL_X, FAR_SIDE = 16, 80
    NEAR_X, FAR_X = 26, 27

    def __call__(self, memory: Memory) -> str:
        """FIRE serves."""
        ball = memory[self.BALL_X]
        if ball <= 2:
            return "FIRE"
        # The players change sides, and each side has its own address.
        player = memory[self.FAR_X if memory[self.FAR_SIDE] else self.NEAR_X]
        return move(ball - player - 8, 0, slack=(4, 99), fire=True)


class Atlantis:
    """Fires one shot at a time at the lowest ship, from the outpost that the ship has yet to pass."""

    SHIPS, BARREL = 36, 68  # four rows of ships, the lowest last; the barrel's image, READY if no shot is in flight
    READY = 140

    def __init__(self) -> None:
        self._before: Memory | None = None

    def __call__(self, memory: Memory) -> str:
        """LEFTFIRE and RIGHTFIRE fire from the outposts at the edges."""
        ships = memory[self.SHIPS : self.SHIPS + 4]
        before, self._before = self._before or ships, ships
        if memory[self.BARREL] != self.READY:
            return "NOOP"
        # In a row without a ship the byte is 0 or does not change.
        speeds = [now - then for now, then in zip(ships, before, strict=True) if now and then and now != then]
        if not speeds:
            return "NOOP"
        return "LEFTFIRE" if speeds[-1] > 0 else "RIGHTFIRE"


def up_n_down(memory: Memory) -> str:
    """Jumps whenever the car is on the road: in the air nothing hits it, and landing on another car scores."""
    height, ground = memory[56], 88
    return "FIRE" if height == ground else "NOOP"


class Kaboom:
    """Holds the buckets under the lowest bomb, allowing for the paddle, which moves on after it is released."""

    BUCKETS, BOMBS, BOMB_X = 29, 59, 50  # nine rows from the top down: the bomb's image, 0 without one, and its column
    LEFT, CENTRE = 28, 24

    def __init__(self) -> None:
        self._before: int | None = None

    def __call__(self, memory: Memory) -> str:
        """FIRE starts a wave."""
        buckets = memory[self.BUCKETS]
        speed = 0 if self._before is None else buckets - self._before
        self._before = buckets
        lowest = max((row for row in range(9) if memory[self.BOMBS + row]), default=None)
        if lowest is None:
            return "FIRE"
        # One bit of the byte is no part of the column.
        bomb = column(memory[self.BOMB_X + lowest] & 0xF7) + self.LEFT
        return move(bomb - (buckets + self.CENTRE) - 0.4 * speed, 0, slack=(5, 99))


class Carnival:
    """Stands where the next shot meets a target, the diving duck first of all, and shoots if no shot is in flight."""

    X, SHOT, DUCK_X, DUCK_Y = 2, 55, 111, 1
    TARGET_X, KIND, PATTERN = 18, 24, 36  # six groups, two per row, from the lowest row up
    KINDS, BULLETS, DUCK = (0, 16, 32, 48), 48, 92
    # Offsets of a target's copies by the group's pattern: the video chip repeats a sprite up to three times (its NUSIZ register).
    COPIES = ((0,), (0, 16), (0, 32), (0, 16, 32), (0, 64), (0,), (0, 32, 64), (0,))
    FLIGHT = 5  # decisions that a shot takes to the lowest row

    def __init__(self) -> None:
        self._before: Memory | None = None

    def __call__(self, memory: Memory) -> str:
        """LEFT, RIGHT, and FIRE when one of them stands ready."""
        distance = self._distance(memory)
        if distance is None:
            return "NOOP"
        return move(distance, 0, slack=(3, 99), fire=abs(distance) <= 5 and memory[self.SHOT] == 0)

    def _distance(self, memory: Memory) -> float | None:
        """Distance to the best target at the time a shot reaches it; bullets count as nearer."""
        places = memory[self.TARGET_X : self.TARGET_X + 6]
        before, self._before = self._before or places, places
        kinds = memory[self.KIND : self.KIND + 12 : 2]
        x = memory[self.X]
        # 0 and 79 are the heights of a duck that does not dive.
        if self.DUCK in kinds and memory[self.DUCK_Y] not in (0, 79):
            return memory[self.DUCK_X] + 2 - x
        found = []
        for group, (place, then, kind) in enumerate(zip(places, before, kinds, strict=True)):
            if kind not in self.KINDS:
                continue
            # A larger step is a jump to the other edge; 1.25 pixels is the rows' mean step.
            speed = 0 if abs(place - then) > 4 else 1.25 * ((place > then) - (place < then))
            for copy in self.COPIES[memory[self.PATTERN + group] % 8]:
                target = place + copy + 4.5 + speed * (self.FLIGHT + group // 2)
                if 8 < target < 152:
                    found.append((abs(target - x) - 12 * (kind == self.BULLETS), target - x))
        return min(found)[1] if found else None


def bowling(memory: Memory) -> str:
    """Throws from a fixed position and hooks the ball upwards before the pins, a line that gives strikes."""
    phase, ball_x, player_y = memory[13], memory[30], memory[40]
    ready, rolling = 0, 5
    if phase == ready:
        return "DOWN" if player_y > 8 else "UP" if player_y < 8 else "FIRE"
    return "UP" if phase == rolling and ball_x > 90 else "NOOP"


class Assault:
    """Shoots at the lowest ship, aiming at its position when the shot arrives; never rests below it, where it drops bombs."""

    X, SHIP_X, SHIP = 16, 33, 54  # three rows of ships, from the lowest up
    LEFT, RIGHT, FLIGHT = 10, 150, 5  # columns where ships turn round; decisions that a shot takes to the lowest row

    def __init__(self) -> None:
        self._before: tuple[int, int] | None = None  # row and column of the ship last aimed at

    def __call__(self, memory: Memory) -> str:
        """UP shoots upwards."""
        row = next((row for row in range(3) if memory[self.SHIP + row]), None)
        if row is None:
            self._before = None
            return "NOOP"
        place = column(memory[self.SHIP_X + row])
        same = self._before is not None and self._before[0] == row
        speed = place - self._before[1] if self._before is not None and same else 0
        self._before = (row, place)
        # Higher rows are reached later.
        target = place + (speed if abs(speed) <= 12 else 0) * (self.FLIGHT + 2 * row)
        # Reflected where the ship turns round.
        if target > self.RIGHT:
            target = 2 * self.RIGHT - target
        elif target < self.LEFT:
            target = 2 * self.LEFT - target
        distance = target - (column(memory[self.X]) - 9)
        return "UP" if abs(distance) <= 8 else move(distance, 0, slack=(4, 99))


class NameThisGame:
    """Fetches air when a pipe hangs down; otherwise shoots at the shark if it is deep, or at the longest tentacle."""

    X, BOAT_X, PIPE, SHARK_X, SHARK_ROW = 99, 100, 117, 60, 59
    # The left edge of each of the picture's columns, and whether its bits run leftwards, as in the video chip's playfield.
    COLUMNS = ((16, False), (48, True), (80, False), (96, False), (128, True))
    ROWS = 10

    def __call__(self, memory: Memory) -> str:
        """Always with FIRE."""
        x = memory[self.X]
        if memory[self.PIPE]:
            return move(memory[self.BOAT_X] - x, 0, slack=(2, 99), fire=True)
        depth = next((row for row in range(7) if memory[self.SHARK_ROW - row]), 7)
        tips = [tip for number in range(5) if (tip := self._tip(memory, number))]
        target = min(tips)[1] - 6 if tips and not 3 <= depth < 7 else memory[self.SHARK_X]
        return move(target - x, 0, slack=(3, 99), fire=True)

    def _tip(self, memory: Memory, number: int) -> tuple[int, int] | None:
        """Row (0: lowest) and column of the lowest tentacle in one of the picture's five columns; None without one."""
        left, mirrored = self.COLUMNS[number]
        for row in range(self.ROWS):
            bits = f"{memory[number * self.ROWS + row]:08b}"
            if "1" in bits:
                return row, left + 4 * (bits[::-1] if mirrored else bits).index("1")
        return None


RULES: dict[str, Callable[[], Rule]] = {
    "pong": Pong,
    "breakout": Breakout,
    "freeway": Freeway,
    "boxing": Boxing,
    "skiing": Skiing,
    "asterix": Asterix,
    "gopher": Gopher,
    "tennis": Tennis,
    "atlantis": Atlantis,
    "up_n_down": lambda: up_n_down,
    "kaboom": Kaboom,
    "carnival": Carnival,
    "bowling": lambda: bowling,
    "assault": Assault,
    "name_this_game": NameThisGame,
}
