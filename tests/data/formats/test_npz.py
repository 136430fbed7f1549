"""Episodes as .npz files, written by NumPy."""

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from upath import UPath

from generalist.data.formats import index, npz
from generalist.data.formats.columns import decode
from generalist.data.formats.detect import open_episodes
from generalist.data.formats.episodes import Opening
from generalist.data.formats.faults import BrokenRecord
from generalist.data.formats.npz import Npz

# Headers that were damaged look like those of Python 2 at times, which NumPy says.
pytestmark = pytest.mark.filterwarnings("ignore:Reading `.npy`:UserWarning")


def content(number: int = 0, steps: int = 4) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    return {
        "observations/camera": rng.integers(256, size=(steps, 6, 5, 3), dtype=np.uint8),
        "observations/state": rng.normal(size=(steps, 3)).astype(">f4"),
        "actions": np.asfortranarray(rng.normal(size=(steps, 2))),
        "done": np.arange(steps) == steps - 1,
        "command": np.array(["lêft", "right"] * steps)[:steps],
        "instruction": np.array(f"push {number}"),
        "seed": np.int64(number),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three episodes; keys are written in both ways."""
    (tmp_path / "set").mkdir()
    for number, save in enumerate((np.savez, np.savez_compressed, np.savez)):
        joint = "." if number == 2 else "/"
        values = {key.replace("/", joint): value for key, value in content(number, 4 + number).items()}
        save(tmp_path / f"set/{number}.npz", **values)
    (tmp_path / "set/.hidden.npz").write_bytes(b"")
    (tmp_path / "set/notes.txt").write_text("")
    return tmp_path / "set"


def test_read_as_published(folder: Path) -> None:
    episodes = open_episodes(folder, Opening())
    assert isinstance(episodes, Npz) and episodes.lengths.tolist() == [4, 5, 6] and episodes.broken() == {}
    assert {key: (field.kind, field.shape, field.dtype, field.level) for key, field in episodes.fields.items()} == {
        "observations/camera": ("image", (6, 5, 3), "uint8", "step"),
        "observations/state": ("number", (3,), "float32", "step"),
        "actions": ("number", (2,), "float64", "step"),
        "done": ("number", (), "bool", "step"),
        "command": ("text", (), "", "step"),
        "instruction": ("text", (), "", "episode"),
        "seed": ("number", (), "int64", "episode"),
    }
    for number in range(3):
        episode, truth = episodes.read(number, list(episodes.fields)), content(number, 4 + number)
        assert episode.values == {"instruction": f"push {number}", "seed": number} and len(episode) == 4 + number
        for key, column in episode.columns.items():
            np.testing.assert_array_equal(decode(column), truth[key])
        assert episode.columns["observations/state"].dtype == np.dtype("=f4")
        assert episodes.where(number) == str(folder / f"{number}.npz")


def test_a_file_is_a_data_set_of_one(folder: Path) -> None:
    episodes = open_episodes(folder / "1.npz", Opening())
    assert episodes.lengths.tolist() == [5] and episodes.files == [folder / "1.npz"]


def test_images_have_their_channels_last(tmp_path: Path) -> None:
    shapes = {"last": (2, 8, 8, 3), "grey": (2, 8, 8, 1), "first": (2, 3, 8, 8), "flat": (2, 8, 8), "two": (2, 8, 8, 2)}
    np.savez(
        tmp_path / "a.npz",
        **{name: np.zeros(shape, np.uint8) for name, shape in shapes.items()},
        real=np.zeros((2, 8, 8, 3)),
    )
    fields = open_episodes(tmp_path, Opening()).fields
    assert {key for key, field in fields.items() if field.kind == "image"} == {"last", "grey"}


def test_only_what_is_wanted_is_read(folder: Path) -> None:
    """The images are damaged, and nobody asks for them."""
    path = folder / "0.npz"
    episodes = open_episodes(path, Opening())
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo("observations/camera.npy")
    whole = bytearray(path.read_bytes())
    whole[member.header_offset + 400] ^= 1
    path.write_bytes(whole)
    np.testing.assert_array_equal(episodes.read(0, ["actions"]).columns["actions"], content()["actions"])
    with pytest.raises(BrokenRecord, match=r"0.npz can't be read \(Bad CRC-32"):
        episodes.read(0, ["observations/camera"])


class Planted:
    """Runs something when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('it was unpickled')",)


def test_pickled_objects(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", actions=np.zeros((3, 2)), infos=np.array([Planted()] * 3, object))
    episodes = open_episodes(tmp_path, Opening())
    assert list(episodes.fields) == ["actions"] and len(episodes.read(0, ["actions"])) == 3
    assert "infos.npy holds pickled Python objects, which are never read" in episodes.unread["infos"]
    np.savez(tmp_path / "b.npz", actions=np.array([Planted()] * 3, object))
    with pytest.raises(BrokenRecord, match=r"b.npz: actions.npy holds pickled"):
        open_episodes(tmp_path, Opening()).read(1, ["actions"])
    (tmp_path / "a.npz").unlink()
    with pytest.raises(ValueError, match=r"no episode of .* can be read: .*b.npz: actions.npy holds pickled"):
        open_episodes(tmp_path, Opening())


@pytest.mark.parametrize("values", [np.zeros(3, complex), np.zeros(3, "M8[s]"), np.zeros(3, [("a", "f4")])])
def test_types_that_are_not_read(tmp_path: Path, values: np.ndarray) -> None:
    np.savez(tmp_path / "a.npz", actions=np.zeros((3, 2)), other=values)
    episodes = open_episodes(tmp_path, Opening())
    assert "which are not read" in episodes.unread["other"] and list(episodes.fields) == ["actions"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"a": np.zeros(3), "b": np.zeros(4)}, r"arrays of different lengths \(a: 3, b: 4\): give all of them one row"),
        ({"a": np.zeros((0, 2))}, "has no steps: take it out"),
        ({"a": np.float32(1)}, "has no steps: take it out"),
        ({}, "has no steps: take it out"),
        ({"a.b": np.zeros(3), "a/b": np.zeros(3)}, "has 'a/b' twice"),
    ],
)
def test_ragged_and_empty_episodes(tmp_path: Path, read_all: Any, values: dict[str, Any], expected: str) -> None:
    np.savez(tmp_path / "a.npz", **values)
    np.savez(tmp_path / "b.npz", a=np.full(2, np.nan))
    read = read_all(tmp_path)
    assert expected.replace("\\", "") in read[0] and np.isnan(read[1]["a"]).all()
    (tmp_path / "b.npz").unlink()
    with pytest.raises(ValueError, match=rf"no episode of .* can be read: .*a.npz.*{expected}"):
        open_episodes(tmp_path, Opening())


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"actions": np.zeros((4, 3))}, r"'actions' has values of the shape \(3,\), where \(2,\) is expected"),
        ({"actions": np.zeros((4, 2), int)}, "type int64, where float64 is expected"),
        ({"actions": np.array([["a", "b"]] * 4)}, "where float64 is expected"),
        ({"actions": np.float64(1)}, "'actions' has 0 rows, where 4 are expected"),
        ({"observations/camera": np.zeros((4, 6, 5, 3), np.uint16)}, "type uint16, where uint8 is expected"),
        ({"instruction": np.float64(1)}, "'instruction' has values of the type float64, where texts is expected"),
        ({"actions": None}, "has no 'actions', which the first episode has"),
    ],
)
def test_what_differs_from_the_first_episode(folder: Path, other: dict[str, Any], expected: str) -> None:
    values = content() | other
    np.savez(folder / "1.npz", **{key: value for key, value in values.items() if value is not None})
    with pytest.raises(BrokenRecord, match=rf"1.npz.*{expected}"):
        open_episodes(folder, Opening()).read(1, [*other, "done"])


