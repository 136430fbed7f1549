"""Trained weights with everything that is needed to use them.

Dimension key: N images, S pixels per side, T cells of the encoder's grid, F channels of its features.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, UInt8

from generalist.config.run import Config
from generalist.config.versions import FORMAT, from_stored
from generalist.data.batch import Batch
from generalist.inference.placing import Placing, encoder_in_place, on_host, placed
from generalist.inference.structure import Structure
from generalist.model.layers import Int8Kernel
from generalist.model.params import flat, layers_together, united
from generalist.model.transformer import create_separate
from generalist.model.tuned import create_tuned, divided, together
from generalist.model.tuning import Tuning
from generalist.run.named_weights import ENCODER_FOLDER, is_published, is_run, run_settings, weights_folder
from generalist.run.published import check_published, published_encoder, published_tokenizers
from generalist.run.tokenizers import Tokenizers
from generalist.system.files import whole_folder, write_json
from generalist.system.versions import stored_format
from generalist.tokenizers.sequence import Assembler
from generalist.tokenizers.spaces import TaskLayout
from generalist.tokenizers.vocabulary import Vocabulary
from generalist.training.sharding import parameter_shardings
from generalist.vision.encoder import VisionEncoder
from generalist.vision.features import content_key
from generalist.vision.load import load_encoder, save_encoder
from generalist.weights.folder import WeightsError, WeightsFolder, save_tensors
from generalist.weights.language import LanguageModel
from generalist.weights.recipe import tensor
from generalist.weights.stored import Stored

ENCODED_AT_ONCE = 16  # images per call of the encoder: one shape, one compilation

Kind = TypeVar("Kind", bound="Weights")


@dataclasses.dataclass(frozen=True)
class Weights:
    """One set of weights, its tokenizers and its task layouts."""

    tokenizers: Tokenizers
    graph: nnx.GraphDef
    params: Any
    """On the device or split over the mesh, in the dtypes of their files, each layer's apart (`Transformer.unstack`): the one
    copy, with which all of inference computes."""
    step: int
    """Number of training steps of the weights."""
    dtype: Any = jnp.float32
    """Compute dtype."""
    encoder: VisionEncoder | None = None
    """The frozen encoder, on the first device or split over the mesh; None if the model has none."""
    placing: Placing = Placing()
    """Where the parameters are and in which types, and that of the caches."""

    @classmethod
    def from_run(cls: type[Kind], config: Config, step: int | None = None, *, placing: Placing = Placing()) -> Kind:
        """The weights of a run's checkpoint, or their moving average if the run keeps one.

        Args:
            config: of the run.
            step: which checkpoint; None: the newest.
            placing: where to; by default this machine's first device.

        Raises:
            FileNotFoundError: the run or its checkpoint does not exist.
        """
        from generalist.training.checkpoint import restore_params  # a second to import, and saved folders do without

        encoder = load_encoder(config.model.vision.encoder, config.model.vision.size)
        tokenizers = _with_encoder(Tokenizers.load(config.folder, config), encoder)
        shapes = checkpoint_shapes(tokenizers, config, placing.mesh)
        params, frozen, step = restore_params(config.checkpoints, *shapes, step, mean=config.training.ema > 0)
        arrays = flat(united(params, frozen))
        del params, frozen  # each stack is freed below as soon as its layers are apart
        stored = ((path, Stored.of(one)) for path, one in together(arrays, config.model, config.training.tuning))
        encoder = encoder_in_place(encoder, placing.mesh)
        return cls(tokenizers, _graph(tokenizers), placed(stored, placing), step, encoder=encoder, placing=placing)

    @classmethod
    def load(
        cls: type[Kind],
        folder: Path | str | None = None,
        *,
        placing: Placing | None = None,
        **places: Any,
    ) -> Kind:
        """Loads weights with their tokenizers and task layouts. Nothing in their folder is trusted, and nothing in it is run.

        Args:
            folder: one that `save` wrote, a published language model's, or a run's, whose newest checkpoint is read; None or
                `shipped`: the weights that come with the package.
            placing: devices and types; None: by the other arguments.
            places: as in `Placing.of`: `mesh="tensor=4"` splits the weights over four devices, each part read into its place;
                `weights_type="int8"` rounds them; `cache_type` is that of the caches (`cache_dtype`). By default the first device
                holds all, as it is stored.

        Raises:
            FileNotFoundError: there is no such folder, or no weights come with this installation.
            WeightsError: the folder's settings are damaged, or its tensors are not those that the settings describe.
            ValueError: the tokenizers are damaged, the folder is a run's and there are several processes, or the mesh is not one
                of this process's devices.
            ImportError: the frozen encoder needs a package that is not installed.
        """
        placing = Placing.of(**places) if placing is None else placing
        folder = weights_folder(folder)
        if is_published(folder):
            return cls.from_language_model(folder, placing=placing)
        if is_run(folder):
            if jax.process_count() > 1:  # a checkpoint can only be read by all processes together
                raise ValueError(
                    f"{folder} is the folder of a run: with several processes, name a folder that `generalist export` made of it"
                )
            return cls.from_run(run_settings(folder), placing=placing)
        weights = WeightsFolder(folder)
        try:
            config = from_stored(Config, weights.config, weights.folder / "config.json")
            card = weights.beside("model.json")
            stored_format(card, FORMAT, weights.folder / "model.json")
        except ValueError as error:
            raise WeightsError(str(error)) from error
        if type(card.get("step")) is not int or card["step"] < 0:
            raise WeightsError(f"{weights.folder / 'model.json'} does not give the step of the weights")
        vision = config.model.vision
        own = weights.folder / ENCODER_FOLDER
        encoder = load_encoder(str(own) if own.is_dir() else vision.encoder, vision.size)
        # Another version of the encoder would give other features, to which the weights were never trained.
        fingerprint = encoder.fingerprint if encoder is not None else None
        if fingerprint != card.get("encoder"):
            raise WeightsError(
                f"{weights.folder} was trained with the encoder {card.get('encoder')} ({vision.encoder}), but the one here is "
                f"{fingerprint}: install the same version of the encoder's weights"
            )
        tokenizers = _with_encoder(Tokenizers.load(weights.folder, config), encoder)
        # Every name and shape is checked against the settings before a number is read.
        recipes = {path: tensor(path, *leaf.shape) for path, leaf in flat(_shapes(tokenizers)).items()}
        params, encoder = placed(weights.stored(recipes), placing), encoder_in_place(encoder, placing.mesh)
        return cls(tokenizers, _graph(tokenizers), params, card["step"], encoder=encoder, placing=placing)

    @classmethod
    def from_language_model(cls: type[Kind], folder: Path, *, placing: Placing = Placing()) -> Kind:
        """A published language model, by its folder in HuggingFace's layout, in its own context, with its vision tower if it has
        one.

        Raises:
            WeightsError: it is no language model that can be loaded, is damaged, or has settings that are not supported.
            ImportError: its tokenizer needs the package `tokenizers`, which is not installed.
        """
        model = LanguageModel(folder, images=True)
        check_published(model)
        tokenizers = published_tokenizers(model)
        encoder = encoder_in_place(published_encoder(model), placing.mesh)
        tokenizers = _with_encoder(tokenizers, encoder)
        unused = Stored.of(np.zeros((1, model.shape["width"]), np.float32))
        stored = model.stored(tokenizers.config.tokens.vocabulary())
        params = placed(itertools.chain([("position_table", unused)], stored), placing)
        return cls(tokenizers, _graph(tokenizers), params, 0, encoder=encoder, placing=placing)

    def save(self, folder: Path | str, dtype: Any = np.float32) -> None:
        """Writes a folder that `load` reads; it is complete or absent.

            config.json  tokenizers.json  text.model   settings and tokenizers
            model.safetensors  model.json              parameters; step and fingerprint of the encoder
            encoder/                                   the frozen encoder, if it came from a folder; of a larger model its
                                                       tower alone

        Args:
            dtype: of the stored parameters: float32 or bfloat16.

        Raises:
            FileExistsError: the folder exists.
            ValueError: they are a published language model, or were rounded to int8.
            FileNotFoundError: the encoder's folder no longer exists.
        """
        self.check_saved()
        if self.tokenizers.published is not None:
            raise ValueError(f"{self.config.name} is a published language model: save it with `save_published`")
        with whole_folder(Path(folder)) as whole:
            self.tokenizers.save(whole)
            arrays = {path: np.ascontiguousarray(array.astype(dtype, copy=False)) for path, array in self.arrays()}
            save_tensors(arrays, whole / "model.safetensors")
            fingerprint = self.encoder.fingerprint if self.encoder is not None else None
            write_json(whole / "model.json", {"format": FORMAT, "step": self.step, "encoder": fingerprint})
            if self.encoder is not None and self.encoder.folder is not None:
                save_encoder(self.encoder, whole / ENCODER_FOLDER)

    def check_saved(self) -> None:
        """Raises `ValueError` if the parameters are not those that were loaded, but rounded."""
        if self.placing.weights_type == "int8":
            raise ValueError(
                "these weights were rounded to int8 when they were loaded: load them without, and save those"
            )

    @property
    def config(self) -> Config:
        """Every setting of the run that made the weights."""
        return self.tokenizers.config

    def with_config(self: Kind, config: Config) -> Kind:
        """These weights with other settings."""
        return dataclasses.replace(self, tokenizers=dataclasses.replace(self.tokenizers, config=config))

    @cached_property
    def assembler(self) -> Assembler:
        return self.tokenizers.assembler

    @property
    def sees(self) -> bool:
        """Whether they read images: all of ours do, and those published models that have an encoder."""
        return self.tokenizers.published is None or self.encoder is not None

    @property
    def projects(self) -> bool:
        """Whether images are positions of the sequence, into which an encoder's features are projected."""
        return "projected" in (self.config.tokens.documents, self.config.tokens.images)

    @property
    def layouts(self) -> Mapping[str, TaskLayout]:
        return self.tokenizers.layouts

    @property
    def vocabulary(self) -> Vocabulary:
        return self.config.tokens.vocabulary()

    def on_device(self, batch: Batch) -> Batch:
        """A batch in the form that the model takes: on the device, with images as features."""
        # On a mesh every device has the whole batch, which is small: `constrain` splits what is computed of it.
        place = None if self.placing.mesh is None else NamedSharding(self.placing.mesh, P())
        # Features that were stored come in place of pixels, as float16.
        if self.encoder is None or not len(batch.images) or batch.images.dtype != np.uint8:
            return jax.device_put(batch, place)
        # Each image is encoded once, however often it occurs: many rows of an evaluation show the same shots.
        first: dict[bytes, int] = {}
        index = np.array([first.setdefault(content_key(image), len(first)) for image in batch.images])
        distinct = np.unique(index, return_index=True)[1]
        # One or two images, as agents see them, are not padded to a full chunk: acting would be many times slower. Published
        # towers are so large that one image occupies a device.
        at_once = 1 if len(distinct) <= 2 or self.tokenizers.published is not None else ENCODED_AT_ONCE
        filled = np.resize(distinct, (-(-len(distinct) // at_once) * at_once,))
        chunks = [self.features(batch.images[rows]) for rows in np.split(filled, len(filled) // at_once)]
        return jax.device_put(dataclasses.replace(batch, images=_picked(chunks, index)), place)

    @cached_property
    def features(self) -> Callable[[UInt8[Array, "N S S 3"]], Float[Array, "N T F"]]:
        """The frozen encoder, compiled: from prepared pixels to features."""
        assert self.encoder is not None
        mesh, positions = self.placing.mesh, self.config.model.vision.positions if self.projects else 0
        run = self.encoder.compiled(alone=mesh is None, positions=positions)
        if mesh is None:
            return run

        def on_mesh(pixels: UInt8[Array | np.ndarray, "N S S 3"]) -> Float[Array, "N T F"]:
            with jax.set_mesh(mesh):  # for the constraints of activations
                return run(jnp.asarray(pixels))

        return on_mesh

    @cached_property
    def cache_dtype(self) -> Any:
        """Type of keys and values. If none is set, a published model's are in the type that most of its numbers are stored in,
        with which it was made; those of a run in float32, as in its training, however its weights were exported."""
        if self.placing.cache_type != "stored":
            return jnp.dtype(self.placing.cache_type)
        if self.tokenizers.published is None:
            return jnp.dtype(jnp.float32)
        counts: Counter[Any] = Counter()
        for leaf in flat(self.params, whole=Int8Kernel).values():
            if not isinstance(leaf, Int8Kernel):  # which does not tell what it was
                counts[leaf.dtype] += leaf.size
        return counts.most_common(1)[0][0]

    @cached_property
    def decoder(self) -> tuple[Structure, Any]:
        """The model without its parameters, and these, as compiled functions take them."""
        return Structure(self.graph, self.placing.mesh, self.dtype), self.params

    def arrays(self, dtype: Any = np.float32) -> Iterator[tuple[str, Float[np.ndarray, "..."]]]:
        """Every parameter on the host, by its path in files, where a stack of layers is one array; sorted by path.

        Args:
            dtype: of the arrays; None: each as it is held, or as float32 what is held in int8.
        """
        leaves = flat(self.params, whole=Int8Kernel)
        for path, layers in sorted(layers_together(leaves).items()):
            parts = [on_host(leaves[layer]) for layer in layers]
            parts = parts if dtype is None else [part.astype(dtype, copy=False) for part in parts]
            yield path, parts[0] if layers == [path] else np.stack(parts)

    def with_arrays(self: Kind, arrays: Mapping[str, Float[np.ndarray, "..."]]) -> Kind:
        """These weights with other parameters, by their paths in files."""
        stored = ((path, Stored.of(np.asarray(array))) for path, array in arrays.items())
        return dataclasses.replace(self, params=placed(stored, self.placing))


@jax.jit
def _picked(chunks: list[Float[Array, "C T F"]], index: Int[Array, "N"]) -> Float[Array, "N T F"]:
    """The features of each image, of those that were computed once."""
    return jnp.concatenate(chunks)[index]


def _with_encoder(tokenizers: Tokenizers, encoder: VisionEncoder | None) -> Tokenizers:
    if encoder is None:
        return tokenizers
    return dataclasses.replace(tokenizers, visual=encoder, channels=encoder.channels)


def checkpoint_shapes(tokenizers: Tokenizers, config: Config, mesh: Mesh | None = None) -> tuple[Any, Any]:
    """The shapes of the trained and of the frozen parameters in a run's checkpoints, on this machine's first device or split over
    a mesh."""
    tuning = config.training.tuning
    return divided(_shapes(tokenizers, tuning, mesh), config.model, tuning)


def _shapes(tokenizers: Tokenizers, tuning: Tuning = Tuning(), mesh: Mesh | None = None) -> Any:
    """The shapes of the parameters as files or, with its tuning, a run's checkpoints have them, layers stacked, on this machine's
    first device or split over a mesh."""
    spec = tokenizers.model_spec()
    _, abstract = nnx.split(nnx.eval_shape(lambda: create_tuned(spec, 0, tuning)), nnx.Param)
    shapes = nnx.to_pure_dict(abstract)
    alone = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shardings = jax.tree.map(lambda _: alone, shapes) if mesh is None else parameter_shardings(shapes, mesh)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )


def _graph(tokenizers: Tokenizers) -> nnx.GraphDef:
    """The model with separate layers, without its parameters."""
    spec = tokenizers.model_spec()
    return nnx.split(nnx.eval_shape(lambda: create_separate(spec, 0)), nnx.Param)[0]
