"""Minari's data sets: small ones that Minari wrote, and others in its layout."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from generalist.data.formats.columns import decode
from generalist.data.formats.detect import open_episodes
from generalist.data.formats.episodes import EpisodeSet, Opening
from generalist.data.formats.faults import BrokenRecord
from generalist.data.formats.minari import Minari
from generalist.data.formats.minari_arrow import MinariArrow

FIXTURES = Path(__file__).parent.parent.parent / "fixtures/formats/minari"
TRUTH = dict(np.load(FIXTURES / "truth.npz"))
LENGTHS = (3, 5)
STEPS = {
    "observations/image": ("image", (32, 40, 1), "uint8"),
    "observations/mission": ("text", (), ""),
    "observations/state/0": ("number", (2, 2), "float32"),
    "observations/state/1": ("number", (), "int64"),
    "actions/0": ("number", (), "int64"),
    "actions/1": ("number", (2,), "float32"),
    "rewards": ("number", (), "float64"),
    "terminations": ("number", (), "bool"),
    "truncations": ("number", (), "bool"),
    "infos/speed": ("number", (), "float64"),
    "infos/pose/xy": ("number", (2,), "float64"),
}


@pytest.fixture(params=["hdf5", "arrow"])
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy of a data set in each layout."""
    shutil.copytree(FIXTURES / request.param, tmp_path / request.param)
    return tmp_path / request.param


def main_file(folder: Path) -> Path:
    """What holds the second episode."""
    return folder / ("data/main_data.hdf5" if folder.name == "hdf5" else "data/1/part-0.arrow")


def said(path: Path, **other: Any) -> None:
    """Changes a file of JSON; None takes a key out."""
    values = json.loads(path.read_text()) | other
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def test_read_as_published(folder: Path) -> None:
    episodes = open_episodes(folder, Opening())
    assert isinstance(episodes, Minari if folder.name == "hdf5" else MinariArrow)
    assert tuple(episodes.lengths) == LENGTHS and episodes.broken() == {} and episodes.unread == {}
    found = {key: (one.kind, one.shape, one.dtype) for key, one in episodes.fields.items() if one.level == "step"}
    assert found == STEPS
    assert {file.relative_to(folder / "data") for file in episodes.files} >= {Path("metadata.json")}
    for index, steps in enumerate(LENGTHS):
        episode = episodes.read(index, list(episodes.fields))
        columns = {key: decode(column) for key, column in episode.columns.items()}
        for name in ("state/0", "state/1", "actions/0", "actions/1", "rewards", "speed", "xy"):
            key = (
                {"s": "observations/"}.get(name[0], "")
                if name.startswith("state")
                else {"speed": "infos/", "xy": "infos/pose/"}.get(name, "")
            )
            np.testing.assert_array_equal(columns[key + name], TRUTH[f"{index}/{name}"][:steps], strict=True)
        images = TRUTH[f"{index}/image"][:steps, :, :, None].astype(float)
        assert np.abs(columns["observations/image"].astype(float) - images).mean() < 5, "JPEG is lossy"
        mission = f"push block {index} to the wäll"
        assert columns["observations/mission"].tolist() == [mission] * steps
        assert columns["terminations"].tolist() == [False] * (steps - 1) + [True]
        values = {
            "id": index,
            "total_steps": steps,
            "seed": 7 + index,
            "options/level/depth": index,
            "instruction": mission,
        }
        assert episode.values == values


def test_both_layouts_hold_the_same(read_all: Any) -> None:
    for one, other in zip(read_all(FIXTURES / "hdf5"), read_all(FIXTURES / "arrow/data"), strict=True):
        assert one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def test_parquet(tmp_path: Path, read_all: Any) -> None:
    shutil.copytree(FIXTURES / "arrow", tmp_path / "set")
    for path in (tmp_path / "set/data").glob("*/part-0.arrow"):
        pq.write_table(pa.ipc.open_file(path.read_bytes()).read_all(), path.with_suffix(".parquet"))
        path.unlink()
    said(tmp_path / "set/data/metadata.json", data_format="parquet")
    for one, other in zip(read_all(tmp_path / "set"), read_all(FIXTURES / "arrow"), strict=True):
        assert all(np.array_equal(one[key], other[key]) for key in other)


