"""Strict mode for every test: eight simulated devices, no silent rank promotion, shapes and types checked."""

import os

# Both before jax is imported: the number of devices is fixed when it starts.
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jaxtyping

jax.config.update("jax_numpy_rank_promotion", "raise")

# Only in tests: checking every call against its annotation costs time, and a mistake here is a mistake everywhere.
jaxtyping.install_import_hook(
    ["generalist.data", "generalist.inference", "generalist.model", "generalist.training"], "beartype.beartype"
)