def header(shape: tuple[int, ...], dtype: str = "<f8") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def packed(path: Path, members: dict[str, bytes], **settings: Any) -> Path:
    with zipfile.ZipFile(path, "w", **{"compression": zipfile.ZIP_DEFLATED} | settings) as archive:
        for name, value in members.items():
            archive.writestr(name, value)
    return path


@pytest.mark.parametrize(
    ("member", "expected"),
    [
        (header((10**6, 10**6)), "declares (1000000, 1000000) values"),
        (header((10**9,), "|S0"), "declares (1000000000,) values"),
        (header((3,)) + bytes(30), "a.npy has 158 bytes, where its header says 152"),
        (header((3,)) + bytes(20), "a.npy has 148 bytes, where its header says 152"),
        (header((-3,)), "a.npy has the shape (-3,)"),
        (b"\x93NUMPY\x03\x00" + bytes(20), "has the version (3, 0), which is not read"),
        (b"none", "can't be read"),
    ],
)
def test_headers_that_lie(tmp_path: Path, member: bytes, expected: str) -> None:
    packed(tmp_path / "x.npz", {"a.npy": member})
    with pytest.raises(ValueError) as caught:
        open_episodes(tmp_path / "x.npz", Opening())
    assert expected in str(caught.value) and "x.npz" in str(caught.value)


