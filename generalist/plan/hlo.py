"""The compiler's optimised program (HLO text) as data: computations, their instructions, shapes and attributes.

Only what counting needs is parsed. Text is the one form that every backend provides and that needs no protocol buffers.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from functools import cached_property

BYTES = {
    **dict.fromkeys(("pred", "s8", "u8"), 1.0),
    **dict.fromkeys(("bf16", "f16", "s16", "u16"), 2.0),
    **dict.fromkeys(("f32", "s32", "u32"), 4.0),
    **dict.fromkeys(("f64", "s64", "u64", "c64"), 8.0),
    **dict.fromkeys(("s4", "u4", "f4e2m1fn"), 0.5),
    **dict.fromkeys(("s2", "u2"), 0.25),
    "c128": 16.0,
}
# bf16[8,128]{1,0:T(8,128)S(1)}: dtype, dimensions, and a layout that may name the memory space.
_ARRAY = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,<=]*)\](\{[^{}]*\})?")
# ENTRY %main.5 (p0: f32[2], p1: f32[]) -> f32[2] {
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
#   ROOT %add.3 = f32[2]{0} add(%p0, %broadcast.1), metadata={...}
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_COMMENT = re.compile(r"/\*.*?\*/")
_NAME = re.compile(r"%([\w.\-]+)")
_SPACE = re.compile(r"S\((\d+)\)")


@dataclasses.dataclass(frozen=True)
class ArrayShape:
    """One array: its dtype, dimensions, memory space (0: HBM; 1: the chip's own, on a TPU), and how many times larger it is in
    memory, where the tiles that it is laid out in are padded."""

    dtype: str
    dims: tuple[int, ...]
    space: int = 0
    padding: float = 1.0

    @property
    def bytes(self) -> float:
        """Bytes without the padding of tiles."""
        # All 8-bit floats begin with f8. Tokens and opaque types have no bytes.
        return BYTES.get(self.dtype, 1.0 if self.dtype.startswith("f8") else 0.0) * math.prod(self.dims)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One operation: its results, operands and the rest of its line."""

    name: str
    shapes: tuple[ArrayShape, ...]
    """Shapes of the results: one, or those of a tuple, flattened."""
    operation: str
    operands: tuple[str, ...]
    argument: str
    """The text in the parentheses: a parameter's number, a constant's value."""
    attributes: str
    root: bool

    def attribute(self, name: str, pattern: str = r"%?([\w.\-]+)") -> str | None:
        """The value of `name=` that matches the pattern; None if it is missing."""
        found = re.search(rf"\b{name}={pattern}", self.attributes)
        return found.group(1) if found else None

    def sizes(self, name: str) -> tuple[int, ...]:
        """A list of numbers such as `lhs_contracting_dims={1,2}`."""
        found = self.attribute(name, r"\{([\d,]*)\}")
        return tuple(int(number) for number in found.split(",")) if found else ()

    @property
    def bytes(self) -> float:
        """Bytes of all results."""
        return sum(shape.bytes for shape in self.shapes)


@dataclasses.dataclass(frozen=True)
class Computation:
    """A named list of instructions, in the order in which they run."""

    name: str
    instructions: tuple[Instruction, ...]

    @cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {one.name: one for one in self.instructions}

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Name of an instruction → the instructions that read it."""
        found: dict[str, list[Instruction]] = {}
        for one in self.instructions:
            # Once per user, even if it reads the same operand twice.
            for operand in dict.fromkeys(one.operands):
                found.setdefault(operand, []).append(one)
        return found

    @cached_property
    def parameters(self) -> dict[int, Instruction]:
        return {int(one.argument): one for one in self.instructions if one.operation == "parameter"}

    @cached_property
    def root(self) -> Instruction:
        return next(one for one in self.instructions if one.root)

    def operands(self, one: Instruction) -> list[Instruction]:
        """The instructions that `one` reads, in order."""
        return [self.by_name[name] for name in one.operands if name in self.by_name]


@dataclasses.dataclass(frozen=True)
class Module:
    """A whole program."""

    computations: dict[str, Computation]
    entry: Computation
    lines: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The line of source, such as model/attend.py:120, by the `stack_frame_id` of an instruction."""

    def called(self, one: Instruction, *attributes: str) -> list[Computation]:
        """The computations that an instruction names in these attributes."""
        found = (one.attribute(name) for name in attributes)
        return [self.computations[name] for name in found if name in self.computations]

    def branches(self, one: Instruction) -> list[Computation]:
        """The computations that a conditional chooses from."""
        listed = one.attribute("branch_computations", r"\{([^}]*)\}")
        names = _NAME.findall(listed) if listed else []
        named = [self.computations[name] for name in names if name in self.computations]
        return named or self.called(one, "true_computation", "false_computation")


def parse(text: str) -> Module:
    """Parses the result of `compiled.as_text()`.

    Raises:
        ValueError: the text has no entry computation, so it is not HLO.
    """
    computations: dict[str, Computation] = {}
    entry = None
    name, begun = "", list[Instruction]()
    inside = False
    # One line per instruction, computations one after the other: no grammar is needed.
    for line in text.splitlines():
        if not inside:
            if head := _COMPUTATION.match(line):
                inside, name, begun = True, head.group(2), []
                entry = name if head.group(1) else entry
        elif line == "}" or line.startswith("}, execution_thread"):
            inside, computations[name] = False, Computation(name, tuple(begun))
        elif instruction := _instruction(line):
            begun.append(instruction)
        elif begun:  # attributes of a kernel continue over several lines
            begun[-1] = dataclasses.replace(begun[-1], attributes=begun[-1].attributes + line)
    if entry is None:
        raise ValueError("the compiled program's text has no entry computation")
    return Module(computations, computations[entry], _lines(text))


def _lines(text: str) -> dict[str, str]:
    """The line of source of each stack frame, from the tables before the first computation."""
    # A frame has a location, which has a number of a file and a line; the file's name stands in a table of its own.
    head = text[: text.find(") -> ")]
    files = dict(re.findall(r'^(\d+) "([^"]*\.py)"$', head, re.MULTILINE))
    located = re.findall(r"^(\d+) \{file_name_id=(\d+) .*?\bline=(\d+) ", head, re.MULTILINE)
    lines = {number: f"{_short(files.get(file, ''))}:{line}" for number, file, line in located}
    frames = re.findall(r"^(\d+) \{file_location_id=(\d+)", head, re.MULTILINE)
    return {number: lines[location] for number, location in frames if location in lines}


def _short(path: str) -> str:
    """The last folder and the name of a file."""
    return "/".join(path.split("/")[-2:])


def _instruction(line: str) -> Instruction | None:
    """The instruction of a line, `%name = shape operation(operands), attributes`; None for other lines."""
    found = _INSTRUCTION.match(line)
    if not found:
        return None
    rest = _COMMENT.sub("", found.group(3))
    # Comments such as /*index=5*/ stand within long tuples.
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    argument = rest[opening + 1 : closing - 1]
    return Instruction(
        name=found.group(2),
        shapes=tuple(_shapes(shape)),
        operation=rest[:opening],
        operands=tuple(_NAME.findall(argument)),
        argument=argument,
        attributes=rest[closing:],
        root=bool(found.group(1)),
    )


def _closing(text: str, opening: int) -> int:
    """The position after the parenthesis that closes the one at `opening`."""
    depth = 0
    for place in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place + 1
    raise ValueError(f"the compiled program's text has an unclosed parenthesis: {text[:80]}")


def _shapes(text: str) -> Iterator[ArrayShape]:
    """The arrays of a shape, tuples flattened; bounds of dynamic sizes (`<=8`) count as sizes."""
    for dtype, dims, layout in _ARRAY.findall(text):
        space = _SPACE.search(layout)
        sizes = tuple(int(size.lstrip("<=")) for size in dims.split(",") if size)
        yield ArrayShape(dtype, sizes, int(space.group(1)) if space else 0, _padding(sizes, layout))


def _padding(sizes: tuple[int, ...], layout: str) -> float:
    """The size in memory of an array with a layout such as {2,1,0:T(8,128)(2,1)}, as a multiple of its size without padding."""
    # Dimensions from the one whose elements are neighbours; the tile's sizes are of the first of these, the last one first.
    found = re.match(r"\{([\d,]+):T\(([\d,]+)\)", layout)
    if not found:
        return 1.0
    order, tile = ([int(number) for number in part.split(",")] for part in found.groups())
    pairs = zip(order, reversed(tile), strict=False)
    return math.prod(-(-sizes[dim] // size) * size / sizes[dim] for dim, size in pairs if sizes[dim])
