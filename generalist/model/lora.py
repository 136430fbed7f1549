"""Low-rank adapters (LoRA, Hu et al., 2021, section 4.1): beside a frozen matrix W of a block, a product of two small ones is
trained, `x W + alpha / rank · (x A) B`.

Dimension key: I inputs, O outputs, R rank, P parts of a map, N layers.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from generalist.model.activations import GATES
from generalist.model.config import ModelConfig
from generalist.model.layers import product, stack
from generalist.model.tuning import PATHS, PLACES, LoraConfig, Place


def parts(config: ModelConfig, place: Place) -> tuple[int, ...]:
    """Outputs of the maps that stand side by side in one kernel, each of which has a low-rank product of its own: queries, keys
    and values, or gate and value."""
    if place == "qkv":
        return (config.heads * config.head_size, *2 * (config.kv_heads * config.head_size,))
    if place == "up":
        return (config.hidden,) * (2 if config.activation in GATES else 1)
    return (config.width,)


def inputs(config: ModelConfig, place: Place) -> int:
    """Inputs of a block's linear map."""
    return {"out": config.heads * config.head_size, "down": config.hidden}.get(place, config.width)


class Adapter(nnx.Module):
    """The low-rank products beside one linear map. B begins at zero, so that the map is at first what it was."""

    def __init__(self, inputs: int, parts: tuple[int, ...], lora: LoraConfig, *, rngs: nnx.Rngs):
        assert lora.rank is not None
        self.rank, self.scale, self.parts = lora.rank, lora.scale, parts
        # As PEFT draws A: uniform with the bound 1/√I (He et al., 2015, with a = √5).
        shape, bound = (inputs, len(parts) * lora.rank), inputs**-0.5
        self.a = nnx.Param(jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound))  # (I, P · R)
        self.b = nnx.Param(jnp.zeros((lora.rank, sum(parts))))  # (R, O), the parts' columns side by side

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        """What is added to the map's outputs."""
        narrow = jnp.split(product(x, self.a[...].astype(x.dtype)), len(self.parts), axis=-1)  # P of (*B, R)
        matrices = jnp.split(self.b[...].astype(x.dtype), np.cumsum(self.parts)[:-1], axis=-1)  # P of (R, _)
        return self.scale * jnp.concatenate(
            [product(one, matrix) for one, matrix in zip(narrow, matrices, strict=True)], axis=-1
        )


def add_adapters(blocks: nnx.Module, config: ModelConfig, lora: LoraConfig, layers: int, key: Array) -> None:
    """Puts an adapter beside each of the chosen maps of a stack of blocks.

    Args:
        layers: N, the number of blocks in the stack.
        key: draws the matrices A.
    """
    for place in lora.places:

        def make(rngs: nnx.Rngs, place: Place = place) -> Adapter:
            return Adapter(inputs(config, place), parts(config, place), lora, rngs=rngs)

        part, name = PATHS[place].split("/")
        # Its own key for each place, so that the choice of one changes nothing in another.
        linear = getattr(getattr(blocks, part), name)
        linear.adapter = stack(make, layers, jax.random.fold_in(key, PLACES.index(place)))


def merged(
    kernel: Float[np.ndarray, "N I O"],
    a: Float[np.ndarray, "N I PR"],
    b: Float[np.ndarray, "N R O"],
    config: ModelConfig,
    lora: LoraConfig,
    place: Place,
) -> Float[np.ndarray, "N I O"]:
    """Kernels with their adapters in them, `W + alpha / rank · A B` for each part, in float32."""
    widths = parts(config, place)
    narrow = np.split(a.astype(np.float32), len(widths), axis=-1)
    matrices = np.split(b.astype(np.float32), np.cumsum(widths)[:-1], axis=-1)
    products = [one @ matrix for one, matrix in zip(narrow, matrices, strict=True)]
    return kernel.astype(np.float32) + np.float32(lora.scale) * np.concatenate(products, axis=-1)
