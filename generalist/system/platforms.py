"""The platform that a program is compiled for, on which the choice of kernels depends."""

import jax


def target_platform() -> str:
    """`cpu`, `gpu` or `tpu`: the mesh's, which differs from this machine's when a program is compiled ahead of time."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform
