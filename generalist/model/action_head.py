"""All dimensions of an action from one position's hidden state.

Dimension key: K positions, A dimensions of an action, D width, V token ids, of which v have no text.
"""

import jax
from flax import nnx
from jaxtyping import Array, Float

from generalist.model.config import ModelSpec
from generalist.model.layers import Linear


class ActionHead(nnx.Module):
    """One hidden state per dimension: `h + W₂ gelu(W₁ h + e)`, where each dimension has its own e. The products with the table of
    token embeddings, which all dimensions share, come after it."""

    def __init__(self, spec: ModelSpec, *, rngs: nnx.Rngs):
        width, hidden = spec.config.width, spec.config.hidden
        self.up = Linear(width, hidden, rngs=rngs)
        # Of the same size as the hidden numbers that they are added to, so that dimensions differ from the beginning.
        self.dimensions = nnx.Param(jax.random.normal(rngs.params(), (spec.action_dimensions, hidden)))
        self.down = Linear(hidden, width, rngs=rngs)

    def __call__(self, hidden: Float[Array, "K D"]) -> Float[Array, "K A D"]:
        # W₁ h once for all dimensions.
        shared = self.up(hidden)[:, None]
        own = self.dimensions[...].astype(hidden.dtype)[None]
        return hidden[:, None] + self.down(jax.nn.gelu(shared + own))
