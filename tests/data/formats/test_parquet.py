"""Rows of Parquet files: the same in any order of reading and any size of batches; what doesn't fit is refused by name."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from generalist.data.formats import parquet
from generalist.data.formats.episodes import Field
from generalist.data.formats.faults import BrokenRecord
from generalist.data.formats.parquet import TABLES, images, numbers, read_rows, texts

ROWS = 40


def number(shape: tuple[int, ...] = (), dtype: str = "float32") -> Field:
    return Field(key="x", kind="number", shape=shape, dtype=dtype)


def column(values: Any, kind: Any = None) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, kind)])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Row groups of 7 rows; a value is its row."""
    rows = np.arange(ROWS)
    table = pa.table(
        {"row": rows, "pair.of": [[row, -row] for row in rows.tolist()], "text": [f"row {row}" for row in rows]}
    )
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=7, write_page_checksum=True)
    return tmp_path / "rows.parquet"


@pytest.mark.parametrize("batch", [1, 3, 4096])
def test_rows_in_any_order(file: Path, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "BATCH", batch)
    TABLES.close()
    rng = np.random.default_rng(0)
    windows = [(0, ROWS), (3, 4), (4, 9), (9, 20), (8, 9), (39, 40), (0, 1), (6, 8)]
    windows += [(start, int(rng.integers(start + 1, ROWS + 1))) for start in rng.integers(0, ROWS, 30).tolist()]
    for start, stop in windows:
        for keys in (["row"], ["pair.of", "row"], ["text"]):
            table = read_rows(file, start, stop, keys)
            assert table.column_names == keys and len(table) == stop - start
            wanted = {
                "row": list(range(start, stop)),
                "pair.of": [[row, -row] for row in range(start, stop)],
                "text": [f"row {row}" for row in range(start, stop)],
            }
            assert table.to_pydict() == {key: wanted[key] for key in keys}
    assert read_rows(file, 5, 5, ["text", "row"]).to_pydict() == {"text": [], "row": []}
    assert read_rows(file, 5, None, ["row"])["row"].to_pylist() == list(range(5, ROWS))


def test_rows_in_order_are_decoded_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "BATCH", 2)
    TABLES.close()
    with TABLES.use(file) as table:
        begun: list[Any] = []
        begin = table.parquet.iter_batches
        table.parquet.iter_batches = lambda **options: (begun.append(options["row_groups"]), begin(**options))[1]
        for start in range(0, ROWS, 5):
            table.read(start, start + 5, ["row"])
        assert begun == [[group] for group in range(6)]
        table.read(20, 21, ["row"])
        assert begun[-1] == [2]


@pytest.mark.parametrize(
    ("start", "stop", "keys", "told"),
    [
        (30, 41, ["row"], "has 40 rows, where 30 to 41 should be"),
        (-1, 3, ["row"], "where -1 to 3 should be"),
        (5, 4, ["row"], "where 5 to 4 should be"),
        (0, 1, ["none"], "has 0 columns 'none', where one should be"),
        (0, 1, ["pair"], "has 0 columns 'pair'"),
    ],
)
def test_rows_that_are_not_there(file: Path, start: int, stop: int, keys: list[str], told: str) -> None:
    with pytest.raises(BrokenRecord, match=f"rows.parquet .*{told}"):
        read_rows(file, start, stop, keys)


def test_two_columns_of_a_name(tmp_path: Path) -> None:
    pq.write_table(pa.table([[1], [2]], ["x", "x"]), tmp_path / "two.parquet")
    with pytest.raises(BrokenRecord, match="has 2 columns 'x', where one should be"):
        read_rows(tmp_path / "two.parquet", 0, 1, ["x"])


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    (tmp_path / "empty.parquet").write_bytes(b"")
    (tmp_path / "foreign.parquet").write_bytes(b"PAR1" + bytes(100))
    for name in ("empty.parquet", "foreign.parquet", "missing.parquet", ""):
        with pytest.raises(BrokenRecord, match=f"{tmp_path / name} can't be read"):
            read_rows(tmp_path / name, 0, 1, ["x"])


def test_too_many_bytes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "LARGEST", 100)
    with pytest.raises(BrokenRecord, match=r"rows.parquet can't be read \(row group 0 has \d+ bytes, where 100 may be"):
        read_rows(file, 0, 1, ["row", "text"])
    monkeypatch.setattr(parquet, "LARGEST", 250)
    with pytest.raises(BrokenRecord, match="rows 0 to 40 have more than 250 bytes"):
        read_rows(file, 0, 40, ["row"])


