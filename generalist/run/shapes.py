"""The shapes that settings describe, of the model and of its batches: also without any data, for a plan."""

from collections.abc import Mapping

import gymnasium as gym
import jax
import jax.numpy as jnp
from flax import nnx

from generalist.config.run import Config
from generalist.data.batch import BatchSpec
from generalist.envs.task import Task
from generalist.model.config import REQUIRED, ModelSpec
from generalist.run.tasks import source_tasks
from generalist.run.tokenizers import model_spec
from generalist.tokenizers.spaces import assign_offsets
from generalist.vision.encoder import Preparation, VisionEncoder
from generalist.vision.load import load_encoder
from generalist.vision.vit import SO400M, ViT

NO_IMAGE = ((0, 0, 3), "uint8")
"""Shape and dtype of one image where none enters through an encoder."""


def batch_spec(config: Config, spec: ModelSpec, image_shape: tuple[int, ...], image_dtype: str) -> BatchSpec:
    """The batches that such a model reads.

    Args:
        image_shape: of one image for the frozen encoder, as batches carry it (see `Batch.images`).
        image_dtype: of the same.
    """
    data, model = config.data, config.model
    return BatchSpec(
        rows=data.rows,
        length=data.length,
        tensors=data.tensors if spec.projection_width else 0,
        projection_width=spec.projection_width,
        frames=data.frames if spec.frames else 0,
        frame_size=model.frame_size,
        frame_tokens=model.frame_tokens,
        patches=data.patches if spec.patches else 0,
        images=data.images if spec.channels else 0,
        row_images=data.row_images if spec.channels else 0,
        image_shape=image_shape,
        image_dtype=image_dtype,
        shards=data.shards,
    )


def observation_spaces(config: Config) -> dict[str, gym.Space]:
    """What each layout observes, by the layout's name.

    Raises:
        MissingExtra: an environment's package is not installed.
    """
    first: dict[str, Task] = {}
    for several in source_tasks(config).values():
        for task in several:
            first.setdefault(task.layout, task)
    return {name: task.make_spaces()[0] for name, task in first.items()}


def projection_width(config: Config, spaces: Mapping[str, gym.Space]) -> int:
    """Columns of the tensor projection of these layouts; 0 where tensors enter otherwise."""
    return assign_offsets(spaces)[1] if config.tokens.tensors == "projected" else 0


def without_data(config: Config) -> tuple[ModelSpec, BatchSpec, VisionEncoder | None]:
    """Model, batches and frozen encoder, from the settings alone: no recording, no text and no weights of a `required` folder is
    read. Features are taken as computed, not stored: batches carry pixels.

    Raises:
        MissingExtra, ImportError: a package that an environment or the encoder needs is not installed.
    """
    width = projection_width(config, observation_spaces(config)) if config.tokens.tensors == "projected" else 0
    encoder = shaped_encoder(config)
    spec = model_spec(config, width, encoder.channels if encoder is not None else 0)
    image = NO_IMAGE if encoder is None else (encoder.empty.shape[1:], str(encoder.empty.dtype))
    return spec, batch_spec(config, spec, *image), encoder


def shaped_encoder(config: Config) -> VisionEncoder | None:
    """The frozen encoder; where the preset leaves it to its user, one of SigLIP So400m/14's shape whose parameters are shapes."""
    vision = config.model.vision
    if vision.encoder != REQUIRED:
        return load_encoder(vision.encoder, vision.size)
    graph, params = nnx.split(nnx.eval_shape(lambda: ViT(SO400M, rngs=nnx.Rngs(0))), nnx.Param)
    return VisionEncoder(
        name=REQUIRED,
        prepare=Preparation(size=SO400M.size, crop=False),
        cells=SO400M.cells,
        channels=SO400M.width,
        weights_hash="",
        params=jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), nnx.to_pure_dict(params)),
        apply=lambda params, pixels: nnx.merge(graph, params)(pixels),
    )
