"""Weights from a folder in HuggingFace's layout, `config.json` beside `*.safetensors`, checked before they are read.

A safetensors file is a table of names, types and offsets followed by numbers: nothing in it can run code. Other formats
(pickles: `.bin`, `.pt`, `.pth`, `.ckpt`) are refused by name and never opened.
"""

import hashlib
import json
import math
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from generalist.system.files import write_json
from generalist.weights.recipe import Index, Recipe, Tensor, whole
from generalist.weights.stored import Stored, aligned

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5")
NUMBERS = ("F64", "F32", "F16", "BF16")
"""Supported tensor dtypes; others (int8, float8) are quantised weights, whose scales are stored elsewhere."""
LARGEST_NUMBER = 8  # bytes
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""Weights in one file, or the index that maps tensors to several files."""
LARGEST_JSON = 1 << 26  # bytes: the index of the largest models has a few million
PIECE = 1 << 25  # bytes that are read or looked at at once
SHOWN = 5  # names listed in an error message; the others are counted


class WeightsError(ValueError):
    """A folder of weights cannot be loaded; the message names the folder, the fault and the remedy."""


def read_json(path: Path) -> Any:
    """The content of a JSON file that came with weights.

    Raises:
        WeightsError: it is no JSON, larger than `LARGEST_JSON`, or cannot be read.
    """
    # RecursionError: a few kilobytes of nested brackets must not end the process.
    try:
        if (size := path.stat().st_size) > LARGEST_JSON:
            raise WeightsError(f"{path} has {size:,} bytes: more than {LARGEST_JSON:,} are not read")
        return json.loads(path.read_text(encoding="utf-8"))
    except WeightsError:
        raise
    except (ValueError, RecursionError, OSError) as error:
        raise WeightsError(f"{path} is not JSON ({error})") from error


def _read(file: Path, name: str, index: Index) -> Tensor:
    """A part of a tensor of a file, by a few rows at a time: no second copy of it is in memory."""

    def rows(begin: int, stop: int) -> Tensor:
        # Opened each time: the pages of an open file that were read would stay in memory.
        with safe_open(file, framework="numpy") as opened:
            return opened.get_slice(name)[(slice(begin, stop), *index[1:])]

    if not index:  # a number
        with safe_open(file, framework="numpy") as opened:
            return opened.get_tensor(name)
    at, stop = index[0].start, index[0].stop
    if math.prod(one.stop - one.start for one in index) * LARGEST_NUMBER <= PIECE:
        return rows(at, stop)
    first = rows(at, min(at + 1, stop))
    array = aligned((stop - at, *first.shape[1:]), first.dtype)
    for piece in _in_pieces(array):
        piece[...] = rows(at, at + len(piece))
        at += len(piece)
    return array


def _in_pieces(array: Tensor) -> Iterator[Tensor]:
    """The rows of an array, a few at a time."""
    rows = np.atleast_1d(array)
    step = max(1, PIECE // max(1, rows[:1].nbytes))
    return (rows[at : at + step] for at in range(0, len(rows), step))


def save_tensors(arrays: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file with the permissions of new files. The library renames a temporary file that only its owner can
    read, so they are restored afterwards."""
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    save_file(dict(arrays), path, metadata)
    path.chmod(mode)


def save_shards(tensors: Iterable[tuple[str, Tensor]], folder: Path, limit: int) -> None:
    """Writes tensors into a folder as HuggingFace lays them out: `model.safetensors` or, where that would exceed `limit` bytes,
    shards with their index. One shard at a time is in memory."""
    shards: list[dict[str, int]] = []  # the names of each with their bytes
    for arrays in _grouped(tensors, limit):
        # PyTorch's name for its own order of axes, without which older versions of transformers refuse a file.
        save_tensors(arrays, folder / f"{len(shards)}.safetensors", {"format": "pt"})
        shards.append({name: array.nbytes for name, array in arrays.items()})
    if len(shards) == 1:
        (folder / "0.safetensors").rename(folder / WHOLE)
        return
    files = [f"model-{number + 1:05}-of-{len(shards):05}.safetensors" for number in range(len(shards))]
    for number, file in enumerate(files):  # their count is in their names
        (folder / f"{number}.safetensors").rename(folder / file)
    total = sum(sum(sizes.values()) for sizes in shards)
    where = {name: file for file, sizes in zip(files, shards, strict=True) for name in sizes}
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})


def _grouped(tensors: Iterable[tuple[str, Tensor]], limit: int) -> Iterator[dict[str, Tensor]]:
    """Tensors in groups of at most `limit` bytes; a larger one is alone."""
    group: dict[str, Tensor] = {}
    for name, array in tensors:
        if group and sum(one.nbytes for one in group.values()) + array.nbytes > limit:
            yield group
            group = {}
        group[name] = array
    yield group


