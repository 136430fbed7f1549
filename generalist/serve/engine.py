"""The engine: one thread that computes for all clients, one small step after another.

    in turn   steps of agents that wait  >  a piece of a prompt  >  steps of agents  >  the next id of all texts  >  ...

Requests come and go between these steps (continuous batching; Orca, Yu et al., 2022), and a long prompt is read in pieces, so an
agent waits for one piece at most. For an agent that answers at once (a simulation) the engine waits (`turns`).
"""

import collections
import logging
import threading
import time
from collections.abc import Callable

from generalist.inference.policy import shape_of
from generalist.inference.weights import Weights
from generalist.serve.answers import Answer, Failed
from generalist.serve.chat_lanes import ChatLanes, Lane
from generalist.serve.metrics import Metrics
from generalist.serve.outbox import Outbox
from generalist.serve.sessions import Pool, Refused, Session, Step
from generalist.serve.turns import Turns

log = logging.getLogger("generalist.serve")

ASIDES = 4
"""Computations besides texts and agents' steps that may wait."""
FAILED = Failed("internal", "the server failed on this request")


class Full(RuntimeError):
    """As many requests wait as may wait."""


class Engine:
    """Takes requests from any thread; everything is computed in its own.

    Args:
        chat: lanes for texts.
        pools: lanes for agents.
        queue: number of texts that may wait for a lane.
    """

    def __init__(self, weights: Weights, chat: ChatLanes, pools: list[Pool], metrics: Metrics, queue: int):
        self.weights, self.chat, self.pools, self.metrics = weights, chat, pools, metrics
        self._queue = queue
        self._asked: collections.deque[Answer] = collections.deque()
        self._calls: collections.deque[Callable[[], None]] = collections.deque()
        self._asides: collections.deque[Callable[[], None]] = collections.deque()
        self._running: dict[int, tuple[Lane, Answer]] = {}
        self._next: Weights | None = None
        self._wake = threading.Condition()
        self._stopping = self._idle = False
        self._aside_next = False  # in turn with the texts
        self._turns = Turns()
        self.outbox = Outbox()
        """For what is given to clients in event loops."""
        self._wrote = False  # whether the last step of the texts wrote; the next one then reads, if there is something
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self, patience: float) -> bool:
        """Refuses what comes, finishes what was asked, and ends the thread; returns whether that took less than `patience`
        seconds."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(patience)
        return not self._thread.is_alive()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def stopping(self) -> bool:
        """Whether nothing new is taken."""
        return self._stopping

    @property
    def asides(self) -> int:
        """Number of computations besides texts and agents' steps that wait."""
        return len(self._asides)

    @property
    def most(self) -> int:
        """Texts that can be written or wait at the same time."""
        return len(self.chat.lanes) + self._queue

    def submit(self, answers: list[Answer]) -> None:
        """Asks for the texts of a request.

        Raises:
            Full: too many texts wait.
        """
        with self._wake:
            if self._stopping:
                raise Full("the server is stopping")
            if len(self._asked) + len(answers) > self._queue + self.chat.free:
                raise Full(f"{len(self._asked)} texts wait already: try again later")
            self._asked.extend(answers)
            self._wake.notify()

    def aside(self, what: Callable[[], None]) -> None:
        """Computes something else in the place of a step of the texts. It must raise nothing.

        Raises:
            Full: too much of that waits.
        """
        with self._wake:
            if self._stopping:
                raise Full("the server is stopping")
            if len(self._asides) >= ASIDES:
                raise Full(f"{ASIDES} computations wait already: try again later")
            self._asides.append(what)
            self._wake.notify()

    def again(self, what: Callable[[], None]) -> None:
        """The next step of something else, from the step before, which is not over yet when the server is stopping."""
        with self._wake:
            self._asides.append(what)

    def open(self, layout: str) -> Session:
        """Opens a session of an agent.

        Raises:
            Refused: there is no such layout, or all its lanes are taken.
        """
        for pool in self.pools:
            if layout in pool.layouts:
                with self._wake:
                    if self._stopping:
                        raise Refused("the server is stopping")
                    return pool.open(layout)
        known = ", ".join(sorted(name for pool in self.pools for name in pool.layouts)) or "none"
        raise Refused(f"there is no layout {layout[:80]!r} here: there are {known}")

    def close(self, session: Session) -> None:
        """Ends a session. Steps of it that wait are dropped."""
        self._call(lambda: session.pool.close(session))

    def step(self, step: Step) -> None:
        """Asks for an agent's action.

        Raises:
            Refused, ValueError: see `Pool.check`.
        """
        pool = step.session.pool
        pool.check(step)
        with self._wake:
            self._calls.append(lambda: pool.waiting.append(step))
            # Whoever is woken wants the interpreter, which those that are still to come need.
            if pool.came() or self._idle:
                self._wake.notify()

    def exchange(self, weights: Weights) -> None:
        """Takes other weights as soon as no text is being written; those that wait are written with the new ones.

        Raises:
            ValueError: the weights have another structure, other tokenizers or other layouts.
        """
        if (
            weights.decoder[0] != self.weights.decoder[0]
            or weights.tokenizers.text.model != self.weights.tokenizers.text.model
        ):
            raise ValueError(
                "the new weights have another structure or other tokenizers: start the server again with them"
            )
        if weights.layouts.keys() != self.weights.layouts.keys():
            raise ValueError("the new weights know other layouts: start the server again with them")
        for name in weights.layouts:
            self._check_layout(weights, name)
        if weights.encoder is not None and self.weights.encoder is not None:
            if weights.encoder.fingerprint != self.weights.encoder.fingerprint:
                raise ValueError("the new weights have another frozen encoder: start the server again with them")
            # The same encoder, compiled already: each set of weights would compile it anew for its first image.
            vars(weights)["features"] = self.weights.features

        def taken() -> None:
            self._next = weights

        self._call(taken)

    def _check_layout(self, weights: Weights, name: str) -> None:
        """Checks that agents in a layout can go on with other weights."""
        now, new = self.weights.layouts[name], weights.layouts[name]
        if (new.observation.space, new.action.space) != (now.observation.space, now.action.space):
            raise ValueError(
                f"the new weights have other observations or actions in the layout {name}: start the server again with them"
            )
        played = any(name in pool.layouts for pool in self.pools)
        if played and shape_of(weights, name) != shape_of(self.weights, name):
            raise ValueError(
                f"the new weights have steps of another shape in the layout {name}: start the server again with them"
            )

    def _call(self, what: Callable[[], None]) -> None:
        with self._wake:
            self._calls.append(what)
            self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                while self._calls:
                    self._calls.popleft()()
                asked = bool(self._asked or self._running or self._asides or any(pool.waiting for pool in self.pools))
                self._idle = not asked and self._next is None
                if self._idle:
                    if self._stopping:
                        return
                    self._wake.wait()
                    continue
            try:
                self._turn()
            except Exception:  # the server goes on: what was being computed is told, and its lanes are emptied
                log.exception("a step failed")
                self._fail()

    def _turn(self) -> None:
        if self._next is not None and not self._running:
            self._exchanged(self._next)
        now = time.monotonic()
        acted: list[Pool] = []
        for pool in self.pools:
            if pool.ready(now):
                self.metrics.acted(pool.act(), time.monotonic() - now)
                self.outbox.flush()
                acted.append(pool)
        self._drop(now)
        if self._next is None:
            self._admit()
        now = time.monotonic()
        if acted:
            self._turns.acted(now, min(pool.turnaround for pool in acted))
        texts = bool(self._running or self._asides)
        if texts and self._turns.of_texts(now):
            self._aside_next = not self._aside_next
            if self._asides and (self._aside_next or not self._running):
                self._asides.popleft()()
            elif self._running:
                self._texts()
            self._turns.wrote(now, time.monotonic())
        elif not acted:
            self._wait(now, texts)
        self.outbox.flush()

    def _wait(self, now: float, texts: bool) -> None:
        """Waits: steps for those of other agents, or the texts for a step that is expected."""
        due = [pool.due for pool in self.pools if pool.waiting] + ([self._turns.texts_from()] if texts else [])
        with self._wake:
            # Clients that have gone and deadlines are looked after meanwhile.
            if due and not self._calls:
                self._wake.wait(min(max(min(due) - now, 0.0002), 0.05))

    def _exchanged(self, weights: Weights) -> None:
        self.weights, self._next = weights, None
        self.chat.exchange(weights)
        for pool in self.pools:
            pool.exchange(weights)
        log.info("weights exchanged", extra={"fields": {"step": weights.step}})

    def _admit(self) -> None:
        while self._asked and self.chat.free:
            with self._wake:
                answer = self._asked.popleft()
            wanted = bool(answer.likeliest)
            reused = self.chat.reused
            try:
                lane = self.chat.take(answer.sequence, answer.pieces, answer.decoding, answer.text, wanted)
            except Exception:
                answer.give(FAILED)  # it is neither asked nor running, where `_fail` looks
                raise
            self.metrics.admitted(time.monotonic() - answer.asked, self.chat.reused - reused)
            self._running[lane.number] = (lane, answer)

    def _drop(self, now: float) -> None:
        """Forgets texts whose client has gone, or whose deadline has passed."""
        late = Failed("deadline", "the deadline passed before the text was complete")
        for answer in [one for one in self._asked if one.cancelled or now > one.deadline]:
            with self._wake:
                self._asked.remove(answer)
            answer.give(late)
        for lane, answer in list(self._running.values()):
            if answer.cancelled or now > answer.deadline:
                self._end(lane)
                answer.give(late)

    def _texts(self) -> None:
        """Reads a piece of a prompt, or writes an id of every text; in turn, if there is both."""
        started = time.monotonic()
        reading = [lane for lane, _ in self._running.values() if lane.reading]
        writing = [(lane, answer) for lane, answer in self._running.values() if not lane.reading]
        if reading and (self._wrote or not writing):
            self.chat.read(min(reading, key=lambda lane: lane.used))  # the one that came first
            self._wrote = False
            self.metrics.read(time.monotonic() - started)
            return
        self._wrote = True
        weights, chosen = self.chat.weights, self.chat.write([lane for lane, _ in writing])
        self.metrics.wrote(len(writing), time.monotonic() - started)
        for lane, answer in writing:
            begins = not answer.first
            if answer.add(weights, chosen, lane.number):
                self._end(lane)
                self.metrics.finished(time.monotonic() - answer.asked)
            if begins:
                self.metrics.first(answer.first - answer.asked)

    def _end(self, lane: Lane) -> None:
        del self._running[lane.number]
        self.chat.release(lane)

    def _fail(self) -> None:
        for lane, answer in list(self._running.values()):
            self._end(lane)
            answer.give(FAILED)
        for pool in self.pools:
            for step in pool.waiting:
                step.give(Refused("the server failed on this observation"))
            pool.waiting.clear()
        self.outbox.flush()
        # A step that failed may have consumed the arrays that it was given.
        self._exchanged(self._next or self.weights)

    def counts(self) -> dict[str, int]:
        """What is under way, for the metrics."""
        return {
            "waiting": len(self._asked),
            "running": len(self._running),
            "sessions": sum(pool.used for pool in self.pools),
        }
