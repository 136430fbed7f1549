"""The shapes of the model and of its batches that settings describe. A plan gets them without any data."""

import dataclasses
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
from generalist.run.tokenizers import acting_in, model_spec
from generalist.tokenizers.spaces import action_dimensions, assign_offsets
from generalist.vision.encoder import Preparation, VisionEncoder
from generalist.vision.load import load_encoder
from generalist.vision.vit import SO400M, ViT

GEMMA3_SIZE = 896
"""Pixels per side of Gemma 3's images."""
NO_IMAGE = ((0, 0, 3), "uint8")
"""Shape and dtype of an image in a batch, if no image enters through an encoder."""


def batch_spec(config: Config, spec: ModelSpec, image_shape: tuple[int, ...], image_dtype: str) -> BatchSpec:
    """The sizes of the batches that a model reads.

    Args:
        image_shape: shape of one image for the frozen encoder: of its pixels, or of its stored features (`Batch.images`).
        image_dtype: dtype of the same.

    Raises:
        ValueError: the sizes do not divide among the shards.
    """
    # A budget of a payload that the model does not embed becomes 0: the default settings have budgets for several ways in.
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
        # Projected images are limited by a row's length alone.
        row_images=data.row_images if spec.crossed else 0,
        image_shape=image_shape,
        image_dtype=image_dtype,
        actions=data.actions if spec.action_dimensions else 0,
        action_dimensions=spec.action_dimensions,
        shards=data.shards,
    )


def layout_spaces(config: Config) -> dict[str, tuple[gym.Space, gym.Space]]:
    """The observation and the action space of each layout, by the layout's name.

    Raises:
        MissingExtra: the package of an environment is not installed.
    """
    # One task per layout is enough: all of its tasks have equal spaces.
    first: dict[str, Task] = {}
    for several in source_tasks(config).values():
        for task in several:
            first.setdefault(task.layout, task)
    return {name: task.make_spaces() for name, task in first.items()}


def projection_width(config: Config, spaces: Mapping[str, gym.Space]) -> int:
    """Number of columns of the tensor projection for these layouts; 0 if tensors are not projected."""
    return assign_offsets(spaces)[1] if config.tokens.tensors == "projected" else 0


def parallel_dimensions(config: Config, spaces: Mapping[str, tuple[gym.Space, gym.Space]]) -> int:
    """Dimensions of the largest parallel action of layouts with these spaces; 0 if none has them.

    Args:
        spaces: observation and action space by the layout's name.
    """
    parallel = [action for name, (_, action) in spaces.items() if acting_in(config, name, action).parallel]
    return max((action_dimensions(action) or 0 for action in parallel), default=0)


def without_data(config: Config) -> tuple[ModelSpec, BatchSpec, VisionEncoder | None]:
    """Model, batches and frozen encoder by the settings alone: no recording, no text and no `required` folder is read.

    Raises:
        MissingExtra, ImportError: a package that an environment or the encoder needs is not installed.
    """
    # Batches carry pixels, whatever data.features says, so that a plan includes the work of the encoder.
    # Environments are made only if their spaces decide something.
    decide = config.tokens.tensors == "projected" or config.tokens.actions == "parallel"
    of_layouts = layout_spaces(config) if decide else {}
    width = projection_width(config, {name: observation for name, (observation, _) in of_layouts.items()})
    encoder = shaped_encoder(config)
    spec = model_spec(
        config, width, encoder.channels if encoder is not None else 0, parallel_dimensions(config, of_layouts)
    )
    image = NO_IMAGE if encoder is None else (encoder.empty.shape[1:], str(encoder.empty.dtype))
    return spec, batch_spec(config, spec, *image), encoder


def shaped_encoder(config: Config) -> VisionEncoder | None:
    """The frozen encoder. If the preset leaves it to its user, it has the shape of SigLIP So400m/14 or, as the tower of a
    published model that sees images, that of Gemma 3; and shapes as parameters."""
    vision = config.model.vision
    if vision.encoder != REQUIRED:
        return load_encoder(vision.encoder, vision.size)
    shape = dataclasses.replace(SO400M, size=GEMMA3_SIZE) if config.trunk_sees else SO400M
    graph, params = nnx.split(nnx.eval_shape(lambda: ViT(shape, rngs=nnx.Rngs(0))), nnx.Param)
    return VisionEncoder(
        name=REQUIRED,
        prepare=Preparation(size=shape.size, crop=False),
        cells=shape.cells,
        channels=shape.width,
        weights_hash="",
        params=jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), nnx.to_pure_dict(params)),
        apply=lambda params, pixels: nnx.merge(graph, params)(pixels),
    )
