"""How many programs are compiled: after a server is ready, none may be."""

import jax

EVENT = "/jax/core/compile/backend_compile_duration"
"""What JAX reports of each program that it compiles, or finds in its cache on disk."""
FOUND = "/jax/compilation_cache/cache_hits"
"""What it reports of each that it finds there."""


class Compilations:
    """Counts the programs that are compiled in this process from now on."""

    def __init__(self) -> None:
        self.count = self.found = 0
        jax.monitoring.register_event_duration_secs_listener(self._compiled)
        jax.monitoring.register_event_listener(self._heard)

    def _compiled(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        del duration_secs, kwargs
        self.count += event == EVENT

    def _heard(self, event: str, **kwargs: str | int) -> None:
        del kwargs
        self.found += event == FOUND
