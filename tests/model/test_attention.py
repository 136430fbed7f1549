"""Attention: the mask's pattern, rotary positions, and that every implementation gives the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from generalist.model.attention import angles, attend_mapped, attention_mask, local_mask, rotate
from generalist.model.config import ModelConfig


def test_mask_is_causal_inside_a_segment_and_hides_padding():
    segment = jnp.array([[1, 1, 1, 2, 2, 0]])
    position = jnp.array([[0, 1, 2, 0, 1, 0]])
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    np.testing.assert_array_equal(attention_mask(segment, position, segment, position)[0].astype(int), expected)


def test_rotation_makes_scores_depend_on_distance_alone():
    config = ModelConfig(head_size=16)
    query, key = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 16))

    def score(q_at: int, k_at: int):
        q, k = (rotate(x, angles(jnp.array([[at]]), config)) for x, at in ((query, q_at), (key, k_at)))
        return jnp.sum(q * k)

    np.testing.assert_allclose(score(7, 3), score(104, 100), rtol=1e-4)
    assert abs(score(7, 3) - score(7, 5)) > 1e-3


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
def test_mapped_attention_equals_the_library(heads: int, kv_heads: int):
    keys = jax.random.split(jax.random.key(1), 3)
    query = jax.random.normal(keys[0], (3, 10, heads, 8))
    key, value = (jax.random.normal(k, (3, 10, kv_heads, 8)) for k in keys[1:])
    segment = jnp.array([[1] * 10, [1] * 4 + [2] * 6, [1] * 7 + [0] * 3])
    position = jnp.tile(jnp.arange(10)[None], (3, 1))
    mask = attention_mask(segment, position, segment, position)
    library = jax.nn.dot_product_attention(query, key, value, mask=mask[:, None])
    visible = np.asarray(segment > 0)
    np.testing.assert_allclose(
        np.asarray(attend_mapped(query, key, value, mask, 8**-0.5, 0.0))[visible],
        np.asarray(library)[visible],
        atol=1e-5,
    )


def test_a_window_holds_so_many_positions():
    segment, position = jnp.ones((1, 5), int), jnp.arange(5)[None]
    mask = attention_mask(segment, position, segment, position)
    seen = np.asarray(local_mask(mask, position, position, 2)[0])
    np.testing.assert_array_equal(seen, np.tri(5, dtype=bool) & ~np.tri(5, k=-2, dtype=bool))
