"""The probabilities that an agent's action was chosen from, for those who watch.

Dimension key: A numbers of an action, V vocabulary.
"""

from typing import Any

import numpy as np
from jaxtyping import Float

from generalist.tokenizers.described import part_name
from generalist.tokenizers.parts import DiscretePart
from generalist.tokenizers.spaces import TaskLayout

BINS = 48
"""Bars of a distribution at most: neighbouring bins of a number are added up."""


def distribution(
    layout: TaskLayout, action: Any, logits: Float[np.ndarray, "A V"], names: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """For each number of an action its name, the range of its values, the probabilities of its bins and the chosen one.

    Args:
        names: of a choice's values, or of an array's numbers (`action_names`); none: they are counted.
    """
    space = layout.action
    chosen = np.concatenate([piece.tokens.reshape(-1) for piece in space.encode(space.stack([action]))])
    found: list[dict[str, Any]] = []
    for part in space.parts:
        bounds = space.valid_ranges[len(found) : len(found) + part.size]  # (size, 2)
        low, high = (part.decode(ids[None].astype(np.int32)).reshape(-1) for ids in (bounds[:, 0], bounds[:, 1] - 1))
        name = part_name("action", part)
        for place, (first, end) in enumerate(bounds.tolist()):
            own = logits[len(found), first:end]
            shares = np.exp(own - own.max())
            # As many bins as bars at most, and each bar as many bins as the others but the last.
            width = -(-len(own) // BINS)
            begins = np.arange(0, len(own), width)
            found.append(
                {
                    "name": _named(name, part.size, place, () if isinstance(part, DiscretePart) else names),
                    "values": list(names) if isinstance(part, DiscretePart) and len(names) == len(shares) else None,
                    "low": f"{low[place]:.3g}",
                    "high": f"{high[place]:.3g}",
                    "discrete": isinstance(part, DiscretePart) and width == 1,
                    "chosen": int(chosen[len(found)] - first) // width,
                    "probabilities": np.round(np.add.reduceat(shares / shares.sum(), begins), 5).tolist(),
                }
            )
    return found


def _named(name: str, size: int, place: int, names: tuple[str, ...]) -> str:
    """The name of a number of an array."""
    if len(names) == size:
        return names[place]
    return name if size == 1 else f"{name}[{place}]"
