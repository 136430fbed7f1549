"""Basic layers: linear map, norms, feed-forwards.

Dimension key: D width, F hidden width of the feed-forward.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Int8, Key

from generalist.model.activations import feed_forward_activation
from generalist.model.config import Activation, ModelConfig
from generalist.model.constrain import constrain
from generalist.system.platforms import target_platform

Layer = TypeVar("Layer", bound=nnx.Module)


def stack(make: Callable[[nnx.Rngs], Layer], count: int, key: Array) -> Layer:
    """`count` layers as one module whose parameters have a leading layer axis, each initialised from its own key: one compiled
    layer then serves all of them in a scan."""
    # The graph without allocation; the parameters below are created in one vmapped call.
    graph, _ = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    states = jax.vmap(lambda key: nnx.state(make(nnx.Rngs(params=key)), nnx.Param))
    return nnx.merge(graph, states(jax.random.split(key, count)))


def unstacked(layers: nnx.Pytree) -> list[Any]:
    """The separate layers of a stack, whose parameters are copied; or those of a list, unchanged."""
    if isinstance(layers, nnx.List):
        return list(layers)
    graph, state = nnx.split(layers)
    count = jax.tree.leaves(state)[0].shape[0]
    return [nnx.merge(graph, jax.tree.map(lambda leaf, at=index: leaf[at], state)) for index in range(count)]


@jax.custom_vjp
def product(x: Float[Array, "*B I"], kernel: Float[Array, "I O"]) -> Float[Array, "*B O"]:
    """`x @ kernel`, whose backward pass transposes the smaller of x and the gradient. JAX's own always transposes the gradient,
    which on a CPU costs more than the product if the kernel widens."""
    return x @ kernel


def _product_forward(x, kernel):
    return x @ kernel, (x, kernel)


def _product_backward(kept, gradient):
    x, kernel = kept
    positions = tuple(range(x.ndim - 1))
    first, second = (x, gradient) if x.shape[-1] <= gradient.shape[-1] else (gradient, x)
    # Summed over all positions: (I, O), or (O, I) if the gradient came first.
    of_kernel = jax.lax.dot_general(first, second, ((positions, positions), ((), ())))
    if first is not x:
        # XLA would write the transposed result as a product that a CPU computes a third slower.
        of_kernel = jax.lax.optimization_barrier(of_kernel) if target_platform() == "cpu" else of_kernel
        of_kernel = of_kernel.T
    return gradient @ kernel.T, of_kernel


product.defvjp(_product_forward, _product_backward)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8Kernel:
    """A kernel as whole numbers, with a factor for each output: weight = number · factor."""

    numbers: Int8[Array, "I O"]
    scale: Float32[Array, "O"]

    def __getitem__(self, index: Any) -> "Int8Kernel":
        """Itself, for `...`, by which modules read their parameters."""
        assert index is ..., "a kernel in int8 has no parts"
        return self


FEW = 32
"""Rows up to which a product with a 16-bit kernel takes less time in three parts than with a float32 copy of the kernel."""


def stored_product(x: Float[Array, "*B I"], kernel: Float[Array, "I O"] | Int8Kernel) -> Float[Array, "*B O"]:
    """`product` with a kernel that may be stored in another dtype, to which only the input's dtype matters.

    On a CPU a float32 copy of a bfloat16 kernel costs ten times as much as the product of a few rows. Instead each float32 number
    is written as the sum of three bfloat16 numbers, which have all of its 24 bits; products of bfloat16 numbers, summed in
    float32, then round no more than float32 products do (Henry et al., 2019, "Leveraging the bfloat16 Artificial Intelligence
    Datatype"). A kernel in int8 is multiplied as it is, and the outputs by their factors.
    """
    if isinstance(kernel, Int8Kernel):
        # Every whole number up to 256 is exact in bfloat16, so numbers lose nothing in the input's dtype.
        found = stored_product(x, kernel.numbers.astype(jnp.bfloat16 if x.dtype == jnp.float32 else x.dtype))
        return found * kernel.scale.astype(x.dtype).reshape((1,) * (found.ndim - 1) + (-1,))
    count = math.prod(x.shape[:-1])
    wide = x.dtype == jnp.float32 and kernel.dtype == jnp.bfloat16
    if not (wide and count <= FEW and target_platform() == "cpu"):
        return product(x, kernel.astype(x.dtype))
    parts, rest = [], x.reshape(count, -1)
    for _ in range(3):
        parts.append(rest.astype(jnp.bfloat16))
        rest = rest - parts[-1].astype(jnp.float32)
    sums = jnp.matmul(jnp.concatenate(parts), kernel, preferred_element_type=jnp.float32)  # (3 · B, O)
    return sums.reshape(3, *x.shape[:-1], -1).sum(axis=0)


class Linear(nnx.Module):
    """`x @ kernel (+ bias)`; the kernel starts normal with variance `scale² / inputs`.

    The kernel is cast to the input's dtype where it is used: training in bfloat16 keeps full weights, and weights that are stored
    in 16 bits stay so in memory.
    """

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs, scale: float = 1.0, bias: bool = False):
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (inputs, outputs)) * (scale * inputs**-0.5))
        self.bias = nnx.Param(jnp.zeros((outputs,))) if bias else None
        # Low-rank products that are trained beside a frozen kernel (`generalist.model.lora`), where there are any.
        self.adapter: Any = nnx.data(None)

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        # Cast here, not stored in 16 bits: the optimiser's small updates would round to nothing.
        y = stored_product(x, self.kernel[...])
        if self.adapter is not None:
            y = y + self.adapter(x)
        if self.bias is not None:
            # Reshaped explicitly: the tests forbid implicit rank promotion.
            y = y + self.bias[...].astype(x.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
        return y


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation (Zhang & Sennrich, 2019), computed in float32; the gain is stored as 1 + scale."""

    def __init__(self, size: int, *, rngs: nnx.Rngs, epsilon: float = 1e-6):
        del rngs  # starts at zero: nothing to draw
        self.scale = nnx.Param(jnp.zeros((size,)))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        # In 16 bits the mean of squares would lose the precision that normalisation needs.
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.epsilon)
        # Stored in 16 bits, a sum with 1 would be rounded.
        gain = 1.0 + self.scale[...].astype(jnp.float32).reshape((1,) * (y.ndim - 1) + (-1,))
        return (y * gain).astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer normalisation (Ba et al., 2016), computed in float32."""

    def __init__(self, size: int, *, rngs: nnx.Rngs, epsilon: float = 1e-5):
        del rngs  # starts at one and zero: nothing to draw
        self.scale, self.bias = nnx.Param(jnp.ones((size,))), nnx.Param(jnp.zeros((size,)))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        y = x.astype(jnp.float32)
        # Centred first: the mean of squares less the square of the mean would cancel where the mean is large.
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.epsilon)
        scale, bias = (
            one[...].astype(jnp.float32).reshape((1,) * (y.ndim - 1) + (-1,)) for one in (self.scale, self.bias)
        )
        return (y * scale + bias).astype(x.dtype)


NORMS: dict[str, type[RMSNorm | LayerNorm]] = {"rms": RMSNorm, "layer": LayerNorm}


def make_norm(config: ModelConfig, *, rngs: nnx.Rngs) -> RMSNorm | LayerNorm:
    """The norm that the settings choose, over the model's width."""
    return NORMS[config.norm](config.width, rngs=rngs, epsilon=config.norm_epsilon)


