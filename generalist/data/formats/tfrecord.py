"""TFRecord files with random access, and with every checksum checked.

    record: length uint64 | masked crc32c of the length uint32 | payload | masked crc32c of the payload uint32

A payload that is damaged costs one record. A damaged length hides where the next record begins: the rest of the file is lost.
"""

import dataclasses
import struct
from collections.abc import Iterator

from generalist.data.formats.faults import BrokenRecord
from generalist.data.formats.places import Place, size

# Length and its checksum; behind the payload, that of the payload.
HEADER = struct.Struct("<QI")
FOOTER = struct.Struct("<I")
LARGEST = 2**31
"""Bytes of a payload: protocol buffers are smaller, so that a larger length is a mistake."""


@dataclasses.dataclass(frozen=True)
class Record:
    """Where a record lies in its file."""

    offset: int
    """Of its header, in bytes."""
    size: int
    """Of its payload, in bytes."""


def masked_crc(content: bytes) -> int:
    """The checksum that TFRecord stores: crc32c, rotated and offset, so that checksums of checksums differ from them."""
    import google_crc32c

    crc = google_crc32c.value(content)
    # Rotated right by 15 bits, plus kMaskDelta of TensorFlow's crc32c.h.
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def records(file: Place) -> Iterator[Record]:
    """The records of a file by their headers; no payload is read.

    Raises:
        BrokenRecord: a header is damaged or the file ends within a record; what follows can't be found.
        OSError: the file can't be read.
    """
    end, offset = size(file), 0
    with file.open("rb") as opened:
        while offset < end:
            opened.seek(offset)
            # From header to header: 12 bytes are read per record, however large it is.
            length = _length(opened.read(HEADER.size), file, offset)
            following = offset + HEADER.size + length + FOOTER.size
            # A download that broke off ends within a record.
            if following > end:
                raise BrokenRecord(
                    f"{file}, offset {offset}: the file ends within a record of {length:,} bytes: copy it again"
                )
            yield Record(offset, length)
            offset = following


def payload(file: Place, record: Record) -> bytes:
    """The payload of a record.

    Raises:
        BrokenRecord: it does not fit its checksum, or the file has changed.
        OSError: the file can't be read.
    """
    with file.open("rb") as opened:
        opened.seek(record.offset)
        content = opened.read(HEADER.size + record.size + FOOTER.size)
    # The header once more, in case that another file has taken the place of the one that was indexed.
    if len(content) < HEADER.size + record.size + FOOTER.size or _length(content, file, record.offset) != record.size:
        raise BrokenRecord(f"{file}, offset {record.offset}: the file has changed since it was indexed: run it again")
    found = content[HEADER.size : HEADER.size + record.size]
    if masked_crc(found) != FOOTER.unpack_from(content, HEADER.size + record.size)[0]:
        raise BrokenRecord(
            f"{file}, offset {record.offset}: the record of {record.size:,} bytes does not fit its checksum: copy the file again"
        )
    return found


def framed(content: bytes) -> bytes:
    """A payload as a record."""
    length = struct.pack("<Q", len(content))
    return length + FOOTER.pack(masked_crc(length)) + content + FOOTER.pack(masked_crc(content))


def _length(content: bytes, file: Place, offset: int) -> int:
    """The length that a header tells."""
    if len(content) < HEADER.size:
        raise BrokenRecord(f"{file}, offset {offset}: the file ends within a record's header: copy it again")
    length, crc = HEADER.unpack_from(content)
    # First of all: every other use of a damaged length leads somewhere into the file.
    if masked_crc(content[:8]) != crc:
        raise BrokenRecord(
            f"{file}, offset {offset}: the length of a record does not fit its checksum, so that this record and all after it "
            "are lost: copy the file again"
        )
    if length > LARGEST:
        raise BrokenRecord(f"{file}, offset {offset}: a record of {length:,} bytes is larger than any can be")
    return int(length)
