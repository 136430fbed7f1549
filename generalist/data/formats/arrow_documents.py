"""Documents in Arrow files, as `save_to_disk` and the cache of the `datasets` library have them: a stream of batches of rows, or
the same with a table of contents behind it. A batch is read where it lies: of a local file nothing else comes into memory.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from upath import UPath

from generalist.data.files import DocumentError
from generalist.data.formats.index import Arrays, indexed
from generalist.data.formats.places import Place
from generalist.data.formats.table_documents import TableDocuments, checked_schema

if TYPE_CHECKING:
    import pyarrow

MARK = b"ARROW1"
"""A file with a table of contents begins and ends with it; after 8 bytes it is as a stream is."""
END = b"\xff\xff\xff\xff\0\0\0\0"
"""What a stream ends with."""


class ArrowDocuments(TableDocuments):
    """One file, or all of a folder."""

    format = "Arrow"
    ending = ".arrow"

    @classmethod
    def schema(cls, file: Place) -> "pyarrow.Schema":
        with _source(file) as source:
            return _schema(source, file)

    def index(self) -> list[Arrays]:
        return indexed(self._files, scan_arrow, kind="arrow", opening=self.opening)

    def group(self, file: int, group: int, columns: Sequence[str]) -> "pyarrow.RecordBatch":
        import pyarrow

        with _source(self._files[file]) as source:
            schema = _schema(source, self._files[file])
            # Straight to the batch: neither the table of contents nor any other batch is read.
            source.seek(int(self._indices[file]["offset"][group]))
            # All columns are taken apart here, but of a mapped file only the pages of those that are used are
            # ever loaded.
            batch = pyarrow.ipc.read_record_batch(_message(source, "record batch"), schema)
        return batch.select(list(columns))


def scan_arrow(file: Place) -> Arrays:
    """Where each batch of rows begins, and how many it has.

    Raises:
        DocumentError: the file is damaged or cut off.
    """
    import pyarrow

    offsets, rows = [], []
    with _source(file) as source:
        schema = _schema(source, file)
        while True:
            offset = source.tell()
            try:
                message = _message(source, "record batch")
            except EOFError:
                break
            offsets.append(offset)
            # Only the header has the number of rows, which pyarrow gives no other way; of a mapped file without
            # compression no value is touched.
            rows.append(pyarrow.ipc.read_record_batch(message, schema).num_rows)
        # Without this, a file that was cut off between two batches would pass for a shorter, whole one.
        source.seek(max(0, source.tell() - len(END)))
        if source.read(len(END)) != END:
            raise DocumentError(f"{file} has no mark at its end: it was cut off, get it again")
    return {"offset": np.array(offsets, np.int64), "rows": np.array(rows, np.int64)}


def _schema(source: Any, file: Place) -> "pyarrow.Schema":
    """The columns, behind which the source then is."""
    import pyarrow

    source.seek(0)
    # 8 and not 6: the mark is padded, so that messages lie at multiples of 8 bytes.
    source.seek(8 if source.read(len(MARK)) == MARK else 0)
    schema = checked_schema(pyarrow.ipc.read_schema(_message(source, "schema")))
    # Their values are in messages of their own before the rows, so that no batch could be read by itself.
    for field in schema:
        if pyarrow.types.is_dictionary(field.type):
            raise DocumentError(
                f"{file} has a column of categories, {field.name}, which is not read: save it as plain values"
            )
    return schema


def _message(source: Any, kind: str) -> "pyarrow.Message":
    """The next message. One of another kind would be taken for what it is not, which ends the process.

    Raises:
        ValueError: it is of another kind.
        EOFError: there is none.
    """
    import pyarrow

    message = pyarrow.ipc.read_message(source)
    if message.type != kind:
        raise ValueError(f"it has a message of the kind {message.type} in place of a {kind}")
    return message


@contextmanager
def _source(file: Place) -> Iterator[Any]:
    """A file, opened; a local one is mapped into memory.

    Raises:
        DocumentError: what goes wrong with it until it is closed.
    """
    import pyarrow

    try:
        if isinstance(file, UPath):
            with file.open("rb") as raw, pyarrow.PythonFile(raw, mode="r") as source:
                yield source
        else:
            # Neither a copy nor memory of this process: the kernel takes pages back when it needs them.
            with pyarrow.memory_map(str(file)) as source:
                yield source
    except DocumentError:
        raise
    except (pyarrow.ArrowException, OSError, EOFError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise DocumentError(f"{file} can't be read as Arrow ({reason:.300}): get it again") from error
