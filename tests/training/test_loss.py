"""Factors of the targets by their sources' weights, and into how many pieces logits are cut where nobody says."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from generalist.data.batch import Batch, BatchSpec
from generalist.training.loss import fitting, token_weights

SPEC = BatchSpec(rows=2, length=4, tensors=0, projection_width=1, frames=0, frame_size=1)


def of_two_sources(weight: list[list[float]]) -> Batch:
    """The first row is of source 0, the second one of source 1."""
    source = np.array([[0] * 4, [1] * 4], np.int32)
    batch = dataclasses.replace(SPEC.zeros(0), loss_weight=np.array(weight, np.float32), source=source)
    return jax.tree.map(jnp.asarray, batch)


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e-39, 1e39, 1e300])
@pytest.mark.parametrize(
    ("average", "expected"),
    [
        # Three targets of weight 1 and two of weight 2.
        ("tokens", [[1 / 7, 1 / 7, 1 / 7, 0], [2 / 7, 2 / 7, 0, 0]]),
        ("sources", [[1 / 9, 1 / 9, 1 / 9, 0], [1 / 3, 1 / 3, 0, 0]]),
    ],
)
def test_only_the_ratios_of_weights_count(average: Literal["tokens", "sources"], scale: float, expected: list):
    batch = of_two_sources([[1, 1, 1, 0], [1, 1, 0, 0]])
    found = token_weights(batch, [scale, 2 * scale], average).positions
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    equal = token_weights(batch, [scale, scale], average).positions
    np.testing.assert_array_equal(equal, token_weights(batch, [1.0, 1.0], average).positions)


@pytest.mark.parametrize("average", ["tokens", "sources"])
def test_targets_of_the_least_weighted_source_alone_sum_to_one(average: Literal["tokens", "sources"]):
    found = token_weights(of_two_sources([[1, 0, 1, 0], [0, 0, 0, 0]]), [1e-30, 1.0], average).positions
    np.testing.assert_allclose(found, [[0.5, 0, 0.5, 0], [0] * 4], rtol=1e-6)
    nothing = token_weights(of_two_sources([[0] * 4, [0] * 4]), [1e-30, 1.0], average).positions
    np.testing.assert_array_equal(nothing, np.zeros((2, 4)))


@pytest.mark.parametrize(
    ("length", "logits", "pieces"),
    [
        (512, 2**22, 1),  # all fit
        (512, 2**22 + 1, 2),
        (512, 4096 * 8192, 8),
        (12, 4096 * 8192, 4),  # twelve positions divide no further
        (7, 4096 * 8192, 1),
    ],
)
def test_logits_are_cut_until_a_piece_fits_a_cpus_caches(length: int, logits: int, pieces: int):
    assert fitting(length, logits, "cpu") == pieces
