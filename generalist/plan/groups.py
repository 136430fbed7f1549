"""Exchanges between devices: kind, group, bytes, and time on a torus of links."""

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from generalist.plan.hlo import Computation, Instruction, Module
from generalist.plan.target import Slice


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exchange:
    """One collective, from the view of one device."""

    kind: str
    bytes: float
    """Bytes of the larger side, input or output."""
    group: tuple[int, ...]
    """Partitions of one of its groups; empty: all partitions."""


def exchange(module: Module, computation: Computation, one: Instruction) -> Exchange:
    """The exchange that a collective performs."""
    kind = one.operation.removesuffix("-start")
    given = sum(operand.bytes for operand in computation.operands(one))
    # A started collective returns its operands together with its results.
    result = one.bytes - given if one.operation.endswith("-start") and len(one.shapes) > 1 else one.bytes
    if kind == "all-reduce" and _is_scattered(computation, one):
        kind = "reduce-scatter"
    return Exchange(kind=kind, bytes=max(given, result), group=first_group(one.attributes))


def _is_scattered(computation: Computation, one: Instruction) -> bool:
    """A TPU's reduce-scatter is a fusion of an all-reduce and the slice that a device keeps."""
    users = computation.users.get(one.name, [])
    return computation.root is not one and bool(users) and all(user.operation == "dynamic-slice" for user in users)


def first_group(attributes: str) -> tuple[int, ...]:
    """The first of `replica_groups`, in any of its spellings: lists, a reshaped and transposed range, or axes of a mesh."""
    # All groups of a collective are of the same form, so the first one stands for all.
    # source_target_pairs={{0,1},{1,2}}: a permutation, of which each pair is a group.
    if found := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes):
        return tuple(map(int, found.groups()))
    # replica_groups={{0,1},{2,3}}
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return tuple(map(int, found.group(1).split(",")))
    # replica_groups=[4,2]<=[2,4]T(1,0): the numbers 0 to 7 as an array (2, 4), transposed, in 4 groups of 2.
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        sizes = [int(size) for size in found.group(3).split(",")]
        order = [int(axis) for axis in found.group(4).split(",")] if found.group(4) else list(range(len(sizes)))
        numbers = np.arange(math.prod(sizes)).reshape(sizes).transpose(order)
        # (groups, members)
        return tuple(numbers.reshape(int(found.group(1)), int(found.group(2)))[0].tolist())
    # replica_groups=mesh['data'=2,'fsdp'=4] {'fsdp'}: partitions that differ along fsdp only.
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*(?:\([^)]*\)\s*)?\{([^}]*)\}", attributes):
        axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", found.group(1))}
        return _mesh_group(axes, found.group(2))
    return ()


def _mesh_group(axes: dict[str, int], named: str) -> tuple[int, ...]:
    """The partitions that differ only along the named axes, or along parts of axes, written `'a':(2)4`: size 4, after a part
    of size 2."""
    # Partitions are numbered row-major over the axes.
    numbers = np.arange(math.prod(axes.values())).reshape(tuple(axes.values()))
    index: list[np.ndarray] = [np.zeros(1, int)] * len(axes)
    for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", named):
        place, whole = list(axes).index(name), axes[name]
        if size:
            # The axis as an array (before, size, inner), of which only the middle index varies.
            inner = whole // (int(before) * int(size))
            index[place] = np.unique(np.add.outer(index[place], np.arange(int(size)) * inner))
        else:
            index[place] = np.arange(whole)
    # Axes that are not named keep the index 0, which picks the first group.
    return tuple(numbers[np.ix_(*index)].reshape(-1).tolist())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Torus:
    """The place of each partition in a slice, and the time that an exchange takes there.

    Along each side that a group spans, a chip has two links if the group has the whole side and it closes to a ring, otherwise
    one (the ends of a line have only one). With B the bandwidth of these links in one direction, n the devices of a group and V
    the larger side of the exchange:

        all-gather, reduce-scatter   V (n - 1)/n / B       every chip receives what the others hold
        all-reduce                   twice that            a reduce-scatter and an all-gather
        all-to-all                   V side / 8 links      half of the data crosses the middle of the longest side
        collective-permute           V / one link          to a neighbour
    """

    slice: Slice
    places: Sequence[tuple[int, ...]]
    """Coordinates of each partition's chip."""

    def seconds(self, one: Exchange) -> float:
        """Seconds of an exchange, without its latency."""
        group = one.group or tuple(range(len(self.places)))
        if len(group) < 2 or not one.bytes:
            return 0.0
        link, wraps = self.slice.chip.link, self.slice.chip.wraps
        # One tuple per side, with the coordinates of all members.
        # Only sides along which the members differ carry traffic.
        sides = list(zip(*(self.places[number] for number in group), strict=True))
        spanned = [index for index, side in enumerate(sides) if len(set(side)) > 1]
        # Only a whole side closes to a ring; a group on a part of it has a line.
        whole = {index for index in spanned if len(set(sides[index])) == self.slice.shape[index]}
        links = {index: 2 if index in whole and self.slice.shape[index] % wraps == 0 else 1 for index in spanned}
        if one.kind == "collective-permute" or not spanned:
            return one.bytes / link
        # Sides work at the same time, so the slowest one decides.
        if one.kind.endswith("all-to-all"):
            return max(one.bytes * len(set(sides[index])) / (4 * links[index] * link) for index in spanned)
        share = one.bytes * (len(group) - 1) / len(group) / (link * sum(links.values()))
        return 2 * share if one.kind == "all-reduce" else share
