"""`POST /v1/images/generations`, as OpenAI's: images of a text, by weights that were trained with an image tokenizer.

    {"model": ..., "prompt": "a red heart", "n": 2, "seed": 0, "guidance": 3.0}
    {"created": ..., "data": [{"b64_json": PNG}, ...], "size": "72x72", "output_format": "png"}

A drawing takes a forward pass of two rows per cell. Each is a step of its own on the engine's thread, in turn with the texts', so
an agent waits for one of them at most.

Dimension key: N images, T cells of an image, S pixels per side.
"""

import asyncio
import base64
import dataclasses
import io
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from generalist.inference.drawing import draw_in_steps
from generalist.inference.drawing_settings import DrawingSettings
from generalist.inference.prompt import context
from generalist.inference.weights import Weights
from generalist.serve.chat_requests import letters, number, whole_number
from generalist.serve.completions import CLIENT_LOOKS, Completions
from generalist.serve.engine import Engine, Full
from generalist.serve.errors import ApiError, wrong
from generalist.serve.settings import Settings
from generalist.tokenizers.drawing import drawing_prefix

WORDS = 64
"""Positions of a text: all are padded to it, so that they share their programs."""
IMAGES = 4
"""Images of a request (`n`)."""
REQUESTS = 4
"""Requests at a time: one is drawn, the others wait."""
NO_CODES = "these weights have no image tokenizer, so they cannot draw: serve some that were trained with one (docs/drawing.md)"
KNOWN = {"model", "prompt", "n", "size", "response_format", "output_format", "seed", "guidance", "temperature", "user"}


@dataclasses.dataclass(frozen=True)
class Wish:
    """A checked request."""

    text: str
    count: int
    settings: DrawingSettings


