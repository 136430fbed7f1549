"""Values in HDF5 files from their bytes. HDF5 itself trusts the sizes in a file: a damaged chunk makes it read or write past its
memory, and a damaged text makes room for 4 GB. So it finds the bytes, and they are unpacked here.

filters of a chunk        shuffle (bytes of all values by their place in a value), deflate (zlib), fletcher32 (a checksum)
values of any length      pointers, (length, place of a collection, number in it), to a global heap of collections:
                          `GCOL`, its size; objects with number, size, bytes up to a multiple of 8
"""

import struct
import zlib
from collections.abc import Sequence
from typing import BinaryIO, NamedTuple

import numpy as np

# H5Z_FILTER_DEFLATE, H5Z_FILTER_SHUFFLE and H5Z_FILTER_FLETCHER32 of H5Zpublic.h.
DEFLATE, SHUFFLE, FLETCHER = 1, 2, 3
CHECKSUM = 4  # bytes
# "HDF5 File Format Specification", level 2: a value of variable length, and the headers of a global heap's
# collection and of an object in it.
POINTER = np.dtype([("length", "<u4"), ("place", "<u8"), ("number", "<u4")])
COLLECTION, OBJECT = struct.Struct("<4sB3xQ"), struct.Struct("<HHIQ")


class Filter(NamedTuple):
    """One of those that a chunk went through when it was written."""

    kind: int
    size: int
    """Of a value in bytes, for shuffling."""


def unpacked(content: bytes, filters: Sequence[Filter], mask: int, size: int) -> bytes:
    """A chunk as it was before it was written.

    Args:
        filters: in the order in which they were applied.
        mask: a bit for each filter that was left out.
        size: bytes that the chunk must have.

    Raises:
        ValueError: it has another size or checksum, or is damaged.
    """
    # A filter that would have made a chunk no smaller is left out of that chunk, which the mask says.
    for number, (kind, of_value) in reversed(list(enumerate(filters))):
        if mask >> number & 1:
            continue
        if kind == FLETCHER:
            content = _checked(content)
        elif kind == DEFLATE:
            # More room for the checksum, in case that was added before the chunk was packed.
            content = _inflated(content, size + CHECKSUM)
        else:
            content = _unshuffled(content, of_value)
    if len(content) != size:
        raise ValueError(f"a chunk has {len(content):,} bytes, where {size:,} are expected")
    return content


def _inflated(content: bytes, most: int) -> bytes:
    unpacking = zlib.decompressobj()
    try:
        # One byte more than allowed is enough to see that it is a bomb; DEFLATE can make a thousand bytes of one.
        found = unpacking.decompress(content, most + 1)
    except zlib.error as error:
        raise ValueError(f"a chunk can't be unpacked ({error})") from error
    if len(found) > most or not unpacking.eof:
        raise ValueError(f"a chunk unpacks to more than {most:,} bytes, or is cut off")
    return found


def _unshuffled(content: bytes, size: int) -> bytes:
    # What is left after the last whole value is not shuffled.
    whole = len(content) // max(size, 1) * size
    values = np.frombuffer(content[:whole], np.uint8).reshape(size, -1)
    # (size, values) to (values, size)
    return values.T.tobytes() + content[whole:]


def _checked(content: bytes) -> bytes:
    """Fletcher's checksum of words of 16 bits, whose highest byte comes first: their sum, and the sum of all sums on the way."""
    content, stored = content[:-CHECKSUM], content[-CHECKSUM:]
    # HDF5's own checksum of an odd number of bytes takes the last one for the upper half of a word.
    words = np.frombuffer(content + bytes(len(content) % 2), ">u2").astype(np.uint64)
    first = int(words.sum()) % 65535
    # Below 2^64 for chunks of up to 4 GB, as the weights are taken modulo 65,535 too.
    weights = np.arange(len(words), 0, -1, dtype=np.uint64) % np.uint64(65535)
    second = int((words * weights).sum()) % 65535
    # Modulo 65,535, in which 0 and 65,535 are the same sum: HDF5 stores either.
    if len(stored) < CHECKSUM or [part % 65535 for part in struct.unpack("<HH", stored)] != [first, second]:
        raise ValueError("the checksum of a chunk is wrong")
    return content


class Heap:
    """Values of any length in a file.

    Args:
        stream: the file.
        begin: bytes before what HDF5 counts as the first one.
        end: bytes of the file.
    """

    def __init__(self, stream: BinaryIO, begin: int, end: int):
        self._stream, self._begin, self._end = stream, begin, end
        # Texts of neighbouring rows stand in the same collection, whose objects are looked up once.
        self._found: dict[int, dict[int, tuple[int, int]]] = {}

    def value(self, length: int, place: int, number: int) -> bytes:
        """The bytes that a pointer stands for.

        Raises:
            ValueError: there are none, or fewer.
        """
        # An empty text has no place in the heap: its pointer may hold anything.
        if not length:
            return b""
        if place not in self._found:
            self._found[place] = self._objects(self._begin + place)
        begin, size = self._found[place].get(number, (0, 0))
        if length > size:
            raise ValueError(f"a value of {length:,} bytes is not where it should be")
        self._stream.seek(begin)
        return self._stream.read(length)

    def _objects(self, place: int) -> dict[int, tuple[int, int]]:
        """Place and size of the objects in a collection, by number."""
        # A place may have 64 bits, more than a file's position may have.
        self._stream.seek(min(place, self._end))
        head = self._stream.read(COLLECTION.size)
        mark, version, size = COLLECTION.unpack(head) if len(head) == COLLECTION.size else (b"", 0, 0)
        if mark != b"GCOL" or version != 1 or place + size > self._end:
            raise ValueError("values of any length are not where they should be")
        found = {}
        at, end = place + COLLECTION.size, place + size
        while at + OBJECT.size <= end:
            self._stream.seek(at)
            number, _, _, length = OBJECT.unpack(self._stream.read(OBJECT.size))
            at += OBJECT.size
            if not number or at + length > end:  # what is left is free
                break
            found[number] = (at, length)
            # Objects are padded to multiples of 8 bytes.
            at += -(-length // 8) * 8
        return found