def test_frames_are_read_by_the_window(folder: Path) -> None:
    frames = open_episodes(folder, Opening()).read(1, ["observations/image"]).columns["observations/image"]
    whole = decode(frames)
    assert whole.shape == (5, 32, 40, 1) and (frames.nbytes == 0) == (folder.name == "hdf5")
    np.testing.assert_array_equal(decode(frames[1:4][1:]), whole[2:4])


def test_episodes_that_are_lost(folder: Path) -> None:
    if folder.name == "hdf5":
        with h5py.File(main_file(folder), "a") as file:
            file.move("episode_0", "episode_2")
    else:
        (folder / "data/0").rename(folder / "data/2")
    said(folder / "data/metadata.json", total_episodes=3)
    episodes = open_episodes(folder, Opening())
    assert tuple(episodes.lengths) == (5, 3), "in the order of their numbers"
    assert list(episodes.broken()) == [2] and "has no episode 0, of 3 that metadata.json counts" in episodes.broken()[2]
    said(folder / "data/metadata.json", total_episodes=10**15)
    with pytest.raises(ValueError, match=r"says that there are 1,000,000,000,000,000 episodes, of which 2 are there"):
        open_episodes(folder, Opening())


SPACE = json.loads(json.loads((FIXTURES / "hdf5/data/metadata.json").read_text())["action_space"])


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"total_episodes": "many"}, "has no number of episodes"),
        ({"total_episodes": None}, "has no number of episodes"),
        ({"action_space": "{"}, "metadata.json: action_space is damaged"),
        ({"action_space": "[]"}, "metadata.json: action_space must hold an object"),
        (
            {"action_space": '{"type": "MultiDiscrete", "nvec": ' + "[" * 900 + "]" * 900 + "}"},
            "action_space|'actions'",
        ),
        ({"action_space": '{"type": "Graph"}'}, "the space of 'actions' is 'Graph' of the shape None"),
        ({"action_space": '{"type": "Box", "shape": [-1]}'}, r"'Box' of the shape \[-1\]"),
        ({"action_space": '{"type": "Dict", "subspaces": {"a": 3}}'}, "the space of 'actions/a' is None"),
        (
            {"action_space": json.dumps(SPACE | {"subspaces": SPACE["subspaces"][::-1]})},
            r"'actions/0' .* space in metadata.json says .*\(2,\)",
        ),
    ],
)
def test_what_is_said_of_it_is_wrong(folder: Path, other: dict[str, Any], expected: str) -> None:
    said(folder / "data/metadata.json", **other)
    with pytest.raises(ValueError, match=expected) as caught:
        open_episodes(folder, Opening())
    assert "metadata.json" in str(caught.value)


def edit(change: Callable[[h5py.Group], None]) -> Callable[[Path], None]:
    """Changes the second episode of the HDF5 layout."""

    def changed(path: Path) -> None:
        with h5py.File(path, "a") as file:
            change(file["episode_1"])

    return changed


@pytest.mark.parametrize(
    ("key", "values", "expected"),
    [
        ("actions/_index_1", np.zeros((6, 2), np.float32), "'actions/1' has 6 rows, where 5 are expected"),
        (
            "observations/state/_index_0",
            np.zeros((7, 2, 2)),
            "'observations/state/0' has 7 rows, where 5 or 6 are expected",
        ),
        (
            "observations/state/_index_0",
            np.zeros((6, 2)),
            r"has values of the shape \(2,\), where \(2, 2\) is expected",
        ),
        ("observations/state/_index_1", np.zeros(6), "has values of the type float64, where int64 is expected"),
        ("observations/mission", np.zeros(6), "has values of the type float64, where texts is expected"),
        ("observations/image", np.zeros((6, 32, 41), np.uint8), r"has values of the shape \(32, 41, 1\)"),
        (
            "observations/image",
            np.zeros((6, 500), np.uint8),
            "'observations/image', frame 0 can't be read",
        ),
        ("rewards", np.zeros(0), " has no steps: take it out"),
        ("rewards", None, " has no 'rewards'"),
    ],
)
def test_what_differs_in_hdf5(tmp_path: Path, read_all: Any, key: str, values: Any, expected: str) -> None:
    shutil.copytree(FIXTURES / "hdf5", tmp_path / "hdf5")

    def change(episode: h5py.Group) -> None:
        del episode[key]
        if values is not None:
            episode[key] = values

    edit(change)(main_file(tmp_path / "hdf5"))
    read = read_all(tmp_path / "hdf5")
    assert isinstance(read[0], dict)
    with pytest.raises(BrokenRecord, match=rf"main_data.hdf5, episode_1.*{expected}"):
        raise BrokenRecord(read[1])


