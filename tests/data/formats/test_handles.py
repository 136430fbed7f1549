"""Open files: as many as may be, each used once at a time, and all of them closed."""

import os
import threading
from pathlib import Path
from typing import IO

import pytest

from generalist.data.formats.handles import Handles


@pytest.fixture
def opened() -> list[IO[bytes]]:
    return []


@pytest.fixture
def handles(opened: list[IO[bytes]]) -> Handles[IO[bytes]]:
    def opener(file: Path) -> IO[bytes]:
        opened.append(file.open("rb"))
        return opened[-1]

    return Handles(opener, limit=2)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_bytes(path.name.encode())
    return paths


def test_last_few_stay_open(handles: Handles[IO[bytes]], opened: list[IO[bytes]], files: list[Path]) -> None:
    for file in (files[0], files[1], files[0], files[2]):
        with handles.use(file) as handle:
            handle.seek(0)
            assert handle.read() == file.name.encode()
    assert [Path(handle.name).name for handle in opened] == ["a", "b", "c"]
    assert [handle.closed for handle in opened] == [False, True, False] and len(handles) == 2
    handles.close()
    assert all(handle.closed for handle in opened) and len(handles) == 0


def test_two_threads_never_share(handles: Handles[IO[bytes]], opened: list[IO[bytes]], files: list[Path]) -> None:
    found = []

    def use() -> None:
        with handles.use(files[0]) as handle:
            found.append(handle)

    with handles.use(files[0]) as mine:
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
    assert found[0] is not mine
    assert [handle.closed for handle in opened] == [False, True] and len(handles) == 1
    handles.close()


def test_closed_after_an_error(handles: Handles[IO[bytes]], opened: list[IO[bytes]], files: list[Path]) -> None:
    with pytest.raises(KeyError), handles.use(files[0]):
        raise KeyError
    assert opened[0].closed and len(handles) == 0


def test_missing_file(handles: Handles[IO[bytes]], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), handles.use(tmp_path / "none"):
        raise AssertionError("there is nothing to use")


def test_rewritten_file_is_opened_anew(handles: Handles[IO[bytes]], files: list[Path]) -> None:
    with handles.use(files[0]):
        pass
    files[0].write_bytes(b"longer")
    with handles.use(files[0]) as handle:
        assert handle.read() == b"longer"
    handles.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
def test_forked_process_opens_its_own(handles: Handles[IO[bytes]], files: list[Path]) -> None:
    with handles.use(files[0]):
        pass
    child = os.fork()
    if not child:
        os._exit(len(handles))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 and len(handles) == 1
    handles.close()
