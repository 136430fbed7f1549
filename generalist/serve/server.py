"""A server from its weights to its end: lanes, compilation, the socket, signals.

Dimension key: none.
"""

import fnmatch
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable

import jax
import uvicorn

from generalist.inference.prompt import context
from generalist.inference.weights import Weights
from generalist.serve.app import application
from generalist.serve.chat_lanes import ChatLanes, bytes_per_lane
from generalist.serve.compilations import Compilations
from generalist.serve.drawings import Drawer
from generalist.serve.engine import Engine
from generalist.serve.inspection import Inspector
from generalist.serve.metrics import Metrics
from generalist.serve.pieces import whole_prompts
from generalist.serve.sessions import playable, pools
from generalist.serve.settings import MIB, Settings
from generalist.serve.warm_up import warm_up

SHARE = 0.5  # of the memory that is free, for lanes of texts

log = logging.getLogger("generalist.serve")


def lanes_that_fit(weights: Weights, settings: Settings, free: int | None = None) -> int:
    """The number of lanes for texts: those of the settings, or as many as half of the free memory has room for.

    Args:
        free: bytes; None: what the devices that share a lane, or this machine, have left.

    Raises:
        ValueError: not even one fits.
    """
    if free is None:
        mesh = weights.placing.mesh
        # Key-value heads that divide over a mesh are shared by its devices; of others each device has all.
        shared = mesh is not None and weights.config.model.kv_heads % mesh.size == 0
        free = free_memory([*mesh.devices.flat] if mesh is not None and shared else jax.devices()[:1])
    each = bytes_per_lane(weights, settings.limits.images, settings.pieces[-1])
    fit = int(SHARE * free) // each
    if not fit:
        raise ValueError(
            f"a lane of {context(weights):,} positions takes {each / MIB:,.0f} MiB, more than half of the {free / MIB:,.0f} MiB "
            "that are free: free memory, or use smaller weights"
        )
    return min(settings.lanes, fit)


def free_memory(devices: list[jax.Device]) -> int:
    """Bytes that are free for arrays: on all of these devices if they say so, else on this machine."""
    stats = [device.memory_stats() for device in devices]
    if all(one and "bytes_limit" in one for one in stats):
        return sum(one["bytes_limit"] - one["bytes_in_use"] for one in stats)
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class Server:
    """Everything that a server needs, compiled.

    Args:
        told: takes lines about what is being compiled.

    Raises:
        ValueError: a pattern matches no layout, or not one lane fits.
    """

    def __init__(self, weights: Weights, settings: Settings, told: Callable[[str], None]):
        self.settings, self.metrics = settings, Metrics()
        self._compilations = Compilations()
        known = playable(weights) if settings.sessions else []
        layouts = [one for one in known if any(fnmatch.fnmatch(one, pattern) for pattern in settings.layouts)]
        if known and not layouts and settings.layouts != ("*",):
            raise ValueError(f"no layout matches {', '.join(settings.layouts)}: there are {', '.join(known)}")
        if layouts and whole_prompts(weights):
            raise ValueError(
                f"{weights.config.name} reads a prompt at once, since all of it sees itself, and agents would wait for that: "
                "serve it without agents (--sessions 0)"
            )
        if layouts and settings.prefix > context(weights):
            raise ValueError(
                f"prefix is {settings.prefix}, but the model has a context of {context(weights)} positions"
            )
        self.lanes = lanes_that_fit(weights, settings)
        if self.lanes < settings.lanes:
            told(
                f"{self.lanes} lanes for texts instead of {settings.lanes}: more do not fit into half of the free memory"
            )
        chat = ChatLanes(weights, self.lanes, settings.limits.images, settings.pieces)
        agents = pools(weights, layouts, settings.sessions, settings.prefix, settings.patience_ms / 1000)
        warm_up(weights, chat, agents, told)
        inspector = Inspector(weights, settings.limits.images) if settings.inspect else None
        if inspector is not None:
            inspector.warm_up(weights, told)
        drawer = Drawer(weights) if weights.tokenizers.codes is not None else None
        if drawer is not None:
            drawer.warm_up(weights, told)
        self.programs, self.found = self._compilations.count, self._compilations.found
        """Number of programs that requests need, and how many of them lay in the cache on disk."""
        self.engine = Engine(weights, chat, agents, self.metrics, settings.queue)
        self.app = application(self.engine, settings, self.metrics, self._compilations, inspector, drawer)
        self._uvicorn: uvicorn.Server | None = None

    def run(self, ready: Callable[[int], None], reload: Callable[[], Weights] | None = None) -> bool:
        """Serves until SIGTERM or SIGINT; then finishes the answers that have begun. Returns whether all of them could end.

        Args:
            ready: takes the port, when the server listens.
            reload: the weights anew, for SIGHUP; None: SIGHUP has no meaning here.
        """
        # Threads take turns after 5 ms otherwise: a message would wait for that while the engine prepares its next step.
        sys.setswitchinterval(0.0005)
        self.engine.start()
        limits = self.settings.limits
        config = uvicorn.Config(
            self.app,
            host=self.settings.host,
            port=self.settings.port,
            http="h11",
            ws="websockets-sansio",
            loop="auto",  # uvloop where there is one: a message of an agent takes a third less time
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=limits.connections,
            h11_max_incomplete_event_size=limits.header,
            ws_max_size=limits.body,
            ws_max_queue=4,
            ws_per_message_deflate=False,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=int(self.settings.grace) or 1,
        )
        self._uvicorn = _Announcing(config, ready, self.app.state.episodes.stop)
        if threading.current_thread() is threading.main_thread():
            # uvicorn raises the signal that ended it once more behind its end, when answers are still to be waited for.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: None)
        if reload is not None:
            signal.signal(signal.SIGHUP, lambda *_: threading.Thread(target=self._reload, args=(reload,)).start())
        self._uvicorn.run()
        return self.engine.stop(self.settings.grace)

    def shut_down(self) -> None:
        """Ends `run`, from another thread, as SIGTERM does."""
        assert self._uvicorn is not None
        self._uvicorn.should_exit = True

    def _reload(self, reload: Callable[[], Weights]) -> None:
        try:
            self.engine.exchange(reload())
        except Exception:  # the old weights go on
            log.exception("the weights were not exchanged")


class _Announcing(uvicorn.Server):
    """Says when it listens, and at which port; ends what would go on for long before it waits for answers."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[int], None], ending: Callable[[], None]):
        super().__init__(config)
        self._ready, self._ending = ready, ending

    async def startup(self, sockets: list | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready(self.servers[0].sockets[0].getsockname()[1])

    async def shutdown(self, sockets: list | None = None) -> None:
        self._ending()
        await super().shutdown(sockets)
