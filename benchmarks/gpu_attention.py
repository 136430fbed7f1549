"""cuDNN's attention of packed rows against the mask's: errors ‖out − reference‖ / ‖reference‖ against float32, and time."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from generalist.model.attend import Packed, attend_packed, masked_attention

ROWS, HEADS, KV_HEADS, SIZE = 8, 8, 4, 64
SEGMENTS = 3  # per row


def attention(length: int) -> dict[str, float]:
    """Packed causal attention in bfloat16: the GPU's kernel against the mask in float32 and in bfloat16."""
    rng = np.random.default_rng(length)
    query, key, value, toward = (
        jnp.asarray(rng.normal(size=(ROWS, length, heads, SIZE)), jnp.float32)
        for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS)
    )
    cuts = np.sort(rng.integers(1, length, (ROWS, SEGMENTS - 1)), axis=1)
    segment = jnp.asarray(1 + (np.arange(length)[None, :, None] >= cuts[:, None]).sum(-1), jnp.int32)
    scale = SIZE**-0.5

    def fused(query, key, value):
        seen = Packed(segment, jnp.asarray(False))
        return attend_packed(query, key, value, seen, window=0, scale=scale, softcap=0.0)

    def plain(query, key, value):
        back = jnp.arange(length)[:, None] - jnp.arange(length)[None]
        mask = (segment[:, :, None] == segment[:, None, :]) & (back >= 0)[None]
        return jax.nn.dot_product_attention(query, key, value, mask=mask[:, None], scale=scale, implementation="xla")

    def with_gradients(of: Callable[..., Any], dtype: Any) -> Callable[[], Any]:
        arrays = [array.astype(dtype) for array in (query, key, value, toward)]

        @jax.jit
        def both(query, key, value, toward):
            out, pull = jax.vjp(of, query, key, value)
            return out, pull(toward)

        return functools.partial(both, *arrays)

    with jax.default_matmul_precision("highest"):
        right, right_gradients = with_gradients(
            functools.partial(masked_attention, query_segment=segment, key_segment=segment, scale=scale, softcap=0.0),
            jnp.float32,
        )()
    ours, mask = with_gradients(fused, jnp.bfloat16), with_gradients(plain, jnp.bfloat16)
    out, gradients = ours()
    apart = [error(one, other) for one, other in zip(gradients, right_gradients, strict=True)]
    ratio = float(np.median([seconds(mask, 5) / seconds(ours, 5) for _ in range(5)]))
    return {"length": length, "forward": error(out, right), "gradients": max(apart), "ratio": ratio}


def error(out: Any, right: Any) -> float:
    """‖out − right‖ / ‖right‖ in float64."""
    found, wanted = np.asarray(out, np.float64), np.asarray(right, np.float64)
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def seconds(call: Callable[[], Any], times: int) -> float:
    """Mean seconds of a call after compilation."""
    jax.block_until_ready(call())
    begun = time.perf_counter()
    for _ in range(times):
        out = call()
    jax.block_until_ready(out)
    return (time.perf_counter() - begun) / times
