"""LeRobot v3.0 from RLDS and back: values, videos, files and numbers as LeRobot's own reader needs them."""

import itertools
import json
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from generalist.data.convert import lerobot_files, parts, video
from generalist.data.convert.lerobot_statistics import ImageStatistics, Whole, of_numbers, sampled_steps
from generalist.data.convert.work import working_folder
from generalist.data.formats.columns import decode
from generalist.data.formats.detect import open_episodes
from generalist.data.formats.episodes import Opening
from generalist.envs.rlds import png

pytest.importorskip("av")
pq = pytest.importorskip("pyarrow.parquet")
CAMERA = "observation.images.camera"


def shade(episode: int, step: int) -> int:
    """Of all pixels of an image, which so tells what it is."""
    return 20 + 25 * episode + 5 * step


def features(**others: Any) -> Any:
    steps = {"camera": tfds.features.Image(shape=(32, 48, 3)), "x": tfds.features.Tensor(shape=(2,), dtype=np.float32)}
    step = {"observation": steps, "action": tfds.features.Tensor(shape=(2,), dtype=np.float32), **others}
    return tfds.features.FeaturesDict({"steps": tfds.features.Dataset(step)})


def episode(number: int, count: int) -> dict[str, Any]:
    images = [png(np.full((32, 48, 3), shade(number, step), np.uint8)) for step in range(count)]
    numbers = np.arange(2 * count, dtype=np.float32).reshape(count, 2) + number
    return {"steps": {"observation": {"camera": images, "x": numbers}, "action": numbers + 0.5}}


@pytest.fixture
def shaded(tmp_path: Path, write_rlds: Any) -> Path:
    """Eight episodes of 2 to 5 steps; every step is at once the last one, and the first of its part."""
    return write_rlds(tmp_path / "source", features(), [episode(number, 2 + number % 4) for number in range(8)])


def rows(folder: Path, pattern: str) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob(pattern)) for row in pq.read_table(path).to_pylist()]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_there_and_back_gives_equal_values(tmp_path: Path, bridge: Path, convert: Any, check_same: Any) -> None:
    there = convert(bridge, tmp_path / "there", "lerobot", images="png", rate=5.0)
    back = convert(tmp_path / "there", tmp_path / "back", "rlds")
    keys = [key for key in open_episodes(bridge, Opening()).fields if key not in ("is_first", "is_last")]
    check_same(bridge, tmp_path / "there", {key: there.fields[key] for key in keys})
    check_same(bridge, tmp_path / "back", {key: back.fields[there.fields[key]] for key in keys})
    found = open_episodes(tmp_path / "back", Opening())
    assert found.rate == 5.0
    assert back.fields[there.fields["observation/image_0"]] == "observation/image_0"
    assert not {"timestamp", "frame_index", "episode_index", "index", "task_index"} & {*found.fields}
    first = open_episodes(bridge, Opening()).read(0, ["observation/image_0"]).columns["observation/image_0"]
    assert found.read(0, ["observation/image_0"]).columns["observation/image_0"] == first, "JPEG stays as it is"


@pytest.mark.parametrize("codec", ["libsvtav1", "h264"])
def test_frames_are_where_they_belong(
    tmp_path: Path, shaded: Path, convert: Any, monkeypatch: pytest.MonkeyPatch, codec: str
) -> None:
    import av

    monkeypatch.setattr(parts, "PART_STEPS", 12)  # several parts
    monkeypatch.setattr(video.VideoWriter.__init__, "__defaults__", (4000,))  # several files of a part
    monkeypatch.setattr(lerobot_files, "LARGEST", 1500)  # and other files of rows
    target = tmp_path / "new"
    report = convert(shaded, target, "lerobot", rate=20.0, codec=codec)
    assert (report.episodes, report.worst) == (8, pytest.approx(0, abs=3))
    episodes = rows(target, "meta/episodes/*/*.parquet")
    data_files = {(one["data/chunk_index"], one["data/file_index"]) for one in episodes}
    video_files = {one[f"videos/{CAMERA}/file_index"] for one in episodes}
    assert len(data_files) > 1 and video_files == {*range(max(video_files) + 1)} and len(video_files) > 1
    for number, one in enumerate(episodes):
        path = target / f"videos/{CAMERA}/chunk-000/file-{one[f'videos/{CAMERA}/file_index']:03d}.mp4"
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            shown = {
                frame.pts * stream.time_base: frame.to_ndarray(format="rgb24").mean()
                for frame in container.decode(stream)
            }
            assert stream.average_rate == 20
        start = Fraction(one[f"videos/{CAMERA}/from_timestamp"]).limit_denominator(1000)
        for step in range(one["length"]):
            assert shown[start + Fraction(step, 20)] == pytest.approx(shade(number, step), abs=2.5)
        assert one[f"videos/{CAMERA}/to_timestamp"] == pytest.approx(float(start) + one["length"] / 20)


