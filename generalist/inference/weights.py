"""Trained weights with everything needed to use them."""

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from generalist.config.run import Config
from generalist.config.versions import FORMAT, from_stored
from generalist.data.batch import Batch
from generalist.model.params import divided, flat, nested, united
from generalist.model.transformer import create
from generalist.run.named_weights import ENCODER_FOLDER, is_run, run_settings, weights_folder
from generalist.run.tokenizers import Tokenizers
from generalist.system.files import write_json
from generalist.system.versions import stored_format
from generalist.tokenizers.sequence import Assembler
from generalist.tokenizers.spaces import TaskLayout
from generalist.tokenizers.vocabulary import Vocabulary
from generalist.training.checkpoint import restore_params
from generalist.vision.encoder import VisionEncoder
from generalist.vision.features import content_key
from generalist.vision.load import load_encoder
from generalist.weights.folder import WeightsError, WeightsFolder, save_tensors, tensor

ENCODED_AT_ONCE = 16  # images

Kind = TypeVar("Kind", bound="Weights")


class Structure:
    """A model without its numbers, as a static argument of compiled functions: its hash, which every call asks for, is known (a
    graph's own takes a third of a millisecond to compute)."""

    def __init__(self, graph: nnx.GraphDef):
        self._graph, self._hash = graph, hash(graph)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Structure) and self._graph == other._graph

    def model(self, params: Any) -> Any:
        """The model with these parameters."""
        return nnx.merge(self._graph, params)


