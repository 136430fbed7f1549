"""`POST /v1/play`: an agent plays a task in this process, and is watched as a stream of server-sent events.

    {"demonstration": {"step": 0, "picture": "data:image/jpeg;base64,..."}}     if one was asked for: the expert's episode
    {"begin": {"task": ..., "instruction": ..., "max_steps": ..., "demonstration_steps": [4]}}
    {"step": 0, "reward": 0.0, "score": null, "picture": "data:image/jpeg;base64,...", "action": null}
    {"step": 1, ..., "action": [{"name": "action", "low": "0", "high": "6", "chosen": 2, "probabilities": [...]}]}
    {"stopped": "the server is stopping"}                               the last one, if SIGTERM comes before the end

Each episode has a thread, which asks the engine for its actions like any other client: it waits, and nobody waits for it.

Dimension key: H, W height and width of a picture.
"""

import asyncio
import base64
import concurrent.futures
import dataclasses
import io
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from jaxtyping import UInt8
from PIL import Image
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from generalist.envs.action_names import action_names
from generalist.envs.registry import tasks
from generalist.envs.rendering import frames_a_second, make
from generalist.envs.task import EVALUATION_SEED, Policy, Task
from generalist.envs.watching import Moment, episode
from generalist.serve.completions import Completions
from generalist.serve.demonstrations import Teacher
from generalist.serve.distribution import distribution
from generalist.serve.engine import Engine
from generalist.serve.errors import ApiError, wrong
from generalist.serve.sessions import Acted, Refused, Session, Step
from generalist.tokenizers.sequence import Sequence

EPISODES = 2
"""Episodes at a time: each renders in this process."""
PICTURES = 15.0
"""Pictures per second at most."""
SIDE = 320
"""Pixels per side of a picture at most."""
AHEAD = 3
"""Events that may wait for a client; until it takes them, the episode stands still."""
LESSON = 30
"""Pictures of a demonstration at most."""
LESSON_PICTURES = 10.0
"""Of these per second."""
LETTERS = 500
"""Characters of an instruction."""
log = logging.getLogger("generalist.serve")


def playable_tasks(engine: Engine) -> list[Task]:
    """The tasks of the registry whose layouts the engine plays."""
    known = {layout for pool in engine.pools for layout in pool.layouts}
    return [task for task in tasks() if task.layout in known]


class Episodes:
    """The route."""

    def __init__(self, engine: Engine, completions: Completions, teacher: Teacher):
        self._engine, self._completions, self._teacher = engine, completions, teacher
        self._tasks = {task.name: task for task in playable_tasks(engine)}
        self._running: set[Watched] = set()

    async def play(self, request: Request) -> Response:
        """An episode as a stream. A client that goes ends it."""
        found = await self._completions.read(request)
        if unknown := sorted(found.keys() - {"task", "instruction", "seed", "demonstration"}):
            raise ApiError(400, f"unknown field {unknown[0][:60]!r}", param=unknown[0][:60], code="unknown_parameter")
        task = self._tasks.get(found["task"]) if isinstance(found.get("task"), str) else None
        if task is None:
            raise wrong("task", "must be the name of a task that /v1/playground lists")
        instruction, seed = found.get("instruction"), found.get("seed", 0)
        if instruction is not None and (not isinstance(instruction, str) or len(instruction) > LETTERS):
            raise wrong("instruction", f"must be a text of at most {LETTERS} characters")
        if type(seed) is not int or not 0 <= seed < 1 << 31:
            raise wrong("seed", "must be a whole number from 0 to 2147483647")
        shown = found.get("demonstration")
        if shown not in (None, "goal", "whole"):
            raise wrong("demonstration", "must be goal or whole, or be left out")
        if len(self._running) >= EPISODES:
            raise ApiError(429, f"{EPISODES} episodes are being played: try again later", code="busy")
        try:
            session = self._engine.open(task.layout)
        except Refused as error:
            raise ApiError(429, str(error), code="busy") from error
        lesson = None if shown is None else Lesson(self._teacher, task, seed, goal=shown == "goal")
        watched = Watched(
            self._engine, session, task, instruction, EVALUATION_SEED + seed, lesson, self._running.discard
        )
        self._running.add(watched)
        watched.start()
        return Stream(watched)

    def stop(self) -> None:
        """Ends all episodes, since the server stops."""
        for watched in list(self._running):
            watched.stop("the server is stopping")


