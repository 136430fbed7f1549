"""Writing text id by id, row by row, and beam search.

Dimension key: B rows, K beams per row, V vocabulary.
"""

from collections.abc import Iterator
from collections.abc import Sequence as Sequences

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from generalist.inference.cached_rows import CachedRows
from generalist.inference.rows import stack_rows
from generalist.inference.sampling import Decoding, Drawing, choose
from generalist.inference.weights import Weights
from generalist.model.blocked_attention import MASKED
from generalist.tokenizers.pieces import Sequence

AT_ONCE = 8
"""Ids per call of the compiled loop. After a stop text, which only the host sees, the rest of them are computed in vain."""


def writable(generalist: Weights) -> Bool[np.ndarray, "1 V"]:
    """Ids that text is made of, including its ends and places in images."""
    marks = generalist.assembler.marks
    allowed = np.zeros((1, generalist.vocabulary.size), bool)
    allowed[0, : marks.pieces] = True
    allowed[0, list(marks.ends)] = True
    allowed[0, list(marks.silent)] = False  # last: a published model may never end its text
    allowed[0, list(generalist.vocabulary.range("locations"))] = True
    return allowed


def write(
    generalist: Weights,
    rows: CachedRows,
    logits: Float[Array, "B V"],
    decoding: Decoding,
    room: int,
    at_once: int = AT_ONCE,
) -> Iterator[list[str]]:
    """Writes in all rows until each has ended; gives the texts so far, after every step.

    Args:
        rows: what was read, with at least `room` free slots.
        logits: at the end of each row.
        room: maximum number of ids.
        at_once: ids per row that are computed before the first of them is given.
    """
    vocabulary, decode, drawing = generalist.vocabulary, generalist.assembler.written, Drawing.of(decoding)
    allowed, ends = jnp.asarray(writable(generalist)[0]), np.array(generalist.assembler.marks.ends, np.int32)
    count = logits.shape[0]
    written: list[list[int]] = [[] for _ in range(count)]
    texts, over, step = [""] * count, np.zeros((count,), bool), 0
    chosen = np.asarray(choose(logits, allowed, drawing, np.int32(0)))[:, None]
    while True:
        for ids in chosen.T:
            # Rows that are over keep being fed, since all rows grow together; what they write is ignored.
            for row in np.flatnonzero(~over):
                if ids[row] in ends:
                    over[row] = True
                    continue
                # Decoded as a whole each time: a piece's text may depend on the pieces before it.
                written[row].append(int(ids[row]))
                texts[row], over[row] = until(decode(np.array(written[row], np.int32)), decoding.stop)
            step += 1
            # A copy: the caller may keep it while later steps go on.
            yield list(texts)
            if over.all() or step == room:
                return
        position = stack_rows([_one(generalist, vocabulary.pad)] * count, 1, pad=vocabulary.pad)
        more = min(at_once, room - step)
        chosen = rows.write(position, chosen[:, -1], over, more, allowed, ends, step, drawing, most=at_once)


def _one(generalist: Weights, id: int) -> Sequence:
    """One id of a text, to be appended."""
    return generalist.assembler.text(np.array([id], np.int32), bos=False, eos=False)


def feed(generalist: Weights, rows: CachedRows, ids: Int[np.ndarray, "B"]) -> Float[Array, "B V"]:
    """Appends one id per row and returns the logits after it."""
    # One position per row: the shape that all later steps share, so it is compiled once.
    steps = [_one(generalist, int(one)) for one in ids]
    _, logits = rows.append(stack_rows(steps, 1, pad=generalist.vocabulary.pad), writable(generalist))
    return logits[:, 0]


def beam_search(
    generalist: Weights, rows: CachedRows, logits: Float[Array, "B V"], decoding: Decoding, room: int
) -> list[str]:
    """The best finished text of each row. A text is finished by an end token, by a stop text, or when `room` is used up.

    Args:
        rows: what was read, with at least `room` free slots.
        logits: at the end of each row.
        room: maximum number of ids.
    """
    ends, decode = generalist.assembler.marks.ends, generalist.assembler.written
    allowed, beams, count = writable(generalist)[0], decoding.beams, len(logits)
    rows = rows.take(np.repeat(np.arange(count), beams))
    logits = jnp.repeat(logits, beams, axis=0)  # (B * K, V)
    scores = np.full((count, beams), -np.inf)
    scores[:, 0] = 0.0  # all beams of a row begin equal: only the first one counts
    written: list[list[list[int]]] = [[[] for _ in range(beams)] for _ in range(count)]
    finished: list[list[tuple[float, str]]] = [[] for _ in range(count)]
    for step in range(room):
        # Sums in float64: in float32 the order of nearly equal beams would depend on their length.
        ahead = np.asarray(jax.nn.log_softmax(jnp.where(jnp.asarray(allowed), logits, MASKED), axis=-1), np.float64)
        total = (scores[..., None] + ahead.reshape(count, beams, -1)).reshape(count, -1)  # (B, K * V)
        origin, ids = np.zeros((count, beams), np.int64), np.full((count, beams), generalist.vocabulary.pad, np.int64)
        grown: list[list[list[int]]] = [[[] for _ in range(beams)] for _ in range(count)]
        for row in range(count):
            # Twice the number of beams: even if the best ones all end, enough candidates remain to continue.
            best, filled = np.argsort(-total[row], kind="stable")[: 2 * beams], 0
            old, scores[row] = scores[row].copy(), -np.inf
            done = len(finished[row]) >= beams
            # `filled` counts the beams that continue; ended ones free their place for the next best.
            for place, one in enumerate(best):
                beam, id = divmod(int(one), len(allowed))
                value = float(total[row, one])
                if done or filled == beams or not np.isfinite(value) or not np.isfinite(old[beam]):
                    continue
                ids_so_far = [*written[row][beam], id]
                if id in ends:
                    # A finished beam counts only if it ranks in the top K.
                    if place < beams:
                        finished[row].append((value / len(ids_so_far), decode(np.array(ids_so_far[:-1], np.int32))))
                    continue
                text, stopped = until(decode(np.array(ids_so_far, np.int32)), decoding.stop)
                if stopped or step == room - 1:
                    finished[row].append((value / len(ids_so_far), text))
                    continue
                scores[row, filled], origin[row, filled], ids[row, filled] = value, beam, id
                grown[row][filled] = ids_so_far
                filled += 1
        written = grown
        # Done when every row has K finished texts, or no beam that could continue.
        if all(len(one) >= beams or not np.isfinite(row).any() for one, row in zip(finished, scores, strict=True)):
            break
        # Every beam continues from the cache of the one that it grew out of.
        rows = rows.take((origin + np.arange(count)[:, None] * beams).reshape(-1))
        logits = feed(generalist, rows, ids.reshape(-1))
    # Scores are means per id, so that longer texts are not at a disadvantage.
    return [max(several, key=lambda one: one[0])[1] for several in finished]


def until(text: str, stop: Sequences[str]) -> tuple[str, bool]:
    """The text before the first stop text, and whether there is one."""
    places = [place for one in stop if (place := text.find(one)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def unsure(text: str, stop: Sequences[str]) -> int:
    """Number of characters at the end that may still change: an incomplete character, or the beginning of a stop text."""
    # Byte pieces of an incomplete character decode to U+FFFD until the last byte arrives.
    unfinished = len(text) - len(text.rstrip("\ufffd"))
    begun = [size for one in stop for size in range(1, len(one)) if text.endswith(one[:size])]
    return max([unfinished, *begun])
