"""Tables with a row per episode, written and read a few rows at a time: statistics make a row large."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

AT_ONCE = 100
"""Rows of a group, and in memory."""
Row = dict[str, Any]
"""Whole numbers, floats, texts, and lists of them within each other that are not empty."""


class RowWriter:
    """Writes rows, all with the same keys and types, to a Parquet file; none makes no file."""

    def __init__(self, path: Path):
        self.path = path
        self._rows: list[Row] = []
        self._writer: Any = None

    def write(self, row: Row) -> None:
        """Appends a row."""
        self._rows.append(row)
        # An episode's row has hundreds of statistics: all rows of a large set would not fit into memory.
        if len(self._rows) == AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self._rows:
            return
        if self._writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Types by the first row: PyArrow's own guesses take long.
            self._schema = pa.schema([(key, _type(value)) for key, value in self._rows[0].items()])
            self._writer = pq.ParquetWriter(self.path, self._schema, compression="snappy")
        # A row that does not fit the types of the first one is an error of ours, and raises here.
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows.clear()

    @property
    def size(self) -> int:
        """Bytes of the file so far."""
        # Rows that are still in memory are not counted: a file may exceed a limit by one group.
        return self.path.stat().st_size if self._writer is not None else 0

    def close(self) -> None:
        """Ends the file."""
        self._flush()
        if self._writer is not None:
            self._writer.close()


def _type(value: Any) -> Any:
    import pyarrow as pa

    if isinstance(value, list):
        # Lists are not empty (see `Row`), so that the first value tells the type.
        return pa.list_(_type(value[0]))
    return {int: pa.int64(), float: pa.float64(), str: pa.string()}[type(value)]


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of such a file."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=AT_ONCE):
            yield from batch.to_pylist()
