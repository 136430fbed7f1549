"""Arrays in HDF5 files: what would exhaust the memory is refused before it is read, images are read by the window.

Dimension key: T steps, H height, W width, C channels.
"""

import itertools
import math
import zlib
from typing import Any

import numpy as np
from jaxtyping import UInt8

from generalist.data.formats.arrays import LARGEST, Shape, check_size, check_values, native, text, value_of
from generalist.data.formats.columns import EncodedFrames, Frames
from generalist.data.formats.episodes import Field
from generalist.data.formats.faults import BrokenRecord, Unread
from generalist.data.formats.hdf5 import Files, Opened, find, package
from generalist.data.formats.places import Place

DEFLATE, SHUFFLE, FLETCHER, SZIP, LZF = 1, 2, 3, 4, 32000  # numbers of filters
EXPANSION = {DEFLATE: 1032, LZF: 88, SZIP: 64}  # at most, of what a filter unpacks
PIECE = 2**20  # bytes that are unpacked at once
CHUNKS = 2**16  # that one reading may touch: HDF5 takes 2 KB for each
POINTER = np.dtype([("length", "<u4"), ("place", "<u8"), ("number", "<u4")])  # what stands for a value of any length


class StoredArray:
    """An array in an HDF5 file, as long as that is open.

    Args:
        file: the file.
        group: within it.
        path: of the array, from there.
        where: file and record, for messages.

    Raises:
        Unread: it is no array, its values stand in other files, or are packed in a way that is not read.
        BrokenRecord: there is none, or its chunks are too large.
    """

    def __init__(self, file: Opened, group: Any, path: str, where: str):
        h5py = package()
        self._stream, self._dataset = file.stream, find(group, path, where)
        self._what = f"{where}: {path!r}"
        if not isinstance(self._dataset, h5py.Dataset) or self._dataset.shape is None:
            raise Unread(f"{self._what} is no array: get it again")
        self.shape: Shape = self._dataset.shape
        self.dtype: np.dtype = self._dataset.dtype
        """Of texts, NumPy's bytes; of encoded images, objects."""
        self._filters = self._check_layout()
        self._varies = self.dtype == object
        """Whether values have different lengths."""
        if h5py.check_string_dtype(self.dtype) is not None:
            self.dtype = np.dtype(f"S{max(self.dtype.itemsize, 1)}")
        elif self._varies and h5py.check_vlen_dtype(self.dtype) != np.uint8:
            raise Unread(f"{self._what} holds values of the type {self._dataset.id.get_type()}, which are not read")
        if self._varies and (self._filters or len(self.shape) > 1):
            raise Unread(f"{self._what} holds packed texts, which are not read: h5repack -f NONE")

    def _check_layout(self) -> list[int]:
        """The numbers of its filters."""
        h5py = package()
        made = self._dataset.id.get_create_plist()
        if made.get_external_count() or made.get_layout() == h5py.h5d.VIRTUAL:
            raise Unread(f"{self._what} has its values in other files, which are not read: write them into this one")
        filters = [made.get_filter(number)[0] for number in range(made.get_nfilters())]
        if set(filters) - {SHUFFLE, FLETCHER, *EXPANSION} or sum(one in EXPANSION for one in filters) > 1:
            raise Unread(
                f"{self._what} is packed with the filters {filters}, of which at most one of gzip, lzf and szip is read: "
                "h5repack -f GZIP=4"
            )
        if self._dataset.chunks is not None:
            check_size(self._dataset.chunks, self.dtype, f"a chunk of {self._what}")
        return filters

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

    def read(self, rows: range) -> np.ndarray:
        """Some rows; texts as str.

        Raises:
            BrokenRecord: they are too large, or unpack to more than they should.
            ValueError, OSError: they can't be read, for whoever opened the file.
        """
        values = self._read(rows)
        return native(np.array([text(value) for value in values], object) if self._varies else values)

    def encoded(self, rows: range) -> list[bytes]:
        """The bytes of some images.

        Raises:
            BrokenRecord, ValueError, OSError: as `read`.
        """
        return [value.tobytes() for value in self._read(rows)]

    def value(self, field: Field, where: str) -> str | np.ndarray:
        """All of it, as a value of an episode.

        Raises:
            BrokenRecord: it is not what the field says.
            BrokenRecord, ValueError, OSError: as `read`.
        """
        check_values(field, self.shape, self.dtype, where)
        if self.shape:
            return self.read(range(self.shape[0]))
        self._check_lengths(range(1))
        check_size((), self.dtype, self._what)
        return value_of(np.asarray(self._dataset[()]))

    def _read(self, rows: range) -> np.ndarray:
        check_size((len(rows), *self.shape[1:]), self.dtype, self._what)
        self._check_chunks(rows)
        self._check_lengths(rows)
        return self._dataset[rows.start : rows.stop]

    def _chunks(self, rows: range) -> list[range]:
        """Where the chunks of some rows begin, by axis."""
        spans = [(rows.start, rows.stop), *((0, size) for size in self.shape[1:])]
        return [
            range(start - start % size, stop, size)
            for (start, stop), size in zip(spans, self._dataset.chunks, strict=True)
        ]

    def _check_lengths(self, rows: range) -> None:
        """HDF5 makes room for values of any length before it looks for them, so that their sum is looked at first.

        Raises:
            BrokenRecord: they are too long.
        """
        if not self._varies or not self._dataset.id.get_storage_size():
            return
        if self._dataset.chunks is not None:
            starts = ((start,) for start in self._chunks(rows)[0])
            raw = b"".join(self._dataset.id.read_direct_chunk(start)[1] for start in starts if self._stored(start))
        else:
            begin = self._dataset.id.get_offset()
            if begin is None:
                raise Unread(
                    f"{self._what} holds texts among the file's headers, which are not read: h5repack -l CONTI"
                )
            self._stream.seek(begin + rows.start * POINTER.itemsize)
            raw = self._stream.read(len(rows) * POINTER.itemsize)
        pointers = np.frombuffer(raw[: len(raw) // POINTER.itemsize * POINTER.itemsize], POINTER)
        longest, total = pointers["length"].max(initial=0), pointers["length"].sum(dtype=np.int64)
        # No value is longer than the file, though several may be the same one.
        if longest > self._dataset.file.id.get_filesize() or total > LARGEST:
            raise BrokenRecord(
                f"{self._what} declares values of {total:,} bytes, the longest of {longest:,}: get it again"
            )

    def _stored(self, chunk: Shape) -> int:
        """Bytes that a chunk takes in the file; 0 if it was never written."""
        return self._dataset.id.get_chunk_info_by_coord(chunk).size or 0

    def _check_chunks(self, rows: range) -> None:
        """HDF5 unpacks a chunk to whatever is in it, however small it is declared.

        Raises:
            BrokenRecord: a chunk of these rows would unpack to too much, or they have too many chunks.
        """
        if self._dataset.chunks is None or not len(rows):
            return
        chunks = self._chunks(rows)
        if math.prod(map(len, chunks)) > CHUNKS:
            raise BrokenRecord(f"{self._what} is stored in more than {CHUNKS:,} chunks: make them larger (h5repack -l)")
        expansion = max((EXPANSION.get(one, 1) for one in self._filters), default=1)
        if expansion == 1 or self._dataset.id.get_storage_size() * expansion <= LARGEST:
            return
        for chunk in itertools.product(*chunks):
            if self._stored(chunk) * expansion > LARGEST:
                self._check_unpacked(chunk)

    def _check_unpacked(self, chunk: Shape) -> None:
        """Unpacks a large chunk piece by piece, and counts.

        Raises:
            BrokenRecord: it is larger than it should be, or packed in another way than by gzip.
        """
        largest = math.prod(self._dataset.chunks) * self.dtype.itemsize
        packed = self._dataset.id.read_direct_chunk(chunk)[1] if DEFLATE in self._filters else b""
        unpacking, count = zlib.decompressobj(), 0
        try:
            while packed and count <= largest:
                count += len(unpacking.decompress(packed, PIECE))
                packed = unpacking.unconsumed_tail
        except zlib.error as error:
            raise BrokenRecord(f"{self._what}: its chunk at {chunk} can't be unpacked ({error})") from error
        if not 0 < count <= largest:
            raise BrokenRecord(
                f"{self._what}: its chunk at {chunk} may unpack to more than {largest:,} bytes: get it again"
            )


class StoredFrames(Frames):
    """T images of an array in an HDF5 file, of which only those are read that a window asks for: (rows, H, W, C) of 8 bits,
    (rows, H, W) of grey; or encoded as JPEG or PNG, (rows,) or (rows, bytes).

    Args:
        files: opens it.
        place: the HDF5 file.
        path: of the array in it.
        rows: those of the images.
        shape: (H, W, C) of an image.
        where: file and record, for messages.
    """

    def __init__(
        self,
        files: Files,
        place: Place,
        path: str,
        rows: range,
        shape: tuple[int | None, ...],
        where: str,
        first: int = 0,
    ):
        self._files, self._place, self._path = files, place, path
        self._rows, self._shape, self._where, self._first = rows, shape, where, first

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, steps: slice) -> "StoredFrames":
        start, stop, step = steps.indices(len(self))
        if step != 1:
            raise ValueError(f"frames are read in their order, one after the other, and not by {step}")
        rows, first = self._rows[start:stop], self._first + start
        return StoredFrames(self._files, self._place, self._path, rows, self._shape, self._where, first)

    def decode(self) -> UInt8[np.ndarray, "T H W C"]:
        """See `Frames.decode`."""
        with self._files.reading(self._place, self._where) as file:
            array = StoredArray(file, file.content, self._path, self._where)
            if array.is_encoded:
                return EncodedFrames(array.encoded(self._rows), self._shape, self._where, self._first).decode()
            values = array.read(self._rows)
        return values if values.ndim == 4 else values[..., None]