def test_a_bomb_is_refused_by_what_it_declares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("generalist.data.formats.arrays.LARGEST", 2**20)
    packed(tmp_path / "x.npz", {"a.npy": header((2**18,)) + bytes(2**21)})
    with pytest.raises(ValueError, match=r"x.npz: a.npy declares \(262144,\) values"):
        open_episodes(tmp_path, Opening())


def test_the_sum_of_what_is_wanted_has_a_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    episodes = open_episodes(folder, Opening())
    monkeypatch.setattr(npz, "LARGEST", 300)
    assert len(episodes.read(0, ["actions"])) == 4
    with pytest.raises(BrokenRecord, match=r"0.npz declares more than 300 bytes"):
        episodes.read(0, ["actions", "observations/state"])


def test_a_member_that_is_larger_than_it_says(tmp_path: Path) -> None:
    """The sizes in both directories of the file are made smaller; what is behind them is never unpacked."""
    path = packed(tmp_path / "x.npz", {"a.npy": header((3,)) + bytes(2**20)})
    whole = path.read_bytes().replace(struct.pack("<I", 2**20 + 128), struct.pack("<I", 152))
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"x.npz can't be read \(Bad CRC-32"):
        open_episodes(path, Opening())


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_members_that_numpy_does_not_write(tmp_path: Path, method: int) -> None:
    packed(tmp_path / "x.npz", {"a.npy": header((3,)) + bytes(24)}, compression=method)
    with pytest.raises(ValueError, match=r"x.npz: 'a' is encrypted or packed in an unusual way"):
        open_episodes(tmp_path, Opening())


def test_other_members_are_passed_over(tmp_path: Path) -> None:
    packed(tmp_path / "x.npz", {"a.npy": header((3,)) + bytes(24), "../../notes.txt": b"x", "model.pkl": b"x"})
    assert list(open_episodes(tmp_path, Opening()).fields) == ["a"]


def test_an_index_of_many_files_is_kept_together(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "GROUP", 2)
    opening = Opening(index=tmp_path / "index")
    looked: list[str] = []
    real = npz.scan

    def counted(file: Path) -> Any:
        looked.append(file.name)
        return real(file)

    monkeypatch.setattr(npz, "scan", counted)

    def lengths() -> list[int]:
        return open_episodes(folder, opening).lengths.tolist()

    assert lengths() == [4, 5, 6] and looked == ["0.npz", "1.npz", "2.npz"]
    assert len(list(opening.index.iterdir())) == 2
    assert lengths() == [4, 5, 6] and len(looked) == 3
    np.savez(folder / "2.npz", **content(2, 9))
    assert lengths() == [4, 5, 9] and looked[3:] == ["2.npz"]


def test_a_bucket(folder: Path, read_all: Any) -> None:
    bucket = UPath("memory://npz")
    for path in sorted(folder.glob("*.npz")):
        (bucket / path.name).write_bytes(path.read_bytes())
    for one, other in zip(read_all(bucket), read_all(folder), strict=True):
        assert all(np.array_equal(one[key], other[key]) for key in one)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no data set of episodes that is known"):
        open_episodes(tmp_path, Opening())
    with pytest.raises(FileNotFoundError, match=r"there are no .npz files"):
        Npz(tmp_path, Opening())


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_damaged_files_are_read_the_same_or_refused(folder: Path, read_all: Any, damaged: Any, number: int) -> None:
    """Every member has a checksum, so that nothing else is ever read."""
    path = folder / f"{number}.npz"
    original, refused = path.read_bytes(), 0
    for version in damaged(original, 150):
        path.write_bytes(version)
        found = read_all(folder)[number]
        if isinstance(found, str):
            refused += 1
            continue
        truth = content(number, 4 + number)
        assert set(found) <= set(truth) and all(np.array_equal(found[key], truth[key]) for key in found)
    assert refused > 100
