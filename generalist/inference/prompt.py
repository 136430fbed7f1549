"""Prompts: documents of images and text that the model reads and writes on, one or many, after shots that all of them share.

    bos  <image> tomi chunk_end  <image> zuka chunk_end   |   chunk_end? <image> ...
    `read` once, kept as keys and values                  |   each query goes on from there, in a row of its own

Dimension key: B rows, V vocabulary, K beams.
"""

import dataclasses
from collections.abc import Iterator
from collections.abc import Sequence as Sequences
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt

from generalist.data.batch import Batch
from generalist.data.files import is_file
from generalist.data.images import ENDINGS, read_image
from generalist.inference.decode import CachedRows, confine
from generalist.inference.policy import ControlPolicy
from generalist.inference.rows import bucket, pad_payloads, shift_right, stack_rows, tail
from generalist.inference.weights import Weights
from generalist.model.blocked_attention import MASKED
from generalist.tokenizers.pieces import Sequence
from generalist.tokenizers.sequence import ChunkEnd, Values


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """How text is written."""

    tokens: int = 32
    """Ids at most."""
    temperature: float = 0.0
    """0 takes the likeliest; else ids are drawn from the distribution at this temperature."""
    top_k: int = 0
    """Draws only from so many of the likeliest; 0: from all."""
    top_p: float = 1.0
    """Draws only from the fewest likeliest that together have this probability (Holtzman et al., 2020)."""
    beams: int = 1
    """Beam search over so many texts, the best by mean log-likelihood an id (Wu et al., 2016, with α = 1); 1: none."""
    stop: Sequences[str] = ()
    """Writing ends before any of these."""
    seed: int = 0
    """Decides, with the number of the row, what is drawn."""

    def __post_init__(self) -> None:
        for name, least in (("tokens", 1), ("temperature", 0), ("top_k", 0), ("beams", 1)):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.beams > 1 and self.temperature > 0:
            raise ValueError("beam search looks for the likeliest text: leave out either beams or temperature")
        if not self.temperature and (self.top_k or self.top_p < 1):
            raise ValueError("top_k and top_p are for drawing: set temperature above 0")
        if isinstance(self.stop, str) or not all(self.stop):
            raise ValueError("stop must be a sequence of texts that are not empty")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgentPrompt:
    """What an agent is told and shown, at the first step of an episode."""

    layout: str
    """Of the task (`Task.layout`)."""
    observation: Any
    """A value of the observation space."""
    instruction: str = ""
    demonstrations: Sequences[tuple[Values, Values]] = ()
    """Observations and actions of other episodes, stacked by the layout's spaces (`SpaceTokenizer.stack`)."""
    seed: int = 0
    """Decides what is drawn, where the suite draws actions."""


class Reading:
    """Parts of prompts that were read once; continuations share their keys and values.

    Raises:
        ValueError, DocumentError: as `check_parts`.
    """

    def __init__(self, generalist: Weights, parts: Sequences[Any]):
        checked = check_parts(parts)
        sequence = generalist.assembler.document(checked, is_open=True)
        self.length = len(sequence)
        check_room(generalist, self.length)
        images = [number for number, part in enumerate(checked) if isinstance(part, np.ndarray)]
        # What goes on looks back at the open chunk alone: its end, and the image that it belongs to.
        self._open = checked[images[-1] :] if images else checked
        self._open_length = len(generalist.assembler.document(self._open, is_open=True))
        self._generalist = generalist
        batch = _rows(generalist, [sequence], 16)
        self.rows = CachedRows(generalist, 1, batch.tokens.shape[1], images=batch.row_images.shape[1])
        self.rows.append(batch, writable(generalist))

    def continued(self, parts: Sequences[Any]) -> Sequence:
        """What stands behind these parts when others follow."""
        whole = self._generalist.assembler.document([*self._open, *parts], is_open=True)
        return tail(whole, self._open_length, self._generalist.config.model.frame_tokens)


def check_parts(parts: Any) -> list[Any]:
    """The parts with image files read.

    Raises:
        ValueError: there is none, or one is neither an image nor text, or text where a path is meant; names it.
        DocumentError: an image file can't be read.
    """
    if isinstance(parts, (str, Path, np.ndarray)) or not len(parts):
        raise ValueError(f"a prompt is a list of images and texts with at least one of them, got {parts!r:.80}")
    checked: list[Any] = []
    for number, part in enumerate(parts, 1):
        if isinstance(part, Path):
            part = read_image(part)
        elif isinstance(part, np.ndarray):
            if part.dtype != np.uint8 or part.ndim not in (2, 3) or not part.size:
                raise ValueError(
                    f"part {number} of the prompt is an array {part.dtype} {part.shape}, but images are uint8 (H, W) or (H, W, C)"
                )
        elif isinstance(part, str) and part.lower().endswith(ENDINGS) and is_file(part):
            raise ValueError(
                f"part {number} of the prompt is the text {part!r:.80}, but also an image: give Path({part!r:.80})"
            )
        elif not isinstance(part, (str, ChunkEnd)):
            raise ValueError(
                f"part {number} of the prompt is a {type(part).__name__}: give images (arrays, or paths) and texts"
            )
        checked.append(part)
    return checked


