"""Model FLOPs of a training step by arithmetic, and the peak rate of the devices: their ratio is the utilisation (MFU).

Dimension key: B rows, L positions, D width, N heads, H head size, C channels.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from generalist.data.batch import BatchSpec
from generalist.model.config import ModelSpec
from generalist.model.embedders import PATCH
from generalist.model.transformer import count_parameters
from generalist.system.chips import chip_of


def peak_flops(devices: Sequence[jax.Device] | None = None) -> float:
    """Peak FLOP/s of these devices together, by default of all: by the makers' data sheets, otherwise measured with a matrix
    product in the compute dtype, float32 on a CPU and bfloat16 elsewhere."""
    devices = jax.devices() if devices is None else devices
    device, count = devices[0], len(devices)
    if (chip := chip_of(device.device_kind)) is not None:
        return chip.flops * count
    # Simulated CPU devices share one processor, so they count as one. 8192 is large enough to hide the launch of a GPU kernel.
    on_cpu = device.platform == "cpu"
    size, dtype, count = (2048, jnp.float32, 1) if on_cpu else (8192, jnp.bfloat16, count)
    matrix = jax.device_put(jnp.ones((size, size), dtype), device)
    product = jax.jit(lambda a: a @ a)
    product(matrix).block_until_ready()  # compiles
    best = min(_seconds(lambda: product(matrix).block_until_ready()) for _ in range(5))
    return 2 * size**3 / best * count


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def model_flops(spec: ModelSpec, batch: BatchSpec, params: Any, frozen: Any) -> float:
    """FLOPs of one training step by the shapes alone (PaLM, appendix B): padding counts as if it were tokens, and what remat
    recomputes does not count.

    Args:
        params: nested parameters that are trained; only their shapes are read.
        frozen: the others.
    """
    config = spec.config
    # One matrix parameter costs 6 FLOPs per position that passes through it: 2 forward, 4 backward. The output matrix is a part
    # of this whether or not it is tied to the embedding, whose lookup costs nothing.
    held = _multiplied(frozen) + (config.width * spec.vocabulary.text if "text" in frozen.get("tokens", {}) else 0)
    trunk = _multiplied(params) + _multiplied(frozen) + config.width * spec.vocabulary.size
    # Scores and mixing cost 12 · L · N · H per position and layer, of which a causal mask leaves half.
    attention = 6 * config.layers * batch.length * config.heads * config.head_size
    # A frozen matrix has no gradient of its own, but the gradient of its input is computed: 2 forward, 2 backward.
    total = batch.rows * batch.length * (6.0 * trunk - 2.0 * held + attention)
    if spec.action_dimensions:
        # Per action once into the hidden layer, and per dimension from there to the logits of ids that are no text.
        once = config.width * config.hidden
        each = once + config.width * (spec.vocabulary.size - spec.vocabulary.text)
        total += 6.0 * batch.actions * (once + batch.action_dimensions * each)
    if spec.projection_width:
        total += 6.0 * batch.tensors * count_parameters(params["tensor_embedder"])
    # Payloads count with the budgets of the batch, as padding does.
    if spec.frames:
        channels, cells = config.frame_channels, config.frame_size / 4
        stem = cells**2 * 48 * channels  # one product per 4 × 4 × 3 block of pixels
        convolutions = (cells / 2) ** 2 * 9 * channels * 2 * channels + (cells / 4) ** 2 * 9 * (2 * channels) ** 2
        total += 6.0 * batch.frames * (stem + convolutions + count_parameters(params["frame_embedder"]["out"]))
    if spec.crossed:
        total += 6.0 * _visual_products(spec, batch, params["visual"])
    if spec.projected:
        # A published model's own projector may be frozen.
        products = 6.0 * count_parameters(params.get("projector", {})) + 4.0 * count_parameters(
            frozen.get("projector", {})
        )
        total += batch.images * config.vision.positions * products
    if spec.patches:
        channels = config.patch_channels
        block = PATCH**2 * (3 * channels + 2 * 9 * channels**2)
        total += 6.0 * batch.patches * (block + count_parameters(params["patch_embedder"]["out"]))
    return total


def _multiplied(params: Any) -> int:
    """Numbers in the matrices of all blocks, which every position passes through."""
    return sum(count_parameters(params.get(stack, {})) for stack in ("lower", "blocks"))


def _visual_products(spec: ModelSpec, batch: BatchSpec, params: Any) -> float:
    """Multiplications in one forward pass of the resampler and of the gated layers, at the budgets of the batch. The frozen
    encoder is left out: it is not trained, and runs outside the step."""
    vision = spec.config.vision
    gated = params["gated"]
    layers = gated["attention_gate"].shape[0]
    visual = batch.rows * batch.row_images * vision.latents
    positions = batch.rows * batch.length
    keys = count_parameters(gated["key_value"])
    # Keys and values are computed per visual token, everything else of a gated layer per position. Scores count as if every
    # position attended to all images of its row.
    scores = 2 * layers * positions * batch.row_images * vision.latents * math.prod(vision.cross_attention)
    resampler = params["resampler"]["layers"] if vision.resampled else {}
    resampled = count_parameters(resampler) * batch.images * vision.latents
    return positions * (count_parameters(gated) - keys) + visual * keys + scores + resampled
