"""Arrays in HDF5 files: what would exhaust the memory is refused before it is read, images are read by the window.

Dimension key: T steps, H height, W width, C channels, *S any shape.
"""

import itertools
import math
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8

from generalist.data.formats.arrays import LARGEST, Shape, check_size, check_values, native, value_of
from generalist.data.formats.columns import EncodedFrames, Frames
from generalist.data.formats.episodes import Field
from generalist.data.formats.faults import BrokenRecord, Unread, naming
from generalist.data.formats.hdf5 import Opened, find, opened, package
from generalist.data.formats.hdf5_bytes import DEFLATE, FLETCHER, POINTER, SHUFFLE, Filter, Heap, unpacked
from generalist.data.formats.places import Place

# Chunks of one value each are allowed by HDF5; the loop over them would take minutes for a window.
CHUNKS = 2**16  # that one reading may touch


class StoredArray:
    """An array in an HDF5 file, as long as that is open.

    Args:
        file: the file.
        group: within it.
        path: of the array, from there.
        where: file and record, for messages.

    Raises:
        Unread: it is no array, its values stand in other files, or are of a type or packed in a way that is not read.
        BrokenRecord: there is none, or its chunks are too large.
    """

    def __init__(self, file: Opened, group: Any, path: str, where: str):
        h5py = package()
        self._file, self._dataset = file, find(group, path, where)
        self._what = f"{where}: {path!r}"
        if not isinstance(self._dataset, h5py.Dataset) or self._dataset.shape is None:
            raise Unread(f"{self._what} is no array: copy it again")
        self.shape: Shape = self._dataset.shape
        self._chunks: Shape | None = self._dataset.chunks
        self._filters = self._check_layout()
        self.dtype, self._raw = self._types()

    @property
    def name(self) -> str:
        """Its path from the root of the file."""
        return str(self._dataset.name).strip("/")

    @property
    def rows(self) -> int:
        """Length of its first axis; 0 if it has none."""
        return self.shape[0] if self.shape else 0

    @property
    def is_encoded(self) -> bool:
        """Whether it can hold a file's bytes for each image: of different lengths, or of one length by chance."""
        return self.dtype == object or (self.dtype == np.uint8 and len(self.shape) == 2)

    def read(self, rows: range) -> Shaped[np.ndarray, "..."]:
        """Some rows; texts as str.

        Raises:
            BrokenRecord: they are damaged, or too large.
        """
        with naming(self._what):
            return native(self._read(rows))

    def encoded(self, rows: range) -> list[bytes]:
        """The bytes of some images.

        Raises:
            BrokenRecord: as `read`.
        """
        with naming(self._what):
            return [value if isinstance(value, bytes) else value.tobytes() for value in self._read(rows)]

    def value(self, field: Field, where: str) -> str | np.ndarray:
        """All of it, as a value of an episode.

        Raises:
            BrokenRecord: as `read`, or it is not what the field says.
        """
        check_values(field, self.shape, self.dtype, where)
        with naming(self._what):
            return value_of(self._read(range(self.rows)))

    def _check_layout(self) -> list[Filter]:
        """The filters of its chunks."""
        h5py = package()
        # External storage and virtual data sets name other files, as links do, without being links.
        made = self._dataset.id.get_create_plist()
        if made.get_external_count() or made.get_layout() == h5py.h5d.VIRTUAL:
            raise Unread(f"{self._what} has its values in other files, which are not read: write them into this one")
        found = [made.get_filter(number) for number in range(made.get_nfilters())]
        # The first setting of the shuffle filter is the size of a value in bytes; the settings of the others
        # don't matter for reading.
        filters = [Filter(kind, values[0] if kind == SHUFFLE and values else 1) for kind, _, values, _ in found]
        kinds = [one.kind for one in filters]
        # Others would have to be run by HDF5, which trusts what they hold and loads unknown ones as plug-ins. Two
        # DEFLATEs multiply their ratios, up to a million to one.
        if set(kinds) - {DEFLATE, SHUFFLE, FLETCHER} or kinds.count(DEFLATE) > 1:
            names = ", ".join(name.decode(errors="replace") or str(kind) for kind, _, _, name in found)
            raise Unread(f"{self._what} is packed with {names}, of which gzip and shuffle are read: h5repack -f GZIP=4")
        return filters

    def _types(self) -> tuple[np.dtype, np.dtype]:
        """The type of its values, of texts NumPy's bytes and of encoded images objects; and of what is stored of each."""
        h5py = package()
        dtype, stored = self._dataset.dtype, self._dataset.id.get_type()
        if dtype.kind == "O":
            is_text = h5py.check_string_dtype(dtype) is not None
            if not is_text and h5py.check_vlen_dtype(dtype) != np.uint8:
                raise Unread(f"{self._what} holds values of the type {stored}, which are not read")
            # Pointers into the heap are taken apart here (`POINTER`), which holds for offsets and lengths of 8
            # bytes alone.
            if self._file.content.id.get_create_plist().get_sizes() != (8, 8):
                raise Unread(f"{self._what} has pointers of an unusual size: h5repack")
            # Of this type only the kind is used.
            return np.dtype("S64") if is_text else dtype, POINTER
        if isinstance(stored, h5py.h5t.TypeEnumID):  # as truth values are
            stored, plain = stored.get_super(), np.dtype(np.int8) if dtype.kind == "b" else dtype
        else:
            plain = dtype
        # h5py shows types that NumPy has not, such as integers of 12 bits, as the next larger ones. Since bytes
        # are read here without HDF5, only an exact match will do.
        if dtype.kind in "fiub" and not stored.equal(h5py.h5t.py_create(np.dtype(plain.str))):
            raise Unread(f"{self._what} holds numbers of an unusual format ({stored}): write them anew")
        return dtype, dtype

    def _read(self, rows: range) -> Shaped[np.ndarray, "..."]:
        """Some rows, or all if it has none; texts and encoded images as bytes."""
        shape = (len(rows), *self.shape[1:]) if self.shape else ()
        # Before any room is made: the shape in a file may be anything.
        check_size(shape, self._raw, self._what)
        if self._chunks is None:
            values = self._plain(rows.start * math.prod(shape[1:]), shape)
        else:
            values = self._from_chunks(rows)
        return self._resolved(values) if self._raw == POINTER else values

    def _plain(self, first: int, shape: Shape) -> Shaped[np.ndarray, "..."]:
        """Values that are stored one after the other.

        Args:
            first: how many are before them.
            shape: of the result.
        """
        # HDF5 says where the values begin, and they are read from the stream, for its own reading trusts the
        # sizes in the file.
        begin, size = self._dataset.id.get_offset(), self._dataset.id.get_storage_size()
        if not size:
            return np.full(shape, self._fill, self._raw)
        if size != math.prod(self.shape) * self._raw.itemsize:
            raise ValueError(f"{size:,} bytes are stored for values of the shape {self.shape}")
        if begin is None:  # among the headers of the file
            if self._raw == POINTER:
                raise Unread(f"{self._what} has texts among the headers, which are not read: h5repack -l CONTI")
            # Compact values stand in the array's own header, which has 64 KB at most.
            return self._dataset[()].reshape(-1)[first:][: math.prod(shape)].reshape(shape)
        self._file.stream.seek(begin + first * self._raw.itemsize)
        # A file that was cut off gives fewer bytes, which `reshape` refuses.
        content = self._file.stream.read(math.prod(shape) * self._raw.itemsize)
        return np.frombuffer(content, self._raw).reshape(shape).copy()

    def _from_chunks(self, rows: range) -> Shaped[np.ndarray, "rows ..."]:
        assert self._chunks is not None
        check_size(self._chunks, self._raw, f"a chunk of {self._what}")
        # The wanted part along each axis, and the chunks that it touches: all of them but along the first axis,
        # where only the window's.
        spans = [(rows.start, rows.stop), *((0, size) for size in self.shape[1:])]
        grid = [range(low - low % size, high, size) for (low, high), size in zip(spans, self._chunks, strict=True)]
        if math.prod(map(len, grid)) > CHUNKS:
            raise BrokenRecord(f"{self._what} is stored in more than {CHUNKS:,} chunks: make them larger (h5repack -l)")
        values = np.empty((len(rows), *self.shape[1:]), self._raw)
        # Chunks at the edges are stored whole, so that both the chunk and the result are cut to what they share.
        for corner in itertools.product(*grid):
            chunk = self._chunk(corner)
            source, target = [], []
            for begin, size, (low, high) in zip(corner, self._chunks, spans, strict=True):
                first, last = max(begin, low), min(begin + size, high)
                source.append(slice(first - begin, last - begin))
                target.append(slice(first - low, last - low))
            values[tuple(target)] = chunk[tuple(source)]
        return values

    def _chunk(self, corner: Shape) -> Shaped[np.ndarray, "..."]:
        assert self._chunks is not None
        size = math.prod(self._chunks) * self._raw.itemsize
        # A chunk that was never written takes no bytes, and stands for the fill value.
        stored = self._dataset.id.get_chunk_info_by_coord(corner).size or 0
        if not stored:
            return np.broadcast_to(np.asarray(self._fill, self._raw), self._chunks)
        # No filter makes more of it than this.
        if stored > size + size // 100 + 1024 or (stored != size and not self._filters):
            raise ValueError(f"the chunk at {corner} takes {stored:,} bytes, where it has {size:,}")
        # The bytes as they are stored: HDF5's filters are not run.
        mask, content = self._dataset.id.read_direct_chunk(corner)
        return np.frombuffer(unpacked(content, self._filters, mask, size), self._raw).reshape(self._chunks)

    @property
    def _fill(self) -> Any:
        """The value where none was written."""
        return np.zeros((), POINTER) if self._raw == POINTER else self._dataset.fillvalue

    def _resolved(self, pointers: Shaped[np.ndarray, "*S"]) -> Shaped[np.ndarray, "*S"]:
        """The bytes that pointers stand for, of the same shape."""
        # Many pointers may lead to the same bytes, so that a small file can claim any sum.
        total = int(pointers["length"].sum(dtype=np.int64))
        content = self._file.content
        if total > LARGEST:
            raise BrokenRecord(f"{self._what} declares values of {total:,} bytes, more than {LARGEST:,}: copy it again")
        # Places in HDF5 count from the end of the user block, which MATLAB's files have.
        heap = Heap(self._file.stream, content.userblock_size, content.id.get_filesize())
        values = np.empty(pointers.shape, object)
        values.reshape(-1)[:] = [heap.value(*pointer) for pointer in pointers.reshape(-1).tolist()]
        return values


