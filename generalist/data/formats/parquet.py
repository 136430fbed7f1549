"""Rows of Parquet files, as columns of steps: only the row groups and columns that are wanted are read, batch by batch, so that
memory does not grow with the file.

Dimension key: R rows, T of them that are wanted.
"""

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
from jaxtyping import Shaped

from generalist.data.formats.episodes import Field
from generalist.data.formats.faults import BrokenRecord
from generalist.data.formats.handles import Handles
from generalist.data.formats.places import Place, inside, size

OPEN = 8
"""Files that a process keeps open, each with its table of row groups."""
BATCH = 4096
"""Rows that are decoded at a time, at most."""
BATCH_BYTES = 2**22
"""The same in bytes, unless a single row has more."""
BUFFER = 2**20
"""Bytes of a column that are read at a time."""
LARGEST = 2**32
"""Bytes of the wanted columns in a row group, and of the wanted rows, uncompressed: more is a mistake, or meant to exhaust the
memory."""
LARGEST_IMAGE_FILE = 2**28
"""Bytes."""


class OpenTable:
    """A Parquet file that is open, with its table of row groups.

    Raises:
        BrokenRecord: it is none.
        OSError: it can't be opened.
    """

    def __init__(self, file: Place):
        import pyarrow.parquet as pq

        self.file = file
        self._file = file.open("rb")
        try:
            with readable(file):
                # Page checksums are off by default in pyarrow; where a file has them, a flipped bit is found
                # before it becomes a number.
                self.parquet = pq.ParquetFile(self._file, buffer_size=BUFFER, page_checksum_verification=True)
                self.metadata, self.schema = self.parquet.metadata, self.parquet.schema_arrow
                # The footer is what the file says of itself; negative counts would make positions of rows go
                # backwards.
                counts = [self.metadata.row_group(group).num_rows for group in range(self.metadata.num_row_groups)]
                if min(counts, default=0) < 0:
                    raise ValueError("a row group has a negative number of rows")
                self.first = np.cumsum([0, *counts])
                """Row that each row group begins with; the last is the number of rows."""
        except BaseException:
            self._file.close()
            raise
        # Where reading stands: the row group and columns, the first row of the last batch, that batch, and those
        # to come.
        self._at: tuple[int, tuple[str, ...]] | None = None
        self._row, self._last = 0, None
        self._batches: Iterator[Any] = iter(())

    @property
    def rows(self) -> int:
        """R."""
        return int(self.first[-1])

    @property
    def names(self) -> list[str]:
        """Of the columns."""
        return self.schema.names

    def is_first(self, row: int) -> bool:
        """Whether a row group begins with a row, or would begin behind the last one."""
        return row in self.first

    def read(self, start: int, stop: int, keys: Collection[str]) -> Any:
        """Some columns of the rows from `start` to `stop`, a pyarrow.Table.

        Raises:
            BrokenRecord: they can't be read, are more than there are, or too large.
        """
        import pyarrow as pa

        if not 0 <= start <= stop <= self.rows:
            raise BrokenRecord(f"{self.file} has {self.rows} rows, where {start} to {stop} should be: copy it again")
        for key in keys:
            # Parquet allows a name twice, and nothing says which one is meant.
            if self.names.count(key) != 1:
                raise BrokenRecord(f"{self.file} has {self.names.count(key)} columns {key!r}, where one should be")
        with readable(self.file):
            found, nbytes, row = [], 0, start
            while row < stop:
                first, batch = self._batch(row, tuple(keys))
                # No copy: a slice refers to the batch.
                found.append(batch.slice(row - first, min(stop, first + len(batch)) - row))
                row += len(found[-1])
                nbytes += found[-1].nbytes
                # Counted as it is decoded, for the footer's sizes may be wrong; dictionaries make a small page
                # large.
                if nbytes > LARGEST:
                    raise ValueError(f"rows {start} to {stop} have more than {LARGEST:,} bytes")
            return pa.Table.from_batches(found) if found else self.schema.empty_table().select(list(keys))

    def _batch(self, row: int, keys: tuple[str, ...]) -> tuple[int, Any]:
        """The batch with a row, and the row that it begins with. A row group can only be decoded from its beginning: reading goes
        on where it was, so that rows in order are decoded once."""
        group = int(np.searchsorted(self.first, row, side="right")) - 1
        # Begun anew for another row group, other columns, or a row that was passed already.
        if self._at != (group, keys) or row < self._row:
            self._at, self._row, self._last = (group, keys), int(self.first[group]), None
            self._batches = self.parquet.iter_batches(
                batch_size=self._batch_rows(group, keys), row_groups=[group], columns=list(keys), use_threads=False
            )
        while self._last is None or row >= self._row + len(self._last):
            self._row += 0 if self._last is None else len(self._last)
            self._last = next(self._batches, None)
            if self._last is None:
                raise ValueError(f"row group {group} ends at row {self._row}")
            # pyarrow gives columns in the file's order, which is not that of the keys.
            self._last = self._last.select(list(keys))
        return self._row, self._last

    def _batch_rows(self, group: int, keys: tuple[str, ...]) -> int:
        """How many rows of a row group are decoded at a time."""
        described, total = self.metadata.row_group(group), 0
        for number in range(described.num_columns):
            column = described.column(number)
            # Nested columns are stored by their leaves: `image.bytes` belongs to `image`.
            if any(f"{column.path_in_schema}.".startswith(f"{key}.") for key in keys):
                total += column.total_uncompressed_size
        if not 0 <= total <= LARGEST:
            raise ValueError(f"row group {group} has {total:,} bytes, where {LARGEST:,} may be")
        rows = int(self.first[group + 1] - self.first[group])
        # At least a row, however large; images make rows of megabytes, numbers of some bytes.
        return max(1, min(BATCH, BATCH_BYTES * rows // max(1, total)))

    def close(self) -> None:
        """Closes the file."""
        self.parquet.close(force=True)
        self._file.close()


TABLES: Handles[OpenTable] = Handles(OpenTable, OPEN)
"""Of this process."""


@contextlib.contextmanager
def readable(file: Place) -> Iterator[None]:
    """Turns what pyarrow raises into an error that names the file."""
    import pyarrow as pa

    try:
        yield
    except BrokenRecord:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, IndexError, OverflowError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise BrokenRecord(f"{file} can't be read ({reason:.300}): copy it again") from error


def read_rows(file: Place, start: int, stop: int | None, keys: Collection[str]) -> Any:
    """Some columns of the rows from `start` to `stop`, or to the end, a pyarrow.Table.

    Raises:
        BrokenRecord: they can't be read.
    """
    with readable(file), TABLES.use(file) as table:
        return table.read(start, table.rows if stop is None else stop, keys)


def numbers(column: Any, field: Field) -> Shaped[np.ndarray, "T ..."]:
    """A column as numbers (T, ...) of a field's shape and type; a value with the shape (1,) may be stored without a list.

    Args:
        column: pyarrow.ChunkedArray, T values.

    Raises:
        BrokenRecord: a value is missing, or they have another shape, or don't fit the type.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    values, count = _storage(column), len(column)
    # LeRobot stores vectors of one number plain.
    shape = field.shape if field.shape != (1,) or _is_list(values.type) else ()
    for width in shape:
        if not _is_list(values.type):
            raise BrokenRecord(f"the field {field.key!r} is stored as {column.type}, where a list of {width} should be")
        _check_present(values, field)
        # Every list, since two wrong lengths that add up would shift all numbers between them.
        wrong = np.flatnonzero(pc.list_value_length(values).to_numpy() != width)
        if len(wrong):
            raise BrokenRecord(
                f"the field {field.key!r} has lists of other lengths than {width}, the first at position {wrong[0]}"
            )
        # (T, width, ...) to (T * width, ...), a dimension per turn
        values = _storage(values.flatten())
    _check_present(values, field)
    wanted, kind = pa.from_numpy_dtype(np.dtype(field.dtype)), _kind(values.type)
    # Whole numbers may stand for floats, but floats not for whole numbers nor numbers for truth values.
    if kind is None or (kind == "b") != (_kind(wanted) == "b") or (kind == "f" and _kind(wanted) != "f"):
        raise BrokenRecord(f"the field {field.key!r} is stored as {column.type}, where {field.dtype} should be")
    try:
        cast = values.cast(wanted)
    except pa.ArrowException as error:
        raise BrokenRecord(f"the field {field.key!r} has numbers that are no {field.dtype}: {error}") from error
    # Arrow's cast checks whole numbers; a float64 too large for float32 becomes infinite without a word.
    if values.type != wanted and _kind(wanted) == "f" and pc.sum(pc.is_inf(cast)) != pc.sum(pc.is_inf(values)):
        raise BrokenRecord(f"the field {field.key!r} has numbers too large for {field.dtype}")
    # A copy, which does not keep the whole batch in memory.
    return np.array(cast.to_numpy(zero_copy_only=False)).reshape(count, *field.shape)


def texts(column: Any, field: Field) -> Shaped[np.ndarray, "T"]:
    """A column as T texts, an array of objects.

    Raises:
        BrokenRecord: one is missing, or is no UTF-8, or they are no texts.
    """
    import pyarrow as pa

    values = _storage(column)
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    if not any(is_kind(values.type) for is_kind in kinds):
        raise BrokenRecord(f"the field {field.key!r} is stored as {column.type}, where texts should be")
    _check_present(values, field)
    try:
        found = values.to_pylist()
    except UnicodeDecodeError as error:
        raise BrokenRecord(f"the field {field.key!r} is no UTF-8 text ({error})") from error
    return np.array(found, object)


def images(column: Any, field: Field, folder: Place, told_by: object) -> list[bytes]:
    """A column as T encoded images, of structs {bytes, path}: where there are no bytes, the file within the folder is read.

    Raises:
        BrokenRecord: they are no such structs, or an image is missing, too large, or outside the folder.
    """
    import pyarrow as pa

    values = _storage(column)
    # As the `datasets` library stores its Image feature, and LeRobot images that are in no video.
    names = (
        [values.type.field(number).name for number in range(values.type.num_fields)]
        if pa.types.is_struct(values.type)
        else []
    )
    if names.count("bytes") != 1 or names.count("path") > 1:
        raise BrokenRecord(
            f"the field {field.key!r} is stored as {column.type}, where a struct of bytes and path should be"
        )
    _check_present(values, field)
    found = []
    for row, value in enumerate(values.to_pylist()):
        content, path = value["bytes"], value.get("path")
        # Bytes come first: the path is often only the name that the image once had.
        if content is None and isinstance(path, str):
            content = _image_file(folder, path, f"{told_by}, image {row} of {field.key!r}")
        if not isinstance(content, bytes) or not content:
            raise BrokenRecord(f"the field {field.key!r} has no image at position {row}")
        found.append(content)
    return found


def _image_file(folder: Place, path: str, told_by: str) -> bytes:
    try:
        file = inside(folder, path, told_by)
        # Before it is read; what is in it is checked when it is decoded.
        if size(file) > LARGEST_IMAGE_FILE:
            raise BrokenRecord(f"{file} has more than {LARGEST_IMAGE_FILE:,} bytes: make it smaller")
        return file.read_bytes()
    except (OSError, ValueError) as error:
        raise BrokenRecord(f"{told_by} can't be read ({error}): copy it again") from error


def _storage(column: Any) -> Any:
    """One array of all chunks, without the name that a library has given to its type (as `datasets` does to matrices)."""
    import pyarrow as pa

    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def _check_present(values: Any, field: Field) -> None:
    if values.null_count:
        # The first one helps to find what went wrong while writing.
        row = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
        raise BrokenRecord(f"the field {field.key!r} has no value at position {row}")


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _kind(kind: Any) -> str | None:
    """The letter that NumPy has for types such as this one; None if they are no numbers."""
    import pyarrow as pa

    kinds = {"i": pa.types.is_integer, "f": pa.types.is_floating, "b": pa.types.is_boolean}
    return next((letter for letter, is_one in kinds.items() if is_one(kind)), None)
