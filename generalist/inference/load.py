"""Trained weights with everything needed to use them."""

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from generalist.config import Config, ControlConfig
from generalist.model.transformer import create
from generalist.run import Tokenizers
from generalist.tokenizers.sequence import Assembler
from generalist.tokenizers.spaces import TaskLayout
from generalist.tokenizers.vocabulary import Vocabulary
from generalist.training.checkpoint import restore_params


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

    @classmethod
    def from_run(cls, config: Config, step: int | None = None) -> "Generalist":
        """The newest checkpoint of a run (or that of `step`), on this machine's first device.

        Raises:
            FileNotFoundError: the run or its checkpoint does not exist.
        """
        tokenizers = Tokenizers.load(config.folder, config)
        spec = tokenizers.model_spec()
        graph, abstract = nnx.split(nnx.eval_shape(lambda: create(spec, 0)), nnx.Param)
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), nnx.to_pure_dict(abstract)
        )
        params, step = restore_params(config.folder / "checkpoints", shapes, step)
        return cls(config, tokenizers, graph, params, step)

    @cached_property
    def assembler(self) -> Assembler:
        return self.tokenizers.assembler

    @property
    def layouts(self) -> Mapping[str, TaskLayout]:
        return self.tokenizers.layouts

    @property
    def vocabulary(self) -> Vocabulary:
        return self.config.tokens.vocabulary()

    def control(self, layout: str) -> ControlConfig:
        """The settings of the suite that a layout belongs to (the part of its name before the slash)."""
        return getattr(self.config.data, layout.split("/")[0])
