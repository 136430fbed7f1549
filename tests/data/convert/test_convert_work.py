"""Whole or not at all: killed, interrupted, damaged, broken, in the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from generalist.cli.main import main
from generalist.data.convert import parts
from generalist.data.convert.work import CHECKSUMS, working_folder
from generalist.data.formats.episodes import RawEpisode
from generalist.data.formats.faults import TooManyBroken
from generalist.data.formats.rlds import Rlds
from generalist.data.formats.tfrecord import records

SLOW = """
import sys, time
from generalist.data.convert import parts
from generalist.envs import rlds
parts.PART_STEPS = 1
close = rlds.ShardWriter.close
def slowly(self):
    time.sleep(2)
    close(self)
rlds.ShardWriter.close = slowly
if __name__ == "__main__":
    from generalist.cli.main import main
    sys.exit(main(sys.argv[1:]))
"""
"""The command with an episode per part, each of which takes a while; worker processes import it as well."""


def command(source: Path, target: Path, workers: int) -> list[str]:
    options = ["data", "convert", str(source), str(target), "--to", "rlds", "--workers", str(workers)]
    script = target.parent / "slow.py"
    script.write_text(SLOW)
    return [sys.executable, str(script), *options]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part has one episode."""
    monkeypatch.setattr(parts, "PART_STEPS", 1)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Programs that are started can be interrupted, also where the tests themselves ignore it, as a shell's background job does:
    what is ignored stays so in every program that is started."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible", "one_by_one")
