"""Answers of worker processes whose arrays go through shared memory."""

import dataclasses
import errno
import importlib
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from generalist.system import shared_replies
from generalist.system.processes import start
from generalist.system.shared_replies import LEAST, Inbox, Outbox, Parcel

SHAPES = arrays.array_shapes(max_dims=3, max_side=200)


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer with arrays inside."""

    observation: Any
    reward: float


def same(one: Any, other: Any) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert value.dtype == other[key].dtype
        np.testing.assert_array_equal(value, other[key])


@settings(deadline=None, max_examples=30)
@given(st.lists(st.dictionaries(st.text(max_size=3), arrays.arrays(np.uint8, SHAPES), max_size=3), max_size=4))
def test_what_is_packed_is_opened(answers: list[dict[str, Any]]):
    outbox, inbox = Outbox(), Inbox()
    opened = [inbox.open(outbox.pack(Answer(one, 0.5))) for one in answers]
    inbox.close()
    # Compared at the end: answers do not change with what comes after them.
    for before, after in zip(answers, opened, strict=True):
        same(after.observation, before)
        assert all(array.flags.writeable for array in after.observation.values())


def test_orders_and_types_of_arrays_are_kept():
    outbox, inbox = Outbox(), Inbox()
    large = np.arange(LEAST, dtype=np.float64)
    answer = {"fortran": np.asfortranarray(large.reshape(256, -1)), "part": large[::2], "empty": large[:0]}
    parcel = outbox.pack(answer)
    assert parcel.memory
    same(inbox.open(parcel), answer)
    inbox.close()


def test_small_answers_and_those_without_room_go_through_the_pipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    outbox = Outbox()
    assert not outbox.pack(np.zeros(10)).memory
    full = SimpleNamespace(free=0)
    monkeypatch.setattr(shared_replies, "_PLACE", tmp_path)
    monkeypatch.setattr(shared_replies.shutil, "disk_usage", lambda place: full)
    parcel = outbox.pack(np.ones(LEAST))
    assert not parcel.memory
    np.testing.assert_array_equal(Inbox().open(parcel), np.ones(LEAST))


@pytest.mark.skipif(not shared_replies._PLACE.is_dir(), reason="shared memory has no folder here")
def test_memory_whose_pages_are_not_to_be_had_is_not_used(monkeypatch: pytest.MonkeyPatch):
    """Another worker may have taken the room that was free; writing there would end the process."""
    reserved = []

    def full(file: int, start: int, size: int) -> None:
        reserved.append((Path(f"/proc/self/fd/{file}").readlink(), start, size))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shared_replies.os, "posix_fallocate", full)
    assert not Outbox().pack(np.ones(LEAST)).memory
    ((place, *_, size),) = reserved
    assert size == 8 * LEAST and not place.exists()


WORKER = """
import numpy as np
from generalist.system.shared_replies import Outbox

def answering(connection, sizes):
    outbox = Outbox()
    for size in sizes:
        connection.recv()
        connection.send(outbox.pack(np.full(size, size % 251, np.uint8)))
    connection.recv()
"""


def test_memory_that_grows_in_another_process_is_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "answers.py").write_text(WORKER)
    monkeypatch.syspath_prepend(str(tmp_path))  # a worker gets the path of its parent
    answering = importlib.import_module("answers").answering
    sizes = [2 * LEAST, LEAST, 5 * LEAST, 3 * LEAST]
    process, connection = start(answering, sizes)
    inbox, names = Inbox(), []
    for size in sizes:
        connection.send("next")
        parcel: Parcel = connection.recv()
        names.append(parcel.memory)
        np.testing.assert_array_equal(inbox.open(parcel), np.full(size, size % 251, np.uint8))
    process.terminate()
    process.join()
    inbox.close()
    assert len(set(names)) == 2  # renewed once, for the larger answer
    for name in set(names):
        with pytest.raises(FileNotFoundError):
            SharedMemory(name)
