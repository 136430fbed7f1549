"""`WS /v1/realtime/robot/openpi`: openpi's protocol for robots, and the same in JSON.

    server  metadata                                                    once, on connect
    client  {"observation": ..., "prompt": "go to the red ball"}        or openpi's "observation/NAME" for each part
    server  {"actions": array (1, ...), "server_timing": {...}}         or a text, which says what was wrong

A connection is a session, whose first observation begins an episode, and so does each with `reset`, with another prompt, or with
a demonstration.
"""

import asyncio
import dataclasses
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from generalist.client.codec import CodecError, from_json, pack, to_json, unpack
from generalist.serve.demonstrations import Teacher
from generalist.serve.engine import Engine
from generalist.serve.robot_messages import chunk, deadline, fields, observation
from generalist.serve.sessions import Refused, Session, Step, Taken
from generalist.tokenizers.sequence import Sequence
from generalist.tokenizers.space_json import space_to_json

INVALID, TRY_LATER = 1007, 1013
"""Codes with which a websocket is closed (RFC 6455, section 7.4)."""
LANE_SOON = 0.25
"""Seconds that a newcomer waits for a lane."""


@dataclasses.dataclass(frozen=True)
class Form:
    """How messages are written."""

    read: Callable[[Any], Any]
    write: Callable[[Any], Any]
    key: str
    """Of the content in a message of ASGI: bytes or text."""


OPENPI = Form(unpack, pack, "bytes")
JSON = Form(from_json, to_json, "text")


class Robots:
    """The routes of agents."""

    def __init__(self, engine: Engine, teacher: Teacher, name: str):
        self._engine, self._teacher, self._name = engine, teacher, name
        self.layouts = sorted(layout for pool in engine.pools for layout in pool.layouts)

    async def openpi(self, socket: WebSocket) -> None:
        """A session with messages as openpi writes them."""
        await self._serve(socket, OPENPI)

    async def json(self, socket: WebSocket) -> None:
        """A session with messages in JSON."""
        await self._serve(socket, JSON)

    async def _serve(self, socket: WebSocket, form: Form) -> None:
        asked = socket.query_params.get("layout")
        layout = asked if asked is not None else self.layouts[0] if len(self.layouts) == 1 else None
        await socket.accept()
        playing = Playing(self._engine, self._teacher)
        try:
            if layout is not None and layout not in self.layouts:
                self._engine.open(layout)  # refuses it, and says what there is
            if layout is not None:
                await playing.open(layout)
            await self._send(socket, form, self._metadata(layout))
            while True:
                message = await socket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                content = message.get(form.key)
                if content is None:
                    await self._refuse(socket, form, f"messages here are {form.key}")
                    continue
                try:
                    answer = await playing.answer(form.read(content))
                except (CodecError, ValueError) as error:
                    await self._refuse(socket, form, str(error))
                else:
                    await self._send(socket, form, answer)
        except Refused as error:  # at the beginning: there is no session
            await self._refuse(socket, form, str(error))
            await socket.close(TRY_LATER, str(error)[:100])
        except WebSocketDisconnect:
            return
        finally:
            playing.close()

    def _metadata(self, layout: str | None) -> dict[str, Any]:
        found = {"server": "generalist", "model": self._name, "layouts": self.layouts, "action_horizon": 1}
        if layout is None:
            return found
        known = self._engine.weights.layouts[layout]
        spaces = {"observation": space_to_json(known.observation.space), "action": space_to_json(known.action.space)}
        return found | {"layout": layout} | spaces

    async def _send(self, socket: WebSocket, form: Form, value: Any) -> None:
        content = form.write(value)
        await (socket.send_bytes(content) if isinstance(content, bytes) else socket.send_text(content))

    async def _refuse(self, socket: WebSocket, form: Form, message: str) -> None:
        # openpi's client takes a text for an error.
        await socket.send_text(to_json({"error": {"message": message}}) if form is JSON else message)


@dataclasses.dataclass(frozen=True)
class Prefix:
    """What an episode begins with."""

    positions: str | Sequence
    """An instruction, or one with demonstrations."""
    steps: list[int] = dataclasses.field(default_factory=list)
    """How many steps of each demonstration are shown."""


