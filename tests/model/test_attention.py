"""Attention: the mask's pattern, rotary positions, and that every implementation gives the same, on every mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from generalist.model.attend import Packed, attend, attend_packed, masked_attention
from generalist.model.blocked_attention import blocked_attention, shown_attention
from generalist.model.config import ModelConfig
from generalist.model.masks import attention_mask
from generalist.model.mesh_layout import Layout
from generalist.model.positions import angles, rotate, rotate_by_product
from generalist.model.splash_attention import splash_attention, splash_takes


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


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_rotation_for_tpus_gives_the_same(dtype):
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 16)).astype(dtype)
    turned = angles(jnp.arange(10).reshape(2, 5) * 7, ModelConfig(head_size=16))

    def both(form):
        return jax.value_and_grad(lambda x: (form(x, turned).astype(jnp.float32) ** 3).sum())(x)

    # A rounding apart at most: the compiler may join a product and a sum into one operation in one form and not in the other.
    near = 1e-6 if dtype == jnp.float32 else 2**-8
    for found, expected in zip(both(rotate_by_product), both(rotate), strict=True):
        np.testing.assert_allclose(
            found.astype(jnp.float32), expected.astype(jnp.float32), rtol=4 * near, atol=4 * near
        )


def test_rotation_makes_scores_depend_on_distance_alone():
    config = ModelConfig(head_size=16)
    query, key = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 16))

    def score(q_at: int, k_at: int):
        q, k = (rotate(x, angles(jnp.array([[at]]), config)) for x, at in ((query, q_at), (key, k_at)))
        return jnp.sum(q * k)

    np.testing.assert_allclose(score(7, 3), score(104, 100), rtol=1e-4)
    np.testing.assert_allclose(score(7, 3), score(1_000_004, 1_000_000), rtol=2e-3)  # a window that has slid so far
    assert abs(score(7, 3) - score(7, 5)) > 1e-3


def test_a_window_holds_so_many_positions():
    segment, position = jnp.ones((1, 5), int), jnp.arange(5)[None]
    seen = np.asarray(attention_mask(segment, position, segment, position, reach=2)[0])
    np.testing.assert_array_equal(seen, np.tri(5, dtype=bool) & ~np.tri(5, k=-2, dtype=bool))


def operands(batch: int, length: int, heads: int, kv_heads: int, size: int = 8):
    """Queries, keys, values and segments: rows of one, of two segments, and with padding."""
    keys = jax.random.split(jax.random.key(1), 3)
    query = jax.random.normal(keys[0], (batch, length, heads, size))
    key, value = (jax.random.normal(k, (batch, length, kv_heads, size)) for k in keys[1:])
    at = jnp.arange(length)[None] + jnp.zeros((batch, 1), int)
    row = jnp.arange(batch)[:, None] % 3
    segment = jnp.where(row == 0, 1, jnp.where(at < length // 3, 1, jnp.where(row == 1, 2, 0)))
    return query, key, value, segment


def by_mask(query, key, value, segment, window: int, softcap: float):
    """What every implementation must give, from the mask that the documentation draws."""
    position = jnp.broadcast_to(jnp.arange(query.shape[1])[None], segment.shape)
    # Padding sees padding where no mask is made; here it is a segment of its own.
    mask = attention_mask(segment + 1, position, segment + 1, position, reach=window or None)
    groups = jnp.repeat(key, query.shape[2] // key.shape[2], axis=2)
    scores = jnp.einsum("blnh,bsnh->bnls", query, groups) * query.shape[-1] ** -0.5
    scores = softcap * jnp.tanh(scores / softcap) if softcap else scores
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -jnp.inf), axis=-1)
    return jnp.einsum("bnls,bsnh->blnh", weights, jnp.repeat(value, query.shape[2] // key.shape[2], axis=2))


def with_gradients(attention, query, key, value):
    """The output and its pull on the operands, for a gradient that differs from place to place."""
    mixed, pull = jax.vjp(attention, query, key, value)
    return mixed, *pull(jnp.sin(jnp.arange(mixed.size, dtype=jnp.float32)).reshape(mixed.shape))


def assert_same(ours, theirs):
    for name, our, their in zip(("mixed", "query", "key", "value"), ours, theirs, strict=True):
        np.testing.assert_allclose(our, their, atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", [blocked_attention, masked_attention])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "window", "softcap"), [(4, 4, 0, 0.0), (4, 2, 40, 0.0), (4, 1, 0, 2.0), (2, 2, 9, 5.0)]
)
@pytest.mark.parametrize("length", [300, 400])  # the last block is shorter; on a CPU 400 positions are a long row
def test_implementations_give_what_the_mask_says(implementation, length, heads, kv_heads, window, softcap):
    query, key, value, segment = operands(3, length, heads, kv_heads)

    def ours(query, key, value):
        return implementation(query, key, value, segment, segment, scale=8**-0.5, softcap=softcap, reach=window or None)

    theirs = functools.partial(by_mask, segment=segment, window=window, softcap=softcap)
    assert_same(with_gradients(jax.jit(ours), query, key, value), with_gradients(jax.jit(theirs), query, key, value))


@pytest.mark.parametrize("keys", [70, 400])  # a short and a long row
@pytest.mark.parametrize(("kv_heads", "softcap"), [(4, 0.0), (2, 3.0)])
def test_a_mask_shows_any_keys_of_any_number(keys: int, kv_heads: int, softcap: float):
    query, *_ = operands(2, 130, 4, kv_heads)
    _, key, value, _ = operands(2, keys, 4, kv_heads)
    shown = (
        jax.random.bernoulli(jax.random.key(2), 0.3, (2, 130, keys)).at[0, 5].set(False)
    )  # a query that sees nothing

    def theirs(query, key, value):
        alike = query.at[0, 5].set(0.0), key, value, shown.at[0, 5].set(True)  # equal scores of all keys: their mean
        mixed = attend(*alike, scale=8**-0.5, softcap=softcap)
        return mixed.at[0, 5].set(jax.lax.stop_gradient(mixed[0, 5]))

    def ours(query, key, value):
        return shown_attention(query, key, value, shown, scale=8**-0.5, softcap=softcap)

    assert_same(*(with_gradients(jax.jit(one), query, key, value) for one in (ours, theirs)))
    half = [one.astype(jnp.bfloat16) for one in (query, key, value)]
    mixed = ours(*half)
    assert mixed.dtype == jnp.bfloat16
    np.testing.assert_allclose(mixed.astype(jnp.float32), theirs(*half).astype(jnp.float32), atol=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (100, 3.0)])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (2, 1, 2, 2)])
def test_the_kernel_for_tpus_gives_the_same_on_every_mesh(sizes, window, softcap):
    query, key, value, segment = operands(2, 512, 4, 2, 16)
    mesh = jax.make_mesh(
        sizes,
        ("data", "fsdp", "tensor", "sequence"),
        axis_types=(AxisType.Auto,) * 4,
        devices=jax.devices()[: np.prod(sizes)],
    )
    split = Layout(rows=("data",), queries="sequence", heads="tensor") if max(sizes) > 1 else Layout()

    def ours(query, key, value):
        return splash_attention(
            query * 16**-0.5, key, value, segment, window=window, softcap=softcap, layout=split, interpret=True
        )

    with jax.set_mesh(mesh):
        assert splash_takes(512, split.queries)
        found = with_gradients(jax.jit(ours), query, key, value)
    theirs = functools.partial(by_mask, segment=segment, window=window, softcap=softcap)
    assert_same(found, with_gradients(jax.jit(theirs), query, key, value))


@functools.cache
def near_or_far(near: bool):
    """What the mask says of the operands of the test below."""
    query, key, value, segment = operands(8, 256, 4, 2)
    theirs = functools.partial(by_mask, segment=segment, window=20 if near else 0, softcap=0.0)
    return with_gradients(jax.jit(theirs), query, key, value)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(8, 1, 1, 1), (2, 2, 2, 1), (1, 2, 1, 4), (1, 1, 2, 4)])
def test_rows_heads_and_queries_may_be_divided_over_a_mesh(sizes):
    query, key, value, segment = operands(8, 256, 4, 2)
    mesh = jax.make_mesh(sizes, ("data", "fsdp", "tensor", "sequence"), axis_types=(AxisType.Auto,) * 4)

    @jax.jit  # one program for both
    def ours(query, key, value, near):
        seen = Packed(segment, near)
        return attend_packed(query, key, value, seen, window=20, scale=8**-0.5, softcap=0.0)

    for near in (False, True):
        with jax.set_mesh(mesh):
            found = with_gradients(functools.partial(ours, near=jnp.array(near)), query, key, value)
        assert_same(found, near_or_far(near))


@pytest.mark.slow
@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_a_mask_of_a_cache_is_seen_as_the_rows_are(softcap: float):
    query, key, value, segment = operands(3, 12, 4, 2)
    position = jnp.broadcast_to(jnp.arange(12)[None], segment.shape)
    mask = attention_mask(segment + 1, position, segment + 1, position)
    cached = attend(query[:, 8:], key, value, mask[:, 8:], scale=8**-0.5, softcap=softcap)
    whole = by_mask(query, key, value, segment, 0, softcap)
    np.testing.assert_allclose(cached, whole[:, 8:], atol=1e-5)
