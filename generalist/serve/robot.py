"""`WS /v1/realtime/robot/openpi`: openpi's protocol for robots, and the same in JSON.

    server  metadata                                                    once, on connect
    client  {"observation": ..., "prompt": "go to the red ball"}        or openpi's "observation/NAME" for each part
    server  {"actions": array (1, ...), "server_timing": {...}}         or a text, which says what was wrong

A connection is a session, whose first observation begins an episode, and so does each with `reset`, or with another prompt.
"""

import asyncio
import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from generalist.client.codec import CodecError, from_json, pack, to_json, unpack
from generalist.serve.engine import Engine
from generalist.serve.sessions import Refused, Session, Step, Taken
from generalist.serve.settings import Settings
from generalist.tokenizers.space_json import space_to_json

KNOWN = {"observation", "prompt", "reset", "seed", "layout", "deadline_ms", "chunk"}
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

    def __init__(self, engine: Engine, settings: Settings, name: str):
        self._engine, self._settings, self._name = engine, settings, name
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
        playing = Playing(self._engine)
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


class Playing:
    """The session of a connection. It plays one layout; a message that is refused changes nothing of it."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self._session: Session | None = None
        self._prompt, self._seed = "", 0
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
        texts = _checked(message)
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
        observation."""
        prompt, seed = texts.get("prompt", self._prompt), int(texts.get("seed", self._seed))
        begins = self._begins or bool(texts.get("reset")) or prompt != self._prompt
        deadline = _deadline(texts.get("deadline_ms"))
        observed = {name.partition("/")[2]: one for name, one in texts.items() if name.startswith("observation/")}
        if "observation" in texts or observed:
            space = self._engine.weights.layouts[session.layout].observation.space
            value = fitted(space, texts["observation"] if "observation" in texts else _nested(space, observed))
            action = await self._acted(session, value, (prompt, seed) if begins else None, deadline)
            answer, begins = {"actions": chunk(action)}, False
        elif texts.get("reset"):
            session.pool.check_prompt(prompt)
            answer = {"reset": True}
        else:
            raise ValueError("a message has no observation")
        self._prompt, self._seed, self._begins = prompt, seed, begins
        return answer

    async def _acted(self, session: Session, observation: Any, begin: tuple[str, int] | None, deadline: float) -> Any:
        loop = asyncio.get_running_loop()
        found: asyncio.Future[Any] = loop.create_future()

        def give(action: Any) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(_set, found, action)

        self._engine.step(Step(session, observation, begin, give, deadline))
        action = await found
        if isinstance(action, Exception):
            raise action
        return action


def _checked(message: Any) -> dict[str, Any]:
    """The fields of a message by their names, all of them known and of their types.

    Raises:
        ValueError: one is not.
    """
    if not isinstance(message, dict):
        raise ValueError("a message must be a map, with an observation")
    texts = {
        name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name): one for name, one in message.items()
    }
    if unknown := [name for name in texts if name not in KNOWN and not name.startswith("observation/")]:
        raise ValueError(
            f"a message has {unknown[0][:60]!r}: known are {', '.join(sorted(KNOWN))} and observation/NAME"
        )
    for name, kind in (("prompt", str), ("layout", str), ("seed", int), ("reset", bool), ("chunk", int)):
        # A robot may send NumPy's numbers, and texts as arrays of one.
        if name in texts and not isinstance(texts[name], kind | (np.integer if kind is int else kind)):
            raise ValueError(f"{name} must be of type {kind.__name__}")
    if texts.get("chunk", 1) != 1:
        # In training an observation stands between two actions: what came after the first would be a guess.
        raise ValueError(
            f"chunk = {texts['chunk']}: these weights choose one action per observation, and have learnt none without: leave "
            "it out, and send the observation after each action"
        )
    return texts


def fitted(space: gym.Space, value: Any) -> Any:
    """A value of a message in the form of a space: lists as arrays, floats in the space's precision. Whether it is one of the
    space's values is checked later."""
    if isinstance(space, gym.spaces.Dict) and isinstance(value, dict):
        names = {
            name.decode("utf-8", "replace") if isinstance(name, bytes) else name: one for name, one in value.items()
        }
        return {name: fitted(space[name], one) if name in space.spaces else one for name, one in names.items()}
    if isinstance(space, gym.spaces.Tuple) and isinstance(value, list) and len(value) == len(space.spaces):
        return tuple(fitted(part, one) for part, one in zip(space.spaces, value, strict=True))
    if not isinstance(value, list | np.ndarray | np.generic | float | int):
        return value
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError("the observation has lists of different lengths where an array belongs") from error
    if isinstance(space, gym.spaces.Box) and np.issubdtype(space.dtype, np.floating) and array.dtype.kind in "biuf":
        with np.errstate(over="ignore"):
            return array.astype(space.dtype)
    if isinstance(value, list) and array.dtype.kind in "biu" and space.dtype is not None:
        # Of a list only the kind is known. What does not fit is left as it is, and refused.
        small = array.astype(space.dtype)
        return small if np.array_equal(small, array) else array
    return value


def chunk(action: Any) -> Any:
    """An action as a chunk of one."""
    if isinstance(action, Mapping):
        return {name: chunk(part) for name, part in action.items()}
    if isinstance(action, tuple):
        return {str(number): chunk(part) for number, part in enumerate(action)}
    return np.asarray(action)[None]


def _set(found: "asyncio.Future[Any]", action: Any) -> None:
    # A client that has gone waits no more.
    if not found.done():
        found.set_result(action)


def _nested(space: gym.Space, observed: Mapping[str, Any]) -> Any:
    """Parts by their names, with / between those of nested maps."""
    if not isinstance(space, gym.spaces.Dict):
        if len(observed) > 1:
            raise ValueError(f"the observation is one array, but the message has {', '.join(sorted(observed))[:100]}")
        return next(iter(observed.values()))
    found: dict[str, Any] = {}
    for name, value in observed.items():
        *folders, last = name.split("/")
        place = found
        for folder in folders:
            place = place.setdefault(folder, {})
            if not isinstance(place, dict):
                raise ValueError(f"observation/{name[:60]} is below a part that is an array")
        place[last] = value
    return found


def _deadline(given: Any) -> float:
    if given is None:
        return float("inf")
    if isinstance(given, bool) or not isinstance(given, int | float | np.number) or not 0 < given < 1e9:
        raise ValueError("deadline_ms must be a number above 0")
    return time.monotonic() + float(given) / 1000