def context(generalist: Weights) -> int:
    """Positions that a prompt and what is written have together: those of a row in training."""
    return generalist.config.data.length


def check_room(generalist: Weights, length: int) -> None:
    """Whether anything can be written after so many positions.

    Raises:
        ValueError: the prompt is too long.
    """
    if length >= context(generalist):
        raise ValueError(
            f"the prompt takes {length} positions, but the model was trained on rows of {context(generalist)}: leave out shots, "
            "or shorten their texts"
        )


def writable(generalist: Weights) -> Bool[np.ndarray, "1 V"]:
    """Which ids text is made of, its ends included."""
    vocabulary = generalist.vocabulary
    allowed = np.zeros((1, vocabulary.size), bool)
    allowed[0, : generalist.tokenizers.text.size] = True
    allowed[0, [vocabulary.eos, vocabulary.chunk_end]] = True
    return allowed


def prompt(generalist: Weights, prompts: Sequences[Any], decoding: Decoding, after: Reading | None = None) -> list[str]:
    """What the model writes after each prompt, until it ends its chunk, a stop text comes, or the ids are used up. Writing also
    ends where the context does.

    Raises:
        ValueError, DocumentError: as `check_parts` and `check_room`, before anything is computed.
    """
    rows, logits, room = _begin(generalist, prompts, after, decoding.tokens)
    if decoding.beams > 1:
        return _beam_search(generalist, rows, logits, decoding, room)
    texts = [""] * len(prompts)
    for step in _write(generalist, rows, logits, decoding, room):
        texts = step
    return texts


def stream(generalist: Weights, parts: Any, decoding: Decoding, after: Reading | None = None) -> Iterator[str]:
    """The same text of one prompt, a piece at a time, each as soon as nothing can change it any more.

    Raises:
        ValueError: also if a beam search is asked for, which knows its text only in the end.
    """
    if decoding.beams > 1:
        raise ValueError("a beam search knows its text only in the end: stream with beams = 1")
    rows, logits, room = _begin(generalist, [parts], after, decoding.tokens)
    given = text = ""
    for (text,) in _write(generalist, rows, logits, decoding, room):
        sure = text[: len(text) - _unsure(text, decoding.stop)]
        if len(sure) > len(given):
            yield sure[len(given) :]
            given = sure
    if len(text) > len(given):
        yield text[len(given) :]


def rank(
    generalist: Weights,
    prompts: Sequences[Any],
    choices: Sequences[str] | Sequences[Sequences[str]],
    after: Reading | None = None,
) -> Float[np.ndarray, "B C"]:
    """Log-likelihood in nats of each choice, with the end of its chunk, after each prompt.

    Args:
        choices: the same for all prompts, or as many for each.

    Raises:
        ValueError: there is no choice, one is empty, or there is no room for one.
    """
    listed = [choices] * len(prompts) if choices and isinstance(choices[0], str) else list(choices)
    counts = {len(several) for several in listed}
    if isinstance(choices, str) or len(listed) != len(prompts) or len(counts) != 1 or not all(map(all, listed)):
        raise ValueError(f"choices must be texts that are not empty, as many for each prompt, got {choices!r:.80}")
    (count,) = counts
    ids = [generalist.tokenizers.text.encode(str(choice)) for several in listed for choice in several]
    if not ids:
        raise ValueError("choices must be texts that are not empty, got none")
    longest = max(map(len, ids))
    rows, logits, room = _begin(generalist, prompts, after, longest)
    if longest > room:
        raise ValueError(
            f"a choice has {longest} ids, but after the prompt the context of {context(generalist)} has room for {room}"
        )
    vocabulary, longest = generalist.vocabulary, min(bucket(longest, 4), room)
    first = np.repeat(np.asarray(jax.nn.log_softmax(logits)), count, axis=0)
    rows = rows.take(np.repeat(np.arange(len(prompts)), count), longest)
    steps = [generalist.assembler.text(one, bos=False, eos=False) for one in ids]
    _, read = rows.append(stack_rows(steps, longest, pad=vocabulary.pad), np.ones((longest, vocabulary.size), bool))
    later = np.asarray(jax.nn.log_softmax(read, axis=-1))
    scores = [
        first[row, one[0]] + later[row, np.arange(len(one)), np.append(one[1:], vocabulary.chunk_end)].sum()
        for row, one in enumerate(ids)
    ]
    return np.array(scores, np.float32).reshape(len(prompts), count)