def test_a_bomb_takes_no_memory(tmp_path: Path) -> None:
    """A small file that decompresses to 320 MB in one row group, of which 40 rows are wanted."""
    content = pa.table({"x": np.zeros(40_000_000)})
    pq.write_table(content, tmp_path / "bomb.parquet", compression="zstd", use_dictionary=False, row_group_size=2**26)
    assert (tmp_path / "bomb.parquet").stat().st_size < 300_000
    del content
    peak = pa.default_memory_pool().max_memory()
    assert read_rows(tmp_path / "bomb.parquet", 30_000_000, 30_000_040, ["x"])["x"].to_pylist() == [0.0] * 40
    assert pa.default_memory_pool().max_memory() - peak < 20_000_000


def test_numbers_of_every_type_and_shape() -> None:
    for dtype in ("float16", "float32", "float64", "int8", "int64", "uint8", "uint64", "bool"):
        for shape in ((), (1,), (3,), (2, 3), (2, 1, 3)):
            wanted = np.arange(4 * int(np.prod(shape))).reshape(4, *shape).astype(dtype)
            leaf = pa.from_numpy_dtype(np.dtype(dtype))
            kinds = [leaf, leaf, leaf]
            for size in reversed(shape):
                kinds = [pa.list_(kinds[0]), pa.list_(kinds[1], size), pa.large_list(kinds[2])]
            for kind in kinds:
                values = pa.array([value if not shape else value.tolist() for value in wanted], kind)
                for chunked in (pa.chunked_array([values]), pa.chunked_array([values[:1], values[1:]])):
                    found = numbers(chunked, number(shape, dtype))
                    np.testing.assert_array_equal(found, wanted)
                    assert found.dtype == dtype and found.shape == (4, *shape)
                sliced = numbers(pa.chunked_array([values]).slice(1, 2), number(shape, dtype))
                np.testing.assert_array_equal(sliced, wanted[1:3])


def test_a_number_without_a_list_keeps_its_shape() -> None:
    assert numbers(column([1.0, 2.0], pa.float32()), number((1,))).tolist() == [[1], [2]]


def test_numbers_are_cast_where_nothing_is_lost() -> None:
    assert numbers(column([1.5, np.nan, np.inf], pa.float64()), number()).dtype == np.float32
    assert numbers(column([3, 4], pa.int64()), number(dtype="float32")).tolist() == [3, 4]
    assert numbers(column([3, 4], pa.int64()), number(dtype="uint8")).dtype == np.uint8
    assert len(numbers(column([], pa.list_(pa.float32())), number((3,)))) == 0


@pytest.mark.parametrize(
    ("values", "field", "told"),
    [
        (column([1.0, None], pa.float32()), number(), "has no value at position 1"),
        (column([[1.0], None], pa.list_(pa.float32())), number((1,)), "has no value at position 1"),
        (column([[1.0], [None]], pa.list_(pa.float32(), 1)), number((1,)), "has no value at position 1"),
        (column([[1.0], [1.0, 2.0]]), number((1,)), "lists of other lengths than 1, the first at position 1"),
        (column([[1.0, 2.0], []]), number((2,)), "lists of other lengths than 2, the first at position 1"),
        (column([[[1.0]], [[1.0]]]), number((1,)), "stored as list"),
        (column([1.0]), number((2,)), "where a list of 2 should be"),
        (column(["1"]), number(), "stored as string, where float32 should be"),
        (column([1.5], pa.float32()), number(dtype="int64"), "stored as float, where int64 should be"),
        (column([2], pa.int64()), number(dtype="bool"), "where bool should be"),
        (column([True]), number(dtype="int64"), "stored as bool"),
        (column([300], pa.int64()), number(dtype="uint8"), "numbers that are no uint8"),
        (column([-1], pa.int64()), number(dtype="uint64"), "numbers that are no uint64"),
        (column([2**24 + 1], pa.int64()), number(), "numbers that are no float32"),
        (column([1e300, np.inf], pa.float64()), number(), "numbers too large for float32"),
        (column([{"a": 1}]), number(), "stored as struct"),
        (column([b"1"]), number(), "stored as binary"),
        (column([None, None]), number(), "has no value at position 0"),
    ],
)
def test_numbers_that_do_not_fit(values: pa.ChunkedArray, field: Field, told: str) -> None:
    with pytest.raises(BrokenRecord, match=f"the field 'x' .*{told}"):
        numbers(values, field)


