"""Tensors from a file in PyTorch's format before version 1.6, read without PyTorch and without running code from the file.

Such a file is a sequence of pickles, programs for a small machine that can call any function. This reader knows ordered
dictionaries, the types of storages and the strides of tensors; any other name raises an error.

Dimension key: *S the axes of a tensor, C numbers of a storage.
"""

import collections
import pickle
import struct
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Num

from generalist.weights.folder import WeightsError

MAGIC = 0x1950A86A20F9469CFC6C  # torch.serialization's MAGIC_NUMBER, and its PROTOCOL_VERSION
PROTOCOL = 1001
TYPES = {"FloatStorage": np.float32, "LongStorage": np.int64}


class _Tensor(tuple):
    """Storage key, offset, shape and strides; offset and strides count elements."""


def _rebuild(storage: str, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> _Tensor:
    # Only noted: the storages' numbers follow behind the pickle that calls this.
    return _Tensor((storage, offset, tuple(shape), tuple(strides)))


class _Reader(pickle.Unpickler):
    """An unpickler that builds dictionaries of tensors and nothing else."""

    def __init__(self, file: IO[bytes]):
        super().__init__(file)
        self.storages: dict[str, Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        # Every callable of a pickle goes through here: what is not listed cannot be called.
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if module == "torch" and name in TYPES:
            return TYPES[name]
        raise WeightsError(
            f"the file asks for {module}.{name}, which tensors do not need, so it is refused: use a file that holds tensors alone"
        )

    def persistent_load(self, pid: Any) -> str:
        # Numbers follow behind the pickles; here only the type of each storage is noted.
        # The rest of the entry, a device and a size, is not needed: the size stands again before the numbers.
        kind, dtype, key = pid[:3]
        if kind != "storage" or dtype not in TYPES.values():
            raise WeightsError(f"the file holds a {kind!r} of an unknown type")
        self.storages[key] = dtype
        return key


def read_tensors(path: Path) -> dict[str, Num[np.ndarray, "*_S"]]:
    """Name → tensor, float32 or int64.

    Raises:
        WeightsError: the file is truncated, has another format, or refers to more than tensors.
    """
    try:
        with path.open("rb") as file:
            return _read(file)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    # A damaged pickle can raise any of these.
    except (
        OSError,
        EOFError,
        pickle.UnpicklingError,
        struct.error,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
    ) as error:
        raise WeightsError(f"{path} is truncated or not a file of tensors ({error})") from error


def _read(file: IO[bytes]) -> dict[str, Num[np.ndarray, "*_S"]]:
    # Five pickles in a row: magic number, protocol, machine, tensors, keys of the storages.
    if _Reader(file).load() != MAGIC or _Reader(file).load() != PROTOCOL:
        raise WeightsError("not PyTorch's format before version 1.6")
    _Reader(file).load()  # the sizes of numbers on the machine that wrote it
    reader = _Reader(file)
    tensors = reader.load()
    # In the order of the keys: storages have no names of their own in the file.
    storages = {key: _storage(file, reader.storages[key]) for key in _Reader(file).load()}
    return {str(name): _laid_out(storages, *tensor) for name, tensor in tensors.items() if isinstance(tensor, _Tensor)}


def _storage(file: IO[bytes], dtype: Any) -> Num[np.ndarray, "C"]:
    """The next storage of the file: a little-endian count and that many numbers."""
    (count,) = struct.unpack("<q", file.read(8))
    data = np.frombuffer(file.read(count * np.dtype(dtype).itemsize), dtype)
    if len(data) != count:
        raise WeightsError("the file ends within a tensor")
    return data


def _laid_out(
    storages: dict[str, Num[np.ndarray, "_C"]], key: str, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> Num[np.ndarray, "*S"]:
    # as_strided does not check bounds: strides from the file could read memory outside the storage.
    data = storages[key]
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if offset < 0 or min((*shape, *strides, 1)) < 0 or last >= len(data):
        raise WeightsError(f"a tensor of shape {shape} lies outside its storage")
    steps = [stride * data.itemsize for stride in strides]
    # A copy: the view may share elements between rows, and it would keep the whole storage in memory.
    return np.lib.stride_tricks.as_strided(data[offset:], shape, steps).copy()
