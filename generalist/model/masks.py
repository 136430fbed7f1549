"""Which positions see which: one function for packed rows and for caches, from what each position is.

Dimension key: B batch, L query positions, S key positions.
"""

from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Int


class Blocks(NamedTuple):
    """Blocks of queries and keys whose positions see each other in both directions; 0: no block."""

    query: Int[Array, "B L"]
    key: Int[Array, "B S"]
    whole: bool
    """Whether a window does not bound what positions of a block see of it."""


def visible(
    query_position: Int[Array, "#B L"],
    key_position: Int[Array, "#B S"],
    *,
    reach: Any = None,
    blocks: Blocks | None = None,
) -> Bool[Array, "#B L S"]:
    """Which keys are no later than a query, or of its block, and within its reach; segments are not compared.

    Args:
        reach: positions that a query looks back, its own included; None: all.
    """
    # Broadcast to (B, L, S): each query against each key.
    back = query_position[:, :, None] - key_position[:, None, :]
    near = True if reach is None else back < reach
    if blocks is None:
        return (back >= 0) & near
    block = (blocks.query[:, :, None] == blocks.key[:, None, :]) & (blocks.query[:, :, None] > 0)
    if blocks.whole:
        return ((back >= 0) & near) | block
    return ((back >= 0) | block) & near


def attention_mask(
    query_segment: Int[Array, "B L"],
    query_position: Int[Array, "B L"],
    key_segment: Int[Array, "B S"],
    key_position: Int[Array, "B S"],
    *,
    reach: Any = None,
    blocks: Blocks | None = None,
) -> Bool[Array, "B L S"]:
    """Causal within a segment, and in both directions within a block; segment 0 is padding, which no position sees.

    Two packed examples (segments 1 and 2) and one padding position; rows are queries, columns are keys. On the right the first
    example begins with a block of two positions, such as those of an image, or a prefix:

        segment   1 1 1 2 2 0         block   1 1 0 0 0 0
                1 x . . . . .               1 x x . . . .
                1 x x . . . .               1 x x . . . .
                1 x x x . . .               0 x x x . . .
                2 . . . x . .               0 . . . x . .
                2 . . . x x .               0 . . . x x .
                0 . . . . . .               0 . . . . . .

    Args:
        reach: as in `visible`.
    """
    same = query_segment[:, :, None] == key_segment[:, None, :]
    seen = visible(query_position, key_position, reach=reach, blocks=blocks)
    return same & seen & (key_segment[:, None, :] > 0)
