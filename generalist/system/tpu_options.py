"""The compiler's options for a training step on a TPU.

GENERALIST_TPU_OPTIONS=off passes none. An option that LIBTPU_INIT_ARGS already has stays as it is.
"""

import os

from generalist.system.switches import is_on

VARIABLE = "GENERALIST_TPU_OPTIONS"
OPTIONS = (
    # Exchanges run in pieces beside computation. By default the compiler does so with most gathers of weights on v5e:16x16, with
    # none on v5p:8x8x8 and v6e:4x4 (docs/experiments/plans.md). MaxText's scripts set these options
    # (https://github.com/AI-Hypercomputer/maxtext, benchmarks/xla_flags_library.py, CF_FOR_ALL_GATHER and CF_FOR_ALL_REDUCE).
    "xla_enable_async_all_gather",
    "xla_enable_async_all_reduce",
    "xla_tpu_enable_async_collective_fusion",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather",
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce",
    "xla_tpu_enable_async_collective_fusion_multiple_steps",
    "xla_tpu_overlap_compute_collective_tc",
)


def step_options(platform: str) -> dict[str, str] | None:
    """Options for `jax.jit`; None on other platforms, and where they are switched off.

    Args:
        platform: that the step is compiled for.

    Raises:
        ValueError: GENERALIST_TPU_OPTIONS is neither on nor off.
    """
    if platform != "tpu" or not is_on(VARIABLE):
        return None
    given = {flag.lstrip("-").split("=")[0] for flag in os.environ.get("LIBTPU_INIT_ARGS", "").split()}
    return {name: "true" for name in OPTIONS if name not in given}