def test_rows_are_numbered_without_a_gap(
    tmp_path: Path, shaded: Path, write_rlds: Any, convert: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PART_STEPS", 8)
    made = [episode(number, 3) for number in range(6)]
    for broken in (0, 3):
        camera = made[broken]["steps"]["observation"]["camera"]
        camera[2] = camera[2][:50]  # found when two images of the episode are encoded already
    source = write_rlds(tmp_path / "broken", features(), made)
    report = convert(source, tmp_path / "new", "lerobot", rate=10.0, unreadable=0.5)
    assert [*report.left_out] == [0, 3] and "image" in report.left_out[3]
    found, kept = rows(tmp_path / "new", "data/*/*.parquet"), [1, 2, 4, 5]
    assert [row["index"] for row in found] == [*range(12)]
    assert [row["episode_index"] for row in found] == np.repeat(range(4), 3).tolist()
    assert [row["frame_index"] for row in found] == [0, 1, 2] * 4
    np.testing.assert_allclose([row["timestamp"] for row in found], [0.0, 0.1, 0.2] * 4, atol=1e-7)
    assert [row["action"][0] for row in found[::3]] == [number + 0.5 for number in kept]
    info = json.loads((tmp_path / "new" / "meta" / "info.json").read_text())
    assert (info["total_episodes"], info["total_frames"], info["splits"]) == (4, 12, {"train": "0:4"})
    groups = sum(pq.read_metadata(path).num_row_groups for path in (tmp_path / "new").glob("data/*/*.parquet"))
    assert groups == 4, "a group of rows per episode, as LeRobot writes them"


@pytest.mark.slow
def test_tasks_are_the_index_of_a_pandas_table(tmp_path: Path, bridge: Path, convert: Any) -> None:
    convert(bridge, tmp_path / "new", "lerobot", images="png", rate=5.0)
    table = pq.read_table(tmp_path / "new" / "meta" / "tasks.parquet")
    assert json.loads(table.schema.metadata[b"pandas"])["index_columns"] == ["task"]
    tasks = dict(zip(table.column("task_index").to_pylist(), table.column("task").to_pylist(), strict=True))
    assert [*tasks] == [*range(len(tasks))]
    source = open_episodes(bridge, Opening())
    told = [list(source.read(number, ["language_instruction"]).columns["language_instruction"]) for number in range(7)]
    assert [tasks[row["task_index"]] for row in rows(tmp_path / "new", "data/*/*.parquet")] == [*itertools.chain(*told)]


@pytest.mark.slow
def test_interrupted_and_with_more_processes_it_is_the_same(
    tmp_path: Path, shaded: Path, convert: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from generalist.data.convert import convert as module

    monkeypatch.setattr(parts, "PART_STEPS", 8)
    whole, target = tmp_path / "one" / "new", tmp_path / "two" / "new"
    for folder in (whole, target):
        folder.parent.mkdir()
    convert(shaded, whole, "lerobot", rate=10.0)

    def stops(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.lerobot_files, "assemble", stops)
        with pytest.raises(KeyboardInterrupt):
            convert(shaded, target, "lerobot", rate=10.0, workers=2)
    assert not target.exists()
    (working_folder(target) / "parts" / "00001" / "data.parquet").write_bytes(b"damaged")
    (working_folder(target) / "files" / "00000" / "data.parquet").unlink()
    convert(shaded, target, "lerobot", rate=10.0)
    assert files(target) == files(whole)


@pytest.mark.slow
def test_statistics_are_those_of_lerobot(tmp_path: Path, convert: Any) -> None:
    fixture = Path(__file__).parents[2] / "fixtures" / "formats" / "lerobot_v3"
    convert(fixture, tmp_path / "new", "lerobot")
    theirs, ours = (json.loads((folder / "meta" / "stats.json").read_text()) for folder in (fixture, tmp_path / "new"))
    assert {*ours} == {*theirs}
    for key in ("action", "observation.state", "timestamp", "frame_index", "index"):
        assert {*ours[key]} == {*theirs[key]}
        for name in ("min", "max", "mean", "std", "count"):
            np.testing.assert_allclose(
                ours[key][name], theirs[key][name], rtol=1e-5, atol=1e-6, err_msg=f"{key} {name}"
            )
    for name in ("min", "max", "mean"):
        found, known = (np.array(several["observation.images.front"][name]) for several in (ours, theirs))
        np.testing.assert_allclose(found, known, atol=0.02, err_msg=name)
    assert ours["observation.images.front"]["count"] == theirs["observation.images.front"]["count"]
    columns = [pq.read_schema(next(folder.glob("meta/episodes/*/*.parquet"))) for folder in (fixture, tmp_path / "new")]
    assert {*columns[0].names} == {*columns[1].names}


def test_statistics_by_hand() -> None:
    numbers = of_numbers(np.array([[1.0, np.nan], [3.0, np.nan], [2.0, np.inf]]))
    assert (numbers["min"].tolist(), numbers["max"].tolist(), numbers["mean"].tolist()) == ([1, 0], [3, 0], [2, 0])
    np.testing.assert_allclose(numbers["std"], [np.std([1, 2, 3]), 0])
    images = ImageStatistics(1)
    several = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    for image in several:
        images.add(image)
    found, levels = images.found(), several / 255
    wanted = (levels.min(), levels.max(), levels.mean(), levels.std(), np.quantile(levels, 0.5, method="inverted_cdf"))
    got = [found[name].item() for name in ("min", "max", "mean", "std", "q50")]
    np.testing.assert_allclose(got, wanted)
    assert found["mean"].shape == (1, 1, 1) and found["count"].tolist() == [5]
    whole, both = Whole(), np.random.default_rng(1).normal(size=(30, 2))
    for some in (both[:10], both[10:12], both[12:]):
        whole.add(of_numbers(some))
    assert whole.numbers is not None
    for name, values in of_numbers(both).items():
        if not name.startswith("q"):
            np.testing.assert_allclose(whole.numbers[name], values, err_msg=name)
    assert len(sampled_steps(20)) == 20 and len(sampled_steps(1000)) == 177


def test_more_dimensions_texts_and_grey_images(tmp_path: Path, write_rlds: Any, convert: Any, check_same: Any) -> None:
    grid = tfds.features.Tensor(shape=(2, 3), dtype=np.float64, encoding="bytes")
    grey = tfds.features.Image(shape=(32, 32, 1))
    made = features(grid=grid, note=tfds.features.Text(), mask=grey, done=tfds.features.Scalar(np.bool_))
    one = episode(0, 2)
    one["steps"] |= {"grid": [np.arange(6.0).reshape(2, 3).tobytes()] * 2, "note": [b"a", "ö".encode()]}
    one["steps"] |= {"mask": [png(np.full((32, 32, 1), 90, np.uint8))] * 2, "done": np.array([False, True])}
    source = write_rlds(tmp_path / "source", made, [one])
    report = convert(source, tmp_path / "rows", "lerobot", images="png", rate=10.0)
    check_same(source, tmp_path / "rows", {key: report.fields[key] for key in ("grid", "note", "done", "mask")})
    report = convert(source, tmp_path / "film", "lerobot", rate=10.0)
    seen = decode(
        open_episodes(tmp_path / "film", Opening()).read(0, [report.fields["mask"]]).columns[report.fields["mask"]]
    )
    assert seen.shape == (2, 32, 32, 3) and abs(seen.mean() - 90) < 2
    assert report.worst is not None and report.worst < 3


def test_an_image_no_encoder_takes(tmp_path: Path, write_rlds: Any, convert: Any) -> None:
    step = {"observation": {"camera": tfds.features.Image(shape=(5, 7, 3))}, "action": tfds.features.Scalar(np.float32)}
    made = tfds.features.FeaturesDict({"steps": tfds.features.Dataset(step)})
    images = [png(np.zeros((5, 7, 3), np.uint8))]
    source = write_rlds(
        tmp_path / "source", made, [{"steps": {"observation": {"camera": images}, "action": np.ones(1, np.float32)}}]
    )
    with pytest.raises(ValueError, match=r"h264 can't encode images of 7 × 5 pixels .*--images png"):
        convert(source, tmp_path / "new", "lerobot", rate=10.0, codec="h264")
    assert not (tmp_path / "new").exists()
    convert(source, tmp_path / "new", "lerobot", rate=10.0, images="png")


def test_a_missing_package_is_named_before_anything_is_read(
    tmp_path: Path, shaded: Path, convert: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"generalist\[formats\]"):
        convert(shaded, tmp_path / "new", "lerobot", rate=10.0)
    assert not working_folder(tmp_path / "new").exists()
