"""Into how many pieces logits are cut where nobody says."""

import pytest

from generalist.training.loss import fitting


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
