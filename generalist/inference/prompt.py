"""Prompts: documents of images and text that the model reads and continues, one or many, after shots that all of them share.

    bos  <image> tomi chunk_end  <image> zuka chunk_end   |   chunk_end? <image> ...
    `read` once, kept as keys and values                  |   each query continues from there, in its own row

Dimension key: B rows, C choices, V vocabulary, n ids of a choice.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Sequences
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Int32

from generalist.data.batch import Batch
from generalist.data.files import is_file
from generalist.data.images import ENDINGS, read_image
from generalist.inference.cached_rows import CachedRows
from generalist.inference.policy import ControlPolicy
from generalist.inference.rows import bucket, length_bucket, pad_payloads, shift_right, stack_rows, tail
from generalist.inference.sampling import Decoding
from generalist.inference.weights import Weights
from generalist.inference.writing import AT_ONCE, beam_search, unsure, writable, write
from generalist.tokenizers.documents import Controlled
from generalist.tokenizers.marks import ImageMarks
from generalist.tokenizers.pieces import Sequence
from generalist.tokenizers.sequence import ChunkEnd, Values
from generalist.weights.chat import chat_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgentPrompt:
    """What an agent is given at the first step of an episode."""

    layout: str
    """Name of the task's layout (`Task.layout`)."""
    observation: Any
    """A value of the observation space."""
    instruction: str = ""
    demonstrations: Sequences[tuple[Values, Values]] = ()
    """Observations and actions of other episodes, stacked by the layout's spaces (`SpaceTokenizer.stack`)."""
    seed: int = 0
    """Seed of the action, if the suite samples actions."""


class Reading:
    """Parts of prompts that were read once; continuations share their keys and values.

    Raises:
        ValueError, DocumentError: as `check_parts`.
    """

    def __init__(self, generalist: Weights, parts: Sequences[Any]):
        self.parts = checked = check_parts(parts)
        _check_places(generalist, checked)
        sequence = generalist.assembler.document(checked, is_open=True)
        self.length = len(sequence)
        check_room(generalist, self.length)
        self._generalist, self._written = generalist, generalist.assembler.marks.image
        if self.sees_all:
            return
        images = [number for number, part in enumerate(checked) if isinstance(part, np.ndarray)]  # places in the list
        # A continuation depends on the open chunk alone: its end, and the image that it belongs to.
        self._open = checked[images[-1] :] if images else checked
        self._open_length = len(generalist.assembler.document(self._open, is_open=True))
        batch = _rows(generalist, [sequence], 16)
        self.rows = CachedRows(generalist, 1, batch.tokens.shape[1], images=batch.row_images.shape[1])
        self.rows.append(batch, writable(generalist))

    @property
    def sees_all(self) -> bool:
        """Whether these parts see what continues them, so that they are read anew with each continuation (PaliGemma)."""
        return self._written is not None and self._written.blocks == "prompt"

    def continued(self, parts: Sequences[Any]) -> Sequence:
        """The sequence that follows these parts when `parts` are added to them."""
        if self._written is not None:
            return _unbegun(self._generalist).assembler.document(parts, is_open=True)
        # Assembled together with the open chunk, since the first new part may end it; then that chunk is cut off again.
        whole = self._generalist.assembler.document([*self._open, *parts], is_open=True)
        return tail(whole, self._open_length, self._generalist.config.model.frame_tokens)


def check_parts(parts: Any) -> list[Any]:
    """The parts with image files read.

    Raises:
        ValueError: there are no parts, or one is neither an image nor text (or its ids), or is text that names an image file.
        DocumentError: an image file cannot be read.
    """
    if isinstance(parts, (str, Path, np.ndarray)) or not len(parts):
        raise ValueError(f"a prompt is a list of images and texts with at least one of them, got {parts!r:.80}")
    checked: list[Any] = []
    for number, part in enumerate(parts, 1):
        if isinstance(part, Path):
            part = read_image(part)
        elif isinstance(part, np.ndarray) and part.dtype == np.int32 and part.ndim == 1:
            pass  # ids of a text
        elif isinstance(part, np.ndarray):
            if part.dtype != np.uint8 or part.ndim not in (2, 3) or not part.size:
                raise ValueError(
                    f"part {number} of the prompt is an array {part.dtype} {part.shape}, but images are uint8 (H, W) or (H, W, C)"
                )
        elif isinstance(part, str) and part.lower().endswith(ENDINGS) and is_file(part):
            # Read as text, a forgotten Path would silently prompt the model with a file's name.
            raise ValueError(
                f"part {number} of the prompt is the text {part!r:.80}, but also names an image file: pass Path({part!r:.80})"
            )
        elif not isinstance(part, (str, ChunkEnd, Controlled)):
            raise ValueError(
                f"part {number} of the prompt is a {type(part).__name__}: pass images (arrays or paths) and texts"
            )
        checked.append(part)
    return checked