def crafted(folder: Path, space: dict[str, Any], images: np.ndarray, **other: Any) -> EpisodeSet:
    """A data set in the HDF5 layout whose observations are images."""
    folder.mkdir()
    metadata = {"total_episodes": 1, "data_format": "hdf5", "observation_space": json.dumps(space)} | other
    (folder / "metadata.json").write_text(
        json.dumps({key: value for key, value in metadata.items() if value is not None})
    )
    with h5py.File(folder / "main_data.hdf5", "w") as file:
        episode = file.create_group("episode_0")
        episode["observations"], episode["actions"] = images, np.zeros((len(images) - 1, 2))
        episode["rewards"] = np.zeros(len(images) - 1)
        episode["infos/goal"] = np.arange(9)
        episode["infos/late"] = np.arange(len(images) - 1)
    return open_episodes(folder, Opening())


@pytest.mark.parametrize(
    ("shape", "kind", "read"),
    [
        ((32, 40, 3), "image", (32, 40, 3)),
        ((32, 40), "image", (32, 40, 1)),
        ((7, 7, 3), "number", (7, 7, 3)),  # MiniGrid's codes
        ((3, 40, 40), "number", (3, 40, 40)),
    ],
)
def test_images_that_are_not_encoded(tmp_path: Path, shape: tuple[int, ...], kind: str, read: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(256, size=(4, *shape), dtype=np.uint8)
    episodes = crafted(tmp_path / "a", {"type": "Box", "dtype": "uint8", "shape": shape}, images)
    field = episodes.fields["observations"]
    assert (field.kind, field.shape) == (kind, read)
    column = episodes.read(0, ["observations"]).columns["observations"]
    np.testing.assert_array_equal(decode(column), images[:3].reshape(3, *read))
    assert episodes.fields["infos/goal"].level == "episode" and episodes.fields["infos/late"].level == "step"


def test_images_in_colour_of_one_length(tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.fromarray(np.full((32, 40, 3), (200, 100, 0), np.uint8)).save(content, "JPEG")
    encoded = np.stack([np.frombuffer(content.getvalue(), np.uint8)] * 4)
    space = {"type": "Box", "dtype": "uint8", "shape": [32, 40, 3]}
    images = decode(crafted(tmp_path / "a", space, encoded).read(0, ["observations"]).columns["observations"])
    assert images.shape == (3, 32, 40, 3) and np.abs(images.mean((0, 1, 2)) - (200, 100, 0)).max() < 3
    with pytest.raises(
        ValueError, match=r"image and the shape \(32, 40, 3\), where its space .* says image and \(33, 40, 3\)"
    ):
        crafted(tmp_path / "b", space | {"shape": [33, 40, 3]}, encoded)


def test_without_spaces(tmp_path: Path) -> None:
    """Older data sets name an environment alone, which is not made."""
    episodes = crafted(tmp_path / "a", {}, np.zeros((4, 32, 40, 3), np.uint8), observation_space=None, env_spec="{}")
    assert episodes.fields["observations"].kind == "image" and len(episodes.read(0, ["observations"])) == 3


def test_links_are_not_followed(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "hdf5", tmp_path / "hdf5")

    def change(episode: h5py.Group) -> None:
        del episode["actions"]
        episode["actions"] = h5py.ExternalLink(str(FIXTURES / "hdf5/data/main_data.hdf5"), "episode_1/actions")

    edit(change)(main_file(tmp_path / "hdf5"))
    with pytest.raises(BrokenRecord, match=r"episode_1: 'actions' is a link to another place, which is not followed"):
        open_episodes(tmp_path / "hdf5", Opening()).read(1, ["actions/0"])


@pytest.fixture
def arrow(tmp_path: Path) -> Path:
    shutil.copytree(FIXTURES / "arrow", tmp_path / "arrow")
    return tmp_path / "arrow"


def rewritten(folder: Path, change: Callable[[pa.Table], pa.Table], **options: Any) -> None:
    """Changes the second episode of the Arrow layout."""
    path = main_file(folder)
    table = change(pa.ipc.open_file(path.read_bytes()).read_all())
    with (
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as file,
    ):
        file.write_table(table)


def test_arrow_that_is_packed(arrow: Path, read_all: Any) -> None:
    """pyarrow would believe the sizes that are in it."""
    rewritten(arrow, lambda table: table)
    assert isinstance(read_all(arrow)[1], dict)
    rewritten(arrow, lambda table: table, compression="zstd")
    assert "part-0.arrow is packed, or has dictionaries" in read_all(arrow)[1]
    texts = pa.array(["a"] * 6).dictionary_encode()
    rewritten(arrow, lambda table: table.append_column("more", texts))
    assert "part-0.arrow is packed, or has dictionaries" in read_all(arrow)[1]


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("rewards", pa.array([1.0, None, 1, 1, 1, 1]), "'rewards' has gaps"),
        ("rewards", pa.array([[1.0, 2.0]] * 6, pa.list_(pa.float64(), 2)), r"'rewards' has values of the shape \(2,\)"),
        ("rewards", pa.array(["a"] * 6), "'rewards' has values of the type object, where float64 is expected"),
        ("rewards", pa.array([[1.0]] * 6), "'rewards' holds values of the type list<item: double>, which are not read"),
        ("rewards", None, "has no 'rewards', which the first episode has"),
        ("actions", pa.array([1] * 6), "has no 'actions/0'"),
        ("infos", pa.array([{"speed": 1.0}, None] * 3), ": 'infos' has gaps"),
    ],
)
def test_what_differs_in_arrow(arrow: Path, read_all: Any, name: str, values: Any, expected: str) -> None:
    def change(table: pa.Table) -> pa.Table:
        at = table.column_names.index(name)
        return table.remove_column(at) if values is None else table.set_column(at, name, values)

    rewritten(arrow, change)
    with pytest.raises(BrokenRecord, match=rf"data/1/part-0.arrow.*{expected}"):
        raise BrokenRecord(read_all(arrow)[1])