class Playing:
    """The session of a connection. It plays one layout; a message that is refused changes nothing of it."""

    def __init__(self, engine: Engine, teacher: Teacher):
        self._engine, self._teacher = engine, teacher
        self._session: Session | None = None
        self._prompt, self._seed = "", 0
        self._prefix: Prefix | None = None  # of an episode that a reset without an observation announced
        self._begins, self._before = True, 0.0

    async def open(self, layout: str) -> None:
        """Takes a lane for a layout.

        Raises:
            Refused: there is none.
        """
        self._session = await self._opened(layout)

    def close(self) -> None:
        """Gives the lane back."""
        if self._session is not None:
            self._engine.close(self._session)
            self._session = None

    async def answer(self, message: Any) -> dict[str, Any]:
        """What is sent for a message.

        Raises:
            ValueError: the message cannot be answered.
        """
        started = time.perf_counter()
        texts = fields(message)
        session = self._session or await self._opened(texts.get("layout"))
        try:
            if texts.get("layout", session.layout) != session.layout:
                raise ValueError(
                    f"this session plays {session.layout}: connect again to play {texts['layout'][:80]!r}, or leave `layout` out"
                )
            answer = await self._answered(session, texts)
        except BaseException:
            if self._session is None:
                self._engine.close(session)
            raise
        self._session = session
        if "actions" not in answer:
            return answer
        total = 1000 * (time.perf_counter() - started)
        timing = {"infer_ms": total} | ({"prev_total_ms": self._before} if self._before else {})
        self._before = total
        return answer | {"server_timing": timing}

    async def _opened(self, layout: str | None) -> Session:
        if layout is None:
            raise ValueError("which layout? Send its name as `layout`, or connect with ?layout=NAME")
        until = time.monotonic() + LANE_SOON
        while True:
            try:
                return self._engine.open(layout)
            except Taken:
                # A client that has just gone gives its lane back within a step of the engine.
                if time.monotonic() > until:
                    raise
            await asyncio.sleep(0.01)

    async def _answered(self, session: Session, texts: Mapping[str, Any]) -> dict[str, Any]:
        """The action for a message's observation. Another prompt begins an episode, and so does `reset`, also without an
        observation, or a demonstration."""
        prompt, seed = texts.get("prompt", self._prompt), int(texts.get("seed", self._seed))
        begins = bool(texts.get("reset")) or prompt != self._prompt or "demonstration" in texts
        until = deadline(texts.get("deadline_ms"))
        value = observation(self._engine.weights.layouts[session.layout].observation.space, texts)
        if value is None and not texts.get("reset"):
            raise ValueError("a message has no observation")
        prefix = await self._shown(session, prompt, texts) if begins or self._prefix is None else self._prefix
        if value is None:
            session.pool.check_prefix(prefix.positions)
            answer: dict[str, Any] = {"reset": True}
        else:
            begin = (prefix.positions, seed) if begins or self._begins else None
            answer = {"actions": chunk(await self._acted(session, value, begin, until))}
        if prefix.steps and (value is None or begins or self._begins):
            answer["demonstration_steps"] = prefix.steps
        self._prompt, self._seed = prompt, seed
        self._begins, self._prefix = value is None, prefix if value is None else None
        return answer

    async def _shown(self, session: Session, prompt: str, texts: Mapping[str, Any]) -> "Prefix":
        """What an episode begins with: the instruction alone, or with demonstrations behind it."""
        if "demonstration" not in texts:
            return Prefix(prompt)
        # An expert may have to play first; nobody else waits for that.
        return Prefix(*await asyncio.to_thread(self._teacher.prefix, session.layout, prompt, texts["demonstration"]))

    async def _acted(self, session: Session, value: Any, begin: tuple[str | Sequence, int] | None, until: float) -> Any:
        loop = asyncio.get_running_loop()
        found: asyncio.Future[Any] = loop.create_future()

        def give(action: Any) -> None:
            self._engine.outbox.put(loop, partial(_set, found, action))

        self._engine.step(Step(session, value, begin, give, until))
        action = await found
        if isinstance(action, Exception):
            raise action
        return action


def _set(found: "asyncio.Future[Any]", action: Any) -> None:
    # A client that has gone waits no more.
    if not found.done():
        found.set_result(action)
