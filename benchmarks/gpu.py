"""Measurements on a GPU: cuDNN's attention against the mask's, and a preset's training step: its speed, and its memory against
`generalist plan`'s arithmetic.

    python benchmarks/gpu.py --presets gato_79m gato_364m --rows 32

Batches are full rows of drawn tokens; nothing is recorded or read. Errors are ‖out − reference‖ / ‖reference‖ against float32.
"""

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from generalist.config.presets import preset
from generalist.model.attend import Packed, attend_packed, masked_attention
from generalist.plan.memory import arithmetic, with_rows
from generalist.plan.program import make_planned_trainer
from generalist.run.shapes import without_data
from generalist.training.flops import model_flops, peak_flops
from train import make_batch  # benchmarks/train.py, beside this file

ROWS, HEADS, KV_HEADS, SIZE = 8, 8, 4, 64
SEGMENTS = 3  # per row


def main() -> None:
    """Runs the measurements and prints them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="*", default=["gato_79m"])
    parser.add_argument("--rows", type=int, nargs="+", default=[32], help="rows per batch; several give one line each")
    parser.add_argument(
        "--lengths", type=int, nargs="*", default=[256, 1024, 4096], help="positions of the attention's rows"
    )
    parser.add_argument("--steps", type=int, default=10, help="timed steps of a preset")
    arguments = parser.parse_args()
    device = jax.devices()[0]
    if device.platform != "gpu":
        raise SystemExit(f"this needs a GPU, but JAX found {device.device_kind}")
    print(f"{device.device_kind}, jax {jax.__version__}\n")
    print(
        "| length | error, forward | error, gradients | mask's time / cuDNN's, forward and backward |\n|---|---|---|---|"
    )
    for length in arguments.lengths:
        print(attention(length), flush=True)
    print("\n| preset | rows × length | GiB by arithmetic | GiB measured | tokens/s | MFU | compile, s |")
    print("|---|---|---|---|---|---|---|")
    for name in arguments.presets:
        for rows in arguments.rows:
            print(step(name, rows, arguments.steps), flush=True)


def attention(length: int) -> str:
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
    return f"| {length} | {error(out, right):.1e} | {max(apart):.1e} | {ratio:.2f} |"


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


def step(name: str, rows: int, steps: int) -> str:
    """A preset's training step on one device."""
    config = with_rows(preset(name), rows)
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, micro_batches=1))
    spec, sizes, encoder = without_data(config)
    planned = arithmetic(config, spec, sizes, encoder, limit=None).total
    trainer = make_planned_trainer(config, spec, jax.devices()[:1])
    batch, key = trainer.place(make_batch(sizes, spec.vocabulary)), jax.random.key(0)
    state = trainer.initialize({})
    with jax.set_mesh(trainer.mesh):
        begun = time.perf_counter()
        compiled = trainer.step.lower(state, batch, key).compile()
        compiling = time.perf_counter() - begun
        for _ in range(3):
            state, metrics = compiled(state, batch, key)
        jax.block_until_ready((state, metrics))
        begun = time.perf_counter()
        for _ in range(steps):
            state, metrics = compiled(state, batch, key)
        jax.block_until_ready((state, metrics))
        each = (time.perf_counter() - begun) / steps
    flops = model_flops(spec, sizes, state.params)
    needs = compiled.memory_analysis()
    held = (
        needs.argument_size_in_bytes + needs.temp_size_in_bytes + needs.output_size_in_bytes - needs.alias_size_in_bytes
    )
    return (
        f"| {name} | {rows} × {sizes.length} | {planned / 2**30:.1f} | {held / 2**30:.1f} | "
        f"{rows * sizes.length / each:,.0f} | {flops / each / peak_flops():.1%} | {compiling:.0f} |"
    )


if __name__ == "__main__":
    main()
