"""Checkpoints: which are kept, what another mesh reads, and that a failed save costs nothing."""

import dataclasses
import gc
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from generalist.config.run import TrainingConfig
from generalist.training.checkpoint import Checkpoints, restore_params
from generalist.training.state import TrainState

POSITION = {"shards": [[5, 1, 2], [7]]}


def state_of(step: int, width: int = 8) -> TrainState:
    weights = jnp.arange(width, dtype=jnp.float32) + step
    return TrainState(
        step=jnp.asarray(step), params={"w": weights}, frozen={}, mean_params={}, opt_state={"m": 2 * weights}
    )


def abstract(mesh: Mesh | None = None) -> TrainState:
    sharding = NamedSharding(mesh, P("x")) if mesh is not None else jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def shape(leaf: jax.Array) -> jax.ShapeDtypeStruct:
        placed = sharding if leaf.ndim or mesh is None else NamedSharding(mesh, P())
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed)

    return jax.tree.map(shape, state_of(0))


def saved(folder: Path, training: TrainingConfig, losses: list[float]) -> list[int]:
    """One checkpoint a step with these losses; the steps that stay."""
    checkpoints = Checkpoints(str(folder), training)
    for step, loss in enumerate(losses, start=1):
        checkpoints.save(state_of(step), POSITION, {"loss": loss})
        checkpoints.wait()
    checkpoints.close()
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"keep": 1}, [6]),
        ({"keep": 2}, [5, 6]),
        ({"keep": 1, "keep_every": 2}, [2, 4, 6]),
        ({"keep": 1, "keep_best": 2}, [2, 3, 6]),
        ({"keep": 1, "keep_every": 4, "keep_best": 1}, [3, 4, 6]),
    ],
    ids=str,
)
def test_which_are_kept(tmp_path: Path, settings: dict[str, int], expected: list[int]):
    assert saved(tmp_path, TrainingConfig(**settings), [5.0, 2.0, 1.0, 3.0, 4.0, 6.0]) == expected


def test_the_metric_must_exist(tmp_path: Path):
    checkpoints = Checkpoints(str(tmp_path), TrainingConfig(keep_best=1, best_metric="loss/prose"))
    with pytest.raises(
        ValueError, match=r"training.best_metric = loss/prose is not a metric of this run; there are: loss"
    ):
        checkpoints.save(state_of(1), POSITION, {"loss": 1.0})
    checkpoints.close()


def test_another_mesh_reads_the_same_numbers(tmp_path: Path):
    saved(tmp_path, TrainingConfig(), [1.0, 1.0])
    mesh = jax.make_mesh((4,), ("x",), devices=jax.devices()[:4])
    checkpoints = Checkpoints(str(tmp_path), TrainingConfig())
    state, position = checkpoints.restore(abstract(mesh))
    checkpoints.close()
    assert position == POSITION
    assert len(state.params["w"].sharding.device_set) == 4
    jax.tree.map(np.testing.assert_array_equal, state, state_of(2))


def test_weights_alone(tmp_path: Path):
    saved(tmp_path, TrainingConfig(), [1.0])
    params, frozen, step = restore_params(str(tmp_path), abstract().params, {})
    np.testing.assert_array_equal(params["w"], state_of(1).params["w"])
    assert (frozen, step) == ({}, 1)
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        restore_params(str(tmp_path / "absent"), abstract().params, {})


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """What a full disk does to a writer, done by the operating system: a longer file fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# The library's own threads and coroutines end with the error as well; the one that counts is raised where the user sees it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_save_that_fails_leaves_the_last_good_one(tmp_path: Path):
    training, width = TrainingConfig(keep=1), 1_000_000
    noise = jax.random.normal(jax.random.key(0), (width,))  # which does not compress
    good = dataclasses.replace(state_of(1), params={"w": noise})
    checkpoints = Checkpoints(str(tmp_path), training)
    checkpoints.save(good, POSITION)
    checkpoints.wait()
    with files_of_at_most(100_000), pytest.raises(OSError, match=r"earlier checkpoints are complete: free some space"):
        checkpoints.save(dataclasses.replace(good, step=jnp.asarray(2)), POSITION)
        checkpoints.wait()
    again = Checkpoints(str(tmp_path), training)
    assert again.latest == 1
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), good)
    restored, _ = again.restore(shapes)
    np.testing.assert_array_equal(restored.params["w"], noise)
    again.save(dataclasses.replace(good, step=jnp.asarray(2)), POSITION)  # and the run can go on
    again.wait()
    assert again.latest == 2
    again.close()
    gc.collect()  # while this test's filters hold