def act(generalist: Weights, asked: AgentPrompt) -> Any:
    """The action that the model takes, a value of the task's action space.

    Raises:
        ValueError: the weights do not know the layout, or the prompt is too long.
    """
    policy = ControlPolicy(generalist, [asked.layout])
    layout = generalist.layouts[asked.layout]
    prefix = generalist.assembler.prefix(layout, asked.instruction, asked.demonstrations)
    check_room(generalist, len(prefix))
    policy.reset([0], [prefix], [asked.seed])
    return policy.act([asked.observation])[0]


def _begin(
    generalist: Weights, prompts: Sequences[Any], after: Reading | None, tokens: int
) -> tuple[CachedRows, Float[Array, "B V"], int]:
    """Reads the prompts: rows with room for what is written, the logits at their ends, and how many ids may be written."""
    if not prompts:
        raise ValueError("there is no prompt")
    checked = [check_parts(parts) for parts in prompts]
    if after is None:
        new = [generalist.assembler.document(parts, is_open=True) for parts in checked]
    else:
        new = [after.continued(parts) for parts in checked]
    longest = max(map(len, new)) + (0 if after is None else after.length)
    check_room(generalist, longest)
    room = min(tokens, context(generalist) - longest)
    batch = _rows(generalist, new, 8)
    slots, images = batch.tokens.shape[1] + room, batch.row_images.shape[1]
    if after is None:
        rows = CachedRows(generalist, len(prompts), slots, images=images)
    else:
        rows = after.rows.take(np.zeros((len(prompts),), np.int32), slots, images)
    _, logits = rows.append(batch, writable(generalist))
    return rows, logits[:, 0], room


def _rows(generalist: Weights, sequences: list[Sequence], step: int) -> Batch:
    """One a row, all ending at the same place; few lengths, few compilations."""
    length = bucket(max(map(len, sequences)), step)
    frame_tokens = generalist.config.model.frame_tokens
    batch = shift_right(stack_rows(sequences, length, pad=generalist.vocabulary.pad, frame_tokens=frame_tokens))
    padded = pad_payloads(batch, bucket(batch.row_images.shape[1], 4))
    return dataclasses.replace(padded, images=batch.images)  # those are padded when they are features


def _write(
    generalist: Weights, rows: CachedRows, logits: Float[Array, "B V"], decoding: Decoding, room: int
) -> Iterator[list[str]]:
    """The texts so far, after every step."""
    vocabulary, decode = generalist.vocabulary, generalist.tokenizers.text.decode
    allowed, ends = jnp.asarray(writable(generalist)[0]), (vocabulary.eos, vocabulary.chunk_end)
    count = logits.shape[0]
    written: list[list[int]] = [[] for _ in range(count)]
    texts, over = [""] * count, np.zeros((count,), bool)
    for step in range(room):
        ids = np.asarray(_choose(logits, allowed, decoding, step))
        for row in np.flatnonzero(~over):
            if ids[row] in ends:
                over[row] = True
                continue
            written[row].append(int(ids[row]))
            texts[row], over[row] = _until(decode(np.array(written[row], np.int32)), decoding.stop)
        yield list(texts)
        if over.all() or step == room - 1:
            return
        logits = _feed(generalist, rows, ids)


def _choose(logits: Float[Array, "B V"], allowed: Bool[Array, "V"], decoding: Decoding, step: int) -> Int[Array, "B"]:
    """The likeliest ids, or drawn ones."""
    if not decoding.temperature:
        return jnp.argmax(jnp.where(allowed, logits, MASKED), axis=-1)
    number = jnp.arange(len(logits), dtype=jnp.uint32)
    draws = jnp.stack([jnp.full_like(number, decoding.seed % 2**32), number, jnp.full_like(number, step)], axis=1)
    return draw(
        logits,
        allowed,
        jnp.float32(decoding.temperature),
        jnp.int32(decoding.top_k),
        jnp.float32(decoding.top_p),
        draws,
    )


