"""`POST /v1/inspect`: what a model looks at while it writes an answer.

    messages, model   as for a chat
    answer            the ids of the answer (`id` of each token, which a chat gives with `logprobs`)

One forward pass over prompt and answer on the engine's thread gives the attention weights of every layer, at the positions that
the answer's ids were predicted from.

Dimension key: Q positions that are looked into, S cells of the encoder's grid, F its channels, P pixels per side, n ids.
"""

import asyncio
import base64
import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from generalist.data.batch import Batch
from generalist.eval.report.rows_page import Cell, Row, page_data
from generalist.experiment.rows import masks, ranges, seen
from generalist.inference.prompt import context
from generalist.inference.rows import bucket, stack_rows
from generalist.inference.structure import Structure, compiled
from generalist.inference.weights import Weights
from generalist.model.attention_weights import Looks, looks
from generalist.serve.completions import Completions
from generalist.serve.engine import Engine, Full
from generalist.serve.errors import ApiError, wrong
from generalist.tokenizers.described import meanings
from generalist.tokenizers.pieces import Modality, Sequence, positions_per_row

IDS = 64
"""Ids of an answer that are looked into at once."""
LENGTHS = (256, 1024, 2048)
"""Positions that a program takes; a shorter context is the largest one."""


@compiled(static_argnames=("structure",))
def _looks(structure: Structure, params: Any, batch: Batch, places: Int[Array, "Q"]) -> Looks:
    return looks(structure.model(params), batch, places, structure.dtype)[0]


class Inspector:
    """The route, and its compiled programs.

    Args:
        images: of a prompt, at most.
    """

    def __init__(self, weights: Weights, images: int):
        self._images = images
        self._masks = jax.jit(partial(masks, weights.config.model, images))
        self.lengths = sorted({min(length, context(weights)) for length in LENGTHS})
        self._encodes = "encoder" in weights.config.tokens.documents or weights.projects
        if self._encodes:
            assert weights.encoder is not None
            side = weights.encoder.prepare.size
            one = self._encoded(weights, np.zeros((side, side, 3), np.uint8))
            self._empty = np.zeros((images, *one.shape), one.dtype)

    def warm_up(self, weights: Weights, told: Callable[[str], None]) -> None:
        """Compiles a program per length."""
        for length in self.lengths:
            some = weights.assembler.document(["word"], is_open=True)
            self.looks(weights, some, 1, length)
            self.row(weights, some, length)
            told(f"compiled: looking into {length} positions")

    def looks(self, weights: Weights, sequence: Sequence, count: int, length: int | None = None) -> Looks:
        """What the last `count` ids were predicted from, with arrays of NumPy.

        Args:
            sequence: the prompt and the answer.
            length: of the program; None: the shortest that fits.
        """
        length = length or self._length(sequence)
        places = np.zeros((IDS,), np.int32)
        places[:count] = np.arange(len(sequence) - count - 1, len(sequence) - 1)
        found = jax.device_get(_looks(*weights.decoder, self._batch(weights, sequence, length), places))
        images = len(sequence.images)
        return Looks(found.positions[:, :count, : len(sequence)], found.images[:, :count, :images], found.gates)

    def row(self, weights: Weights, sequence: Sequence, length: int | None = None) -> Row:
        """A sequence as the viewer of training rows shows it.

        Args:
            length: as in `looks`.
        """
        model, length = weights.config.model, length or self._length(sequence)
        batch = stack_rows([sequence], length, pad=weights.vocabulary.pad, frame_tokens=model.frame_tokens)
        visible, near, images = seen(batch, 0, self._masks)
        cells = [
            Cell(
                modality=Modality(int(sequence.modality[at])).name.lower(),
                token=int(sequence.tokens[at]),
                part=meaning.part,
                value=meaning.value,
                image=meaning.image,
                targets=[],
                weight=0.0,
                segment=1,
                position=at,
                local=int(sequence.local_position[at]),
                image_index=int(sequence.image[at]),
                sees=ranges(visible[at]),
                near=ranges(near[at]),
                images=images[at],
            )
            for at, meaning in enumerate(meanings(sequence, weights.assembler, None))
        ]
        return Row(segments=["the prompt and the answer"], cells=cells, length=len(cells), window=model.window)

    def _length(self, sequence: Sequence) -> int:
        """Of the shortest program that takes a sequence."""
        return next(one for one in self.lengths if one >= len(sequence))

    def _batch(self, weights: Weights, sequence: Sequence, length: int) -> Batch:
        """A row of one of the compiled lengths, with room for all images: one program, whatever the prompt has."""
        batch = stack_rows(
            [sequence], length, pad=weights.vocabulary.pad, frame_tokens=weights.config.model.frame_tokens
        )
        kinds = weights.config.tokens.documents

        def padded(array: np.ndarray, rows: int) -> np.ndarray:
            return np.pad(array, [(0, rows - len(array)), *[(0, 0)] * (array.ndim - 1)])

        fields: dict[str, Any] = {}
        if "frame" in kinds:
            fields["frames"] = padded(batch.frames, self._images)
        if "patches" in kinds:
            rows = bucket(length)
            fields |= {"patches": padded(batch.patches, rows), "intervals": padded(batch.intervals, rows)}
        if self._encodes:
            features = self._empty.copy()
            for number, image in enumerate(batch.images):
                features[number] = self._encoded(weights, image)
            # Projected images are positions, which know their image; the others are seen by the whole row.
            rows = 0 if weights.projects else self._images
            fields |= {"images": features, "row_images": np.arange(rows, dtype=np.int32)[None]}
        return dataclasses.replace(batch, **fields)

    def _encoded(self, weights: Weights, image: Shaped[np.ndarray, "..."]) -> Float[np.ndarray, "S F"]:
        """The features of an image, (P, P, 3), or of what has been prepared as them."""
        return np.asarray(weights.features(jnp.asarray(image[None])))[0] if image.dtype == np.uint8 else image