def test_texts() -> None:
    for kind in (pa.string(), pa.large_string(), pa.string_view()):
        assert texts(column(["ä", ""], kind), number()).tolist() == ["ä", ""]
    assert texts(column([], pa.string()), number()).shape == (0,)
    with pytest.raises(BrokenRecord, match="'x' has no value at position 1"):
        texts(column(["a", None]), number())
    with pytest.raises(BrokenRecord, match="'x' is stored as int64, where texts should be"):
        texts(column([1]), number())
    with pytest.raises(BrokenRecord, match="'x' is no UTF-8 text"):
        texts(pa.chunked_array([pa.array([b"\xff"]).view(pa.string())]), number())


def test_types_that_a_library_has_named() -> None:
    """`datasets` stores matrices with a type of its own, which is unpacked whether or not somebody has registered it."""

    class Matrix(pa.ExtensionType):
        def __init__(self) -> None:
            super().__init__(pa.list_(pa.list_(pa.float32())), "test.matrix")

        def __arrow_ext_serialize__(self) -> bytes:
            return b""

        @classmethod
        def __arrow_ext_deserialize__(cls, storage_type: Any, serialized: bytes) -> "Matrix":
            return cls()

    storage = pa.array([[[1.0, 2.0]]], pa.list_(pa.list_(pa.float32())))
    values = pa.ExtensionArray.from_storage(Matrix(), storage)
    assert numbers(pa.chunked_array([values]), number((1, 2))).tolist() == [[[1, 2]]]


def test_images_and_their_files(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(b"one")
    stored = column([{"bytes": b"zero", "path": "0.png"}, {"bytes": None, "path": "images/1.png"}])
    assert images(stored, number(), tmp_path, "episode 3") == [b"zero", b"one"]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"bytes": None, "path": "../secret.png"}, "outside"),
        ({"bytes": None, "path": "/etc/passwd"}, "outside"),
        ({"bytes": None, "path": "http://localhost/1.png"}, "outside"),
        ({"bytes": None, "path": "none.png"}, "episode 3, image 0 of 'x' can't be read"),
        ({"bytes": None, "path": "images"}, "episode 3, image 0 of 'x' can't be read"),
        ({"bytes": None, "path": "large.png"}, "large.png has more than 10 bytes"),
        ({"bytes": None, "path": None}, "has no image at position 0"),
        ({"bytes": b"", "path": None}, "has no image at position 0"),
        ({"bytes": "text", "path": None}, "has no image at position 0"),
        ({"content": b"a"}, "stored as struct"),
        (b"a", "stored as binary, where a struct of bytes and path should be"),
        (None, "stored as null"),
    ],
)
def test_images_that_are_not_there(value: Any, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "LARGEST_IMAGE_FILE", 10)
    folder = tmp_path / "set"
    (folder / "images").mkdir(parents=True)
    (folder / "large.png").write_bytes(bytes(11))
    (tmp_path / "secret.png").write_bytes(b"secret")
    with pytest.raises(BrokenRecord, match=told):
        images(column([value]), number(), folder, "episode 3")


def test_damaged_files(file: Path, tmp_path: Path) -> None:
    """Whatever bytes of the values are changed, they are the same or refused; of the whole file, they have the right shape."""
    whole, rng, refused = file.read_bytes(), np.random.default_rng(0), 0
    keys = ["row", "pair.of", "text"]
    wanted = pq.read_table(io.BytesIO(whole))
    footer = len(whole) - int.from_bytes(whole[-8:-4], "little") - 8
    for trial in range(300):
        content, damaged = bytearray(whole), tmp_path / f"{trial}.parquet"
        end = footer if trial % 2 else len(whole)
        for position in rng.integers(0, end, rng.integers(1, 4)):
            content[position] ^= 1 << rng.integers(8)
        damaged.write_bytes(content if trial % 3 else content[: rng.integers(len(content))])
        try:
            table = read_rows(damaged, 0, ROWS, keys)
            rows = numbers(table["row"], number(dtype="int64"))
            pairs = numbers(table["pair.of"], number((2,), "int64"))
            named = texts(table["text"], number())
        except BrokenRecord as error:
            refused += 1
            assert "parquet" in str(error) or "the field" in str(error)
            continue
        assert rows.shape == (ROWS,) and pairs.shape == (ROWS, 2) and named.shape == (ROWS,)
        if end == footer:
            assert table.equals(wanted)
    assert refused > 200
