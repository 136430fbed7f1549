"""One Transformer, one token sequence, one set of weights.

    from generalist import AgentPrompt, ControlPolicy, Generalist

The three are imported when they are asked for: `import generalist` alone loads nothing else, JAX least of all. Where they are
what imports JAX, compiled programs are kept and a GPU's options are set, as by the commands (docs/start.md).
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from generalist.inference.generalist import Generalist
    from generalist.inference.policy import ControlPolicy
    from generalist.inference.prompt import AgentPrompt

__all__ = ["AgentPrompt", "ControlPolicy", "Generalist"]

_MODULES = {
    "AgentPrompt": "generalist.inference.prompt",
    "ControlPolicy": "generalist.inference.policy",
    "Generalist": "generalist.inference.generalist",
}


def __getattr__(name: str) -> Any:
    """A public name, from the module that defines it (PEP 562).

    Raises:
        AttributeError: the package has no such name.
    """
    if name not in _MODULES:
        raise AttributeError(f"module 'generalist' has no attribute {name!r}; it has {', '.join(__all__)}")
    if "jax" not in sys.modules:  # which reads both when it is imported
        from generalist.system.compilation_cache import use_compilation_cache
        from generalist.system.gpu_flags import use_gpu_flags

        use_compilation_cache()
        use_gpu_flags()
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
