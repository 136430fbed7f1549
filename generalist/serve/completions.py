"""`POST /v1/chat/completions` and `GET /v1/models`, as OpenAI's."""

import asyncio
import dataclasses
import json
import secrets
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from generalist.data.images import Encoded
from generalist.serve.answers import Answer, Ended, Event, Failed, Token, Written
from generalist.serve.chat_requests import ChatRequest, Link, chat_request, decoded, encoded, parse_json
from generalist.serve.engine import Engine, Full
from generalist.serve.errors import ApiError, wrong
from generalist.serve.guard import Bodies
from generalist.serve.messages import Message, Prompter
from generalist.serve.remote_images import fetch
from generalist.serve.settings import Settings
from generalist.tokenizers.sequence import Sequence

AT_ONCE = 1 << 14  # bytes of a body that is checked within a millisecond
CLIENT_LOOKS = 0.5  # seconds between two looks whether a client is still there


class Completions:
    """The routes of texts."""

    def __init__(self, engine: Engine, settings: Settings, name: str):
        self.engine, self._settings, self._name = engine, settings, name
        self._bodies, self._prompter = Bodies(settings.limits), Prompter(engine.weights)
        self.preparing = asyncio.Semaphore(
            1
        )  # images are decoded one at a time: each takes many times its encoded size
        self._created = int(time.time())

    async def models(self, request: Request) -> Response:
        """The model that there is."""
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """One model, by its name."""
        if request.path_params["name"] != self._name:
            raise self._unknown()
        return JSONResponse(self._model())

    async def chat(self, request: Request) -> Response:
        """A chat's answer, whole or as a stream."""
        body = await self._bodies.read(request)
        # A thread for what takes longer: a small body is checked at once, before the engine's next step takes the processors.
        asked = self._checked(body) if len(body) < AT_ONCE else await asyncio.to_thread(self._checked, body)
        async with self.preparing:
            answers, prompt, events = await asyncio.to_thread(self._answers, asked, asyncio.get_running_loop())
        try:
            self.engine.submit(answers)
        except Full as error:
            raise ApiError(429, str(error), code="busy") from error
        reply = Reply(asked, answers, events, prompt, self._name)
        if asked.stream:
            # The first event comes before the headers: what fails at once is an error and no stream.
            await reply.begin(request)
            headers = reply.headers | {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            return StreamingResponse(reply.lines(), media_type="text/event-stream", headers=headers)
        return JSONResponse(await reply.whole(request), headers=reply.headers)

    def _checked(self, body: bytes) -> ChatRequest:
        asked, most = self.asked(parse_json(body, self._settings.limits)), self.engine.most
        if asked.choices > most:
            raise wrong(
                "n",
                f"asks for {asked.choices} texts, but {most} can be written or wait here: ask for fewer",
                "too_large",
            )
        return asked

    async def read(self, request: Request) -> dict[str, Any]:
        """The body of a request as a JSON object.

        Raises:
            ApiError: it is none, too large, or has too many or too deep values.
        """
        return await asyncio.to_thread(parse_json, await self._bodies.read(request), self._settings.limits)

    def asked(self, found: dict[str, Any]) -> ChatRequest:
        """What a request asks for, checked; its images are still encoded.

        Raises:
            ApiError: see `chat_request`; or it is for another model.
        """
        asked = chat_request(found, self._settings.limits)
        self.check_model(asked.model)
        return asked

    def check_model(self, name: Any) -> None:
        """Checks that a request is for this server's model.

        Raises:
            ApiError: it is not.
        """
        if name != self._name:
            raise self._unknown()

    def prompt(self, asked: ChatRequest) -> tuple[Sequence, list[Message]]:
        """The prompt of a request, and its messages with their images decoded.

        Raises:
            ApiError: an image cannot be decoded, or the messages are no prompt.
        """
        messages = [
            dataclasses.replace(one, content=[self._part(part) for part in one.content]) for one in asked.messages
        ]
        try:
            sequence = self._prompter.sequence(messages)
        except ValueError as error:
            code = "context_length_exceeded" if "context" in str(error) else "invalid_value"
            raise wrong("messages", str(error), code) from error
        images = self.engine.chat.images
        if len(sequence.images) > images:
            raise wrong("messages", f"have {len(sequence.images)} images, but may have {images}", "too_large")
        return sequence, messages

    def _model(self) -> dict[str, Any]:
        return {"id": self._name, "object": "model", "created": self._created, "owned_by": "generalist"}

    def _unknown(self) -> ApiError:
        return ApiError(
            404, f"there is no such model here: there is {self._name}", param="model", code="model_not_found"
        )

    def _answers(
        self, asked: ChatRequest, loop: asyncio.AbstractEventLoop
    ) -> tuple[list[Answer], int, "asyncio.Queue[tuple[int, Event]]"]:
        """The texts to write, the length of the prompt, and where their events come."""
        sequence, messages = self.prompt(asked)
        engine = self.engine
        room = engine.chat.context - len(sequence)
        room = room if asked.tokens is None else min(room, asked.tokens)
        stops = (*asked.decoding.stop, *self._prompter.stops(messages))
        decoding = dataclasses.replace(asked.decoding, stop=stops)
        pieces, deadline = engine.chat.pieces(sequence), time.monotonic() + self._settings.deadline
        events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

        def give(number: int) -> Any:
            return lambda event: engine.outbox.put(loop, partial(events.put_nowait, (number, event)))

        answers = [
            Answer(sequence, pieces, decoding, room, give(number), number, asked.likeliest, deadline)
            for number in range(asked.choices)
        ]
        return answers, len(sequence), events

    def _part(self, part: Any) -> Any:
        limits = self._settings.limits
        if isinstance(part, Link):
            content = fetch(part.url, "image_url", self._settings.hosts, limits.image)
            part = encoded(content, "image_url", limits)
        return decoded(part, limits) if isinstance(part, Encoded) else part


@dataclasses.dataclass(eq=False)
class Reply:
    """An answer to a request, in OpenAI's form."""

    asked: ChatRequest
    answers: list[Answer]
    events: "asyncio.Queue[tuple[int, Event]]"
    prompt: int
    model: str

    def __post_init__(self) -> None:
        self._head: dict[str, Any] = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": self.model,
        }
        self._first: tuple[int, Event] | None = None
        self._look = time.monotonic() + CLIENT_LOOKS

    @property
    def headers(self) -> dict[str, str]:
        """The header by which clients name a request."""
        return {"X-Request-Id": self._head["id"]}

    async def begin(self, request: Request) -> None:
        """Waits for the first event.

        Raises:
            ApiError: it is a failure.
        """
        self._first = await self._event(request)
        self._raise(self._first[1])

    async def whole(self, request: Request) -> dict[str, Any]:
        """All texts, when they have ended.

        Raises:
            ApiError: a text failed.
        """
        texts = [""] * len(self.answers)
        tokens: list[list[Token]] = [[] for _ in self.answers]
        ended: dict[int, Ended] = {}
        while len(ended) < len(self.answers):
            number, event = await self._event(request)
            self._raise(event)
            if isinstance(event, Written):
                texts[number] += event.text
                tokens[number] += event.tokens
            elif isinstance(event, Ended):
                ended[number] = event
        choices = [
            {
                "index": number,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": self._logprobs(tokens[number]),
                "finish_reason": ended[number].reason,
            }
            for number, text in enumerate(texts)
        ]
        usage = self._usage([one.ids for one in ended.values()])
        return self._head | {"object": "chat.completion", "choices": choices, "usage": usage}

    async def lines(self) -> AsyncIterator[str]:
        """The stream of server-sent events. A client that goes cancels it, and with it the texts."""
        ids = []
        try:
            for number in range(len(self.answers)):
                yield self._chunk(number, {"role": "assistant", "content": ""})
            while len(ids) < len(self.answers):
                number, event = self._first or await self.events.get()
                self._first = None
                if isinstance(event, Failed):
                    yield f"data: {json.dumps(_failure(event).body)}\n\n"
                    return
                if isinstance(event, Ended):
                    ids.append(event.ids)
                    yield self._chunk(number, {}, event.reason)
                else:
                    yield self._chunk(number, {"content": event.text}, tokens=event.tokens)
            if self.asked.usage:
                chunk = self._head | {"object": "chat.completion.chunk", "choices": [], "usage": self._usage(ids)}
                yield f"data: {json.dumps(chunk)}\n\n"
            yield "data: [DONE]\n\n"
        finally:
            self._cancel()

    async def _event(self, request: Request) -> tuple[int, Event]:
        """The next event. A client that has gone needs no more: it is looked after also while events come."""
        try:
            while True:
                if time.monotonic() >= self._look:
                    if await request.is_disconnected():
                        raise ApiError(499, "the client has gone")
                    self._look = time.monotonic() + CLIENT_LOOKS
                try:
                    async with asyncio.timeout(CLIENT_LOOKS):
                        return await self.events.get()
                except TimeoutError:
                    continue
        except BaseException:
            self._cancel()
            raise

    def _cancel(self) -> None:
        for answer in self.answers:
            answer.cancelled = True

    def _raise(self, event: Event) -> None:
        if isinstance(event, Failed):
            self._cancel()
            raise _failure(event)

    def _chunk(
        self, number: int, delta: dict[str, Any], reason: str | None = None, tokens: tuple[Token, ...] = ()
    ) -> str:
        choice = {"index": number, "delta": delta, "logprobs": self._logprobs(tokens), "finish_reason": reason}
        # With the usage at the end all others have none, as in OpenAI's API.
        more = {"usage": None} if self.asked.usage else {}
        return f"data: {json.dumps(self._head | {'object': 'chat.completion.chunk', 'choices': [choice]} | more)}\n\n"

    def _usage(self, ids: list[int]) -> dict[str, int]:
        total = sum(ids)
        return {"prompt_tokens": self.prompt, "completion_tokens": total, "total_tokens": self.prompt + total}

    def _logprobs(self, tokens: Any) -> dict[str, Any] | None:
        if self.asked.likeliest is None:
            return None

        def entry(id: int, text: str, value: float) -> dict[str, Any]:
            # OpenAI's fields, and the id: several ids may have the same text.
            return {"token": text, "logprob": value, "bytes": list(text.encode()), "id": id}

        content = [
            entry(one.id, one.text, one.log_probability) | {"top_logprobs": [entry(*other) for other in one.likeliest]}
            for one in tokens
        ]
        return {"content": content, "refusal": None}


def _failure(event: Failed) -> ApiError:
    status = {"deadline": 504, "stopped": 503, "internal": 500}[event.kind]
    return ApiError(status, event.message, code=event.kind)
