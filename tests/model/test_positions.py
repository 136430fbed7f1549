"""ALiBi as further dimensions gives what its bias gives, in every kernel; rotary positions of a share, and of kinds of layers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from generalist.model.attend import masked_attention
from generalist.model.blocked_attention import blocked_attention
from generalist.model.config import ModelConfig, RopeConfig
from generalist.model.mesh_layout import Layout
from generalist.model.positions import angles, head_slopes, placement, slopes
from generalist.model.splash_attention import splash_attention

ALIBI = ModelConfig(heads=6, kv_heads=3, head_size=8, alibi=8.0)


def operands(length: int):
    """Queries, keys and values of one row, random."""
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((1, length, 6, 8), (1, length, 3, 8), (1, length, 3, 8))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def with_bias(query, key, value):
    """Causal attention with the bias of the paper: slope times the distance, negative."""
    length = query.shape[1]
    key, value = (jnp.repeat(array, 2, axis=2) for array in (key, value))
    scores = jnp.einsum("blnh,bsnh->bnls", query, key) * 8**-0.5
    back = jnp.arange(length)[:, None] - jnp.arange(length)[None]
    scores = scores - jnp.asarray(head_slopes(6, 8.0))[None, :, None, None] * back[None, None]
    weights = jax.nn.softmax(jnp.where((back >= 0)[None, None], scores, -jnp.inf), axis=-1)
    return jnp.einsum("bnls,bsnh->blnh", weights, value)


def blocks(query, key, value, segment):
    return blocked_attention(query, key, value, segment, segment, scale=8**-0.5, softcap=0.0)


def masked(query, key, value, segment):
    return masked_attention(query, key, value, segment, segment, scale=8**-0.5, softcap=0.0)


def splash(query, key, value, segment):
    query = query * 8**-0.5
    return splash_attention(query, key, value, segment, window=0, softcap=0.0, layout=Layout(), interpret=True)


@pytest.mark.parametrize("kernel", [blocks, masked, splash])
def test_slopes_give_what_their_bias_gives(kernel):
    query, key, value = operands(256)
    at = jnp.arange(256)[None]
    # Wherever the row begins, also far beyond one digit: only distances count.
    for first in (0, 1000):
        placed = slopes(at + first, ALIBI)
        wide = jnp.pad(value, ((0, 0), (0, 0), (0, 0), (0, 8)))
        found = jax.jit(kernel)(placed.query(query), placed.key(key), wide, jnp.ones((1, 256), jnp.int32))
        np.testing.assert_allclose(found[..., :8], with_bias(query, key, value), atol=3e-4)


def test_slopes_are_exact_in_bfloat16():
    placed = slopes(jnp.array([[0, 255, 256, 40_000]]), ALIBI)
    for array in placed:
        rounded = array.astype(jnp.bfloat16).astype(jnp.float32)
        np.testing.assert_allclose(rounded[..., :6], array[..., :6], rtol=0)
    products = jnp.einsum("blnd,bsd->bnls", placed.of_query, placed.of_key[:, :, 0], precision="highest")
    back = np.array([[0, 255, 256, 40_000]]).T - np.array([[0, 255, 256, 40_000]])
    expected = -head_slopes(6, 8.0)[None, :, None, None] * back[None, None] * 8**0.5
    np.testing.assert_allclose(products, expected, atol=0.2)  # of the query's own part, which has 16 bits
    # The same for all keys of a query, which the softmax leaves out.
    difference = np.asarray(products) - expected
    np.testing.assert_allclose(difference - difference[..., :1], 0, atol=5e-3)


def test_slopes_of_heads_that_are_no_power_of_two():
    np.testing.assert_allclose(head_slopes(4, 8.0), [2**-2, 2**-4, 2**-6, 2**-8])
    np.testing.assert_allclose(head_slopes(3, 8.0), [2**-4, 2**-8, 2**-2])


def test_windows_that_are_not_stretched_are_not_scaled_either():
    stretched = RopeConfig(scaling="yarn", factor=4.0, length=16, attention_factor=1.3, local_base=500.0)
    position = jnp.arange(12)[None]
    near, far = (angles(position, ModelConfig(rope=stretched), kind) for kind in ("window", "full"))
    plain = angles(position, ModelConfig(rope=RopeConfig(base=500.0)))
    jax.tree.map(np.testing.assert_array_equal, near, plain)
    np.testing.assert_allclose(far.cos[0, 0], 1.3)


def test_an_unrotated_layer_turns_nothing_and_a_share_leaves_the_rest():
    config = ModelConfig(head_size=12, rope=RopeConfig(share=0.5, local_base=100.0))
    x, at = jax.random.normal(jax.random.key(0), (1, 5, 2, 12)), jnp.arange(5)[None]
    np.testing.assert_array_equal(angles(at, config, "full_unrotated").query(x), x)
    turned = angles(at, config).query(x)
    np.testing.assert_array_equal(turned[..., 6:], x[..., 6:])
    assert (jnp.abs(turned - x)[0, 1:, :, :6] > 0).all()
    assert (turned != angles(at, config, "window").query(x)).any()
    assert placement(at, dataclasses.replace(config, learned_positions=8)) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alibi": 8.0, "learned_positions": 4}, "learned_positions and model.alibi exclude each other"),
        ({"alibi": 8.0, "attention_softcap": 2.0}, "alibi and model.attention_softcap exclude each other"),
        ({"layer_kinds": ()}, "layer_kinds is empty"),
        ({"layer_kinds": ("full", "window")}, "set model.window"),
        ({"query_scale": 0.0}, "query_scale must be above 0"),
        ({"pre_norms": False}, "pre_norms or model.post_norms must be set"),
        ({"qkv_bound": -1.0}, "qkv_bound must not be negative"),
        ({"head_size": 10, "rope": RopeConfig(share=0.5)}, "10 · 0.5 = 5"),
        ({"rope": RopeConfig(scaling="listed", factors=(1.0,))}, "one factor per wavelength, 16, got 1"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**settings)


def test_yarn_needs_a_base_above_1():
    with pytest.raises(ValueError, match="base must be above 1 for yarn"):
        RopeConfig(scaling="yarn", base=1.0)


@pytest.mark.parametrize(
    "settings", [{"share": 1.5}, {"share": 0.0}, {"factors": (1.0, -1.0)}, {"attention_factor": 0.0}]
)
def test_rotary_settings_out_of_their_range(settings: dict):
    with pytest.raises(ValueError, match=rf"model\.rope\.{next(iter(settings))} must be"):
        RopeConfig(**settings)
