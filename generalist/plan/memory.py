"""Memory of a training step by arithmetic, without a compiler: for one GPU, and to rank candidates before compiling.

Dimension key of the formulas: B rows, L positions, D width, V vocabulary, F hidden width.
"""

import dataclasses
import math

import jax.numpy as jnp

from generalist.config.run import Config
from generalist.data.batch import BUDGETS, BatchSpec
from generalist.model.activations import GATES
from generalist.model.attend import fused_on_gpu
from generalist.model.config import ModelSpec
from generalist.model.embedders import PATCH
from generalist.model.transformer import count_parameters
from generalist.plan.estimate import abstract_parameters
from generalist.run.shapes import batch_spec
from generalist.training.loss import fitting
from generalist.training.state import compute_dtype
from generalist.vision.encoder import VisionEncoder

FULL, HALF = 4, 2  # bytes of float32 and bfloat16
# Arrays of a batch's logits in the compute type: logits and gradient; a TPU makes the gradient within the products that read it.
LOGITS_COPIES, TPU_LOGITS_COPIES = 2, 1
SCORES_COPIES = 3  # float32 arrays of one block's attention scores: scores, softmax, gradient
# cuDNN's kernel never stores the scores, but the mask of all heads, and the bias made from it.
MASK_COPIES = 2