@pytest.mark.parametrize("how, workers", [(signal.SIGKILL, 2), (signal.SIGKILL, 1), (signal.SIGINT, 2)])
def test_stopped_midway_and_run_again_is_the_same(
    tmp_path: Path, bridge: Path, convert: Any, how: signal.Signals, workers: int
) -> None:
    target, whole = tmp_path / "stopped" / "new", tmp_path / "whole" / "new"
    for folder in (target, whole):
        folder.parent.mkdir()
    done = working_folder(target) / "parts"
    process = subprocess.Popen(
        command(bridge, target, workers), stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 120
        while len([*done.glob("[0-9]*")]) < 2:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(how)
        said = process.communicate(timeout=60)[0]
    finally:
        process.kill()
    assert process.returncode == (-9 if how == signal.SIGKILL else 130), said
    assert not target.exists()
    if how == signal.SIGINT:
        assert "the same command goes on from here" in said
    kept = {path.name: (path / "part.json").stat().st_mtime_ns for path in done.glob("[0-9]*")}
    assert 2 <= len(kept) < 7, "it was stopped midway"
    convert(bridge, target, "rlds")
    convert(bridge, whole, "rlds")
    assert files(target) == files(whole)
    assert not working_folder(target).exists()


def test_complete_parts_are_taken_over_and_damaged_ones_made_again(
    tmp_path: Path, bridge: Path, convert: Any, one_by_one: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from generalist.data.convert import convert as module

    def fails(*_: object) -> None:
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(module, "publish", fails)
        with pytest.raises(OSError, match="the disk is gone"):
            convert(bridge, tmp_path / "new", "rlds")
    assert not (tmp_path / "new").exists()
    made = sorted((working_folder(tmp_path / "new") / "parts").glob("[0-9]*/records.array_record"))
    times = [path.stat().st_mtime_ns for path in made]
    content = bytearray(made[3].read_bytes())
    content[len(content) // 2] ^= 1
    made[3].unlink()
    made[3].write_bytes(content)
    with monkeypatch.context() as patch:
        patch.setattr(module, "publish", lambda *_: None)
        convert(bridge, tmp_path / "new", "rlds")
    again = [path.stat().st_mtime_ns for path in made]
    assert [before == after for before, after in zip(times, again, strict=True)] == [True] * 3 + [False] + [True] * 3


def test_other_settings_begin_anew(tmp_path: Path, bridge: Path, convert: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from generalist.data.convert import convert as module

    with monkeypatch.context() as patch:
        patch.setattr(module, "publish", lambda *_: None)
        convert(bridge, tmp_path / "new", "rlds")
    convert(bridge, tmp_path / "new", "rlds", without=("observation/image_1",))
    assert "image_1" not in (tmp_path / "new" / "1.0.0" / "features.json").read_text()


def test_broken_records_are_named_and_left_out_up_to_a_share(tmp_path: Path, bridge: Path, convert: Any) -> None:
    source = Path(shutil.copytree(bridge, tmp_path / "source"))
    shard = sorted(source.glob("*/*.tfrecord-*"))[0]
    first, content = next(iter(records(shard))), bytearray(shard.read_bytes())
    content[first.offset + 12 + first.size // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(TooManyBroken, match=rf"1 of 7 records .* can't be read.*{shard.name}, offset {first.offset}"):
        convert(source, tmp_path / "new", "rlds", unreadable=0.1)
    assert not (tmp_path / "new").exists()
    report = convert(source, tmp_path / "new", "rlds", unreadable=0.2)
    assert report.episodes == 6 and "does not fit its checksum" in report.left_out[0]
    assert json.loads((tmp_path / "new" / CHECKSUMS).read_text())["left_out"] == [0]


def test_an_image_that_breaks_midway_leaves_its_episode_out(
    tmp_path: Path, write_rlds: Any, convert: Any, bridge: Path
) -> None:
    import tensorflow_datasets as tfds

    from generalist.envs.rlds import png

    features = tfds.features.FeaturesDict(
        {
            "steps": tfds.features.Dataset(
                {
                    "observation": {"camera": tfds.features.Image(shape=(32, 32, 3))},
                    "action": tfds.features.Scalar(np.float32),
                }
            )
        }
    )
    good = [png(np.full((32, 32, 3), shade, np.uint8)) for shade in (0, 100, 200)]
    cut = [good[0], good[1], good[2][:60]]
    made = [
        {"steps": {"observation": {"camera": images}, "action": np.ones(3, np.float32)}} for images in (good, cut, good)
    ]
    write_rlds(tmp_path / "source", features, made)
    with pytest.raises(ValueError, match="record 1: image 2 can't be read"):
        convert(tmp_path / "source", tmp_path / "new", "rlds")
    assert convert(tmp_path / "source", tmp_path / "new", "rlds", unreadable=0.4).episodes == 2


def test_nothing_is_replaced_but_what_was_made_here(tmp_path: Path, bridge: Path, convert: Any) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="exists already: name another folder, delete it, or give --replace"):
        convert(bridge, mine, "rlds")
    with pytest.raises(FileExistsError, match="was not made by this command"):
        convert(bridge, mine, "rlds", replace=True)
    assert (mine / "letter.txt").read_text() == "dear"
    convert(bridge, tmp_path / "new", "rlds")
    with pytest.raises(FileExistsError, match="exists already"):
        convert(bridge, tmp_path / "new", "rlds")
    convert(bridge, tmp_path / "new", "rlds", replace=True, without=("reward",))
    assert '"reward"' not in (tmp_path / "new" / "1.0.0" / "features.json").read_text()
    with pytest.raises(ValueError, match="are in each other"):
        convert(tmp_path / "new", tmp_path / "new", "rlds", replace=True)


def test_a_full_disk_and_another_process_are_noticed_beforehand(
    tmp_path: Path, bridge: Path, convert: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        usage = shutil.disk_usage(tmp_path)
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(OSError, match="make room, or name a target on another disk"):
            convert(bridge, tmp_path / "new", "rlds")
    work = working_folder(tmp_path / "new")
    work.mkdir()
    (work / "lock").write_text(str(os.getppid()))
    with pytest.raises(FileExistsError, match=f"process {os.getppid()} converts to this target already"):
        convert(bridge, tmp_path / "new", "rlds")
    (work / "lock").write_text("999999999")  # one that is gone
    convert(bridge, tmp_path / "new", "rlds")


def test_checksums_are_those_of_the_files(tmp_path: Path, bridge: Path, convert: Any) -> None:
    import hashlib

    convert(bridge, tmp_path / "new", "rlds")
    noted = json.loads((tmp_path / "new" / CHECKSUMS).read_text())
    found = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files(tmp_path / "new").items()
        if name != CHECKSUMS
    }
    assert noted["files"] == found
    assert str(tmp_path) not in json.dumps(noted), "no path of the machine"


def test_the_command_reports(tmp_path: Path, bridge: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "new"
    assert main(["data", "convert", str(bridge), str(target), "--to", "rlds", "--workers", "1", "--verify"]) == 0
    said = capsys.readouterr().out
    assert "observation/image_0" in said and "every value compared with the source" in said
    assert "7 episodes, 98 steps, 4 files" in said


WRONG = {
    "to rlds --images png": "--images goes with --to lerobot only",
    "to lerobot --images png --codec h264": "--codec goes with videos",
    "to lerobot": "give it with --rate",
    "to rlds --unreadable 1": "--unreadable must be a share",
    "to rlds --workers 0": "--workers must be at least 1",
    "to rlds --rate -1": "--rate must be above 0",
    "to rlds --mapping nowhere.yaml": "nowhere.yaml",
}


@pytest.mark.parametrize("options, told", WRONG.items(), ids=WRONG)
def test_what_does_not_fit_is_told(
    tmp_path: Path, bridge: Path, capsys: pytest.CaptureFixture[str], options: str, told: str
) -> None:
    assert main(["data", "convert", str(bridge), str(tmp_path / "new"), *f"--{options}".split()]) == 1
    assert told in capsys.readouterr().out
    assert not (tmp_path / "new").exists()


def test_parts_have_all_episodes_once(tmp_path: Path, bridge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from generalist.data.convert.source import Settings, opened

    source = opened(Settings(source=str(bridge), to="rlds"))
    for most in (1, 20, 33, 1000):
        monkeypatch.setattr(parts, "PART_STEPS", most)
        ranges = parts.planned(source, 1.0)
        assert [number for low, high in ranges for number in range(low, high)] == list(range(7))
        assert all(
            source.episodes.lengths[low:high].sum() <= max(most, source.episodes.lengths[low]) for low, high in ranges
        )


@pytest.mark.parametrize("to", ["rlds", "lerobot"])
def test_no_more_than_two_episodes_are_held(
    tmp_path: Path, bridge: Path, convert: Any, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    read = Rlds.read
    given: list[weakref.ref[RawEpisode]] = []
    held: list[int] = []

    def counted(self: Rlds, *arguments: Any) -> RawEpisode:
        held.append(sum(one() is not None for one in given))
        raw = read(self, *arguments)
        given.append(weakref.ref(raw))
        return raw

    monkeypatch.setattr(Rlds, "read", counted)
    convert(bridge, tmp_path / "new", to, rate=5.0, verify=False)
    assert len(given) >= 7 and max(held) <= 2


@pytest.mark.slow
def test_a_damaged_source_gives_the_same_or_is_refused(tmp_path: Path, bridge: Path, convert: Any) -> None:
    rng, refused = np.random.default_rng(0), 0
    for number in range(40):
        source = Path(shutil.copytree(bridge, tmp_path / str(number) / "source"))
        chosen = sorted(path for path in source.rglob("*") if path.is_file())[number % 5]
        content = bytearray(chosen.read_bytes())
        content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
        chosen.write_bytes(content[: int(rng.integers(len(content)))] if number % 3 == 0 else content)
        target = tmp_path / str(number) / "new"
        try:
            report = convert(source, target, "rlds", unreadable=0.6)
        except (ValueError, FileNotFoundError) as error:
            refused += 1
            assert str(error) and not target.exists()
        else:
            assert report.episodes == 7 - len(report.left_out)
            assert report.left_out or chosen.suffix == ".json"
    assert 5 < refused < 35