def _check_places(generalist: Weights, parts: Sequences[Any]) -> None:
    """Checks that the places in the texts have ids.

    Raises:
        ValueError: the weights have none for them.
    """
    for part in parts:
        if isinstance(part, str):
            generalist.assembler.check_places(part)


def context(generalist: Weights) -> int:
    """Maximum positions of a prompt together with its continuation: the length of a row in training."""
    return generalist.config.data.length


def check_room(generalist: Weights, length: int) -> None:
    """Checks that at least one id can be written after `length` positions.

    Raises:
        ValueError: the prompt is too long.
    """
    # Rotary angles beyond the longest training row were never trained.
    if length >= context(generalist):
        known = "was trained on rows" if generalist.tokenizers.published is None else "has a context"
        raise ValueError(
            f"the prompt takes {length} positions, but the model {known} of {context(generalist)}: leave out shots, or shorten "
            "their texts"
        )


def prompt(generalist: Weights, prompts: Sequences[Any], decoding: Decoding, after: Reading | None = None) -> list[str]:
    """The text that the model writes after each prompt, until it ends its chunk, a stop text occurs, or `decoding.tokens` or the
    context is used up.

    Raises:
        ValueError, DocumentError: as `check_parts` and `check_room`, before anything is computed.
    """
    decoding = _stopping(generalist, decoding, [part for parts in prompts for part in parts], after)
    # All prompts are checked here, before the first is computed.
    rows, logits, room = _begin(generalist, prompts, after, decoding.tokens)
    if decoding.beams > 1:
        return beam_search(generalist, rows, logits, decoding, room)
    texts = [""] * len(prompts)
    for step in write(generalist, rows, logits, decoding, room):
        texts = step
    return texts


def compile_ahead(generalist: Weights, longest: int, tokens: int, rows: int = 1) -> int:
    """Compiles what prompts of text need: reads and continues one of each length that is told apart (`length_bucket`).

    Args:
        longest: positions of the longest prompt.
        tokens: ids that will be asked for.
        rows: number of prompts at a time.

    Returns:
        How many lengths there are.

    Raises:
        ValueError: the context has no room for such a prompt.
    """
    check_room(generalist, longest)
    begun = len(generalist.assembler.document([_ids(1)], is_open=True)) - 1  # marks that begin every prompt
    lengths = sorted({length_bucket(length) for length in range(begun + 1, longest + 1)})
    # Streams, which are of one prompt, are written id by id.
    for length, at_once in itertools.product(lengths, (1, AT_ONCE) if rows == 1 else (AT_ONCE,)):
        parts = [_ids(min(length, longest) - begun)]
        cached, logits, room = _begin(generalist, [parts] * rows, None, tokens)
        for _ in itertools.islice(write(generalist, cached, logits, Decoding(tokens=tokens), room, at_once), 2):
            pass
    return len(lengths)


def _ids(count: int) -> Int[np.ndarray, "n"]:
    """A text of that many ids, of no meaning."""
    return np.zeros(count, np.int32)


def stream(generalist: Weights, parts: Any, decoding: Decoding, after: Reading | None = None) -> Iterator[str]:
    """The text that `prompt` returns for one prompt, piece by piece, each as soon as it can no longer change.

    Raises:
        ValueError: as `prompt`, and for beam search, whose text is known only at the end.
    """
    if decoding.beams > 1:
        raise ValueError("beam search cannot be streamed, since its text is known only at the end: set beams = 1")
    decoding = _stopping(generalist, decoding, parts, after)
    rows, logits, room = _begin(generalist, [parts], after, decoding.tokens)
    given = text = ""
    for (text,) in write(generalist, rows, logits, decoding, room, at_once=1):
        # A later id may complete a character or a stop text, so these characters are held back.
        sure = text[: len(text) - unsure(text, decoding.stop)]
        if len(sure) > len(given):
            yield sure[len(given) :]
            given = sure
    if len(text) > len(given):
        yield text[len(given) :]


def chat(generalist: Weights, messages: Sequences[Mapping[str, Any]], decoding: Decoding) -> Iterator[str]:
    """The answer to messages, as `stream` gives it.

    Raises:
        WeightsError, ValueError, DocumentError: as `Generalist.chat`.
    """
    parts, plain = chat_parts(generalist, messages)
    return stream(plain, parts, decoding)


