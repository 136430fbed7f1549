"""The table of path rules, exactly, and the mesh."""

import jax
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from generalist.config.run import TrainingConfig
from generalist.training.sharding import default_data_axis, make_mesh, parameter_spec


def mesh_of(data: int, fsdp: int, tensor: int, sequence: int = 1) -> Mesh:
    return make_mesh(TrainingConfig(data_axis=data, fsdp_axis=fsdp, tensor_axis=tensor, sequence_axis=sequence))


@pytest.mark.parametrize(
    ("path", "shape", "expected"),
    [
        ("blocks/attention/qkv/kernel", (4, 128, 256), P(None, "fsdp", "tensor")),
        ("blocks/feed_forward/down/kernel", (4, 384, 128), P(None, "tensor", "fsdp")),
        ("blocks/attention_norm/scale", (4, 128), P()),
        ("tokens/text", (1024, 128), P("tensor", "fsdp")),
        ("tokens/other", (1023, 128), P(None, "fsdp")),  # an axis that does not divide stays whole
        ("frame_embedder/out/kernel", (1600, 128), P("fsdp", "tensor")),
        ("position_table", (512, 128), P("fsdp", None)),  # no rule: the largest axis
        ("position_table", (16, 128), P()),  # too small to split
    ],
)
def test_rules(path: str, shape: tuple[int, ...], expected: P):
    assert parameter_spec(path, shape, mesh_of(2, 2, 2)) == expected


def test_mesh_fills_the_open_axis():
    assert dict(mesh_of(1, -1, 2).shape) == {
        "data": 1,
        "fsdp": jax.device_count() // 2,
        "tensor": 2,
        "sequence": 1,
    }


@pytest.mark.parametrize(
    ("axes", "count", "platform", "expected"),
    [
        ({}, 16, "tpu", 2),
        ({}, 2, "tpu", 1),
        ({}, 5, "tpu", 1),
        ({}, 8, "gpu", 1),
        ({"tensor_axis": 8}, 64, "tpu", 1),
        ({"fsdp_axis": 4}, 4, "tpu", 1),
    ],
)
def test_weights_are_not_split_over_all_tpus(axes: dict[str, int], count: int, platform: str, expected: int):
    assert default_data_axis(TrainingConfig(**axes), count, platform) == expected


def test_mesh_that_does_not_cover_the_devices_says_so():
    with pytest.raises(ValueError, match="training.data_axis"):
        mesh_of(3, 1, 1)
