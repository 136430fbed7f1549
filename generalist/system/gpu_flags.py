"""The compiler's options for NVIDIA GPUs, set before jax is imported.

GENERALIST_GPU_FLAGS=off sets none. An option that XLA_FLAGS already has stays as it is.
"""

import importlib.metadata
import importlib.util
import os
import re

from generalist.system.switches import is_on
from generalist.system.xla_flags import given_flags

VARIABLE = "GENERALIST_GPU_FLAGS"
BACKEND_OPTIONS = "--xla_backend_extra_options"
NATIVE_ATOMICS = "-nvptx-allow-ftz-atomics"
BROKEN = ((0, 10, 2), (0, 11, 0))
"""The first and the last version of jaxlib that add float32 numbers in a GPU's memory by a loop of comparisons, hundreds of times
as slow as the instruction where many positions share a row: https://github.com/jax-ml/jax/issues/38806. The option restores the
instruction; other versions may not know it, and end the process then."""
FLAGS = {
    # Exchanges between GPUs run beside computation: the one flag of NVIDIA's own JAX image
    # (https://docs.nvidia.com/jax-toolbox/environment-variables). Without exchanges it changes little.
    "--xla_gpu_enable_latency_hiding_scheduler": "true",
}
PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")


def use_gpu_flags() -> None:
    """Adds the options to XLA_FLAGS if this process may use an NVIDIA GPU; call it before jax is imported.

    Raises:
        ValueError: GENERALIST_GPU_FLAGS is neither on nor off.
        OSError: as `given_flags`.
    """
    if is_on(VARIABLE) and gpu_expected():
        os.environ["XLA_FLAGS"] = with_flags(given_flags(), jaxlib_version())


def gpu_expected() -> bool:
    """Whether JAX's CUDA plugin is installed and JAX_PLATFORMS does not exclude it."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    allowed = not platforms or bool({"cuda", "gpu"} & set(platforms.split(",")))
    return allowed and any(importlib.util.find_spec(plugin) for plugin in PLUGINS)


def jaxlib_version() -> tuple[int, ...]:
    """Of the installed jaxlib, which is not imported: its first three numbers."""
    return tuple(int(number) for number in re.findall(r"\d+", importlib.metadata.version("jaxlib"))[:3])


def with_flags(given: str, version: tuple[int, ...]) -> str:
    """XLA_FLAGS with the options that it lacks.

    Args:
        version: jaxlib's.
    """
    named = {flag.split("=")[0] for flag in given.split()}
    wanted = FLAGS | ({BACKEND_OPTIONS: NATIVE_ATOMICS} if is_broken(version) else {})
    return " ".join([*given.split(), *(f"{name}={value}" for name, value in wanted.items() if name not in named)])


def is_broken(version: tuple[int, ...]) -> bool:
    """Whether this jaxlib adds in a GPU's memory by the slow loop."""
    return BROKEN[0] <= version <= BROKEN[1]


def slow_additions() -> str | None:
    """What to tell a user whose jaxlib has the fault on a GPU, and no option against it; None if all is well."""
    version = jaxlib_version()
    if not is_broken(version) or NATIVE_ATOMICS in given_flags():
        return None
    return (
        f"jaxlib {'.'.join(map(str, version))} adds in a GPU's memory hundreds of times slower than others: install jax "
        f"0.11.1 or newer (Python 3.12), or add {BACKEND_OPTIONS}={NATIVE_ATOMICS} to XLA_FLAGS"
    )
