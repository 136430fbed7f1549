"""Tensors from a file in PyTorch's format since version 1.6, read without PyTorch and without running anything from the file.

Such a file is a ZIP archive that is not compressed:

    archive/data.pkl    a pickle: dictionaries of names and of tensors, which refer to storages
    archive/data/0      the numbers of a storage, little-endian
    archive/version     and other small files, which are not needed

A pickle is a program. Here it is not given to Python's unpickler: `_Tensors` knows those of its instructions that dictionaries of
tensors need, builds nothing but plain values, and calls nothing. Any other instruction or name is an error.

Dimension key: *S the axes of a tensor.
"""

import dataclasses
import math
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Num

from generalist.system.plain_pickle import PickleError, PlainPickle
from generalist.weights.folder import WeightsError
from generalist.weights.recipe import Tensor

TYPES: dict[str, tuple[Any, str]] = {
    "DoubleStorage": (np.float64, "F64"),
    "FloatStorage": (np.float32, "F32"),
    "HalfStorage": (np.float16, "F16"),
    "BFloat16Storage": (ml_dtypes.bfloat16, "BF16"),
    "LongStorage": (np.int64, "I64"),
    "IntStorage": (np.int32, "I32"),
    "ShortStorage": (np.int16, "I16"),
    "CharStorage": (np.int8, "I8"),
    "ByteStorage": (np.uint8, "U8"),
    "BoolStorage": (np.bool_, "BOOL"),
}
"""PyTorch's types of storages: of numbers, and as safetensors names them."""
LARGEST_PICKLE = 64 * 2**20
"""Bytes. The pickle of a model with a thousand tensors has about 100 KB."""


