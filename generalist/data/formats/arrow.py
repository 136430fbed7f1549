"""Tables in Arrow and Parquet files of somebody else's: what would exhaust the memory is refused before it is read."""

import struct
from typing import Any

from generalist.data.formats.arrays import LARGEST
from generalist.data.formats.faults import BrokenRecord, naming
from generalist.data.formats.parquet import TABLES
from generalist.data.formats.places import Place, size

# `ARROW1`, padded to 8 bytes: what follows it is the same as in a stream (Arrow's columnar format, "IPC File
# Format").
MAGIC = b"ARROW1\0\0"


def read_rows(file: Place, steps: int) -> Any:
    """The first rows of the table in an .arrow or .parquet file, as a `pyarrow.RecordBatch`.

    Args:
        steps: rows that are wanted, above 0; there may be one more.

    Raises:
        BrokenRecord: it can't be read, is too large, or has another number of rows.
    """
    with naming(file):
        table = _parquet(file) if file.suffix == ".parquet" else _arrow(file)
        # Minari writes T + 1 rows, the last with the final observation alone; the index has T from the episode's
        # metadata.json.
        if not 0 <= table.num_rows - steps <= 1:
            raise BrokenRecord(f"{file} has {table.num_rows:,} rows, where {steps:,} steps and one more are expected")
        # A damaged file has offsets of texts and lists that lead anywhere, which pyarrow follows without a check
        # otherwise: the process would end.
        table.validate(full=True)
        return table.slice(0, steps).combine_chunks().to_batches()[0]


def _parquet(file: Place) -> Any:
    with TABLES.use(file) as table:
        return table.read(0, table.rows, table.names)


def _arrow(file: Place) -> Any:
    """A file of Arrow is a stream between two marks; read as one, nothing is read that was not looked at."""
    import pyarrow as pa

    # Before it is read into memory whole.
    if size(file) > LARGEST:
        raise BrokenRecord(f"{file} has more than {LARGEST:,} bytes: divide it")
    content = file.read_bytes()
    if not content.startswith(MAGIC):
        raise BrokenRecord(f"{file} is no file of Arrow: copy it again")
    stream = pa.py_buffer(content).slice(len(MAGIC))
    # A first pass over the messages' headers alone; rows are only made of them once all are known to be harmless.
    for message in pa.ipc.MessageReader.open_stream(stream):
        # A few bytes of indices into a dictionary can stand for any number of large values; compressed buffers
        # say their own unpacked size, for which pyarrow makes room at once.
        if message.type != "schema" and (message.type != "record batch" or _is_packed(message.metadata.to_pybytes())):
            raise BrokenRecord(f"{file} is packed, or has dictionaries, which Minari does not write: write it without")
    return pa.ipc.open_stream(stream).read_all()


def _is_packed(message: bytes) -> bool:
    """Whether a message with rows says that they are compressed, in which case pyarrow would believe the sizes in them. pyarrow
    does not tell; it is the fourth field of the message's header, which is the third of the message (Message.fbs of Arrow).

    Raises:
        struct.error: it is damaged.
    """
    header = _table(message, _place(message, _table(message, 0), 2))
    return _place(message, header, 3) != header


def _table(message: bytes, place: int) -> int:
    """Where the table begins that is pointed to."""
    return place + struct.unpack_from("<I", message, place)[0]


def _place(message: bytes, table: int, number: int) -> int:
    """Where a field of a table is; the table itself if it has no such field."""
    # A FlatBuffers table begins with the distance back to its directory (vtable): two sizes of 16 bits, then the
    # place of each field, 0 for one that is absent.
    directory = table - struct.unpack_from("<i", message, table)[0]
    count = struct.unpack_from("<H", message, directory)[0] // 2 - 2
    return table + (struct.unpack_from("<H", message, directory + 4 + 2 * number)[0] if number < count else 0)