@jax.jit
def draw(
    logits: Float[Array, "B V"],
    allowed: Bool[Array, "V"],
    temperature: Float[Array, ""],
    top_k: Int[Array, ""],
    top_p: Float[Array, ""],
    draws: UInt[Array, "B 3"],
) -> Int[Array, "B"]:
    """Ids drawn at a temperature from the `top_k` likeliest (0: all), and of those from the fewest likeliest whose probabilities
    add up to `top_p`.

    Args:
        draws: three numbers a row, which alone decide what is drawn in it.
    """
    scaled = confine(logits[:, None], allowed[None, None])[:, 0] / temperature
    ordered = jnp.sort(scaled, axis=-1, descending=True)
    place = jnp.arange(ordered.shape[-1])
    ordered = jnp.where((top_k == 0) | (place < top_k), ordered, -jnp.inf)
    before = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1) - jax.nn.softmax(ordered, axis=-1)
    least = jnp.min(jnp.where((before < top_p) & (ordered > MASKED / 2 / temperature), ordered, jnp.inf), axis=-1)

    def noise(numbers: UInt[Array, "3"]) -> Float[Array, "V"]:
        key = jax.random.key(numbers[0])
        key = jax.random.fold_in(jax.random.fold_in(key, numbers[1]), numbers[2])
        return jax.random.gumbel(key, logits.shape[1:])

    # The likeliest of logits with Gumbel noise is a draw from their softmax.
    noisy = jnp.where(scaled >= least[:, None], scaled + jax.vmap(noise)(draws), -jnp.inf)
    return jnp.argmax(noisy, axis=-1)


def _feed(generalist: Weights, rows: CachedRows, ids: Int[np.ndarray, "B"]) -> Float[Array, "B V"]:
    """The logits after one more id a row."""
    steps = [generalist.assembler.text(np.array([one], np.int32), bos=False, eos=False) for one in ids]
    _, logits = rows.append(stack_rows(steps, 1, pad=generalist.vocabulary.pad), writable(generalist))
    return logits[:, 0]


def _beam_search(
    generalist: Weights, rows: CachedRows, logits: Float[Array, "B V"], decoding: Decoding, room: int
) -> list[str]:
    """The best finished text of each row. A text is finished by an end, by a stop text, or where no more ids may be written."""
    vocabulary, decode = generalist.vocabulary, generalist.tokenizers.text.decode
    allowed, beams, count = writable(generalist)[0], decoding.beams, len(logits)
    rows = rows.take(np.repeat(np.arange(count), beams))
    logits = jnp.repeat(logits, beams, axis=0)
    scores = np.full((count, beams), -np.inf)
    scores[:, 0] = 0.0  # at first all beams of a row are the same
    written: list[list[list[int]]] = [[[] for _ in range(beams)] for _ in range(count)]
    finished: list[list[tuple[float, str]]] = [[] for _ in range(count)]
    for step in range(room):
        ahead = np.asarray(jax.nn.log_softmax(jnp.where(jnp.asarray(allowed), logits, MASKED), axis=-1), np.float64)
        total = (scores[..., None] + ahead.reshape(count, beams, -1)).reshape(count, -1)
        origin, ids = np.zeros((count, beams), np.int64), np.full((count, beams), vocabulary.eos, np.int64)
        grown: list[list[list[int]]] = [[[] for _ in range(beams)] for _ in range(count)]
        for row in range(count):
            # Twice as many as there are beams: even if all beams end, as many go on.
            best, filled = np.argsort(-total[row], kind="stable")[: 2 * beams], 0
            old, scores[row] = scores[row].copy(), -np.inf
            done = len(finished[row]) >= beams
            for place, one in enumerate(best):
                beam, id = divmod(int(one), len(allowed))
                value = float(total[row, one])
                if done or filled == beams or not np.isfinite(value) or not np.isfinite(old[beam]):
                    continue
                ids_so_far = [*written[row][beam], id]
                if id in (vocabulary.eos, vocabulary.chunk_end):
                    if place < beams:  # an end that is worse than as many goings-on is no candidate
                        finished[row].append((value / len(ids_so_far), decode(np.array(ids_so_far[:-1], np.int32))))
                    continue
                text, stopped = _until(decode(np.array(ids_so_far, np.int32)), decoding.stop)
                if stopped or step == room - 1:
                    finished[row].append((value / len(ids_so_far), text))
                    continue
                scores[row, filled], origin[row, filled], ids[row, filled] = value, beam, id
                grown[row][filled] = ids_so_far
                filled += 1
        written = grown
        if all(len(one) >= beams or not np.isfinite(row).any() for one, row in zip(finished, scores, strict=True)):
            break
        rows = rows.take((origin + np.arange(count)[:, None] * beams).reshape(-1))
        logits = _feed(generalist, rows, ids.reshape(-1))
    return [max(several, key=lambda one: one[0])[1] for several in finished]


def _until(text: str, stop: Sequences[str]) -> tuple[str, bool]:
    """The text before the first stop text, and whether there is one."""
    places = [place for one in stop if (place := text.find(one)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def _unsure(text: str, stop: Sequences[str]) -> int:
    """How many characters at the end may still change: an unfinished character, or the beginning of a stop text."""
    unfinished = len(text) - len(text.rstrip("\ufffd"))
    begun = [size for one in stop for size in range(1, len(one)) if text.endswith(one[:size])]
    return max([unfinished, *begun])