class Drawer:
    """Draws one image after another, one cell at a time.

    Raises:
        ValueError: the weights have no image tokenizer, or no room for an image.
    """

    def __init__(self, weights: Weights):
        codes = weights.tokenizers.codes
        if codes is None:
            raise ValueError(NO_CODES)
        self.side, self._cells = codes.config.size, codes.side**2
        self.words = min(WORDS, (context(weights) - self._cells + 1) // 8 * 8)
        if self.words < 8:
            raise ValueError(
                f"an image takes {self._cells} positions, which leaves no room for a text: these weights cannot draw"
            )

    def warm_up(self, weights: Weights, told: Callable[[str], None]) -> None:
        """Compiles the steps of a drawing."""
        for _ in self.steps(weights, Wish("", 1, DrawingSettings()), []):
            pass
        told("compiled: drawing")

    def check(self, weights: Weights, text: str) -> None:
        """Checks that a text fits.

        Raises:
            ApiError: it is too long.
        """
        size = len(self._prefix(weights, text))
        if size > self.words:
            raise wrong("prompt", f"takes {size} positions, but may take {self.words}: shorten it", "too_large")

    def steps(self, weights: Weights, wish: Wish, drawn: list[UInt8[np.ndarray, "S S 3"]]) -> Iterator[None]:
        """Draws; yields after every step.

        Args:
            drawn: receives the images, which are those of `draw_images`.
        """
        codes = weights.tokenizers.codes
        assert codes is not None
        prefixes = [self._prefix(weights, text) for text in (wish.text, "")]
        cells = np.arange(self._cells)
        for image in range(wish.count):
            found = np.zeros((1, self._cells), np.int32)
            several = draw_in_steps(weights, prefixes, cells, wish.settings, np.array([image], np.uint32), self.words)
            for step, (code, _) in enumerate(several):
                found[:, step] = code
                yield
            drawn.append(codes.decode(found)[0])
            yield

    def _prefix(self, weights: Weights, text: str) -> Any:
        none: Int32[np.ndarray, T] = np.zeros((self._cells,), np.int32)
        return drawing_prefix(weights.assembler, text, none, np.arange(self._cells))


class Drawings:
    """The route.

    Args:
        drawer: compiled; None: the weights cannot draw.
    """

    def __init__(self, engine: Engine, drawer: Drawer | None, completions: Completions, settings: Settings):
        self._engine, self._drawer, self._completions, self._settings = engine, drawer, completions, settings
        self._one, self._requests = asyncio.Semaphore(1), 0

    async def draw(self, request: Request) -> Response:
        """Images of a text. A client that goes ends its drawing."""
        found = await self._completions.read(request)
        self._completions.check_model(found.get("model"))
        if self._drawer is None:
            raise ApiError(400, NO_CODES, param="model", code="cannot_draw")
        wish = self._wish(found, self._drawer)
        if self._requests >= REQUESTS:
            raise ApiError(429, f"{REQUESTS} requests are drawn or wait already: try again later", code="busy")
        self._requests += 1
        try:
            async with self._one:
                images = await self._drawn(request, wish, self._drawer)
        finally:
            self._requests -= 1
        data = [{"b64_json": await asyncio.to_thread(png, image)} for image in images]
        size = f"{self._drawer.side}x{self._drawer.side}"
        return JSONResponse({"created": int(time.time()), "data": data, "size": size, "output_format": "png"})

    def _wish(self, found: dict[str, Any], drawer: Drawer) -> Wish:
        if unknown := sorted(found.keys() - KNOWN):
            raise ApiError(400, f"unknown field {unknown[0][:60]!r}", param=unknown[0][:60], code="unknown_parameter")
        text, size = found.get("prompt"), f"{drawer.side}x{drawer.side}"
        if not isinstance(text, str) or not text.strip():
            raise wrong("prompt", "must be a text that is not empty")
        _only(found, "size", "auto", size)
        _only(found, "response_format", "b64_json")
        _only(found, "output_format", "png")
        settings = DrawingSettings(
            guidance=number(found, "guidance", 3.0, 1.0, 20.0),
            temperature=number(found, "temperature", 1.0, 0.01, 2.0),
            seed=whole_number(found, "seed", 0, 0, 2**32 - 1) or 0,
        )
        wish = Wish(letters(text, "prompt"), whole_number(found, "n", 1, 1, IMAGES) or 1, settings)
        drawer.check(self._engine.weights, wish.text)
        return wish

    async def _drawn(self, request: Request, wish: Wish, drawer: Drawer) -> list[UInt8[np.ndarray, "S S 3"]]:
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Any] = loop.create_future()
        drawn: list[UInt8[np.ndarray, "S S 3"]] = []
        # Begun on the engine's thread, and by its weights: others may be taken before a drawing's turn comes.
        steps: list[Iterator[None]] = []

        def compute() -> None:
            try:
                steps[:] = steps or [drawer.steps(self._engine.weights, wish, drawn)]
                going = not result.done() and next(steps[0], "end") is None
            except Exception as error:  # the engine goes on
                self._engine.outbox.put(loop, partial(_end, result, error))
                return
            if going:
                self._engine.again(compute)
            else:
                self._engine.outbox.put(loop, partial(_end, result, drawn))

        try:
            self._engine.aside(compute)
        except Full as error:
            raise ApiError(429, str(error), code="busy") from error
        return await self._awaited(request, result)

    async def _awaited(self, request: Request, result: "asyncio.Future[Any]") -> Any:
        """The result, unless its client goes or its time is up; a drawing whose result is there goes no further."""
        until = time.monotonic() + self._settings.deadline
        try:
            while not (await asyncio.wait([result], timeout=CLIENT_LOOKS))[0]:
                if await request.is_disconnected():
                    raise ApiError(499, "the client has gone")
                if time.monotonic() > until:
                    raise ApiError(504, "the deadline passed before the images were drawn", code="deadline")
        finally:
            result.cancel()
        found = result.result()
        if isinstance(found, Exception):
            raise found
        return found


def _only(found: dict[str, Any], name: str, *values: str) -> None:
    """Checks a field that has little choice."""
    if found.get(name) is not None and found[name] not in values:
        raise wrong(name, f"may be {' or '.join(values)}, or be left out", "unsupported_parameter")


def _end(result: "asyncio.Future[Any]", found: Any) -> None:
    if not result.done():
        result.set_result(found)


def png(image: UInt8[np.ndarray, "S S 3"]) -> str:
    """An image as PNG in Base64."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