class WeightsFolder:
    """An opened folder: its settings and the names and shapes of its tensors. Numbers are read only by `read` and `stream`."""

    def __init__(self, folder: Path, settings: str = "config.json"):
        """
        Args:
            settings: the name of the file with its settings.

        Raises:
            WeightsError: the folder, its settings or its safetensors files are missing, a shard is broken or missing, or
                there are two sets of weights.
        """
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise WeightsError(
                f"there is no folder {self.folder}: name a local folder with {settings} and *.safetensors"
            )
        self._settings = self.folder / settings
        self.config = self._read_json(settings)
        self._files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Name → shape of every tensor of every shard."""
        self.types: dict[str, str] = {}
        """Name → dtype of every tensor, as safetensors names it."""
        index = self._index()
        for path in self._shards(index):
            self._enter(path)
        # A shard may be intact and still not the one that the index describes.
        if astray := [name for name, file in index.items() if self._files.get(name) != self.folder / file]:
            raise WeightsError(
                f"{self.folder} lacks tensors where its index says they are: "
                + few([f"{name} in {index[name]}" for name in astray])
            )

    @property
    def architecture(self) -> str:
        """The first of `architectures` or, without any, the `model_type`."""
        names = self.config.get("architectures")
        return str(names[0]) if isinstance(names, list) and names else str(self.config.get("model_type", "model"))

    def setting(self, name: str, kind: type | tuple[type, ...] = int, **default: Any) -> Any:
        """A value of `config.json`.

        Args:
            name: its key; a dot separates sections, as in `vision_config.hidden_size`.
            kind: the required type.
            default: `default=...` is returned where the key is missing or null.

        Raises:
            WeightsError: it is missing and has no default, has another type, or is a number that is not finite, negative or, for
                an integer, zero.
        """
        # A missing section counts as a missing value, so that defaults apply to it too.
        value: Any = self.config
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is None:
            if "default" in default:
                return default["default"]
            raise WeightsError(f"{self._settings} has no {name!r}, which its {self.architecture} needs")
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
            raise WeightsError(f"{self._settings} has {name} = {value!r:.60}, which is not of the expected type")
        # JSON allows NaN and 1e999 in Python's reader; sizes of 0 would fail far from here.
        number: Any = value if isinstance(value, int | float) and not isinstance(value, bool) else 1
        if not 0 <= number < math.inf or (number == 0 and kind is int):
            raise WeightsError(f"{self._settings} has {name} = {value!r:.60}: it must be above 0")
        return value

    def read(self, recipes: Mapping[str, Recipe], ignored: Iterable[str] = ()) -> dict[str, Tensor]:
        """Every recipe's array under the recipe's key, in the dtypes of the files. All names and shapes are checked before the
        first number is read; then one array at a time is in memory besides the result.

        Args:
            recipes: our name → its recipe.
            ignored: regular expressions that match whole names of tensors that may be present but are not used.

        Raises:
            WeightsError: tensors are missing, left over, or have unexpected shapes or unsupported dtypes, or a number is not
                finite.
        """
        return dict(self.stream(recipes, ignored))

    def stream(self, recipes: Mapping[str, Recipe], ignored: Iterable[str] = ()) -> Iterator[tuple[str, Tensor]]:
        """The items of `read`, one at a time, so that no two arrays need to be in memory."""
        self.check(recipes, ignored)
        for key, recipe in recipes.items():
            # Contiguous: a transposed view would keep its source alive, and be copied anyway on its way to a device.
            yield key, np.ascontiguousarray(recipe.build([self.tensor(name) for name, _ in recipe.sources]))

    def stored(self, recipes: Mapping[str, Recipe], ignored: Iterable[str] = ()) -> Iterator[tuple[str, Stored]]:
        """The items of `stream` unread: of each array every part can be read alone, also many times."""
        self.check(recipes, ignored)
        for key, recipe in recipes.items():
            yield key, Stored(recipe.shape, partial(recipe.read, self.part))

    def tensor(self, name: str) -> Tensor:
        """A tensor by its name in the files, as it stands there.

        Raises:
            WeightsError: a number is not finite.
        """
        return self.part(name, whole(self.shapes[name]))

    def part(self, name: str, index: Index) -> Tensor:
        """A part of a tensor; only that part of the file is read.

        Raises:
            WeightsError: a number is not finite.
        """
        array = _read(self._files[name], name, index)
        # A single NaN would spread through the whole model, and be noticed only as a loss that is none.
        if not all(np.isfinite(rows).all() for rows in _in_pieces(array)):
            raise WeightsError(f"{self._files[name]} has non-finite numbers in {name}: download it again")
        return array

    def check(self, recipes: Mapping[str, Recipe], ignored: Iterable[str] = ()) -> None:
        """Raises `WeightsError` unless the folder has exactly the tensors that the recipes and `ignored` name, in supported
        dtypes."""
        wanted = {name: shape for recipe in recipes.values() for name, shape in recipe.sources}
        # (?!) never matches: without patterns nothing is ignored.
        pattern = re.compile("|".join(f"(?:{one})" for one in ignored) or r"(?!)")
        if faults := mismatch(wanted, self.shapes, self.types, pattern):
            raise WeightsError(f"{self.folder} does not match the {self.architecture} of its config.json: {faults}")

    def beside(self, name: str) -> dict[str, Any]:
        """Another JSON file of the folder; empty if it is missing."""
        return self._read_json(name) if (self.folder / name).is_file() else {}

    def content_hash(self) -> str:
        """SHA-256 of the settings and of all shards."""
        # Settings as parsed: another layout of the same JSON is the same model.
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for path in sorted(set(self._files.values())):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def _read_json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        if not path.is_file():
            raise WeightsError(f"{self.folder} has no {name}: name a folder in HuggingFace's layout")
        value = read_json(path)
        if not isinstance(value, dict):
            raise WeightsError(f"{path} holds {type(value).__name__} instead of an object")
        return value

    def _index(self) -> dict[str, str]:
        """Name of a tensor → its shard, from the index; empty without an index."""
        path = self.folder / INDEX
        if not path.is_file():
            return {}
        index = self._read_json(path.name).get("weight_map")
        if not isinstance(index, dict) or not index:
            raise WeightsError(f"{path} has no weight_map")
        # A name such as ../../x must not lead out of the folder.
        for name in index.values():
            if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
                raise WeightsError(f"{path} names {name!r:.80}, which is not a *.safetensors file of its own folder")
        return index

    def _shards(self, index: Mapping[str, str]) -> list[Path]:
        """The safetensors files: those that the index names or, without one, all."""
        if index:
            paths = [self.folder / name for name in sorted(set(index.values()))]
            # Left from saving over an older set in the other form: which one is meant cannot be known.
            if WHOLE not in index.values() and (self.folder / WHOLE).exists():
                raise WeightsError(
                    f"{self.folder} holds two sets of weights, {WHOLE} and the shards of {INDEX}: delete {WHOLE}, or the index "
                    f"with its shards ({few([path.name for path in paths])})"
                )
            if absent := [path.name for path in paths if not path.is_file()]:
                raise WeightsError(f"{self.folder} lacks shards that its index names: {few(absent)}")
            return paths
        # A pipe or a device would be waited for.
        paths = sorted(path for path in self.folder.glob("*.safetensors") if path.is_file())
        if not paths:
            pickles = sorted(path.name for path in self.folder.iterdir() if path.suffix in PICKLES)
            why = (
                f"only {few(pickles)}, which is refused because it could run code when opened: convert it to safetensors"
                if pickles
                else "no *.safetensors file"
            )
            raise WeightsError(f"{self.folder} has {why}")
        return paths

    def _enter(self, path: Path) -> None:
        """Adds a file's table of names, shapes and dtypes; no number is read."""
        try:
            with safe_open(path, framework="numpy") as opened:
                for name in sorted(opened.keys()):
                    if name in self.shapes:
                        raise WeightsError(
                            f"{self.folder} has {name} twice, in {self._files[name].name} and {path.name}"
                        )
                    # A slice gives shape and dtype from the header, without reading the numbers.
                    entry = opened.get_slice(name)
                    self.shapes[name], self.types[name] = tuple(entry.get_shape()), str(entry.get_dtype())
                    self._files[name] = path
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path} is truncated or not a safetensors file ({error})") from error