@dataclasses.dataclass(frozen=True)
class _Name:
    """A function or class that the pickle names; it is never looked up."""

    full: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    type: str
    key: str
    count: int


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in the file; offset and strides count elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class TorchFile:
    """An opened file: the names, shapes and types of its tensors. Numbers are read by `tensor`, one tensor at a time."""

    def __init__(self, path: Path):
        """
        Raises:
            WeightsError: the file is no such archive, is damaged, or needs more than tensors.
        """
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                root, self._members = _members(archive)
                pickled = archive.read(f"{root}data.pkl")
            self.content = _Tensors(pickled).run()
            """What the pickle holds: dictionaries, lists and plain values with `Stored` for tensors."""
        except (OSError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
            raise WeightsError(f"{path} is truncated or not a file of PyTorch since version 1.6 ({error})") from error
        except PickleError as error:
            raise WeightsError(f"{path}: its pickle {error}") from error
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from error
        self._root = root

    def check(self, one: Stored) -> None:
        """Raises `WeightsError` unless a tensor lies within its storage, and that within the file."""
        member, size = self._members.get(f"{self._root}data/{one.storage.key}"), one.storage.count
        if member is None or member.file_size != size * np.dtype(TYPES[one.storage.type][0]).itemsize:
            raise WeightsError(f"{self.path}: the storage {one.storage.key!r:.40} is missing or has another size")
        last = one.offset + sum((length - 1) * stride for length, stride in zip(one.shape, one.strides, strict=True))
        if math.prod(one.shape) and last >= size:
            raise WeightsError(f"{self.path}: a tensor of shape {one.shape} lies outside its storage")
        # A stride of 0 repeats numbers without end: a small file could ask for more than the memory holds.
        if math.prod(one.shape) > size:
            raise WeightsError(f"{self.path}: a tensor of shape {one.shape} is larger than its storage of {size}")

    def tensor(self, one: Stored) -> Tensor:
        """The numbers of a tensor.

        Raises:
            WeightsError: as `check`, or the file is damaged.
        """
        self.check(one)
        dtype = np.dtype(TYPES[one.storage.type][0])
        try:
            with zipfile.ZipFile(self.path) as archive:
                data = np.frombuffer(archive.read(f"{self._root}data/{one.storage.key}"), dtype)
        except (OSError, EOFError, zipfile.BadZipFile) as error:
            raise WeightsError(f"{self.path} is truncated or damaged ({error})") from error
        return _laid_out(data[one.offset :], one.shape, tuple(stride * dtype.itemsize for stride in one.strides))


def type_of(one: Stored) -> str:
    """The type of a tensor's numbers, as safetensors names it."""
    return TYPES[one.storage.type][1]


def _laid_out(data: Num[np.ndarray, "_C"], shape: tuple[int, ...], steps: tuple[int, ...]) -> Num[np.ndarray, "*_S"]:
    # A copy: a view would keep the whole storage in memory.
    return np.lib.stride_tricks.as_strided(data, shape, steps).copy()


def _members(archive: zipfile.ZipFile) -> tuple[str, dict[str, zipfile.ZipInfo]]:
    """The folder within the archive, with its slash, and its checked files by their names."""
    found = archive.infolist()
    members = {one.filename: one for one in found}
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(members) != len(found) or len(pickles) != 1:
        raise WeightsError("the archive must have one data.pkl in one folder, and no name twice")
    root = pickles[0].removesuffix("data.pkl")
    for one in found:
        if not one.filename.startswith(root) or ".." in one.filename.split("/"):
            raise WeightsError(f"the archive has a file {one.filename!r:.80} outside its folder {root!r:.80}")
        # PyTorch compresses nothing; what a compressed file unpacks to is not bounded by its own size.
        if one.compress_type != zipfile.ZIP_STORED or one.file_size != one.compress_size or one.flag_bits & 1:
            raise WeightsError(f"{one.filename!r:.80} is compressed or encrypted, which PyTorch does not do")
    if members[pickles[0]].file_size > LARGEST_PICKLE:
        raise WeightsError(f"its data.pkl has more than {LARGEST_PICKLE:,} bytes")
    order = members.get(f"{root}byteorder")
    if order is not None and (order.file_size > 16 or archive.read(order) != b"little"):
        raise WeightsError("its numbers are not little-endian: save it again on another machine")
    return root, members


class _Tensors(PlainPickle):
    """Dictionaries of tensors: names of functions are only noted, and a few known calls stand for tensors."""

    values = "tensors"

    def _other(self, name: str, argument: Any) -> None:
        if name == "GLOBAL":
            self._stack.append(_Name(argument.replace(" ", ".")))
        elif name == "STACK_GLOBAL":
            attribute, module = self._pop(), self._pop()
            self._stack.append(_Name(f"{module}.{attribute}"))
        elif name == "REDUCE":
            arguments, function = self._pop(), self._pop()
            self._stack.append(_made(function, arguments))
        elif name == "BUILD":
            self._pop()  # attributes of a dictionary, such as the versions of a model's parts
            self._last(dict)
        elif name == "BINPERSID":
            self._stack.append(_storage(self._pop()))
        else:
            super()._other(name, argument)


def _made(function: Any, arguments: Any) -> Any:
    """What a call of a listed function stands for."""
    name = function.full if isinstance(function, _Name) else "no function"
    if name == "collections.OrderedDict" and arguments == ():
        return {}
    if name == "torch._utils._rebuild_tensor_v2":
        storage, offset, shape, strides = arguments[:4]
        numbers = (offset, *shape, *strides)
        # `type`, since a boolean is an int in Python.
        if not isinstance(storage, _Storage) or len(shape) != len(strides) or len(shape) > 16:
            raise ValueError("a tensor without a storage, or with other strides than axes")
        if not all(type(one) is int and 0 <= one < 2**48 for one in numbers):
            raise ValueError("a tensor whose offset, shape or strides are no sizes")
        return Stored(storage, offset, tuple(shape), tuple(strides))
    if name == "torch._utils._rebuild_parameter" and isinstance(arguments[0], Stored):
        return arguments[0]
    raise PickleError(
        f"asks for {name:.80}, which tensors do not need, so it is refused: use a file that holds tensors alone"
    )


def _storage(entry: Any) -> _Storage:
    kind, named, key, _, count = entry  # the fourth is the device that it was on
    name = named.full.removeprefix("torch.") if isinstance(named, _Name) else ""
    if kind != "storage" or name not in TYPES or not isinstance(key, str) or not key.isdecimal():
        raise PickleError(f"refers to a {kind!r:.40} of an unknown type")
    if type(count) is not int or not 0 <= count < 2**48:
        raise ValueError("a storage whose count is no size")
    return _Storage(name, key, count)
