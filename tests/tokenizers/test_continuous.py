"""Codecs: the golden values, the way back to bin centres, and what has no bin."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from generalist.tokenizers.continuous import MuLaw, Quantile, Uniform, codec_from_json, fit_statistics

#          x        F(x)   bin of 1024
GOLDEN = [
    (0.00,  0.000000,  512),
    (0.01,  0.068288,  546),
    (0.10,  0.236237,  632),
    (1.00,  0.454674,  744),
    (-1.0, -0.454674,  279),
    (10.0,  0.680640,  860),
    (100.,  0.907398,  976),
    (256.,  1.000000, 1023),
]  # fmt: skip


@pytest.mark.parametrize(("value", "companded", "expected"), GOLDEN)
def test_mu_law_golden_values(value, companded, expected):
    """Papers A1 and trap 3."""
    bins = MuLaw().encode(np.array([value], np.float32))
    assert bins.dtype == np.int32 and bins.tolist() == [expected]
    assert min(1023, int((companded + 1) * 512)) == expected  # the table agrees with itself


def test_mu_law_decodes_to_the_inverse_of_bin_centres():
    bins = np.arange(1024)
    middle = (bins + 0.5) / 512 - 1
    expected = np.sign(middle) * ((1 + 100 * 256) ** np.abs(middle) - 1) / 100
    decoded = MuLaw().decode(bins)
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, expected, rtol=1e-5)


def test_mu_law_cuts_off_far_numbers():
    assert MuLaw().encode(np.array([-1e30, 1e30])).tolist() == [0, 1023]


@settings(deadline=None)
@given(bins=arrays.arrays(np.int32, st.integers(1, 50), elements=st.integers(0, 255)))
def test_mu_law_bins_come_back(bins):
    codec = MuLaw(bins=256)
    np.testing.assert_array_equal(codec.encode(codec.decode(bins)), bins)


def test_uniform_bins_each_dimension_by_its_bounds():
    codec = Uniform(low=(-1, 0), high=(1, 10), bins=4)
    values = np.array([[-1, 0], [-0.51, 2.4], [-0.5, 2.5], [0, 5], [0.99, 9.9], [1, 10], [-9, 99]])
    assert codec.encode(values).tolist() == [[0, 0], [0, 0], [1, 1], [2, 2], [3, 3], [3, 3], [0, 3]]
    assert codec.decode(np.array([[0, 0], [3, 3]])).tolist() == [[-0.75, 1.25], [0.75, 8.75]]


@settings(deadline=None)
@given(values=arrays.arrays(np.float64, (7, 3), elements=st.floats(-2, 2)))
def test_uniform_is_off_by_half_a_bin_at_most(values):
    codec = Uniform(low=(-2.0,) * 3, high=(2.0,) * 3, bins=64)
    assert np.abs(codec.decode(codec.encode(values)) - values).max() <= 4 / 64 / 2 + 1e-6


def test_uniform_of_one_point_decodes_to_it():
    codec = Uniform(low=(3.0,), high=(3.0,), bins=8)
    assert codec.decode(codec.encode(np.array([[3.0]]))).tolist() == [[3.0]]


def test_quantile_bins_hold_equally_many():
    values = np.random.default_rng(0).normal(size=(8000, 2)) * [1, 100]
    codec = Quantile.fit(values, bins=16)
    counts = np.stack([np.bincount(column, minlength=16) for column in codec.encode(values).T])
    assert (abs(counts - 500) <= 2).all()


def test_quantile_keeps_a_repeated_number_exactly():
    """A saturated action: half the numbers are exactly -1 or 1."""
    rng = np.random.default_rng(0)
    values = np.where(rng.random((4000, 1)) < 0.5, np.sign(rng.normal(size=(4000, 1))), rng.uniform(-1, 1, (4000, 1)))
    codec = Quantile.fit(values, bins=32)
    for atom in (-1.0, 1.0):
        assert codec.decode(codec.encode(np.array([[atom]]))).tolist() == [[atom]]


def test_quantile_of_a_constant_decodes_to_it():
    codec = Quantile.fit(np.full((5, 1), 0.25), bins=8)
    assert codec.decode(codec.encode(np.array([[0.25]]))).tolist() == [[0.25]]


def test_quantile_tail_leaves_out_the_ends():
    codec = Quantile.fit(np.linspace(0, 100, 101)[:, None], bins=2, tail=0.1)
    np.testing.assert_allclose(codec.edges, [[10, 50, 90]])
    assert codec.encode(np.array([[-5.0], [49.0], [51.0], [1000.0]])).tolist() == [[0], [0], [1], [1]]


CODECS = [
    MuLaw(bins=64),
    Uniform(low=(-1.0, 0.0), high=(1.0, 5.0), bins=64),
    Quantile.fit(np.arange(20.0).reshape(10, 2), bins=8),
]


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: type(codec).__name__)
def test_codecs_survive_json(codec):
    assert codec_from_json(json.loads(json.dumps(codec.to_json()))) == codec


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: type(codec).__name__)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_has_no_bin(codec, bad):
    with pytest.raises(ValueError, match="NaN or infinite"):
        codec.encode(np.array([[0.0, bad]]))


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: type(codec).__name__)
def test_bins_outside_are_errors(codec):
    with pytest.raises(ValueError, match="bins must be in"):
        codec.decode(np.array([[0, codec.bins]]))


@pytest.mark.parametrize(
    "data",
    [
        {"type": "cubic"},
        {"type": "mu_law", "mu": 100, "m": 256},
        {"type": "mu_law", "mu": 100, "m": 256, "bins": 10**12},
        {"type": "mu_law", "mu": 10**400, "m": 256, "bins": 4},
        {"type": "uniform", "low": [0], "high": [1, 2], "bins": 4},
        {"type": "uniform", "low": [0], "high": ["x"], "bins": 4},
        {"type": "uniform", "low": [float("nan")], "high": [1], "bins": 4},
        {"type": "quantile", "edges": [[0, 1], [0]]},
        {"type": "quantile", "edges": [[1, 0]]},
        {"type": "quantile", "edges": 3},
        [],
    ],
)
def test_damaged_codecs_are_one_line_errors(data):
    with pytest.raises(ValueError) as error:
        codec_from_json(data)
    assert "\n" not in str(error.value)


def test_statistics_leave_constants_alone():
    mean, std = fit_statistics(np.array([[0, 5, 0.1 + 0.2], [2, 5, 0.3]]))
    np.testing.assert_allclose(mean, [1, 5, 0.3])
    np.testing.assert_allclose(std, [1, 1, 1])


def test_statistics_of_large_numbers_keep_what_varies():
    """Seconds of a clock, as float64; and whole numbers."""
    mean, std = fit_statistics(np.array([[1.7e9 + 0.25, 2**40], [1.7e9 + 0.75, 2**40 + 2]]))
    np.testing.assert_array_equal(mean, [1.7e9 + 0.5, 2**40 + 1])
    np.testing.assert_array_equal(std, [0.25, 1.0])
    assert fit_statistics(np.array([2**40, 2**40 + 4]))[1] == 2


@pytest.mark.parametrize("values", [np.zeros((0, 3)), np.array([[np.nan]]), np.array(1.0)])
def test_statistics_need_numbers(values):
    with pytest.raises(ValueError):
        fit_statistics(values)


@pytest.mark.parametrize(
    ("values", "mean", "std"),
    [
        (np.array([[1e-6, 0], [3e-6, 0]], np.float32), [2e-6, 0], [1e-6, 1]),  # amperes: small, not constant
        (np.array([[0.0], [0.015]], np.float16), [0.0075], [0.0075]),
        (np.array([2**63 + 1, 2**63 + 3], np.uint64), 2**63 + 2, 1),
        (np.array([1_700_000_000_000_000_000, 1_700_000_000_000_000_200]), 1_700_000_000_000_000_100, 100),
    ],
)
def test_statistics_are_of_what_varies_however_small_or_far_away(values, mean, std):
    found = fit_statistics(values)
    np.testing.assert_allclose(np.asarray(found[1], float), std, rtol=1e-3)
    assert np.abs(np.asarray(found[0] - np.array(mean, object)).astype(float)).max() <= 1e-3 * np.max(std)


def test_an_outlier_does_not_make_all_others_look_the_same():
    values = np.tile([0.0, 1.0], 150)
    values[7] = 1e9
    mean, std = fit_statistics(values)
    assert 0.4 < mean < 0.7 and 0.4 < std < 2
    steady = np.zeros(300)
    steady[7] = 5.0  # a signal, not an outlier: it has no bulk to be far from
    assert fit_statistics(steady)[1] == pytest.approx(steady.std())


def test_few_values_come_back_exactly():
    values = np.array([[0, 5], [1, 5], [2, 5], [3, 5], [2999, 5]])
    codec = Quantile.of_values(values)
    np.testing.assert_array_equal(codec.decode(codec.encode(values)), values)
    assert codec_from_json(codec.to_json()) == codec
    between = codec.decode(codec.encode(np.array([[1000, 5]])))
    assert between[0, 0] == 1501
