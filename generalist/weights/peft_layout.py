"""Low-rank adapters of published language models in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`.

    base_model.model.<module>.lora_A.weight  (R, I)
    base_model.model.<module>.lora_B.weight  (O, R)       W + alpha / R · B A, with W (O, I) as PyTorch stores it

A module is a linear map as its family's class in transformers names it. Maps that are one here, such as queries, keys and
values, may be several there, each with an adapter. Where they are one there too (`c_attn`, `query_key_value`, `gate_up_proj`),
the adapters of their P parts become one of P times the rank, with a B of blocks.

Dimension key: N layers, I inputs, O outputs, R rank, P parts of a map.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from generalist.model.config import ModelConfig
from generalist.model.lora import parts
from generalist.model.tuning import PATHS, LoraConfig, Place
from generalist.system.files import write_json
from generalist.weights.folder import WeightsError, WeightsFolder, few, save_tensors
from generalist.weights.language import LanguageModel
from generalist.weights.language_settings import WHOLE as WHOLE_MODELS
from generalist.weights.recipe import Recipe

SETTINGS, WHOLE = "adapter_config.json", "adapter_model.safetensors"
_STORED = re.compile(r"(model\.language_model\.|language_model\.model\.|model\.|transformer\.|gpt_neox\.)?(.+)\.weight")
_PREFIXES = {
    "gpt2": "transformer.",
    "mpt": "transformer.",
    "gpt_neox": "gpt_neox.",
}
"""Family → what begins the names of its modules in transformers, if it is not `model.`."""
# Settings that change what an adapter computes, with the value that we support.
_REFUSED: dict[str, Any] = {
    "use_dora": False,
    "bias": "none",
    "modules_to_save": None,
    "layer_replication": None,
    "alora_invocation_tokens": None,
    "lora_bias": False,
    "target_parameters": None,
}


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter in PEFT's layout."""
    return (folder / SETTINGS).is_file()