class FeedForward(nnx.Module):
    """`(act(x W₁) ⊙ x W₂) W₃` (Shazeer, 2020: GEGLU, SwiGLU), with W₁ and W₂ side by side in one kernel; or, without a gate,
    `gelu(x W₁) W₃`."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.activation, self.gated = feed_forward_activation(config.activation)
        inner = (1 + self.gated) * config.hidden
        # Smaller with depth, as the attention's output.
        scale = (2 * config.layers) ** -0.5
        self.up = Linear(config.width, inner, rngs=rngs, bias=config.bias)
        self.down = Linear(config.hidden, config.width, rngs=rngs, scale=scale, bias=config.bias)

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        hidden = constrain(self.up(x), "batch", "length", "hidden")
        if not self.gated:
            return self.down(self.activation(hidden))
        gate, value = jnp.split(hidden, 2, axis=-1)
        return self.down(self.activation(gate) * value)


class NormedFeedForward(nnx.Module):
    """Feed-forward of the layers through which images enter: a norm, then `act(x W₁) W₂` or, with a gate,
    `(act(x W₁) ⊙ x W₂) W₃` with W₁ and W₂ side by side in one kernel; without biases. Flamingo's activation is squared ReLU."""

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        activation: Activation = "squared_relu",
        norm: Literal["layer", "rms"] = "layer",
        epsilon: float = 1e-5,
        rngs: nnx.Rngs,
    ):
        self.activation, self.gated = feed_forward_activation(activation)
        self.norm = NORMS[norm](width, rngs=rngs, epsilon=epsilon)
        self.up = Linear(width, (1 + self.gated) * hidden, rngs=rngs)
        self.down = Linear(hidden, width, rngs=rngs)

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        hidden = self.up(self.norm(x))
        if not self.gated:
            return self.down(self.activation(hidden))
        gate, value = jnp.split(hidden, 2, axis=-1)
        return self.down(self.activation(gate) * value)


def smooth_rows(key: Key[Array, ""], count: int, width: int, scale: float) -> Float[Array, "count width"]:
    """Initial embeddings of places along a line: random mixtures of waves, one per octave from twice the line's length down to
    eight places (Fourier features; Tancik et al., 2020, section 5).

    Places that are near have similar rows, so that what is learned about one holds for its neighbours.

    Args:
        key: for the mixtures.
        count: number of places.
        width: length of a row.
        scale: standard deviation of the numbers.
    """
    octaves = max(1, int(np.log2(max(count, 8))) - 1)
    phases = np.pi * np.outer((np.arange(count) + 0.5) / count, 2.0 ** np.arange(octaves))
    waves = np.concatenate([np.cos(phases), np.sin(phases)], axis=1) / octaves**0.5  # (count, 2 * octaves)
    return jnp.asarray(waves, jnp.float32) @ jax.random.normal(key, (2 * octaves, width)) * scale