def test_rows_and_steps(arrow: Path, read_all: Any) -> None:
    rewritten(arrow, lambda table: table.slice(0, 5))
    assert len(read_all(arrow)[1]["rewards"]) == 5, "without the last observation"
    rewritten(arrow, lambda table: table.slice(0, 4))
    assert "part-0.arrow has 4 rows, where 5 steps and one more are expected" in read_all(arrow)[1]
    for steps in (0, -1, "5", 2**70, 1.5):
        said(arrow / "data/1/metadata.json", total_steps=steps)
        assert f"data/1/metadata.json says {steps!r} for its steps" in read_all(arrow)[1]
    (arrow / "data/1/part-0.arrow").unlink()
    said(arrow / "data/1/metadata.json", total_steps=5)
    assert "part-0.arrow can't be read" in read_all(arrow)[1]


def test_values_of_infos_that_are_not_read(arrow: Path) -> None:
    shutil.rmtree(arrow / "data/0")
    said(arrow / "data/metadata.json", total_episodes=2)
    rewritten(arrow, lambda table: table.append_column("more", pa.array([[1], [1, 2]] * 3)))
    episodes = open_episodes(arrow, Opening())
    assert (
        "'more' holds values of the type list<item: int64>" in episodes.unread["more"] and "more" not in episodes.fields
    )


def test_an_index_is_kept(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opening = Opening(index=tmp_path / "index")
    open_episodes(folder, opening)
    assert len(list(opening.index.iterdir())) == 1
    monkeypatch.setattr("generalist.data.formats.index._work", None)
    assert tuple(open_episodes(folder, opening).lengths) == LENGTHS


@pytest.mark.slow
def test_damaged_data(folder: Path, survives: Any) -> None:
    assert survives(folder, main_file(folder), 120) > 20


def test_damaged_metadata(folder: Path, survives: Any) -> None:
    assert survives(folder, folder / "data/metadata.json", 40) > 10
