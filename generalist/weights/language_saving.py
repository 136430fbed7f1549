"""Language models written as their publishers lay them out, for other tools to load: the inverse of `LanguageModel.load`."""

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from generalist.weights.folder import NUMBERS, WeightsError, save_shards
from generalist.weights.gated_recipes import ADDITIONAL
from generalist.weights.language import LanguageModel
from generalist.weights.language_recipes import OUTPUTS
from generalist.weights.recipe import Recipe, Tensor

SHARD_BYTES = 5 * 10**9
# Named one by one: whatever else lies in the folder is not published with the weights.
BESIDE = re.compile(
    r"(generation|tokenizer|preprocessor|processor)_config\.json|tokenizer\.(json|model)|special_tokens_map\.json"
    r"|added_tokens\.json|vocab\.json|merges\.txt|chat_template\.(jinja|json)|(LICENSE|NOTICE)(\.(txt|md))?"
)
"""Files that are copied: tokenizer, generation, chat and licence."""


def save_language_model(
    model: LanguageModel,
    arrays: Iterable[tuple[str, Tensor]],
    folder: Path,
    dtype: Any = None,
    shard_bytes: int = SHARD_BYTES,
) -> list[str]:
    """Writes weights of a published language model's architecture into an existing empty folder, in the layout of its own.

    A tensor that was not changed is written as it stands in the model's folder, so that it is the same bit for bit; tensors
    that are not used are copied, but a copy of tied embeddings becomes one of the new embeddings.

    Args:
        model: the opened folder that the weights began with: its settings and tokenizer are copied, without `auto_map`, since
            the code that this names is not.
        arrays: our parameters by their paths, as `LanguageModel.arrays` gives them; others are left out.
        dtype: of all tensors with decimals; None: each tensor has the dtype that it has in the model's folder.
        shard_bytes: the largest size of a file.

    Returns:
        The paths of what was left out, for which the architecture has no place.

    Raises:
        WeightsError: a parameter is missing, has no place in the architecture, or exceeds the numbers of `dtype`.
    """
    left_out: list[str] = []
    save_shards(_tensors(model, arrays, dtype, left_out), folder, shard_bytes)
    for path in sorted(model.folder.folder.iterdir()):
        if BESIDE.fullmatch(path.name) and path.is_file():
            shutil.copyfile(path, folder / path.name)
    config = {name: value for name, value in model.folder.config.items() if name != "auto_map"}
    if dtype is not None:
        # The newer name and the older one; which of them a file has depends on the library that wrote it.
        config |= {name: np.dtype(dtype).name for name in ("dtype", "torch_dtype") if name in config}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return left_out


def _tensors(
    model: LanguageModel, arrays: Iterable[tuple[str, Tensor]], dtype: Any, left_out: list[str]
) -> Iterator[tuple[str, Tensor]]:
    """The names and tensors of the files; adds to `left_out` the paths that have no place there."""
    recipes, _ = model.recipes
    copies: dict[str, Tensor] = {}
    written = set()
    for path, array in arrays:
        if path not in recipes:
            left_out.append(path)
            continue
        made = list(_of_recipe(model, path, recipes[path], array, dtype))
        if path == "tokens/text":  # the output matrix may be a copy of it, in one part or in two
            copies = {
                name: one for names, (_, one) in zip((OUTPUTS, ADDITIONAL[1:]), made, strict=False) for name in names
            }
        written |= {name for name, _ in made}
        yield from made
    if missing := [name for recipe in recipes.values() for name, _ in recipe.sources if name not in written]:
        raise WeightsError(f"the weights lack {len(missing)} tensors of {model.folder.folder}, such as {missing[0]}")
    for name in [name for name in model.folder.shapes if name not in written]:
        tensor = copies[name] if name in copies else model.folder.tensor(name)
        # Others are masks and the like.
        yield name, _cast(name, tensor, dtype) if model.folder.types[name] in NUMBERS else tensor


def _of_recipe(
    model: LanguageModel, path: str, recipe: Recipe, array: Tensor, dtype: Any
) -> Iterator[tuple[str, Tensor]]:
    """The names of the tensors that a parameter is made from, and these in the dtype of the files."""
    originals = {name: model.folder.tensor(name) for name, _ in recipe.sources}
    tensors = originals
    # The inverse of a norm's gain less 1 rounds in the last bits, and frozen matrices may be held in 16 bits.
    if not originals or not np.array_equal(recipe.build(list(originals.values())).astype(array.dtype), array):
        try:
            tensors = dict(recipe.tensors(array))
        except ValueError as error:
            raise WeightsError(f"{path} cannot be written as a {model.folder.architecture}: {error}") from error
    for name, tensor in tensors.items():
        yield name, _cast(name, tensor, originals[name].dtype if dtype is None else dtype)


def _cast(name: str, tensor: Tensor, dtype: Any) -> Tensor:
    if dtype is None:
        return tensor
    with np.errstate(over="ignore"):  # reported below, with the tensor's name
        cast = tensor.astype(dtype, copy=False)
    if not np.isfinite(cast).all():
        raise WeightsError(f"{name} has numbers that {np.dtype(dtype).name} cannot hold: choose another dtype")
    return cast
