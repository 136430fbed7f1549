"""OpenFlamingo (Awadalla et al., 2023): a checkpoint of the parts that were trained, beside the folders of the two models that
were not.

    FOLDER/checkpoint.pt    resampler, gated layers, text embeddings
           language/        the language model in HuggingFace's layout: an MPT, GPT-NeoX, Llama, ...
           vision/          CLIP ViT-L/14 in HuggingFace's layout

The last two may be links. Nothing else is needed: sizes, and the blocks before which gated layers stand, follow from the tensors.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from generalist.model.config import VisionConfig
from generalist.weights.folder import WeightsError, WeightsFolder
from generalist.weights.gated_recipes import open_flamingo_recipes
from generalist.weights.gated_shape import OPEN_FLAMINGO_HEAD
from generalist.weights.language_recipes import OUTPUTS, Recipes
from generalist.weights.recipe import Index, Tensor, mapped, tensor
from generalist.weights.torch_zip import Stored, TorchFile, type_of

CHECKPOINT, LANGUAGE, VISION = "checkpoint.pt", "language", "vision"
END, IMAGE = "<|endofchunk|>", "<image>"
"""The tokens that it adds to its language model's, in this order: the end of a chunk, and an image."""
TABLES = ("wte.weight", "embed_in.weight", "embed_tokens.weight")
"""Ends of the names of text tables."""
_GATED = re.compile(r"lang_encoder\.(?:.+\.(\d+)\.gated_cross_attn_layer|gated_cross_attn_layers\.(\d+))\.(.+)")


def is_open_flamingo(folder: Path) -> bool:
    """Whether a folder is laid out as above."""
    return (folder / CHECKPOINT).is_file() and (folder / LANGUAGE).is_dir()


class OpenFlamingoFolder(WeightsFolder):
    """The folder of the language model, with the checkpoint's tensors added to its own or in their place."""

    def __init__(self, folder: Path):
        """
        Raises:
            WeightsError: a file or a folder is missing or damaged, or the checkpoint holds other tensors.
        """
        if not (folder / VISION).is_dir():
            raise WeightsError(
                f"{folder} has a {CHECKPOINT} but no folder {VISION}: put the CLIP of its training there, or a link to it"
            )
        super().__init__(folder / LANGUAGE)
        self.whole = folder
        self._checkpoint = TorchFile(folder / CHECKPOINT)
        self._trained: dict[str, Stored] = {}
        for name, one in _tensors(folder / CHECKPOINT, self._checkpoint.content):
            ours = self._named(name)
            # Older checkpoints have the gated layers under two names, and one storage for both.
            if self._trained.setdefault(ours, one) != one:
                raise WeightsError(f"{folder / CHECKPOINT} has {name} twice, with different numbers")
            self._checkpoint.check(one)
            self.shapes[ours], self.types[ours] = one.shape, type_of(one)
        if not self._trained:
            raise WeightsError(f"{folder / CHECKPOINT} holds no tensors by their names")
        tables = [self.shapes[name] for name in self._trained if name.endswith(TABLES)]
        if tables:  # with rows for the tokens that were added
            self.config = {**self.config, "vocab_size": tables[0][0]}

    def _named(self, name: str) -> str:
        """Our name of a checkpoint's tensor; that of the language model for one of its own."""
        if found := _GATED.fullmatch(name):
            return f"gated.{found[1] or found[2]}.{found[3]}"
        own = name.removeprefix("lang_encoder.").replace(".decoder_layer.", ".")
        if own in OUTPUTS:  # one matrix, whose name depends on the library that wrote it
            return next((one for one in OUTPUTS if one in self.shapes), own)
        # Files of a trunk alone lack the first part of the names.
        short = own.partition(".")[2]
        return short if own != name and own not in self.shapes and short in self.shapes else own

    def part(self, name: str, index: Index) -> Tensor:
        one = self._trained.get(name)
        if one is None:
            return super().part(name, index)
        array = self._checkpoint.tensor(one)[index]  # of an archive whose members are packed nothing less can be read
        if not np.isfinite(array).all():
            raise WeightsError(f"{self.whole / CHECKPOINT} has non-finite numbers in {name}: download it again")
        return array

    def size(self, name: str, axis: int) -> int:
        """The length of an axis of a tensor of two.

        Raises:
            WeightsError: there is no such tensor.
        """
        shape = self.shapes.get(name, ())
        if len(shape) != 2 or not shape[axis]:
            raise WeightsError(f"{self.whole / CHECKPOINT} has no matrix {name}: it is no OpenFlamingo")
        return shape[axis]

    @property
    def places(self) -> list[int]:
        """The blocks before which gated layers stand, in order."""
        found = (re.fullmatch(r"gated\.(\d+)\.attn_gate", name) for name in self.shapes)
        return sorted(int(one[1]) for one in found if one)


