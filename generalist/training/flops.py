"""How fast a step could be: its FLOPs by arithmetic, and the devices' peak."""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from generalist.data.batch import BatchSpec
from generalist.model.config import ModelSpec
from generalist.model.embedders import PATCH
from generalist.model.transformer import count_parameters
from generalist.system.chips import chip_of


def peak_flops() -> float:
    """FLOP/s of all devices: from the makers' data sheets, else measured by a matrix product in the type that is computed with,
    float32 on a CPU and bfloat16 elsewhere.

    Simulated CPU devices share one processor, which is measured once.
    """
    device = jax.devices()[0]
    if (chip := chip_of(device.device_kind)) is not None:
        return chip.flops * jax.device_count()
    alone = device.platform == "cpu"
    # Large enough that a GPU's launch is nothing beside it.
    size, dtype, devices = (2048, jnp.float32, 1) if alone else (8192, jnp.bfloat16, jax.device_count())
    matrix = jax.device_put(jnp.ones((size, size), dtype), device)
    product = jax.jit(lambda a: a @ a)
    product(matrix).block_until_ready()
    best = min(_seconds(lambda: product(matrix).block_until_ready()) for _ in range(5))
    return 2 * size**3 / best * devices


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def model_flops(spec: ModelSpec, batch: BatchSpec, params: Any) -> float:
    """FLOPs of one training step by arithmetic, whatever the program really does: recomputation and padding's share count as
    the shapes say. A matrix parameter costs 6 per position that passes through it (2 forward, 4 backward; 4 where it is frozen,
    since the gradient still passes through), causal attention 12 · width of all heads · length / 2 per position and layer (scores
    and mixing).
    """
    config = spec.config
    trunk = count_parameters(params["blocks"]) + config.width * spec.vocabulary.size
    attention = 6 * config.layers * batch.length * config.heads * config.head_size
    frozen = config.trunk != "none" and config.trunk_frozen
    total = batch.rows * batch.length * ((4.0 if frozen else 6.0) * trunk + attention)
    if spec.projection_width:
        total += 6.0 * batch.tensors * count_parameters(params["tensor_embedder"])
    if spec.frames:
        channels, cells = config.frame_channels, config.frame_size / 4
        stem = cells**2 * 48 * channels
        convolutions = (cells / 2) ** 2 * 9 * channels * 2 * channels + (cells / 4) ** 2 * 9 * (2 * channels) ** 2
        total += 6.0 * batch.frames * (stem + convolutions + count_parameters(params["frame_embedder"]["out"]))
    if spec.channels:
        total += 6.0 * _visual_products(spec, batch, params["visual"])
    if spec.patches:
        channels = config.patch_channels
        block = PATCH**2 * (3 * channels + 2 * 9 * channels**2)
        total += 6.0 * batch.patches * (block + count_parameters(params["patch_embedder"]["out"]))
    return total


def _visual_products(spec: ModelSpec, batch: BatchSpec, params: Any) -> float:
    """Products of the resampler and of the gated layers in one forward pass, at their budgets; the frozen encoder's, which
    are no training, are left out."""
    vision = spec.config.vision
    gated = params["gated"]
    layers = gated["attention_gate"].shape[0]
    visual = batch.rows * batch.row_images * vision.latents
    positions = batch.rows * batch.length
    keys = count_parameters(gated["key_value"])
    scores = 2 * layers * positions * batch.row_images * vision.latents * math.prod(vision.cross_attention)
    resampled = count_parameters(params["resampler"]["layers"]) * batch.images * vision.latents
    return positions * (count_parameters(gated) - keys) + visual * keys + scores + resampled
