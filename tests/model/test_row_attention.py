"""The TPU's kernel of whole rows, run without a TPU: values and gradients are those of attention with a mask."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from generalist.model import attention
from generalist.model.attend import Packed
from generalist.model.config import ModelConfig
from generalist.model.mesh_layout import Layout
from generalist.model.positions import placement
from generalist.model.row_attention import BLOCK, Heads, row_attention_takes

CONFIG = ModelConfig(width=32, layers=1, heads=4, kv_heads=4, head_size=32, hidden=64, qk_norm=False)


def attended(config: ModelConfig, length: int, x: jax.Array, segment: jax.Array) -> tuple[jax.Array, nnx.State]:
    """Attention's outputs, and the gradients of inputs and weights for a fixed gradient of the outputs."""
    graph, params = nnx.split(attention.Attention(config, rngs=nnx.Rngs(0)))
    placed = placement(jnp.arange(length)[None].repeat(len(x), 0), config)
    seen = Packed(segment, jnp.array(False))
    given = jax.random.normal(jax.random.key(1), x.shape)

    def loss(params, x):
        y, _ = nnx.merge(graph, params)(x, seen, placed, placed)
        return (y * given).sum(), y

    (_, y), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)
    return y, gradients


@pytest.mark.slow
@pytest.mark.parametrize(("heads", "size"), [(4, 32), (2, 128)])
def test_values_and_gradients_are_those_of_attention_with_a_mask(monkeypatch, heads: int, size: int):
    config = dataclasses.replace(CONFIG, heads=heads, kv_heads=heads, head_size=size)
    length = 2 * BLOCK
    x = jax.random.normal(jax.random.key(0), (2, length, config.width))
    # Segments that end within blocks and at their borders, and padding.
    ends = np.array([[100, BLOCK, 300, 500], [7, 9, BLOCK + 1, length]])
    segment = jnp.asarray((np.arange(length)[None, :, None] < ends[:, None, :]).sum(axis=2))
    expected = attended(config, length, x, segment)
    monkeypatch.setattr(attention, "target_platform", lambda: "tpu")
    monkeypatch.setattr(attention, "Heads", functools.partial(Heads, interpret=True))
    calls = []
    monkeypatch.setattr(
        attention, "row_attention", lambda *given, run=attention.row_attention: calls.append(1) or run(*given)
    )
    found = attended(config, length, x, segment)
    assert calls, "the kernel was not used"
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5 * float(jnp.abs(other).max()))


def test_which_rows_the_kernel_takes():
    takes = functools.partial(row_attention_takes, layout=Layout())
    assert takes(1024, 24, 32) and takes(1024, 12, 128) and takes(512, 1, 256)
    assert not takes(2048, 24, 32) and not takes(1024, 1, 256), "longer than the core's memory"
    assert not takes(BLOCK + 128, 24, 32), "no whole blocks"
    assert not takes(1024, 3, 32), "heads that do not fill the lanes"
    assert not takes(1024, 12, 96), "heads across the borders of lanes"
    assert not row_attention_takes(1024, 24, 32, Layout(heads="tensor"))
    assert not row_attention_takes(1024, 24, 32, Layout(queries="sequence"))
