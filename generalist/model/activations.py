"""Activations by the names of our settings.

Dimension key: *B any axes.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from generalist.model.config import Activation

Function = Callable[[Float[Array, "*B"]], Float[Array, "*B"]]


def exact_gelu(x: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """GELU by the error function, without an approximation (Hendrycks & Gimpel, 2016)."""
    return jax.nn.gelu(x, approximate=False)


def quick_gelu(x: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """GELU's approximation by a sigmoid (Hendrycks & Gimpel, 2016), with which CLIP was trained."""
    return x * jax.nn.sigmoid(1.702 * x)


def squared_relu(x: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """`relu(x)²` (So et al., 2021)."""
    return jnp.square(jax.nn.relu(x))


PLAIN: dict[str, Function] = {
    "gelu": jax.nn.gelu,
    "exact_gelu": exact_gelu,
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
    "squared_relu": squared_relu,
    "silu": jax.nn.silu,
}
GATES: dict[str, Function] = {
    "geglu": jax.nn.gelu,
    "exact_geglu": exact_gelu,
    "quick_geglu": quick_gelu,
    "reglu": jax.nn.relu,
    "squared_reglu": squared_relu,
    "swiglu": jax.nn.silu,
}
"""Names of gated feed-forwards (Shazeer, 2020) → the activation of their gate."""


def feed_forward_activation(name: Activation) -> tuple[Function, bool]:
    """The function of a feed-forward's activation, and whether it is a gate's."""
    return (GATES[name], True) if name in GATES else (PLAIN[name], False)