@dataclasses.dataclass(frozen=True)
class Lesson:
    """A demonstration before an episode: the expert's, of another episode of the task."""

    teacher: Teacher
    task: Task
    seed: int
    goal: bool
    """Whether its end alone is shown."""

    def prefix(self, prompt: str) -> tuple[Sequence, list[int]]:
        """See `Teacher.prefix`."""
        asked = {"task": self.task.name, "seed": self.seed, "goal": self.goal}
        return self.teacher.prefix(self.task.layout, prompt, asked)

    def moments(self, env: gym.Env) -> Iterator[Moment]:
        """The expert's episode once more, to be watched: its seed and its actions determine it."""
        actions = self.teacher.expert(self.task, self.seed).actions
        again = iter(actions)
        every = -(-len(actions) // LESSON)
        yield from episode(self.task, env, lambda *_: lambda _: next(again), self.seed, every=every, steps=len(actions))


class Stream(StreamingResponse):
    """The events of an episode, which ends with the response, also with one whose client goes before it begins."""

    def __init__(self, watched: "Watched"):
        super().__init__(watched.lines(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._watched = watched

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the response."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._watched.stop()


class Watched:
    """An episode that is being watched.

    Args:
        instruction: None: the episode's own.
        lesson: None: no demonstration is shown.
        ended: called in the event loop when the environment is closed and the session given back.
    """

    def __init__(
        self,
        engine: Engine,
        session: Session,
        task: Task,
        instruction: str | None,
        seed: int,
        lesson: Lesson | None,
        ended: Callable[["Watched"], None],
    ):
        self._engine, self._session, self._task = engine, session, task
        self._instruction, self._seed, self._lesson, self._ended = instruction, seed, lesson, ended
        self._stopped, self._why = threading.Event(), ""
        self._events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._acted: Acted | None = None
        self._due = time.monotonic()
        self._names: tuple[str, ...] = ()

    def start(self) -> None:
        """Begins to play."""
        threading.Thread(target=self._play, name=f"playing {self._task.name}", daemon=True).start()

    async def lines(self) -> AsyncIterator[str]:
        """The stream of server-sent events."""
        while (event := await self._events.get()) is not None:
            yield f"data: {json.dumps(event)}\n\n"
        yield "data: [DONE]\n\n"

    def stop(self, why: str = "") -> None:
        """Ends the episode, at its next step.

        Args:
            why: what the client is told in the last event; empty: it has gone.
        """
        self._why = self._why or why
        self._stopped.set()

    def _give(self, event: dict[str, Any] | None) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def _play(self) -> None:
        """The episode's thread. The environment is made, played and closed in it: OpenGL's contexts belong to threads."""
        try:
            env = make(self._task)
            try:
                self._watch(env)
            finally:
                env.close()
        except (ImportError, ValueError) as error:  # packages or graphics that are missing, a prompt that is too long
            if not self._stopped.is_set():
                self._give({"error": {"message": str(error)}})
        except Exception:  # an environment may raise anything, which is not for clients
            log.exception("an episode failed")
            self._give({"error": {"message": f"the episode of {self._task.name} failed"}})
        finally:
            self._engine.close(self._session)
            if self._why:
                self._give({"stopped": self._why})
            self._give(None)
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._ended, self)

    def _watch(self, env: gym.Env) -> None:
        self._names = action_names(self._task, env)
        pace = frames_a_second(env)
        every = max(1, round(pace / PICTURES))
        for moment in self._lesson.moments(env) if self._lesson is not None else ():
            self._give({"demonstration": {"step": moment.step, "picture": jpeg(moment.picture)}})
            if self._waited(1 / LESSON_PICTURES):
                return
        for moment in episode(self._task, env, self._begin, self._seed, every=every):
            self._give(self._told(moment))
            if self._waited(every / pace):
                return

    def _waited(self, seconds: float) -> bool:
        """Waits until the next picture is due and the client takes it; returns whether the episode was stopped."""
        self._due = max(self._due + seconds, time.monotonic())
        while (time.monotonic() < self._due or self._events.qsize() > AHEAD) and not self._stopped.wait(0.005):
            pass
        return self._stopped.is_set()

    def _begin(self, task: Task, env: gym.Env, instruction: str, seed: int) -> Policy:
        prompt = self._instruction if self._instruction is not None else instruction
        prefix, steps = self._lesson.prefix(prompt) if self._lesson is not None else (prompt, [])
        begin = {"task": task.name, "instruction": prompt, "max_steps": task.max_steps, "demonstration_steps": steps}
        self._give({"begin": begin})
        begins: list[tuple[str | Sequence, int]] = [(prefix, seed)]

        def act(observation: Any) -> Any:
            self._acted = self._ask(observation, begins.pop() if begins else None)
            return self._acted.action

        return act

    def _ask(self, observation: Any, begin: tuple[str | Sequence, int] | None) -> Acted:
        answer: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self._engine.step(Step(self._session, observation, begin, answer.set_result, looks=True))
        while True:
            try:
                found = answer.result(timeout=0.5)
            except TimeoutError:
                if self._stopped.is_set() or not self._engine.alive:
                    raise Refused("the episode was stopped") from None
                continue
            if isinstance(found, Exception):
                raise found
            return found

    def _told(self, moment: Moment) -> dict[str, Any]:
        acted, layout = self._acted, self._engine.weights.layouts[self._task.layout]
        return {
            "step": moment.step,
            "reward": moment.reward,
            "score": moment.score,
            "percent": None if moment.score is None else _finite(self._task.normalized(moment.score)),
            "picture": jpeg(moment.picture),
            "action": None if acted is None else distribution(layout, acted.action, acted.logits, self._names),
        }


def jpeg(picture: UInt8[np.ndarray, "H W 3"]) -> str:
    """A picture as a data URI, made smaller if it is large."""
    image = Image.fromarray(picture)
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _finite(value: float) -> float | None:
    """A number that JSON has; a task without reference scores gives none."""
    return value if np.isfinite(value) else None
