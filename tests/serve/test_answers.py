"""What is given of a text while it is written: never a part that may still change."""

import queue
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from generalist.inference.sampling import Decoding
from generalist.serve.answers import Answer, Ended
from generalist.serve.lane_steps import Chosen


def given(model: Any, text: str, **decoding: Any) -> tuple[list[str], str]:
    """The parts in which a text is given whose ids are chosen one after the other, and why it ended."""
    ids = [*model.tokenizers.text.encode(text).tolist(), model.assembler.marks.ends[0]]
    events: queue.Queue = queue.Queue()
    room = len(ids)
    answer = Answer(model.assembler.document(["a"], is_open=True), [], Decoding(**decoding), room, events.put)
    none = np.zeros((1, 1))
    for id in ids:
        if answer.add(model, Chosen(np.array([id]), none[0], none.astype(int), none), 0):
            break
    *parts, end = [events.get_nowait() for _ in range(events.qsize())]
    assert isinstance(end, Ended)
    return [part.text for part in parts], end.reason


def test_characters_of_several_ids_come_whole(make_model: Callable[..., Any]) -> None:
    model = make_model("frame")
    text = "lift \U0001f642\u00e9 the \u4e2d\u6587 block"
    assert len(model.tokenizers.text.encode("\U0001f642")) >= 4, "spelled in bytes, or the test shows nothing"
    parts, reason = given(model, text)
    assert "".join(parts) == text and reason == "stop" and len(parts) > 5
    assert not any("\ufffd" in part for part in parts)


def test_half_a_character_at_the_end_is_unreadable(make_model: Callable[..., Any]) -> None:
    model = make_model("frame")
    ids = model.tokenizers.text.encode("push \U0001f642")[:-1]
    events: queue.Queue = queue.Queue()
    answer = Answer(model.assembler.document(["a"], is_open=True), [], Decoding(), len(ids), events.put)
    none = np.zeros((1, 1))
    ended = [answer.add(model, Chosen(np.array([id]), none[0], none.astype(int), none), 0) for id in ids]
    assert ended == [False] * (len(ids) - 1) + [True]
    parts = [events.get_nowait() for _ in range(events.qsize())]
    assert (
        "".join(part.text for part in parts[:-1]) == model.assembler.written(np.array(ids))
        and "\ufffd" in parts[-2].text
    )
    assert parts[-1].reason == "length"


@pytest.mark.parametrize("stop", ["blue bl", "e b", "lue", "ck", " "])
def test_nothing_of_a_stop_text_is_given(make_model: Callable[..., Any], stop: str) -> None:
    text = "the blue block"
    parts, reason = given(make_model("frame"), text, stop=(stop, "never"))
    assert "".join(parts) == text[: text.index(stop)] and reason == "stop"


def test_what_only_begins_like_a_stop_text_is_given(make_model: Callable[..., Any]) -> None:
    parts, reason = given(make_model("frame"), "the blue block", stop=("blue sky", "block party"))
    assert "".join(parts) == "the blue block" and reason == "stop"