def mismatch(
    wanted: Mapping[str, tuple[int, ...]],
    shapes: Mapping[str, tuple[int, ...]],
    types: Mapping[str, str],
    ignored: re.Pattern,
) -> str:
    """What sets a file's tensors apart from the wanted ones, for a message; empty if nothing does.

    Args:
        wanted: name → shape.
        shapes: of the file.
        types: of the file, as safetensors names them.
        ignored: matches whole names of tensors that may be present but are not used.
    """
    # Left-over tensors are faults too: a model with parts that are not used would give other outputs than its authors'.
    missing = [name for name in wanted if name not in shapes]
    extra = [name for name in shapes if name not in wanted and not ignored.fullmatch(name)]
    wrong = [
        f"{name} is {shapes[name]} instead of {shape}"
        for name, shape in wanted.items()
        if name in shapes and shapes[name] != tuple(shape)
    ]
    packed = [f"{name} is {types[name]}" for name in wanted if types.get(name, NUMBERS[0]) not in NUMBERS]
    found = {
        "missing tensors": missing,
        "unknown tensors": extra,
        "wrong shapes": wrong,
        f"types other than {', '.join(NUMBERS)}": packed,
    }
    # All faults in one message: a wrong config.json otherwise takes one attempt per fault.
    return "; ".join(f"{title}: {few(names)}" for title, names in found.items() if names)


def few(names: Sequence[str]) -> str:
    """The first names, and the number of others."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
