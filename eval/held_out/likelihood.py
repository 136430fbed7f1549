"""The one thing that held-out evaluations ask of a model.

Dimension key: n sequences.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from generalist.tokenizers.sequence import Sequence

LogLikelihood = Callable[[list[Sequence]], Float[np.ndarray, "n"]]
"""Sequences → log-likelihood of each one's predicted tokens, in nats."""
