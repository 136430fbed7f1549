"""Drawing images after a text: codes one after the other, guided by the difference that the text makes.

Half of the rows have the text and half have none. Their logits l and u give those that codes are drawn from, u + guidance (l - u)
(Ho & Salimans, 2022), and both halves are fed the same code.

Dimension key: N images, B rows, T cells of an image, M of them that are drawn, V vocabulary, S pixels per side.
"""

import dataclasses
import operator
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, UInt, UInt8, UInt32

from generalist.data.emoji import WHITE
from generalist.inference.cached_rows import CachedRows
from generalist.inference.drawing_settings import DrawingSettings, check_text
from generalist.inference.prompt import context
from generalist.inference.rows import bucket, shift_right, stack_rows
from generalist.inference.sampling import confine, draw
from generalist.inference.weights import Weights
from generalist.tokenizers.drawing import CANT_DRAW, drawing_prefix, drawn_code
from generalist.tokenizers.locations import place_in
from generalist.tokenizers.pieces import Sequence
from generalist.vision.image_tokenizer import ImageTokenizer

AT_ONCE = 64
"""Images that are drawn together: more take that much more memory, and are hardly faster."""
Progress = Callable[[int, int], None]
"""Called with the number of passes that are done and that of all: one per cell, for `AT_ONCE` images each."""


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Drawn images."""

    codes: Int32[np.ndarray, "N T"]
    images: UInt8[np.ndarray, "N S S 3"]
    fit: Float[np.ndarray, "N"]
    """How much likelier the text makes each image's drawn codes, log p(codes | text) - log p(codes), in nats: by Bayes' rule the
    log-likelihood of the text given the image, up to a constant."""


def draw_images(
    generalist: Weights,
    texts: list[str],
    settings: DrawingSettings,
    *,
    given: Int[np.ndarray, "T"] | None = None,
    drawn: Bool[np.ndarray, "T"] | None = None,
    progress: Progress | None = None,
) -> Drawn:
    """One image per text; equal texts give different images.

    Args:
        given: codes of an image of which some cells are drawn anew.
        drawn: these cells; None: all.

    Raises:
        ValueError: there are no texts or no cells to draw, the weights can't draw, or a text does not fit the context.
    """
    if not texts:
        raise ValueError("there is no text to draw: pass at least one")
    codes = drawable(generalist, texts)
    count = codes.side**2
    kept = np.zeros((count,), np.int32) if given is None else np.asarray(given, np.int32)
    cells = np.flatnonzero(np.ones((count,), bool) if drawn is None else drawn)
    # The rows without a text follow those with one; `fit` needs them even where nothing is guided.
    prefixes = [drawing_prefix(generalist.assembler, text, kept, cells) for text in [*texts, *[""] * len(texts)]]
    found, fit = _draw_codes(generalist, prefixes, cells, settings, progress)
    whole = np.tile(kept, (len(texts), 1))  # (N, T)
    whole[:, cells] = found
    return Drawn(whole, codes.decode(whole), fit)


def drawable(generalist: Weights, texts: Iterable[str]) -> ImageTokenizer:
    """The image tokenizer of weights that can draw these texts; computes nothing.

    Raises:
        ValueError: the weights have none, a text is empty or has a place, or a text and its image do not fit the context.
    """
    codes = generalist.tokenizers.codes
    if codes is None:
        raise ValueError(CANT_DRAW)
    cells, encode = codes.side**2, generalist.assembler.text_tokenizer.encode
    for text in texts:
        check_text(text)
        if place := place_in(text):
            raise ValueError(f"the text has {place}, but a drawing is of the whole image: leave places out")
        # The beginning marker, the text, all codes but the last one, and the separator, whatever is given of the image.
        if (taken := len(encode(text)) + cells + 1) > context(generalist):
            raise ValueError(
                f"the text {text!r:.40} and its image take {taken} positions, but the model was trained on rows of "
                f"{context(generalist)}: shorten the text by {taken - context(generalist)} pieces"
            )
    return codes


def _draw_codes(
    generalist: Weights,
    prefixes: list[Sequence],
    cells: Int[np.ndarray, "M"],
    settings: DrawingSettings,
    progress: Progress | None,
) -> tuple[Int32[np.ndarray, "N M"], Float[np.ndarray, "N"]]:
    """The drawn codes, (N, M), after prefixes with and without texts, (2 N); and `Drawn.fit`."""
    count, length = len(prefixes) // 2, bucket(max(map(len, prefixes)), 8)
    found, fit = np.zeros((count, len(cells)), np.int32), np.zeros((count,), np.float64)
    chunks = [range(start, min(start + AT_ONCE, count)) for start in range(0, count, AT_ONCE)]
    for number, chunk in enumerate(chunks):
        own = slice(chunk.start, chunk.stop)
        both = [*prefixes[own], *prefixes[count + chunk.start : count + chunk.stop]]
        steps = draw_in_steps(generalist, both, cells, settings, np.array(chunk, np.uint32), length)
        for step, (codes, gained) in enumerate(steps):
            found[own, step] = codes
            fit[own] += gained
            if progress is not None:
                progress(number * len(cells) + step + 1, len(chunks) * len(cells))
    return found, fit


def draw_in_steps(
    generalist: Weights,
    prefixes: list[Sequence],
    cells: Int[np.ndarray, "M"],
    settings: DrawingSettings,
    numbers: UInt32[np.ndarray, "N"],
    length: int,
) -> Iterator[tuple[Int[np.ndarray, "N"], Float[np.ndarray, "N"]]]:
    """The codes of one cell after the other, and how much likelier the texts make them, in nats. Each costs one forward pass.

    Args:
        prefixes: of N images with their texts, and then without.
        numbers: those of the images, which with the seed determine them.
        length: positions to which prefixes are padded; equal ones share their programs.
    """
    ids, count = generalist.vocabulary.range("image_codes"), len(prefixes) // 2
    pad = generalist.vocabulary.pad
    rows = CachedRows(generalist, len(prefixes), length + len(cells) - 1)
    allowed = np.zeros((1, generalist.vocabulary.size), bool)
    allowed[0, ids.start : ids.stop] = True
    _, logits = rows.append(shift_right(stack_rows(prefixes, length, pad=pad)), allowed)
    how = (settings.temperature, settings.top_k, settings.top_p, settings.min_p)
    for step in range(len(cells)):
        draws = np.stack([np.full_like(numbers, settings.seed % 2**32), numbers, np.full_like(numbers, step)], axis=1)
        chosen, gained = guided(logits[:, 0], allowed[0], settings.guidance, draws, *how)
        codes = np.asarray(chosen) - ids.start
        yield codes, np.asarray(gained)
        if step + 1 < len(cells):
            news = [drawn_code(generalist.assembler, int(codes[at]), int(cells[step + 1])) for at in range(count)]
            _, logits = rows.append(stack_rows([*news, *news], 1, pad=pad), allowed)


@jax.jit
def guided(
    logits: Float[Array, "B V"],
    allowed: Bool[Array, "V"],
    guidance: Float[Array, ""],
    draws: UInt[Array, "N 3"],
    temperature: Float[Array, ""],
    top_k: Int[Array, ""],
    top_p: Float[Array, ""],
    min_p: Float[Array, ""],
) -> tuple[Int[Array, "N"], Float[Array, "N"]]:
    """Ids drawn from guided logits, and how much likelier the text makes each, in nats.

    Args:
        logits: of N rows with a text and of N without, B = 2 N.
    """
    confined = confine(logits[:, None], allowed[None, None])[:, 0]
    with_text, without = jnp.split(jax.nn.log_softmax(confined, axis=-1), 2)
    mixed = without + guidance * (with_text - without)
    likely = with_text >= with_text.max(axis=-1, keepdims=True) + jnp.log(min_p)
    mixed = confine(mixed[:, None], likely[:, None])[:, 0]
    chosen = draw(mixed, allowed, temperature, top_k, top_p, draws)
    gained = jnp.take_along_axis(with_text - without, chosen[:, None], axis=1)[:, 0]
    return chosen.astype(jnp.int32), gained


def part_of(
    generalist: Weights, image: UInt8[np.ndarray, "_H _W _C"] | None, box: tuple[int, int, int, int] | None
) -> tuple[Int32[np.ndarray, "T"] | None, Bool[np.ndarray, "T"] | None]:
    """The codes of an image and the cells that a box touches, as `draw_images` takes them; None without an image.

    Args:
        box: first row, first column, and one past the last of each, in pixels.

    Raises:
        ValueError: only one of them is given, the weights have no image tokenizer, the image is no array of pixels, or the box is
            empty, outside the image or not of four whole numbers.
    """
    if (image is None) != (box is None):
        raise ValueError("an image and the box that is drawn anew go together: give both, or neither")
    if image is None or box is None:
        return None, None
    codes = drawable(generalist, [])
    if not isinstance(image, np.ndarray):
        raise ValueError(
            f"the image must be an array of pixels, got {image!r:.60}: read a file by generalist.data.images.read_image"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or not image.size:
        raise ValueError(
            f"the image must be uint8 (H, W, C), got {image.dtype} {image.shape}: a grey image has one channel, image[..., None]"
        )
    try:
        top, left, bottom, right = map(operator.index, box)
    except (TypeError, ValueError):
        raise ValueError(
            f"box must be four whole numbers, top, left, bottom and right in pixels, got {box!r:.60}"
        ) from None
    size, patch = codes.config.size, codes.config.patch
    if not (0 <= top < bottom <= size and 0 <= left < right <= size):
        raise ValueError(
            f"box {box} must be within 0 to {size}, the first row and column below the last: images have {size} pixels"
        )
    drawn = np.zeros((codes.side, codes.side), bool)
    drawn[top // patch : -(-bottom // patch), left // patch : -(-right // patch)] = True
    return codes.encode([image])[0], drawn.reshape(-1)


def grid(images: UInt8[np.ndarray, "N S S 3"], columns: int, gap: int = 4) -> UInt8[np.ndarray, "H W 3"]:
    """Images side by side on white, `columns` per row, `gap` pixels apart."""
    count, size = images.shape[:2]
    rows = -(-count // columns)
    step = size + gap
    sheet = np.full((rows * step - gap, columns * step - gap, 3), WHITE, np.uint8)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        sheet[row * step : row * step + size, column * step : column * step + size] = image
    return sheet
