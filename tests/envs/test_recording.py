"""Recording: what is written is read back; what is interrupted leaves nothing that reads as whole."""

import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from rich.console import Console
from rich.progress import TaskID

from generalist.data.episodes import EpisodeCache, EpisodeReader
from generalist.envs import recording, registry
from generalist.envs.recording import chunks, is_recorded, record, recording_folder, working_folder
from generalist.envs.rlds import FORMAT, dataset_folder, read_metadata
from generalist.system.progress import Progress

QUIET = Console(quiet=True)
OLD = Path(__file__).parents[1] / "fixtures/versions/episodes"
CARTPOLE, GO_TO = registry.get("classic/cartpole"), registry.get("babyai/GoToObj")


def test_what_is_recorded_is_read_back_and_not_recorded_twice(tmp_path: Path):
    episodes = {CARTPOLE.name: 3, GO_TO.name: 5}
    record([CARTPOLE, GO_TO], tmp_path, episodes=episodes, workers=2, console=QUIET)
    for task in (CARTPOLE, GO_TO):
        folder = recording_folder(tmp_path, task, episodes[task.name])
        metadata = read_metadata(folder)
        assert metadata is not None and len(metadata["lengths"]) == len(metadata["seeds"]) == episodes[task.name]
        source = tfds.builder_from_directory(str(folder)).as_data_source(split="train")
        for example, length in zip(source, metadata["lengths"], strict=True):
            steps = list(example["steps"])
            assert len(steps) == length
            assert [bool(step["is_first"]) for step in steps] == [index == 0 for index in range(length)]
            assert example["task"].decode() == task.name
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    record([CARTPOLE, GO_TO], tmp_path, episodes=episodes, workers=2, console=QUIET)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert not is_recorded(CARTPOLE, tmp_path, 4)  # another number of episodes is another recording
    assert not is_recorded(dataclasses.replace(CARTPOLE, revision=1), tmp_path, 3)  # and so is another expert's play


def state(folder: Path) -> dict[Path, int]:
    """Every file with its time of change."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_fewer_episodes_are_recorded_beside_more(tmp_path: Path):
    """What another preset recorded stays, and whatever is on disk, the same settings give the same episodes."""
    record([CARTPOLE], tmp_path / "both", episodes={CARTPOLE.name: 5}, workers=1, console=QUIET)
    before = state(tmp_path / "both")
    record([CARTPOLE], tmp_path / "both", episodes={CARTPOLE.name: 2}, workers=1, console=QUIET)
    assert before.items() <= state(tmp_path / "both").items()
    assert is_recorded(CARTPOLE, tmp_path / "both", 5) and is_recorded(CARTPOLE, tmp_path / "both", 2)
    record([CARTPOLE], tmp_path / "alone", episodes={CARTPOLE.name: 2}, workers=1, console=QUIET)
    two, alone = (read_metadata(recording_folder(tmp_path / name, CARTPOLE, 2)) for name in ("both", "alone"))
    assert two == alone


@pytest.mark.slow
def test_recordings_of_earlier_versions_stay_where_they_are(tmp_path: Path):
    """They were a task's only ones, in its own folder."""
    record([CARTPOLE], tmp_path, episodes={CARTPOLE.name: 3}, workers=1, console=QUIET)
    former = dataset_folder(tmp_path, CARTPOLE)
    recording_folder(tmp_path, CARTPOLE, 3).rename(former)
    before = state(former)
    assert recording_folder(tmp_path, CARTPOLE, 3) == former and is_recorded(CARTPOLE, tmp_path, 3)
    for episodes in (3, 2):
        record([CARTPOLE], tmp_path, episodes={CARTPOLE.name: episodes}, workers=1, console=QUIET)
    assert state(former) == before
    # Of other versions of the packages: removed, but only once there is a new recording.
    metadata = json.loads((former / "metadata.json").read_text())
    (former / "metadata.json").write_text(json.dumps(metadata | {"fingerprint": "0123"}))
    with pytest.raises(ValueError, match="seeds of evaluation"):
        record([CARTPOLE], tmp_path, episodes={CARTPOLE.name: 300_000}, workers=1, console=QUIET)
    assert former.exists() and not is_recorded(CARTPOLE, tmp_path, 3)
    record([CARTPOLE], tmp_path, episodes={CARTPOLE.name: 3}, workers=1, console=QUIET)
    assert is_recorded(CARTPOLE, tmp_path, 3) and not former.exists()


def test_an_older_recording_is_made_anew_and_that_is_told(tmp_path: Path):
    """One of a format of before (tests/fixtures/make_versions.py); the run that learnt from it goes on with the new one."""
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    former, console = dataset_folder(tmp_path, CARTPOLE), Console(record=True, width=200)
    metadata = read_metadata(former)
    assert metadata is not None and "format" not in metadata and not is_recorded(CARTPOLE, tmp_path, 2)
    for _ in range(2):
        record([CARTPOLE], tmp_path, episodes={CARTPOLE.name: 2}, workers=1, console=console)
    reason = "recording again, since existing recordings are of other package versions or an older format"
    assert console.export_text().count(f"{reason}: {CARTPOLE.name}\n") == 1
    again = read_metadata(recording_folder(tmp_path, CARTPOLE, 2))
    assert again is not None and again["format"] == FORMAT and not former.exists()


