"""Documents in Parquet files, read a group of rows at a time."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from generalist.data.files import DocumentError
from generalist.data.formats.index import Arrays, indexed
from generalist.data.formats.places import Place
from generalist.data.formats.table_documents import TableDocuments, checked_schema

if TYPE_CHECKING:
    import pyarrow

# The `datasets` library writes images in groups of a hundred rows for the same reason; pyarrow's default is a
# million rows.
LARGE_GROUP = 2**26
"""Bytes of a group, uncompressed, from which on reading documents in any order is slow."""
LARGEST_GROUP = 2**31
"""Bytes of a group, uncompressed: its columns are read whole for a single document."""


class ParquetDocuments(TableDocuments):
    """One file, or all of a folder."""

    format = "Parquet"
    ending = ".parquet"

    @classmethod
    def schema(cls, file: Place) -> "pyarrow.Schema":
        return _opened(file, lambda opened: checked_schema(opened.schema_arrow))

    def notes(self) -> list[str]:
        groups = np.concatenate([one["bytes"] for one in self._indices])
        large = f"{self.place}: to read one document, {groups.mean() / 2**20:,.0f} MB are read: write groups of a hundred rows"
        return [*super().notes(), *([large] if groups.mean() > LARGE_GROUP else [])]

    def index(self) -> list[Arrays]:
        return indexed(self._files, scan_parquet, kind="parquet", opening=self.opening)

    def group(self, file: int, group: int, columns: Sequence[str]) -> "pyarrow.Table":
        import pyarrow.parquet

        with (
            self._files[file].open("rb") as raw,
            pyarrow.parquet.ParquetFile(raw, page_checksum_verification=True) as opened,
        ):
            # Of the group as a whole: to ask for a column of damaged metadata ends the process.
            if (count := opened.metadata.row_group(group).total_byte_size) > LARGEST_GROUP:
                raise ValueError(
                    f"its group of rows has {count:,} bytes, which one document alone would cost: write the file with smaller "
                    "groups, of a hundred rows or so"
                )
            # A single thread: loaders already decode in several.
            return opened.read_row_group(group, columns=list(columns), use_threads=False)


def scan_parquet(file: Place) -> Arrays:
    """The number of rows in each group of a file, and its bytes, uncompressed.

    Raises:
        DocumentError: it is damaged.
    """

    def groups(opened: Any) -> np.ndarray:
        found = [opened.metadata.row_group(group) for group in range(opened.metadata.num_row_groups)]
        # (groups, 2) to (2, groups)
        return np.array([(group.num_rows, group.total_byte_size) for group in found], np.int64).reshape(-1, 2).T

    rows, count = _opened(file, groups)
    if (rows < 0).any():
        raise DocumentError(f"{file} has a group with a negative number of rows: get it again")
    return {"rows": rows, "bytes": count}


def _opened(file: Place, take: Any) -> Any:
    """Something of a file's description.

    Raises:
        DocumentError: it can't be read.
    """
    import pyarrow.parquet

    try:
        with file.open("rb") as raw, pyarrow.parquet.ParquetFile(raw, page_checksum_verification=True) as opened:
            return take(opened)
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise DocumentError(f"{file} can't be read as Parquet ({reason:.300}): get it again") from error