def save_adapter(
    model: LanguageModel, arrays: Mapping[str, Float[np.ndarray, "N _ _"]], lora: LoraConfig, folder: Path
) -> None:
    """Writes adapters into an existing empty folder, in float32.

    Args:
        model: the opened folder of the published model that they belong to.
        arrays: by their paths in training, `blocks/M/adapter/a` of shape (N, I, P · R) and `blocks/M/adapter/b` (N, R, O).
    """
    assert lora.rank is not None
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}  # the last part of a module's name → its rank
    for place in lora.places:
        recipe, layers = _recipe(model, place), model.shape["layers"]
        each = len(recipe.sources) // layers
        a, b = (arrays[f"blocks/{PATHS[place]}/adapter/{one}"].astype(np.float32) for one in "ab")
        narrow = np.split(a, a.shape[-1] // lora.rank, axis=-1)  # P of (N, I, R)
        if each == 1 and len(narrow) > 1:
            narrow, b = [a], _in_blocks(b, model, place)
        matrices = recipe.divide(b)  # as those of the weights themselves: N · P of (O, R)
        for at, ((name, _), matrix) in enumerate(zip(recipe.sources, matrices, strict=True)):
            module, of_layer = _module(model, name), narrow[at % each][at // each]
            ranks[module.rpartition(".")[2]] = of_layer.shape[-1]
            tensors[f"base_model.model.{module}.lora_A.weight"] = np.ascontiguousarray(of_layer.T)
            tensors[f"base_model.model.{module}.lora_B.weight"] = np.ascontiguousarray(_oriented(model, matrix))
    save_tensors(tensors, folder / WHOLE, {"format": "pt"})
    larger = {name: rank for name, rank in ranks.items() if rank != lora.rank}
    # A multimodal model has maps of the same names in its vision tower, which have no adapters.
    only = rf".*language_model.*\.({'|'.join(ranks)})" if model.kind in WHOLE_MODELS else sorted(ranks)
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        # Its path on this machine would be of no use to others.
        "base_model_name_or_path": model.folder.config.get("_name_or_path") or model.folder.folder.resolve().name,
        "r": lora.rank,
        "lora_alpha": _number(lora.alpha),
        "rank_pattern": larger,
        "alpha_pattern": {name: _number(lora.scale * rank) for name, rank in larger.items()},
        "target_modules": only,
        "fan_in_fan_out": model.family == "gpt2",
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "inference_mode": True,
    }
    write_json(folder / SETTINGS, described)


class PeftAdapter:
    """An opened adapter of a published language model."""

    def __init__(self, folder: Path | str, model: LanguageModel):
        """
        Raises:
            WeightsError: the folder holds no adapter of that model, or one with settings that are not supported.
        """
        self.folder, self.model = WeightsFolder(Path(folder), SETTINGS), model
        config, path = self.folder.config, self.folder.folder / SETTINGS
        if config.get("peft_type") != "LORA":
            raise WeightsError(f"{path} has peft_type = {config.get('peft_type')!r:.40}; supported is LORA")
        for name, value in _REFUSED.items():
            if (given := config.get(name)) not in (value, None, [], {}):
                raise WeightsError(f"{path} has {name} = {given!r:.60}, which is not supported")
        self.rank = self.folder.setting("r", int)
        self.alpha = float(self.folder.setting("lora_alpha", (int, float)))
        self._names: dict[str, tuple[str, str]] = {}
        """Tensor of the model → the names of its A and B."""
        self._check()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def matrices(self, name: str) -> tuple[Float32[np.ndarray, "R I"], Float32[np.ndarray, "O R"], float]:
        """A, B and the factor of their product, of a tensor of the model."""
        first, second = (self.folder.tensor(one).astype(np.float32) for one in self._names[name])
        return first, second, self._scale(_module(self.model, name), first.shape[0])

    def merged(self, path: str, array: Float[np.ndarray, "*S"]) -> Float[np.ndarray, "*S"]:
        """A parameter, by its path in files, with the adapter in it, added in float32; the same array if it has none."""
        recipe = self.model.recipes[0].get(path)
        if recipe is None or not any(name in self for name, _ in recipe.sources):
            return array
        changes = []
        for name, shape in recipe.sources:
            change = np.zeros(shape, np.float32)
            if name in self:
                a, b, scale = self.matrices(name)
                change = _oriented(self.model, np.float32(scale) * (b @ a))
            changes.append(change)
        # Kernels are made of tensors by transposing and joining alone, so their changes are too.
        return (array.astype(np.float32) + recipe.build(changes)).astype(array.dtype)

    def arrays(self, lora: LoraConfig) -> Iterator[tuple[str, Float32[np.ndarray, "N _ _"]]]:
        """The parameters of training by their paths, as `save_adapter` takes them.

        Raises:
            WeightsError: the adapter has other places, ranks or factors than these settings.
        """
        known = {name for place in lora.places for name, _ in _recipe(self.model, place).sources}
        for name in known ^ self._names.keys():
            what = "has none" if name in known else "has one"
            raise WeightsError(
                f"training.lora.adapter: {self.folder.folder} {what} for {name}: choose training.lora.places to fit it"
            )
        for place in lora.places:
            yield from self._arrays(place, lora)

    def _arrays(self, place: Place, lora: LoraConfig) -> Iterator[tuple[str, Float32[np.ndarray, "N _ _"]]]:
        assert lora.rank is not None
        recipe, layers = _recipe(self.model, place), self.model.shape["layers"]
        each = len(recipe.sources) // layers
        found = [self.matrices(name) for name, _ in recipe.sources]
        widths = _widths(self.model, place)
        fused = each == 1 and len(widths) > 1
        fitting = {lora.rank, lora.rank * len(widths)} if fused else {lora.rank}
        if {len(a) for a, _, _ in found} - fitting or any(abs(scale - lora.scale) > 1e-9 for *_, scale in found):
            raise WeightsError(
                f"training.lora.adapter: {self.folder.folder} has r = {self.rank} and lora_alpha = {self.alpha}, not "
                f"training.lora.rank = {lora.rank} and training.lora.alpha = {lora.alpha}: use the same"
            )
        narrow = [a.T for a, _, _ in found]  # N · P of (I, R)
        b = recipe.build([_oriented(self.model, one) for _, one, _ in found])  # (N, R, O), or (N, P · R, O)
        if fused and len(narrow[0][0]) == lora.rank:
            narrow = [np.tile(one, (1, len(widths))) for one in narrow]  # all parts share their A
        elif fused:
            b = _out_of_blocks(b, widths, lora.rank)
        a = np.stack([np.concatenate(narrow[at : at + each], axis=-1) for at in range(0, len(narrow), each)])
        yield f"blocks/{PATHS[place]}/adapter/a", a
        yield f"blocks/{PATHS[place]}/adapter/b", np.ascontiguousarray(b)

    def _check(self) -> None:
        """Finds the adapter of each map; raises `WeightsError` for what is missing, left over or of another shape."""
        left = dict(self.folder.shapes)
        for place in PATHS:
            for name, shape in _recipe(self.model, place).sources:
                start = f"base_model.model.{_module(self.model, name)}.lora_"
                pair = (f"{start}A.weight", f"{start}B.weight")
                shapes = [left.pop(one, None) for one in pair]
                if shapes == [None, None]:
                    continue
                outputs, inputs = shape[::-1] if self.model.family == "gpt2" else shape
                rank = shapes[0][0] if shapes[0] else 0
                if not rank or shapes != [(rank, inputs), (outputs, rank)]:
                    raise WeightsError(
                        f"{self.folder.folder} has the shapes {shapes} of A and B for {name} {shape} of "
                        f"{self.model.folder.folder}: it belongs to another model"
                    )
                self._names[name] = pair
        if left or not self._names:
            raise WeightsError(
                f"{self.folder.folder} is no adapter of the {self.model.folder.architecture} in {self.model.folder.folder}: "
                f"{few(list(left)) if left else 'no tensor of it'} has no place there"
            )

    def _scale(self, module: str, rank: int) -> float:
        patterns = {name: self.folder.config.get(name) or {} for name in ("rank_pattern", "alpha_pattern")}
        alpha = next((one for end, one in patterns["alpha_pattern"].items() if _ends(module, end)), self.alpha)
        described = next((one for end, one in patterns["rank_pattern"].items() if _ends(module, end)), self.rank)
        if described != rank or not isinstance(alpha, int | float):
            raise WeightsError(
                f"{self.folder.folder} has an adapter of rank {rank} for {module}, but its settings say {described!r:.20}"
            )
        return float(alpha) / (math.sqrt(rank) if self.folder.config.get("use_rslora") is True else rank)


def _ends(module: str, end: str) -> bool:
    # PEFT takes patterns for regular expressions. Names alone are compared: a file from outside must not bring one.
    return module == end or module.endswith(f".{end}")


def _recipe(model: LanguageModel, place: Place) -> Recipe:
    return model.recipes[0][f"blocks/{PATHS[place]}/kernel"]


def _module(model: LanguageModel, name: str) -> str:
    """The name in transformers of the map that a tensor of the files belongs to."""
    found = _STORED.fullmatch(name)
    assert found is not None  # the recipes name weights alone
    return ("model.language_model." if model.kind in WHOLE_MODELS else _PREFIXES.get(model.family, "model.")) + found[2]


def _oriented(model: LanguageModel, matrix: np.ndarray) -> np.ndarray:
    """A matrix as its family stores kernels, from PyTorch's usual (O, I), or back: only GPT-2 has (I, O)."""
    return matrix.T if model.family == "gpt2" else matrix


def _widths(model: LanguageModel, place: Place) -> tuple[int, ...]:
    """Outputs of the parts of a map."""
    return parts(ModelConfig(**model.shape), place)


def _in_blocks(b: Float32[np.ndarray, "N R O"], model: LanguageModel, place: Place) -> Float32[np.ndarray, "N PR O"]:
    """The matrices B of a map's parts below one another, each with zeros beside it."""
    widths = _widths(model, place)
    rows, column = [], 0
    for width in widths:
        row = np.zeros_like(b)
        row[..., column : column + width] = b[..., column : column + width]
        rows.append(row)
        column += width
    return np.concatenate(rows, axis=1)


def _out_of_blocks(
    b: Float32[np.ndarray, "N PR O"], widths: tuple[int, ...], rank: int
) -> Float32[np.ndarray, "N R O"]:
    """The inverse of `_in_blocks`."""
    column, blocks = 0, []
    for part, width in enumerate(widths):
        blocks.append(b[:, part * rank : (part + 1) * rank, column : column + width])
        column += width
    return np.concatenate(blocks, axis=-1)


def _number(value: float) -> int | float:
    """PEFT's settings have whole numbers where they can."""
    return int(value) if value == int(value) else value
