"""Activations by our names and by those of published files."""

import jax.numpy as jnp
import pytest

from generalist.model.activations import GATES, PLAIN, feed_forward_activation
from generalist.weights import activation_names

# At -1 and 2, as PyTorch computes them.
EXPECTED = {
    "gelu": (-0.1588, 1.9546),
    "exact_gelu": (-0.1587, 1.9545),
    "quick_gelu": (-0.1542, 1.9357),
    "relu": (0.0, 2.0),
    "squared_relu": (0.0, 4.0),
    "silu": (-0.2689, 1.7616),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_values(name: str):
    assert tuple(round(float(one), 4) for one in PLAIN[name](jnp.array([-1.0, 2.0]))) == EXPECTED[name]


def test_names_of_published_files_have_the_same_function_with_and_without_a_gate():
    assert set(PLAIN) == set(EXPECTED) == set(activation_names.PLAIN.values())
    for theirs, ours in activation_names.PLAIN.items():
        gated = activation_names.GATED[theirs]
        assert feed_forward_activation(gated) == (PLAIN[ours], True) and feed_forward_activation(ours) == (
            PLAIN[ours],
            False,
        )
    assert set(activation_names.GATED.values()) == set(GATES)
