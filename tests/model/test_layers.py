"""The linear map's own backward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from generalist.model.layers import product


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