@dataclasses.dataclass(frozen=True)
class Weights:
    """One set of weights, its tokenizers and its task layouts."""

    tokenizers: Tokenizers
    graph: nnx.GraphDef
    params: Any
    step: int
    """Training steps the weights have seen."""
    dtype: Any = jnp.float32
    encoder: VisionEncoder | None = None
    """The frozen encoder, where the model has one."""

    @classmethod
    def from_run(cls: type[Kind], config: Config, step: int | None = None) -> Kind:
        """The newest checkpoint of a run (or that of `step`), on this machine's first device: the weights or, where the run keeps
        it, their moving average.

        Raises:
            FileNotFoundError: the run or its checkpoint does not exist.
        """
        encoder = load_encoder(config.model.vision.encoder, config.model.vision.size)
        tokenizers = _with_encoder(Tokenizers.load(config.folder, config), encoder)
        graph, shapes = _abstract(tokenizers)
        params, frozen, step = restore_params(
            config.checkpoints, *divided(shapes, config.model), step, mean=config.training.ema > 0
        )
        return cls(tokenizers, graph, united(params, frozen), step, encoder=encoder)

    @classmethod
    def load(cls: type[Kind], folder: Path | str | None = None) -> Kind:
        """A folder that `save` wrote: the model, its tokenizers and its task layouts; or a run's folder, its newest weights.
        Nothing in it is trusted or run. None, or `shipped`: the weights that come with the package.

        Raises:
            FileNotFoundError: there is no such folder, or no weights come with this installation.
            WeightsError: it is no such folder, or its tensors are not those that its settings say.
            ValueError: its tokenizers are damaged, or it is a run's and there are several processes.
            ImportError: its frozen encoder needs a package that is not installed.
        """
        folder = weights_folder(folder)
        if is_run(folder):
            if jax.process_count() > 1:  # they would have to read the checkpoint together
                raise ValueError(
                    f"{folder} is a run's: several processes take a folder that `generalist export` made of it"
                )
            return cls.from_run(run_settings(folder))
        weights = WeightsFolder(folder)
        try:
            config = from_stored(Config, weights.config, weights.folder / "config.json")
            card = weights.beside("model.json")
            stored_format(card, FORMAT, weights.folder / "model.json")
        except ValueError as error:
            raise WeightsError(str(error)) from error
        if type(card.get("step")) is not int or card["step"] < 0:
            raise WeightsError(f"{weights.folder / 'model.json'} does not say how many steps the weights have seen")
        vision = config.model.vision
        own = weights.folder / ENCODER_FOLDER
        encoder = load_encoder(str(own) if own.is_dir() else vision.encoder, vision.size)
        fingerprint = encoder.fingerprint if encoder is not None else None
        if fingerprint != card.get("encoder"):
            raise WeightsError(
                f"{weights.folder} was trained with the encoder {card.get('encoder')} ({vision.encoder}), but here it is "
                f"{fingerprint}: install the same version of its weights"
            )
        tokenizers = _with_encoder(Tokenizers.load(weights.folder, config), encoder)
        graph, shapes = _abstract(tokenizers)
        recipes = {path: tensor(path, *leaf.shape) for path, leaf in flat(shapes).items()}
        arrays = {path: jnp.asarray(array.astype(np.float32)) for path, array in weights.read(recipes).items()}
        return cls(tokenizers, graph, nested(arrays), card["step"], encoder=encoder)

    def save(self, folder: Path | str, dtype: Any = np.float32) -> None:
        """Writes one folder = one model: `config.json` (every setting), `model.safetensors` (`dtype`: float32 or bfloat16), the
        tokenizers' files, and the frozen encoder where it came from a folder. It appears whole or not at all.

        Raises:
            FileExistsError: the folder is there already.
            FileNotFoundError: the encoder's folder is not there any more.
        """
        folder = Path(folder)
        if folder.exists():
            raise FileExistsError(f"{folder} exists already: name another folder, or delete it")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
            whole = Path(temporary) / "model"
            self.tokenizers.save(whole)
            arrays = {
                path: np.ascontiguousarray(np.asarray(leaf).astype(dtype)) for path, leaf in flat(self.params).items()
            }
            save_tensors(arrays, whole / "model.safetensors")
            fingerprint = self.encoder.fingerprint if self.encoder is not None else None
            write_json(whole / "model.json", {"format": FORMAT, "step": self.step, "encoder": fingerprint})
            source = self.encoder.folder if self.encoder is not None else None
            if source is not None:
                files = [*source.glob("*.json"), *source.glob("*.safetensors")]
                (whole / ENCODER_FOLDER).mkdir()
                if not files:
                    raise FileNotFoundError(f"the files of the frozen encoder are gone from {source}: restore them")
                for file in files:
                    shutil.copyfile(file, whole / ENCODER_FOLDER / file.name)
            whole.rename(folder)

    @property
    def config(self) -> Config:
        """Every setting of the run that made the weights."""
        return self.tokenizers.config

    def with_config(self: Kind, config: Config) -> Kind:
        """The same weights with other settings."""
        return dataclasses.replace(self, tokenizers=dataclasses.replace(self.tokenizers, config=config))

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
        once (stored features not at all), and a few at a time share one compilation; one or two, as an agent sees them, are not
        padded to more."""
        if self.encoder is None or not len(batch.images) or batch.images.dtype != np.uint8:
            return jax.tree.map(jnp.asarray, batch)
        first: dict[bytes, int] = {}
        index = np.array([first.setdefault(content_key(image), len(first)) for image in batch.images])
        distinct = np.unique(index, return_index=True)[1]
        at_once = 1 if len(distinct) <= 2 else ENCODED_AT_ONCE
        filled = np.resize(distinct, (-(-len(distinct) // at_once) * at_once,))
        chunks = [self.features(batch.images[rows]) for rows in np.split(filled, len(filled) // at_once)]
        features = jnp.concatenate(chunks)[index]
        return jax.tree.map(jnp.asarray, dataclasses.replace(batch, images=features))

    @cached_property
    def features(self) -> Callable:
        """Prepared pixels uint8 (N, S, S, 3) to the frozen encoder's features (N, T, F), compiled."""
        assert self.encoder is not None
        return self.encoder.compiled()

    @cached_property
    def decoder(self) -> tuple[Structure, Any]:
        """The model for decoding, its layers apart (`Transformer.unstack`), and its parameters."""
        model = nnx.merge(self.graph, self.params)
        model.unstack()
        graph, params = nnx.split(model, nnx.Param)
        return Structure(graph), nnx.to_pure_dict(params)


def _with_encoder(tokenizers: Tokenizers, encoder: VisionEncoder | None) -> Tokenizers:
    if encoder is None:
        return tokenizers
    return dataclasses.replace(tokenizers, visual=encoder, channels=encoder.channels)


def _abstract(tokenizers: Tokenizers) -> tuple[nnx.GraphDef, Any]:
    """The model without its numbers: its graph, and its parameters' shapes on this machine's first device."""
    spec = tokenizers.model_spec()
    graph, abstract = nnx.split(nnx.eval_shape(lambda: create(spec, 0)), nnx.Param)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), nnx.to_pure_dict(abstract)
    )
    return graph, shapes