def test_a_newer_recording_is_neither_read_nor_replaced(tmp_path: Path):
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    former = dataset_folder(tmp_path, CARTPOLE)
    metadata = json.loads((former / "metadata.json").read_text()) | {"format": FORMAT + 1}
    (former / "metadata.json").write_text(json.dumps(metadata))
    message = rf"metadata\.json has format {FORMAT + 1}, but .* up to {FORMAT}: update the package"
    with pytest.raises(ValueError, match=message):
        record([CARTPOLE], tmp_path, episodes={CARTPOLE.name: 2}, workers=1, console=QUIET)
    with pytest.raises(ValueError, match=message):
        EpisodeReader(former, EpisodeCache(1))
    assert former.exists()


def test_two_recordings_of_a_task_are_put_together_apart(tmp_path: Path):
    """Two runs may record the same task at the same time."""
    works = {working_folder(recording_folder(tmp_path, CARTPOLE, episodes)) for episodes in (2, 5)}
    assert len(works) == 2


def test_the_number_of_workers_changes_nothing(tmp_path: Path):
    for workers in (1, 2):
        record([GO_TO], tmp_path / str(workers), episodes={GO_TO.name: 4}, workers=workers, console=QUIET)
    folders = [recording_folder(tmp_path / str(workers), GO_TO, 4) for workers in (1, 2)]
    assert read_metadata(folders[0]) == read_metadata(folders[1])
    one, two = (tfds.builder_from_directory(str(folder)).as_data_source(split="train") for folder in folders)
    for left, right in zip(one, two, strict=True):
        for step, other in zip(left["steps"], right["steps"], strict=True):
            np.testing.assert_array_equal(step["observation"], other["observation"])
            assert step["action"] == other["action"]


def test_seeds_stay_below_those_of_evaluation(tmp_path: Path):
    planned = chunks(CARTPOLE, tmp_path, 100, 0)
    assert sum(chunk.episodes for chunk in planned) == 100
    seeds = [seed for chunk in planned for seed in range(chunk.first_seed, chunk.first_seed + 4 * chunk.episodes)]
    assert len(seeds) == len(set(seeds))
    with pytest.raises(ValueError, match="seeds of evaluation"):
        chunks(CARTPOLE, tmp_path, 300_000, 0)


RECORD = """
import sys
from pathlib import Path
from rich.console import Console
from generalist.envs.recording import record
from generalist.envs.registry import get
task = get("metaworld/reach")
record([task], Path(sys.argv[1]), episodes={task.name: 40}, workers=1, console=Console(quiet=True))
"""


@pytest.mark.slow
def test_a_killed_recording_reads_as_nothing_and_can_be_done_again(tmp_path: Path):
    task = registry.get("metaworld/reach")
    process = subprocess.Popen([sys.executable, "-c", RECORD, str(tmp_path)], start_new_session=True)
    deadline = time.time() + 60
    while not any(tmp_path.rglob("*.recording")) and time.time() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not recording_folder(tmp_path, task, 40).exists() or is_recorded(task, tmp_path, 40)
    record([task], tmp_path, episodes={task.name: 2}, workers=1, console=QUIET)
    assert is_recorded(task, tmp_path, 2)
    record([task], tmp_path, episodes={task.name: 40}, workers=2, console=QUIET)
    assert not list(tmp_path.rglob("*.recording"))


FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
""" + RECORD.replace("metaworld/reach", "classic/cartpole")


def test_a_disk_without_room_is_one_line_and_leaves_nothing(tmp_path: Path):
    """A limit on the size of files stands in for the full disk; both fail where a file grows."""
    assert resource.RLIMIT_FSIZE is not None
    script = FULL.replace(
        "record([task]", "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nrecord([task]"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "OSError" in done.stderr.splitlines()[-1]
    assert not recording_folder(tmp_path, CARTPOLE, 40).exists()
    assert not list(tmp_path.rglob("*array_record*"))


def test_shapes_and_labels(tmp_path: Path):
    """The stored action is the expert's, the executed one may be noisy."""
    record([CARTPOLE], tmp_path, episodes={CARTPOLE.name: 6}, workers=1, console=QUIET)
    source = tfds.builder_from_directory(str(recording_folder(tmp_path, CARTPOLE, 6))).as_data_source(split="train")
    different = 0
    for example in source:
        for step in example["steps"]:
            assert step["observation"].shape == (4,)
            different += int(step["action"] != step["executed_action"])
    assert different > 0
    noisy = read_metadata(recording_folder(tmp_path, CARTPOLE, 6))["noisy"]  # type: ignore[index]
    assert 0 < np.mean(noisy) < 1


def test_the_time_left_goes_by_what_each_tasks_episodes_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The bar counts expected seconds; the episodes stand beside it."""
    seen: list[tuple[float, float, str]] = []

    class Watched(Progress):
        def update(self, task_id: TaskID, **changed: Any) -> None:
            super().update(task_id, **changed)
            (task,) = self.tasks
            seen.append((task.completed, task.total or 0.0, task.fields["done"]))

    monkeypatch.setattr(recording, "Progress", Watched)
    episodes = {CARTPOLE.name: 3, GO_TO.name: 5}
    record([CARTPOLE, GO_TO], tmp_path, episodes=episodes, workers=1, console=QUIET)
    expected = {task.name: episodes[task.name] * task.seconds for task in (CARTPOLE, GO_TO)}
    total = pytest.approx(sum(expected.values()))
    assert all(whole == total for _, whole, _ in seen) and seen[-1] == (total, total, "8/8")
    assert seen[0][0] in [pytest.approx(seconds) for seconds in expected.values()] and seen[0][2] in ("3/8", "5/8")
