"""Rows of tables, and the sums of their gradients without a scatter: the forms for GPUs against NumPy and against the CPU's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from generalist.data import rows
from generalist.data.rows import SMALL, rows_at, rows_of_shards, sums_by_order, sums_by_products, sums_over_mesh

POSITIONS, WIDTH = 300, 5


def indices(count: int) -> dict[str, np.ndarray]:
    """Indices into a table of `count` rows, from -count to beyond its end."""
    rng = np.random.default_rng(count)
    return {
        "random": rng.integers(0, count, POSITIONS),
        "most rows absent": rng.choice([0, count // 2, count - 1], POSITIONS),
        "one row": np.full(POSITIONS, count // 3),
        "padding": np.where(np.arange(POSITIONS) < 280, 0, rng.integers(0, count, POSITIONS)),
        "outside": rng.integers(-count, 3 * count, POSITIONS),
    }


def added(gradient: np.ndarray, index: np.ndarray, count: int) -> np.ndarray:
    """The sums by NumPy, in float64."""
    sums = np.zeros((count, gradient.shape[-1]))
    np.add.at(sums, np.clip(np.where(index < 0, index + count, index), 0, count - 1), gradient.astype(np.float64))
    return sums


@pytest.mark.parametrize("count", [9, SMALL + 3])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_gradients_on_a_gpu_are_the_sums_of_all_positions(count: int, dtype, monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(1)
    # Of both signs and of very different sizes: a form that subtracts running sums would lose the small ones.
    numbers = rng.normal(size=(POSITIONS, WIDTH)) * 10.0 ** rng.integers(-3, 3, (POSITIONS, 1))
    toward = jnp.asarray(numbers, dtype)
    table = jnp.asarray(rng.normal(size=(count, WIDTH)), jnp.float32)
    monkeypatch.setattr(rows, "target_platform", lambda: "gpu")

    @jax.jit
    def both(index):
        found, pull = jax.vjp(lambda table: rows_at(table, index).astype(dtype), table.astype(jnp.float32))
        return found, pull(toward)[0]

    for name, index in indices(count).items():
        found, gradient = both(jnp.asarray(index))
        wanted = np.asarray(table)[np.clip(np.where(index < 0, index + count, index), 0, count - 1)]
        np.testing.assert_array_equal(found, jnp.asarray(wanted).astype(dtype), err_msg=name)
        sums, sizes = added(np.asarray(toward, np.float64), index, count), added(np.abs(numbers), index, count)
        assert np.all(np.abs(gradient - sums) <= 1e-6 * sizes), name


def test_both_forms_in_16_bits_add_in_float32():
    index = jnp.asarray([1] * 4096 + [2], jnp.int32)
    gradient = jnp.ones((4097, 2), jnp.bfloat16)
    wanted = [[0, 0], [4096, 4096], [1, 1]]
    np.testing.assert_array_equal(jax.jit(functools.partial(sums_by_order, rows=3))(gradient, index), wanted)
    products = jax.jit(functools.partial(sums_by_products, rows=3))(gradient[None], index[None])
    assert products.dtype == jnp.float32
    np.testing.assert_array_equal(products[0], wanted)


@pytest.mark.parametrize("count", [4, SMALL + 1])
def test_no_positions_leave_no_gradient(count: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rows, "target_platform", lambda: "gpu")
    gradient = jax.grad(lambda table: rows_at(table, jnp.zeros((0,), int)).sum())(jnp.ones((count, 2)))
    np.testing.assert_array_equal(gradient, np.zeros((count, 2)))


@pytest.mark.parametrize("count", [6, SMALL + 1])
def test_shards_on_a_gpu_give_the_gradients_that_a_cpu_gives(count: int, monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    tables = jnp.asarray(rng.normal(size=(3, count, 2, 2)), jnp.float32)
    index = jnp.asarray(rng.integers(-count, 2 * count, (3, 4, 10)), jnp.int32)
    toward = jnp.asarray(rng.normal(size=(3, 4, 10, 2, 2)), jnp.float32)

    def gradient():
        return jax.jit(jax.grad(lambda tables: (rows_of_shards(tables, index) * toward).sum()))(tables)

    on_cpu = gradient()
    monkeypatch.setattr(rows, "target_platform", lambda: "gpu")
    np.testing.assert_allclose(gradient(), on_cpu, atol=1e-5)


# Tables (1, or one a shard) × rows of the batch × positions, over data, fsdp, tensor and sequence.
@pytest.mark.parametrize(
    ("sizes", "shape"),
    [((2, 2, 1, 2), (1, 8, 16)), ((4, 1, 2, 1), (4, 2, 16)), ((1, 1, 1, 8), (4, 2, 16)), ((8, 1, 1, 1), (3, 2, 16))],
    ids=["rows and positions", "shards", "positions of shards", "nothing divides"],
)
def test_devices_add_up_what_each_has_sorted(sizes: tuple[int, ...], shape: tuple[int, ...]):
    mesh = jax.make_mesh(sizes, ("data", "fsdp", "tensor", "sequence"), axis_types=(AxisType.Auto,) * 4)
    rng = np.random.default_rng(0)
    index, gradient = rng.integers(0, 50, shape), rng.normal(size=(*shape, 3)).astype(np.float32)
    batch = P(None, ("data", "fsdp"), "sequence") if shape[0] == 1 else P(("data", "fsdp"), None, "sequence")
    if shape[0] == 3:
        batch = P()
    with jax.set_mesh(mesh):
        placed = [jax.device_put(array, NamedSharding(mesh, batch)) for array in (gradient, index)]
        compiled = jax.jit(functools.partial(sums_over_mesh, rows=50)).lower(*placed).compile()
        sums = compiled(*placed)
    wanted = [added(g.reshape(-1, 3), i.reshape(-1), 50) for g, i in zip(gradient, index, strict=True)]
    np.testing.assert_allclose(sums, wanted, atol=1e-5)
    assert "all-gather" not in compiled.as_text()