def chat_parts(generalist: Weights, messages: Sequences[Mapping[str, Any]]) -> tuple[list[Any], Weights]:
    """The parts of a prompt that messages make by the chat template of a published language model, and its weights without marks
    of a beginning: the template has them itself, or has none.

    Raises:
        WeightsError, ValueError, DocumentError: as `Generalist.chat`.
    """
    tokenizers = generalist.tokenizers
    if tokenizers.published is None or tokenizers.folder is None:
        raise ValueError("only published language models have chat templates: prompt these weights instead")
    listed = [_message_parts(message) for message in messages]
    # A template would take them for its own, and whoever wrote a message could speak for someone else.
    for text in itertools.chain.from_iterable(_as_templates_join(parts) for parts in listed):
        if found := [one for one in tokenizers.text.controls() if one in text]:
            raise ValueError(f"a message has the control token {found[0]} in it: leave it out")
    images = [part for parts in listed for part in parts if not isinstance(part, str)]
    written = tokenizers.published.image
    if images and written is None:
        raise ValueError("these weights see no images in messages: leave them out")
    if written is not None:
        messages = [dict(one) | {"content": _typed(parts)} for one, parts in zip(messages, listed, strict=True)]
    text = chat_text(tokenizers.folder, messages)
    ids = tokenizers.text.with_controls(text)
    parts: list[Any] = [ids] if written is None else _with_images(text, images, written)
    ids = ids if written is None else ids[ids != written.id]  # features stand in its place, and not its row
    if len(ids) and ids.max() >= generalist.vocabulary.text:
        raise ValueError(f"the chat template has a control token (id {ids.max()}) for which the model has no row")
    # The template itself has the marks of the beginning, or has none.
    return parts, _unbegun(generalist)


def _message_parts(message: Mapping[str, Any]) -> list[Any]:
    """The texts and images of a message."""
    content = message.get("content")
    return check_parts(content) if isinstance(content, list) else [content] if isinstance(content, str) else []


def _as_templates_join(parts: list[Any]) -> list[str]:
    """A message's texts one after the other, as they are and without the spaces around each: halves of a control token in two
    of them would become one."""
    return ["".join(change(part) if isinstance(part, str) else "\n" for part in parts) for change in (str, str.strip)]


def _typed(parts: list[Any]) -> list[dict[str, str]]:
    """Texts and images as chat templates take them."""
    return [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts]


def _with_images(text: str, images: list[Any], written: ImageMarks) -> list[Any]:
    """The text of a chat template with the images at their places.

    Raises:
        ValueError: it has places for another number of images.
    """
    pieces = text.split(written.marker)
    if len(pieces) != len(images) + 1:
        raise ValueError(
            f"the chat template gives places to {len(pieces) - 1} images, but the messages have {len(images)}"
        )
    parts: list[Any] = [Controlled(pieces[0])]
    for image, piece in zip(images, pieces[1:], strict=True):
        parts += [image, Controlled(piece)]
    return parts


def _unbegun(generalist: Weights) -> Weights:
    """A published model whose documents begin without its marks of the beginning."""
    tokenizers = generalist.tokenizers
    assert tokenizers.published is not None
    plain = dataclasses.replace(tokenizers, published=dataclasses.replace(tokenizers.published, begin=()))
    return dataclasses.replace(generalist, tokenizers=plain)


def _stopping(generalist: Weights, decoding: Decoding, parts: Sequences[Any], after: Reading | None) -> Decoding:
    """The settings of writing. After shots a published model would write more: what stands between shots ends its text."""
    if after is None and not any(isinstance(part, ChunkEnd) for part in parts):
        return decoding
    return dataclasses.replace(decoding, stop=(*decoding.stop, *generalist.assembler.marks.stops))


