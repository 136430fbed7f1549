"""What the server counts, in the format that Prometheus reads. Nothing of a request's contents is in it."""

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SHORT = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
LONG = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Counters and histograms of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        here: dict[str, Any] = {"registry": self._registry, "namespace": "generalist"}
        self._requests = Counter("requests", "Requests by route and status.", ["route", "status"], **here)
        self._ids = Counter("written_tokens", "Ids that were written.", **here)
        self._reused = Counter("reused_positions", "Positions of prompts that were found in a lane.", **here)
        self._actions = Counter("actions", "Actions of agents.", **here)
        self._texts = Counter("texts", "Texts that were written to their end.", **here)
        self._waited = Histogram("queue_seconds", "Time that a text waited for a lane.", buckets=LONG, **here)
        self._first = Histogram("first_token_seconds", "Time to a text's first id.", buckets=LONG, **here)
        self._whole = Histogram("text_seconds", "Time to a text's end.", buckets=LONG, **here)
        self._read = Histogram("read_seconds", "Time of a piece of a prompt.", buckets=SHORT, **here)
        self._write = Histogram("write_seconds", "Time of a step that writes.", buckets=SHORT, **here)
        self._act = Histogram("act_seconds", "Time of a step of agents.", buckets=SHORT, **here)
        self._batch = Gauge("batch", "Texts in the last step that wrote.", **here)
        self._here = here

    def watch(self, name: str, what: str, value: Callable[[], float]) -> None:
        """Adds a number that is asked for when the metrics are read."""
        Gauge(name, what, **self._here).set_function(value)

    def requested(self, route: str, status: int) -> None:
        """A request was answered."""
        self._requests.labels(route, str(status)).inc()

    def admitted(self, waited: float, reused: int) -> None:
        """A text got a lane, after so many seconds, with so many positions already read."""
        self._waited.observe(waited)
        self._reused.inc(reused)

    def read(self, seconds: float) -> None:
        """A piece of a prompt was read."""
        self._read.observe(seconds)

    def wrote(self, texts: int, seconds: float) -> None:
        """An id was written in some texts."""
        self._ids.inc(texts)
        self._batch.set(texts)
        self._write.observe(seconds)

    def first(self, seconds: float) -> None:
        """A text's first id was chosen."""
        self._first.observe(seconds)

    def finished(self, seconds: float) -> None:
        """A text ended."""
        self._texts.inc()
        self._whole.observe(seconds)

    def acted(self, agents: int, seconds: float) -> None:
        """Some agents got their actions."""
        self._actions.inc(agents)
        self._act.observe(seconds)

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self._registry)
