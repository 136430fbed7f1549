"""One Transformer, one token sequence, one set of weights.

    from generalist import AgentPrompt, ControlPolicy, Generalist

The three are imported when they are asked for: `import generalist` alone loads nothing else, JAX least of all.
"""

import importlib
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
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