class StoredFrames(Frames):
    """T images of an array in an HDF5 file, of which only those are read that a window asks for: (rows, H, W, C) of 8 bits,
    (rows, H, W) of grey; or encoded as JPEG or PNG, (rows,) or (rows, bytes).

    Args:
        place: the HDF5 file.
        path: of the array in it.
        rows: those of the images.
        shape: (H, W, C) of an image.
        where: file and record, for messages.
    """

    def __init__(
        self,
        place: Place,
        path: str,
        rows: range,
        shape: tuple[int | None, ...],
        where: str,
        first: int = 0,
    ):
        self._place, self._path = place, path
        self._rows, self._shape, self._where, self._first = rows, shape, where, first

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, steps: slice) -> "StoredFrames":
        start, stop, step = steps.indices(len(self))
        # Windows are contiguous; a stride would have to be kept in the numbers of messages as well.
        if step != 1:
            raise ValueError(f"frames are read in their order, one after the other, and not by {step}")
        rows, first = self._rows[start:stop], self._first + start
        return StoredFrames(self._place, self._path, rows, self._shape, self._where, first)

    def decode(self) -> UInt8[np.ndarray, "T H W C"]:
        """See `Frames.decode`."""
        with opened(self._place, self._where) as file:
            array = StoredArray(file, file.content, self._path, self._where)
            if array.is_encoded:
                return EncodedFrames(array.encoded(self._rows), self._shape, self._where, self._first).decode()
            values = array.read(self._rows)
        # (T, H, W) of grey to (T, H, W, 1)
        return values if values.ndim == 4 else values[..., None]

    @property
    def encoded(self) -> list[bytes] | None:
        """See `Frames.encoded`."""
        with opened(self._place, self._where) as file:
            array = StoredArray(file, file.content, self._path, self._where)
            return list(array.encoded(self._rows)) if array.is_encoded else None
