"""Compiled loops in which every choice is fed back before the next: the numbers of an action, the ids of a text.

One call of a loop takes the place of one call per choice. The caches are written in place, as in `extend`.

Dimension key: B rows, L positions of a step, S cache slots, A numbers of an action, V vocabulary, T ids of a text, E ends.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

from generalist.data.batch import Batch
from generalist.inference.decode import extend
from generalist.inference.sampling import Drawing, choose
from generalist.inference.structure import Structure, compiled
from generalist.model.attention import Cache, Slide
from generalist.model.visual import ImageCache


@compiled(static_argnames=("structure", "sample", "numbers"), donate_argnames=("caches",))
def act_in_turn(
    structure: Structure,
    params: Any,
    caches: list[Cache],
    cache_segment: Int[Array, "B S"],
    cache_position: Int[Array, "B S"],
    start: Int[Array, ""] | Int[Array, "B"],
    batch: Batch,
    images: ImageCache | None,
    allowed: Bool[Array, "B A V"],
    action: Batch,
    fed: Int[Array, "B A"] | None,
    *,
    slide: Slide | None = None,
    sample: bool = False,
    temperature: Float[Array, ""] | float = 0.0,
    draws: UInt[Array, "B 2"] | None = None,
    numbers: tuple[int, int] = (0, 0),
) -> tuple[Int[Array, "B A"], Float[Array, "B A V"], list[Cache]]:
    """Appends a step at slot `start`, chooses the first number of an action at its last position, and every other one at the
    position of the one before it. The last number is not appended. Arguments and results as in `extend`, and:

    Args:
        cache_segment, cache_position: with all positions of the step and the action entered; those that are not yet written come
            later than what attends, so they are not seen.
        action: the position of the action's first number in each row, (B, 1); its token is replaced.
        fed: what is fed back; None: what is chosen.
    """
    length, dimensions = batch.tokens.shape[1], allowed.shape[1]

    def at(caches: list[Cache], slot: Int[Array, "*B"], new: Batch, allowed: Bool[Array, "B 1 V"], number: Any):
        # The second of the numbers that determine a draw counts positions.
        drawn = None if draws is None else draws + jnp.stack([jnp.uint32(0), jnp.uint32(number)])[None]
        return extend(
            *(structure, params, caches, cache_segment, cache_position, slot, new, images, allowed),
            slide=slide,
            sample=sample,
            temperature=temperature,
            draws=drawn,
            numbers=numbers,
        )

    def following(carry, of_number):
        caches, before = carry
        number, allowed, given = of_number
        token = before if given is None else given[:, None]
        new = dataclasses.replace(action, tokens=token, position=action.position + number)
        ids, logits, caches = at(caches, start + length + number, new, allowed[:, None], number + 1)
        return (caches, ids), (ids[:, 0], logits[:, 0])

    ids, logits, caches = at(caches, start, batch, allowed[:, :1], 0)
    others = (jnp.arange(dimensions - 1), allowed[:, 1:].swapaxes(0, 1), None if fed is None else fed[:, :-1].T)
    (caches, _), (later_ids, later_logits) = jax.lax.scan(following, (caches, ids), others)
    return (
        jnp.concatenate([ids, later_ids.T], axis=1),
        jnp.concatenate([logits, later_logits.swapaxes(0, 1)], axis=1),
        caches,
    )


@compiled(static_argnames=("structure", "most"), donate_argnames=("caches",))
def write_in_turn(
    structure: Structure,
    params: Any,
    caches: list[Cache],
    cache_segment: Int[Array, "B S"],
    cache_position: Int[Array, "B S"],
    start: Int[Array, ""],
    position: Batch,
    images: ImageCache | None,
    allowed: Bool[Array, "V"],
    ids: Int[Array, "B"],
    over: Bool[Array, "B"],
    ends: Int[Array, "E"],
    step: Int[Array, ""],
    count: Int[Array, ""],
    drawing: Drawing | None,
    most: int,
) -> tuple[Int[Array, "B T"], Int[Array, ""], list[Cache]]:
    """Appends the last id of each row at slot `start`, chooses the next, and so on, until `count` are chosen or all rows are
    over.

    Args:
        cache_segment, cache_position: with `count` new positions entered, as in `act_in_turn`.
        position: the first new position of each row, (B, 1); its token is replaced.
        over: rows whose text has ended; what is chosen there has no meaning.
        ends: ids that end a text.
        step: number within the text of the first id that is chosen.
        drawing: how ids are drawn; None: the likeliest are taken.
        most: T, at least `count`.

    Returns:
        The ids, how many of each row were chosen, and the caches.
    """

    def going_on(carry):
        number, _, over, _, _ = carry
        return (number < count) & ~over.all()

    def following(carry):
        number, ids, over, written, caches = carry
        new = dataclasses.replace(position, tokens=ids[:, None], position=position.position + number)
        _, logits, caches = extend(
            *(structure, params, caches, cache_segment, cache_position, start + number, new, images),
            allowed[None, None],
        )
        ids = choose(logits[:, 0], allowed, drawing, step + number)
        over = over | (ids[:, None] == ends[None]).any(axis=1)
        return number + 1, ids, over, jax.lax.dynamic_update_slice(written, ids[:, None], (0, number)), caches

    written = jnp.zeros((len(ids), most), jnp.int32)
    number, _, _, written, caches = jax.lax.while_loop(going_on, following, (jnp.int32(0), ids, over, written, caches))
    return written, number, caches