class Inspection:
    """The route for one server."""

    def __init__(self, engine: Engine, inspector: Inspector, completions: Completions):
        self._engine, self._inspector, self._completions = engine, inspector, completions

    async def inspect(self, request: Request) -> Response:
        """Attention weights, gates, and the sequence as the model sees it."""
        found = await self._completions.read(request)
        answer = found.pop("answer", None)
        if unknown := sorted(found.keys() - {"model", "messages"}):
            raise ApiError(400, f"unknown field {unknown[0][:60]!r}", param=unknown[0][:60], code="unknown_parameter")
        ids, asked = self._ids(answer), await asyncio.to_thread(self._completions.asked, found)
        async with self._completions.preparing:
            sequence, _ = await asyncio.to_thread(self._completions.prompt, asked)
        whole = self._whole(sequence, ids)
        weights, looked = await self._looked(whole, len(ids))
        return Response(
            await asyncio.to_thread(
                lambda: JSONResponse(told(weights, whole, looked, self._inspector.row(weights, whole))).body
            ),
            media_type="application/json",
        )

    def _ids(self, answer: Any) -> Int[np.ndarray, "n"]:
        text = len(self._engine.weights.vocabulary.range("text"))
        good = isinstance(answer, list) and all(type(one) is int and 0 <= one < text for one in answer)
        if not good or not 0 < len(answer) <= IDS:
            raise wrong(
                "answer", f"must be a list of 1 to {IDS} ids from 0 to {text - 1}, as a chat's tokens have them"
            )
        return np.array(answer, np.int32)

    def _whole(self, sequence: Sequence, ids: Int[np.ndarray, "n"]) -> Sequence:
        assembler, longest = self._engine.weights.assembler, self._inspector.lengths[-1]
        whole = assembler.concatenate([sequence, assembler.text(ids, bos=False, eos=False)])
        if len(whole) > longest:
            message = f"and the answer take {len(whole)} positions, but may take {longest} to be looked into"
            raise wrong("messages", message, "context_length_exceeded")
        return whole

    async def _looked(self, whole: Sequence, count: int) -> tuple[Weights, Looks]:
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Any] = loop.create_future()

        def give(value: Any) -> None:
            if not result.done():  # a client that has gone waits no more
                result.set_result(value)

        def compute() -> None:
            weights = self._engine.weights
            try:
                value: Any = (weights, self._inspector.looks(weights, whole, count))
            except Exception as error:  # the engine goes on
                value = error
            self._engine.outbox.put(loop, partial(give, value))

        try:
            self._engine.aside(compute)
        except Full as error:
            raise ApiError(429, str(error), code="busy") from error
        value = await result
        if isinstance(value, Exception):
            raise value
        return value


def told(weights: Weights, sequence: Sequence, looked: Looks, row: Row) -> dict[str, Any]:
    """The answer's values: arrays as Base64 of little-endian float32."""
    vision = weights.config.model.vision
    cells = vision.positions if weights.projects else looked.images.shape[-1]
    side = math.isqrt(cells)
    # Cells of a cropped image, or with one for the whole of it, are no map of what the user sees.
    mapped = cells and side**2 == cells and weights.encoder is not None and not weights.encoder.prepare.crop
    return {
        "attention": _array(looked.positions),
        "images": _array(looked.images),
        "grid": [side, side] if mapped else None,
        "gates": [
            {"layer": vision.first + vision.every * number, "attention": float(one), "feed_forward": float(other)}
            for number, (one, other) in enumerate(looked.gates)
        ],
        "inline": [places.tolist() for places in inline_images(sequence, weights.config.model.frame_tokens)],
        "sequence": page_data([row]),
    }


def _array(values: Any) -> dict[str, Any]:
    content = np.ascontiguousarray(values, "<f4")
    return {"shape": list(content.shape), "data": base64.b64encode(content.tobytes()).decode()}


def inline_images(sequence: Sequence, frame_tokens: int) -> list[Int[np.ndarray, "n"]]:
    """The positions of each image that stands in the sequence itself: as a frame, as patches, or projected."""
    frames = np.flatnonzero(sequence.modality == Modality.FRAME)
    patches = np.flatnonzero(sequence.modality == Modality.PATCH)
    number = sequence.payload_index[frames] // positions_per_row(Modality.FRAME, frame_tokens)
    # An image's first patch is its upper left one: both of its intervals begin at 0.
    begins = (sequence.intervals[sequence.payload_index[patches]][:, [0, 2]] == 0).all(axis=1)
    several = [frames[number == one] for one in np.unique(number)]
    # One that is projected begins with its marker, unless the images are seen by cross-attention alone.
    is_projected = sequence.modality == Modality.PROJECTED
    if is_projected.any():
        projected = np.flatnonzero(is_projected | (sequence.modality == Modality.IMAGE))
        begins_image = sequence.modality[projected] == Modality.IMAGE
        several += [part for part in np.split(projected, np.flatnonzero(begins_image)) if len(part)]
    return several + [part for part in np.split(patches, np.flatnonzero(begins)) if len(part)]
