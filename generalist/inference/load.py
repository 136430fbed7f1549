"""Trained weights with everything needed to use them."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from generalist.config import Config, ControlConfig
from generalist.data.batch import Batch
from generalist.model.transformer import create
from generalist.run import Tokenizers
from generalist.tokenizers.sequence import Assembler
from generalist.tokenizers.spaces import TaskLayout
from generalist.tokenizers.vocabulary import Vocabulary
from generalist.training.checkpoint import restore_params
from generalist.vision.encoder import VisionEncoder
from generalist.vision.features import content_key
from generalist.vision.load import load_encoder

ENCODED_AT_ONCE = 16  # images


@dataclasses.dataclass(frozen=True)
class Generalist:
    """One set of weights, its tokenizers and its task layouts."""

    config: Config
    tokenizers: Tokenizers
    graph: nnx.GraphDef
    params: Any
    step: int
    """Training steps the weights have seen."""
    dtype: Any = jnp.float32
    encoder: VisionEncoder | None = None
    """The frozen encoder, where the model has one."""

    @classmethod
    def from_run(cls, config: Config, step: int | None = None) -> "Generalist":
        """The newest checkpoint of a run (or that of `step`), on this machine's first device.

        Raises:
            FileNotFoundError: the run or its checkpoint does not exist.
        """
        tokenizers = Tokenizers.load(config.folder, config)
        encoder = load_encoder(config.model.vision.encoder, config.model.vision.size)
        if encoder is not None:
            tokenizers = dataclasses.replace(tokenizers, visual=encoder, channels=encoder.channels)
        spec = tokenizers.model_spec()
        graph, abstract = nnx.split(nnx.eval_shape(lambda: create(spec, 0)), nnx.Param)
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), nnx.to_pure_dict(abstract)
        )
        params, step = restore_params(config.folder / "checkpoints", shapes, step)
        return cls(config, tokenizers, graph, params, step, encoder=encoder)

    @cached_property
    def assembler(self) -> Assembler:
        return self.tokenizers.assembler

    @property
    def layouts(self) -> Mapping[str, TaskLayout]:
        return self.tokenizers.layouts

    @property
    def vocabulary(self) -> Vocabulary:
        return self.config.tokens.vocabulary()

    def on_device(self, batch: Batch) -> Batch:
        """A batch as the model takes it: on the device, its images as features. An image that comes several times is encoded
        once, and a few at a time share one compilation."""
        if self.encoder is None or not len(batch.images):
            return jax.tree.map(jnp.asarray, batch)
        first: dict[bytes, int] = {}
        index = np.array([first.setdefault(content_key(image), len(first)) for image in batch.images])
        distinct = np.unique(index, return_index=True)[1]
        filled = np.resize(distinct, (-(-len(distinct) // ENCODED_AT_ONCE) * ENCODED_AT_ONCE,))
        chunks = [self._encode(batch.images[rows]) for rows in np.split(filled, len(filled) // ENCODED_AT_ONCE)]
        features = jnp.concatenate(chunks)[index]
        return jax.tree.map(jnp.asarray, dataclasses.replace(batch, images=features))

    @cached_property
    def _encode(self) -> Callable:
        assert self.encoder is not None
        return self.encoder.compiled()

    def control(self, layout: str) -> ControlConfig:
        """The settings of the suite that a layout belongs to (the part of its name before the slash)."""
        return getattr(self.config.data, layout.split("/")[0])