Shapes = tuple[ModelSpec, BatchSpec, VisionEncoder | None]
"""Of a model, of its batches, and its frozen encoder."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """Memory of one device, in bytes."""

    trained: int
    """Parameters that are trained."""
    frozen: int
    encoder: int
    parameter_bytes: float
    frozen_bytes: float
    optimizer_bytes: float
    gradient_bytes: float
    activation_bytes: float
    logits_bytes: float
    batch_bytes: float
    limit: float | None

    def parts(self) -> dict[str, float]:
        """Bytes by purpose."""
        return {
            "parameters": self.parameter_bytes,
            "frozen": self.frozen_bytes,
            "optimizer": self.optimizer_bytes,
            "gradients": self.gradient_bytes,
            "activations": self.activation_bytes,
            "logits": self.logits_bytes,
            "batch": self.batch_bytes,
        }

    @property
    def total(self) -> float:
        return sum(self.parts().values())

    @property
    def fits(self) -> bool:
        return self.limit is None or self.total <= self.limit


def arithmetic(
    config: Config,
    spec: ModelSpec,
    batch: BatchSpec,
    encoder: VisionEncoder | None,
    *,
    limit: float | None,
    platform: str = "gpu",
    shards: int = 1,
    replicas: int = 1,
) -> Arithmetic:
    """Memory of one device.

    Args:
        platform: `gpu`, `tpu` or `cpu`; with `training.dtype` it determines the bytes per activation.
        shards: number of devices that parameters, gradients and moments are split over.
        replicas: number of devices that the batch is split over.
    """
    width = compute_dtype(config.training.dtype, platform).itemsize
    trained, frozen = (count_parameters(part) for part in abstract_parameters(spec, config.training.tuning))
    seen = 0 if encoder is None else count_parameters(encoder.params)
    copies = 2 if config.training.ema else 1
    # Besides the float32 gradients there are the weights in the compute dtype, which the compiler casts all at once, unless they
    # are computed with in float32, as on a CPU.
    cast = width if width != FULL else 0
    positions = batch.rows * batch.length / replicas / config.training.parts
    logits = positions * spec.vocabulary.size
    chunks = config.training.loss_chunks or fitting(batch.length, logits, platform)
    copies_of_logits = TPU_LOGITS_COPIES if platform == "tpu" else LOGITS_COPIES
    predicted = batch.actions * batch.action_dimensions
    cells = 0 if encoder is None else spec.config.vision.positions if spec.projected else encoder.cells
    # Activations are those of one micro-batch; pixels and payloads arrive for the whole batch.
    micro = replicas * config.training.parts
    # Pixels and features of all images are in memory together: the encoder runs before the step.
    images = batch.images * (math.prod(batch.image_shape) + FULL * cells * spec.channels) / replicas
    # Tensors are float32; frames and patches uint8 with 3 colours.
    payloads = batch.tensors * batch.projection_width * FULL + 3 * (
        batch.frames * batch.frame_size**2 + batch.patches * PATCH**2
    )
    payloads += 2 * FULL * predicted  # ids and weights
    # Logits of parallel actions are of ids that are no text. They are computed after those of positions, in as large pieces.
    of_actions = predicted / micro * (spec.vocabulary.size - spec.vocabulary.text)
    most = of_actions / fitting(math.ceil(batch.actions / micro), of_actions, platform)
    return Arithmetic(
        trained=trained,
        frozen=frozen,
        encoder=seen,
        parameter_bytes=copies * FULL * trained / shards,
        frozen_bytes=width * frozen / shards + FULL * seen,
        optimizer_bytes=2 * FULL * trained / shards,  # both moments of AdamW; Muon needs less
        gradient_bytes=(FULL + cast) * trained / shards,
        activation_bytes=width * (_blocks(spec, batch, positions, width) + _embedded(spec, batch, cells) / micro),
        logits_bytes=copies_of_logits * width * max(logits / chunks, most),
        # `Batch` has eleven fields of 4 bytes per position.
        batch_bytes=batch.rows * batch.length / replicas * 11 * FULL + images + payloads / replicas,
        limit=limit,
    )


def _blocks(spec: ModelSpec, batch: BatchSpec, positions: float, width: int) -> float:
    """Numbers of `width` bytes that the blocks keep for the backward pass: with remat the input of each block, and everything of
    one block at a time."""
    model = spec.config
    inner = (model.heads + 2 * model.kv_heads) * model.key_size
    # Gated ones have a second hidden branch, which is multiplied with the first.
    gated = model.activation in GATES
    # Products: query, key, value, the outputs of attention and feed-forward, hidden layers. Besides them two norms and their
    # inputs, rotated queries and keys, mixed values, and the hidden layer after its activation.
    products = inner + 2 * model.width + (1 + gated) * model.hidden
    one = products + 4 * model.width + inner + model.heads * model.head_size + (1 + gated) * model.hidden
    dtype = jnp.float32 if width == FULL else jnp.bfloat16
    fused = fused_on_gpu(dtype, batch.length, batch.length, model.key_size, model.attention_softcap)
    # Per position, so one length of the square array remains. Scores that are stored are float32.
    scores = MASK_COPIES * batch.length if fused else SCORES_COPIES * model.heads * batch.length * FULL / HALF
    kept = {"none": one + scores, "products": model.width + products, "block": model.width}[model.remat]
    again = 0.0 if model.remat == "none" else one + scores
    if not spec.crossed:
        return positions * (model.layers * kept + again)
    vision = model.vision
    heads, size = vision.cross_attention
    hidden = vision.gated_hidden or vision.hidden_factor * model.width
    # A gated layer: scores against all images of the row, queries and mixed values, hidden layers, norms.
    inner = (4 if vision.gated_activation in GATES else 3) * hidden
    seen = 3 * heads * batch.row_images * vision.latents + 2 * heads * size + inner + 3 * model.width
    groups = model.gated_layers
    if model.remat == "none":
        return positions * (model.layers * kept + groups * seen)
    # Recomputed one group at a time, with the inputs of its blocks kept.
    return positions * (groups * model.width + vision.every * kept + again + seen)


def _embedded(spec: ModelSpec, batch: BatchSpec, cells: int) -> float:
    """Numbers that the embedders of payloads keep, and the resampler of grids of `cells` cells."""
    # Rough on purpose: embedders are small against the blocks, and the compiler measures what is chosen.
    model, kept = spec.config, 0.0
    if spec.patches:
        kept += batch.patches * (6 * PATCH**2 * model.patch_channels + 2 * model.width)
    kept += batch.actions * (1 + batch.action_dimensions) * (model.width + model.hidden)
    if spec.frames:
        kept += batch.frames * 3 * (model.frame_size // 4) ** 2 * model.frame_channels
    if spec.projected:
        each = spec.channels + 2 * model.vision.projector_hidden + model.width
        kept += batch.images * model.vision.positions * each
    if spec.crossed and model.vision.resampled:
        vision = model.vision
        hidden = vision.resampler_hidden or vision.hidden_factor * vision.width
        heads = vision.heads * vision.head_size
        read = (cells + vision.latents) * (vision.width + 2 * heads)
        kept += batch.images * vision.layers * (read + vision.latents * (2 * hidden + 4 * vision.width + heads))
    return kept


def largest_rows(config: Config, spec: ModelSpec, batch: BatchSpec, encoder: VisionEncoder | None, limit: float) -> int:
    """The largest number of rows per step whose memory fits one device; 0 if not even one row fits."""

    # Rows of one micro-batch are counted, each micro-batch a shard.
    parts = config.training.parts

    def fits(rows: int) -> bool:
        sized = batch_spec(with_rows(config, rows * parts, parts), spec, batch.image_shape, batch.image_dtype)
        return arithmetic(config, spec, sized, encoder, limit=limit).fits

    # Binary search by powers of two: memory grows with the rows.
    most = 0  # the largest number that is known to fit
    for step in (2**power for power in range(16, -1, -1)):
        if fits(most + step):
            most += step
    return most * parts


def with_rows(config: Config, rows: int, shards: int = 1) -> Config:
    """The settings with `rows` rows in `shards` shards, and payloads in proportion."""
    # Budgets must divide among the shards, and every shard must hold the images of at least one row.
    share = rows / config.data.rows
    sizes = {name: math.ceil(getattr(config.data, name) * share / shards) * shards for name in BUDGETS}
    if sizes["images"]:
        sizes["images"] = max(sizes["images"], shards * config.data.row_images)
    loaders = min(config.data.loaders, shards)  # more loaders than shards would be refused
    return dataclasses.replace(
        config, data=dataclasses.replace(config.data, rows=rows, shards=shards, loaders=loaders, **sizes)
    )
