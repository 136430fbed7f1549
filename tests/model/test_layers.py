"""The linear map's own backward pass, kernels in 16 bits, and convolution as a product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from generalist.model.embedders import column_convolution
from generalist.model.layers import FEW, product, smooth_rows, stored_product


@pytest.mark.parametrize("outputs", [3, 9])  # a kernel that narrows and one that widens: another side is transposed
def test_a_products_gradients_are_those_of_a_plain_one(outputs: int):
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = jax.random.normal(keys[0], (2, 4, 5)), jax.random.normal(keys[1], (5, outputs))
    gradient = jax.random.normal(keys[2], (2, 4, outputs))
    mixed, pull = jax.vjp(product, x, kernel)
    expected, plain_pull = jax.vjp(jnp.matmul, x, kernel)
    np.testing.assert_array_equal(mixed, expected)
    for ours, theirs in zip(pull(gradient), plain_pull(gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "stride", "height", "width"), [(3, 2, 21, 21), (3, 1, 16, 16), (1, 1, 5, 7), (3, 2, 8, 11)]
)
def test_a_convolution_by_columns_is_a_convolution(size: int, stride: int, height: int, width: int):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, height, width, 5)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(size, size, 5, 4)), jnp.float32)
    expected = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(column_convolution(x, kernel, stride), expected, atol=1e-4)


@pytest.mark.parametrize("rows", [(1,), (2, 3), (FEW + 1,)])
def test_a_kernel_in_16_bits_rounds_no_more_than_one_in_float32(rows: tuple[int, ...]):
    x = jnp.exp(3 * jax.random.normal(jax.random.key(1), (*rows, 96)))
    kernel = jax.random.normal(jax.random.key(2), (96, 40)).astype(jnp.bfloat16)
    exact = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    off = [np.abs(jax.jit(stored_product)(x, one) - exact).max() for one in (kernel, kernel.astype(jnp.float32))]
    assert off[0] <= 2 * off[1], "products of bfloat16 alone are off by a thousand times as much"


def test_rows_of_near_places_are_similar():
    rows = np.asarray(smooth_rows(jax.random.key(0), 1024, 256, 0.25))
    assert rows.shape == (1024, 256) and 0.23 < rows.std() < 0.27
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    near, next_but, far = ((unit[:-step] * unit[step:]).sum(axis=1).mean() for step in (1, 8, 400))
    assert near > 0.9 > next_but > 0.3 > abs(far)
