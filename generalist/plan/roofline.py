"""Costs of a whole compiled program: every loop's body times its trip count, every collective once, and the roofline time.

The compiler's own cost analysis counts the body of a scan only once, so a 24-layer model as one layer.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Self, TypeVar

from generalist.plan.cost import FREE, flops, hbm_bytes, inside, is_collective, is_counted, place
from generalist.plan.groups import Exchange, exchange
from generalist.plan.hlo import Computation, Instruction, Module


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speeds:
    """The rates of one device that make its roofline."""

    flops: float
    """FLOP/s."""
    bandwidth: float
    """Bytes/s of main memory."""
    seconds: Callable[[Exchange], float]
    """Seconds that an exchange takes."""


S = TypeVar("S", bound="_Sums")


class _Sums:
    """A dataclass of numbers that are added, and multiplied by the trips of a loop, one by one."""

    def __add__(self, other: Self) -> Self:
        return type(self)(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    def __mul__(self, times: float) -> Self:
        return type(self)(**{name: value * times for name, value in vars(self).items()})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traffic(_Sums):
    """Exchanges of one kind."""

    count: float = 0.0
    bytes: float = 0.0
    """Bytes of the larger side of each, input or output, on one device."""
    seconds: float = 0.0
    hidden: float = 0.0
    """Seconds of exchanges that overlap with compute."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moved(_Sums):
    """Memory traffic of the operations of one kind and place."""

    count: float = 0.0
    bytes: float = 0.0
    """Bytes to and from main memory."""
    seconds: float = 0.0
    """Seconds of this traffic where it takes longer than the operation's products: the time that is bound by memory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Totals:
    """Costs of a program on one device."""

    flops: float = 0.0
    """FLOPs of matrix products and convolutions."""
    bytes: float = 0.0
    """Bytes to and from main memory."""
    seconds: float = 0.0
    """Seconds by the roofline; see `_Body.seconds`."""
    matrix_seconds: float = 0.0
    """Seconds of the FLOPs alone, at the peak rate."""
    traffic: dict[str, Traffic] = dataclasses.field(default_factory=dict)
    """Exchanges by kind."""
    places: dict[str, Traffic] = dataclasses.field(default_factory=dict)
    """Exchanges by kind and by the operation of the model that caused them."""
    moved: dict[str, Moved] = dataclasses.field(default_factory=dict)
    """Memory traffic by kind of operation and by its place in the model."""
    notes: tuple[str, ...] = ()
    """Parts of the program that could not be counted."""

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(
            **{name: getattr(self, name) + getattr(other, name) for name in _NUMBERS},
            traffic=_added(self.traffic, other.traffic, Traffic()),
            places=_added(self.places, other.places, Traffic()),
            moved=_added(self.moved, other.moved, Moved()),
            notes=tuple(dict.fromkeys((*self.notes, *other.notes))),
        )

    def __mul__(self, times: float) -> "Totals":
        return Totals(
            **{name: getattr(self, name) * times for name in _NUMBERS},
            traffic={kind: one * times for kind, one in self.traffic.items()},
            places={place: one * times for place, one in self.places.items()},
            moved={place: one * times for place, one in self.moved.items()},
            notes=self.notes,
        )


def _added(left: dict[str, S], right: dict[str, S], zero: S) -> dict[str, S]:
    return {key: left.get(key, zero) + right.get(key, zero) for key in dict.fromkeys((*left, *right))}


_NUMBERS = ("flops", "bytes", "seconds", "matrix_seconds")


@dataclasses.dataclass
class _Body:
    """Running sums of one pass through a computation, before they become a time."""

    inner: Totals = dataclasses.field(default_factory=Totals)
    """Costs of loops, branches and calls within it."""
    compute: float = 0.0
    """Seconds of its operations, one after the other."""
    flops: float = 0.0
    bytes: float = 0.0
    waiting: float = 0.0
    """Seconds of exchanges that are waited for."""
    beside: float = 0.0
    """Seconds of exchanges that overlap with operations."""

    def seconds(self, speeds: Speeds) -> float:
        """Time of one pass; the assumptions of the roofline are all here.

        An operation takes the longer of its products and its memory traffic. Copies ahead of their use, and exchanges that the
        compiler started early, overlap with all operations of the same body, but all traffic of a body shares the memory.
        Exchanges that the compiler waits for are added. Loops run one after the other.
        """
        return max(self.compute, self.bytes / speeds.bandwidth, self.beside) + self.waiting


def walk(module: Module, speeds: Speeds) -> Totals:
    """Costs of the whole program on one device."""
    return _walk(module, module.entry, speeds)


def _walk(module: Module, computation: Computation, speeds: Speeds) -> Totals:
    body, seen = _Body(), set[str]()
    for one in computation.instructions:
        if one.operation == "while":
            trips = trip_count(module, computation, one)
            (repeated,) = module.called(one, "body")
            # Counted once, the estimate is too low, and the note says so.
            note = () if trips is not None else (f"the trip count of the loop {one.name} is unknown: counted once",)
            body.inner += _walk(module, repeated, speeds) * (1 if trips is None else trips) + Totals(notes=note)
        elif one.operation == "conditional":
            branches = [_walk(module, branch, speeds) for branch in module.branches(one)]
            # Which branch runs depends on the data: the slowest is assumed, or that of most FLOPs where no speed is known.
            body.inner += max(branches, key=lambda branch: (branch.seconds, branch.flops), default=Totals())
        elif one.operation == "call":
            for called in module.called(one, "to_apply"):
                body.inner += _walk(module, called, speeds)
        else:
            _count(module, computation, one, speeds, body, seen)
    # Inner totals are added whole: a loop does not overlap with what is around it.
    own = Totals(
        flops=body.flops,
        bytes=body.bytes,
        seconds=body.seconds(speeds),
        matrix_seconds=body.flops / speeds.flops,
    )
    return own + body.inner


def _count(
    module: Module, computation: Computation, one: Instruction, speeds: Speeds, body: _Body, seen: set[str]
) -> None:
    """Adds an instruction that is not a loop, conditional or call."""
    if one.operation in FREE or one.operation.endswith("-done"):
        return
    for within, part, beside in collectives(module, computation, one):
        # A TPU splits a collective that overlaps with compute into pieces, each fused with another operation. Pieces of one
        # channel are one exchange.
        channel = part.attribute("channel_id", r"(\d+)")
        if channel is not None and channel in seen:
            continue
        seen.add(channel or part.name)
        found = exchange(module, within, part)
        seconds = speeds.seconds(found)
        moved = Traffic(count=1, bytes=found.bytes, seconds=seconds, hidden=seconds * beside)
        asked = part.attribute("op_name", r'"([^"]*)"') or "the compiler's own"
        body.inner += Totals(traffic={found.kind: moved}, places={f"{found.kind}: {asked}": moved})
        body.beside, body.waiting = body.beside + seconds * beside, body.waiting + seconds * (not beside)
    if is_collective(one):
        return  # its bytes are counted as an exchange
    products, moved_bytes = flops(module, computation, one), hbm_bytes(module, computation, one)
    body.flops, body.bytes = body.flops + products, body.bytes + moved_bytes
    multiplying, moving = products / speeds.flops, moved_bytes / speeds.bandwidth
    # A started copy runs beside the operations, so it counts only in the sum of all traffic.
    if not one.operation.endswith("-start"):
        body.compute += max(multiplying, moving)
    if moved_bytes:
        of_one = Moved(count=1, bytes=moved_bytes, seconds=moving if moving > multiplying else 0.0)
        body.inner += Totals(moved={place(module, one, multiplies=products > 0): of_one})
    if not is_counted(one):
        body.inner += Totals(notes=(f"FLOPs of the kernel {one.name} are unknown: counted as 0",))


def collectives(
    module: Module, computation: Computation, one: Instruction
) -> list[tuple[Computation, Instruction, bool]]:
    """The collectives that an instruction is or contains, each with its computation and whether it overlaps with compute."""
    if is_collective(one):
        return [(computation, one, one.operation.endswith("-start"))]
    inner = [(body, part) for body in inside(module, one) for part in body.instructions if is_collective(part)]
    # A fusion of the collective alone, or of one with the slice of its sum, is waited for.
    chained = (
        one.operation.endswith("-start") or "async" in one.name or "chain_id" in "".join(p.attributes for _, p in inner)
    )
    return [(body, part, chained) for body, part in inner]


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """The trip count of a loop: as the compiler states it, else by the bound in its condition; None if neither gives it."""
    stated = re.search(r'"?known_trip_count"?:?\s*=?\s*\{\s*"?n"?:\s*"?(\d+)', loop.attributes)
    if stated:
        return int(stated.group(1))
    (condition,) = module.called(loop, "condition")
    compare, sides = condition.root, condition.operands(condition.root)
    if compare.operation == "fusion":
        (body,) = module.called(compare, "calls")
        compare = body.root
        # The sides of a fused comparison are constants or parameters, which refer to the fusion's operands.
        parts = body.operands(compare)
        sides = [sides[int(part.argument)] if part.operation == "parameter" else part for part in parts]
    # `scan` and `fori_loop` count up by one until a bound; any other loop may depend on the data.
    if compare.operation != "compare" or compare.attribute("direction") != "LT" or len(sides) != 2:
        return None
    start, end = (_constant(computation, loop, condition, side) for side in sides)
    return None if end is None or start is None else max(0, end - start)


def _constant(computation: Computation, loop: Instruction, condition: Computation, part: Instruction) -> int | None:
    """The initial number of a part of a loop's condition; None if it is not a constant."""
    # The loop's variables are one tuple: the bound is looked up where the tuple was built.
    part = _origin(condition, part)
    if part.operation == "get-tuple-element":
        given, index = computation.operands(loop)[0], int(part.attribute("index", r"(\d+)") or 0)
        if given.operation != "tuple":
            return None
        part = _origin(computation, computation.operands(given)[index])
    return int(part.argument) if part.operation == "constant" and re.fullmatch(r"-?\d+", part.argument) else None


def _origin(computation: Computation, part: Instruction) -> Instruction:
    """The instruction that a part is a copy of."""
    while part.operation in ("copy", "convert", "bitcast", "copy-done", "copy-start") and part.operands:
        part = computation.by_name[part.operands[0]]
    return part