def _tensors(path: Path, content: Any) -> Iterator[tuple[str, Stored]]:
    """Names and tensors of a checkpoint, of the model alone or with the state of its training beside it."""
    inner = content.get("model_state_dict", content) if isinstance(content, dict) else None
    if not isinstance(inner, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__} instead of tensors by their names")
    for name, one in inner.items():
        if isinstance(name, str) and isinstance(one, Stored):
            yield name.removeprefix("module."), one


def open_flamingo_vision(folder: OpenFlamingoFolder, layers: int) -> VisionConfig:
    """The settings of the resampler and of the gated layers.

    Args:
        layers: blocks of the language model.

    Raises:
        WeightsError: tensors are missing, or gated layers do not stand in regular places.
    """
    places = folder.places
    every = places[0] + 1 if places else 0
    if not places or places != list(range(every - 1, layers, every)):
        raise WeightsError(
            f"{folder.whole / CHECKPOINT} has gated layers before the blocks {places} of {layers}: supported is every n-th block"
        )
    depth = len({name.split(".")[2] for name in folder.shapes if re.match(r"perceiver\.layers\.\d+\.", name)})
    sizes: dict[str, Any] = {
        "latents": folder.size("perceiver.latents", 0),
        "width": folder.size("perceiver.latents", 1),
        "layers": depth,
        "heads": folder.size("perceiver.layers.0.0.to_q.weight", 0) // OPEN_FLAMINGO_HEAD,
        "resampler_hidden": folder.size("perceiver.layers.0.1.1.weight", 0),
        "gated_heads": folder.size(f"gated.{places[0]}.attn.to_q.weight", 0) // OPEN_FLAMINGO_HEAD,
        "gated_hidden": folder.size(f"gated.{places[0]}.ff.1.weight", 0),
    }
    try:
        return VisionConfig(
            **sizes,
            head_size=OPEN_FLAMINGO_HEAD,
            every=every,
            first=every - 1,
            resampler_activation="exact_gelu",
            gated_activation="exact_gelu",
        )
    except ValueError as error:
        raise WeightsError(f"{folder.whole / CHECKPOINT} has tensors of unexpected shapes: {error}") from error


def with_open_flamingo(
    folder: OpenFlamingoFolder, shape: Mapping[str, Any], language: Recipes, unused: tuple[str, ...]
) -> tuple[Recipes, tuple[str, ...]]:
    """The recipes of the language model, with those of the parts that were added, and patterns of tensors that are not used."""
    found = language | open_flamingo_recipes(shape["vision"], shape["width"], folder.places)
    if "output/text" in found:
        # Where the output matrix was frozen it is the published one, whose rows were cut off or, for the added tokens, drawn at
        # random: those are in no file and cannot be written, whatever stands there.
        name, missing = found["output/text"].sources[0][0], untrained_rows(folder, shape)
        stored, rows = folder.shapes.get(name, ()), folder.config["vocab_size"]
        if len(stored) == 2 and stored[0] != rows:
            found["output/text"] = mapped(
                tensor(name, *stored),
                lambda one: np.pad(one, ((0, missing), (0, 0)))[:rows],
                lambda one: one[: stored[0]],
            )
    return found, unused


def untrained_rows(folder: OpenFlamingoFolder, shape: Mapping[str, Any]) -> int:
    """Rows at the end of the text table that the output matrix lacks."""
    if shape["tied_output"]:
        return 0
    stored = next((folder.shapes[name] for name in OUTPUTS if name in folder.shapes), None)
    return max(0, folder.config["vocab_size"] - stored[0]) if stored else 0