def rank(
    generalist: Weights,
    prompts: Sequences[Any],
    choices: Sequences[str] | Sequences[Sequences[str]],
    after: Reading | None = None,
) -> Float[np.ndarray, "B C"]:
    """Log-likelihood in nats of each choice, including the end of its chunk, after each prompt.

    Args:
        choices: the same for all prompts, or one list per prompt, all of the same length.

    Raises:
        ValueError: there are no choices, one is empty, or one does not fit the context.
    """
    listed = [choices] * len(prompts) if choices and isinstance(choices[0], str) else list(choices)
    counts = {len(several) for several in listed}
    if isinstance(choices, str) or len(listed) != len(prompts) or len(counts) != 1 or not all(map(all, listed)):
        raise ValueError(f"choices must be non-empty texts, the same number for each prompt, got {choices!r:.80}")
    (count,) = counts
    # All choices after all prompts are rows of one batch, B · C of them.
    ids = [_choice(generalist, str(choice)) for several in listed for choice in several]
    if not ids:
        raise ValueError("choices must be non-empty texts, got none")
    longest = max(map(len, ids))
    rows, logits, room = _begin(generalist, prompts, after, longest)
    if longest > room:
        raise ValueError(
            f"a choice has {longest} ids, but the context of {context(generalist)} leaves {room} after the prompt: shorten either"
        )
    vocabulary, longest = generalist.vocabulary, min(bucket(longest, 4), room)
    # The first id of a choice is read off the prompt's last position, all later ones off the choice itself.
    first = np.repeat(np.asarray(jax.nn.log_softmax(logits)), count, axis=0)  # (B * C, V)
    rows = rows.take(np.repeat(np.arange(len(prompts)), count), longest)
    steps = [generalist.assembler.text(one, bos=False, eos=False) for one in ids]
    _, read = rows.append(stack_rows(steps, longest, pad=vocabulary.pad), np.ones((longest, vocabulary.size), bool))
    later = np.asarray(jax.nn.log_softmax(read, axis=-1))  # (B * C, longest, V)
    # The end of the chunk counts too: otherwise a choice that begins another one would always be the likelier of the two.
    scores = [
        first[row, one[0]]
        + later[row, np.arange(len(one)), np.append(one[1:], generalist.assembler.marks.chunk_end)].sum()
        for row, one in enumerate(ids)
    ]
    return np.array(scores, np.float32).reshape(len(prompts), count)


def _choice(generalist: Weights, text: str) -> Int32[np.ndarray, "n"]:
    """The ids of a choice. Where texts lose their spaces, its own first one is that with which the tokenizer begins it."""
    cross, tokenizer = generalist.assembler.marks.cross, generalist.tokenizers.text
    generalist.assembler.check_places(text)
    return generalist.assembler.encode(
        text.removeprefix(" ") if cross is not None and cross.stripped and tokenizer.spaced else text
    )


def act(generalist: Weights, asked: AgentPrompt) -> Any:
    """The model's action, a value of the task's action space.

    Raises:
        ValueError: the weights lack the layout, or the prompt is too long.
    """
    # A fresh window of one row: a prompt is the first step of its own episode.
    policy = ControlPolicy(generalist, [asked.layout])
    layout = generalist.layouts[asked.layout]
    generalist.assembler.check_places(asked.instruction)
    prefix = generalist.assembler.prefix(layout, asked.instruction, asked.demonstrations)
    check_room(generalist, len(prefix))
    policy.reset([0], [prefix], [asked.seed])
    return policy.act([asked.observation])[0]


def _begin(
    generalist: Weights, prompts: Sequences[Any], after: Reading | None, tokens: int
) -> tuple[CachedRows, Float[Array, "B V"], int]:
    """Reads the prompts. Returns rows with room to write, the logits at their ends, and the number of ids that may be written."""
    if not prompts:
        raise ValueError("there are no prompts: pass at least one")
    if after is not None and after.sees_all:
        prompts, after = [[*after.parts, *parts] for parts in prompts], None
    checked = [check_parts(parts) for parts in prompts]
    for parts in checked:
        _check_places(generalist, parts)
    if after is None:
        new = [generalist.assembler.document(parts, is_open=True) for parts in checked]
    else:
        new = [after.continued(parts) for parts in checked]
    if not min(map(len, new)):  # a published model without a mark of the beginning
        raise ValueError("a prompt is empty: give it at least one letter")
    longest = max(map(len, new)) + (0 if after is None else after.length)
    check_room(generalist, longest)
    # All rows grow together, so the longest prompt decides how much room they have.
    room = min(tokens, context(generalist) - longest)
    batch = _rows(generalist, new, 8)
    # Near the end of the context every length leaves another room: rounded up as well, since empty slots cost little.
    slots, images = batch.tokens.shape[1] + length_bucket(room), batch.row_images.shape[1]
    if after is None:
        rows = CachedRows(generalist, len(prompts), slots, images=images)
    else:
        rows = after.rows.take(np.zeros((len(prompts),), np.int32), slots, images)
    _, logits = rows.append(batch, writable(generalist))  # (B, 1, V): of the last position, where all rows end
    return rows, logits[:, 0], room


def _rows(generalist: Weights, sequences: list[Sequence], step: int) -> Batch:
    """One sequence per row, all ending at the same position; few lengths, few compilations.

    Args:
        step: smallest length.
    """
    length = length_bucket(max(map(len, sequences)), step)
    frame_tokens = generalist.config.model.frame_tokens
    batch = shift_right(stack_rows(sequences, length, pad=generalist.vocabulary.pad, frame_tokens=frame_tokens))
    padded = pad_payloads(batch, bucket(batch.row_images.shape[1], 4))
    return dataclasses.replace(padded, images=batch.images)  # images are padded once they are features (`CachedRows`)
