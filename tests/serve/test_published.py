"""A published model answers by its own chat template, one without any by the document of earlier turns; and sees images."""

import queue
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import asked, picture, running, user

from generalist.inference.generalist import Generalist
from generalist.inference.prompt import context
from generalist.inference.sampling import Decoding
from generalist.serve.answers import Answer, Ended, Written
from generalist.serve.chat_lanes import ChatLanes
from generalist.serve.compilations import Compilations
from generalist.serve.engine import Engine
from generalist.serve.lane_steps import Chosen
from generalist.serve.messages import Message, Prompter
from generalist.serve.metrics import Metrics
from generalist.serve.warm_up import warm_up

FIXTURES = Path(__file__).parent.parent / "fixtures" / "language"
CHAT = "/v1/chat/completions"
SEEING = ("gemma3", "paligemma2", "llava", "llava_siglip", "flamingo_mpt", "idefics_instruct")
"""Of each kind one; what the others compute is tested in tests/weights/test_images.py and tests/inference/test_gated.py."""
TILES = "llava_next"


@pytest.mark.slow
def test_the_answer_is_that_of_the_chat_template() -> None:
    model = Generalist.load(FIXTURES / "qwen3")
    assert Prompter(model).chats
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    expected = "".join(model.chat(messages, tokens=8))
    with running(model, sessions=4, name="qwen") as (server, port):
        assert not server.engine.pools, "it acts nowhere"
        body = {"model": "qwen", "messages": messages, "temperature": 0, "max_tokens": 8}
        status, found = asked(port, CHAT, body)
        assert status == 200 and found["choices"][0]["message"]["content"] == expected, found
        status, found = asked(port, CHAT, body | {"messages": [user(picture(1))]})
        assert status == 400 and "leave them out" in found["error"]["message"]
        control = next(iter(model.tokenizers.text.controls()))
        status, found = asked(port, CHAT, body | {"messages": [{"role": "user", "content": f"a {control} b"}]})
        assert status == 400 and "control token" in found["error"]["message"]


def test_without_a_template_earlier_turns_are_shots() -> None:
    name = next(one.name for one in sorted(FIXTURES.iterdir()) if one.is_dir() and one.name != "qwen3")
    model = Generalist.load(FIXTURES / name)
    prompter = Prompter(model)
    messages = [Message("user", ["one"]), Message("assistant", ["two"]), Message("user", ["three"])]
    assert not prompter.chats and prompter.stops(messages) == model.assembler.marks.stops
    assert len(prompter.sequence(messages)) > 3


def shown(name: str) -> tuple[Generalist, list[np.ndarray]]:
    """A published model that sees, and the images of its fixture."""
    folder = next(one for one in (FIXTURES.parent / "images" / name, FIXTURES.parent / "gated" / name) if one.is_dir())
    stored = np.load(folder / "expected.npz")
    return Generalist.load(folder), [stored[key] for key in sorted(stored) if key.startswith("image")]


def test_images_that_are_cut_into_tiles_are_refused() -> None:
    model, images = shown(TILES)
    prompter = Prompter(model)
    assert len(prompter.sequence([Message("user", ["a cat"])]))
    with pytest.raises(ValueError, match="a changing number of tiles"):
        prompter.sequence([Message("user", [images[0], "a cat"])])


@pytest.mark.slow
@pytest.mark.parametrize("name", SEEING)
def test_images_give_the_texts_that_they_give_alone(name: str) -> None:
    model, images = shown(name)
    wishes: list[list[Any]] = [
        [images[0], "a photo of"],
        ["a photo of", images[0], "the red dog", images[1], images[2], " a cat"],
        ["a photo of", images[0], "the red dog", images[1], images[0], " a cat"],
        [images[2]],
        ["a cat"],
        [images[0], "a photo of", images[2]],
    ]
    alone = [model.prompt(parts, tokens=12) for parts in wishes]
    assert len(set(alone[:4])) > 1, "what is shown makes a difference, or the test shows nothing"
    lanes = ChatLanes(model, 3, 4, (8, 16))
    warm_up(model, lanes, [], lambda line: None)
    compiled = Compilations()
    engine = Engine(model, lanes, [], Metrics(), queue=40)
    engine.start()
    found = [submitted(engine, parts) for parts in wishes * 2]
    assert [text_of(events) for events in found] == alone * 2
    assert compiled.count == 0 and engine.stop(30.0)


def test_bytes_that_may_become_unreadable_are_held_back() -> None:
    model, _ = shown("idefics_bare")
    events: queue.Queue = queue.Queue()
    one = model.assembler.document(["a"], is_open=True)
    answer = Answer(one, [], Decoding(), 9, events.put)
    word, nine, torn = int(model.tokenizers.text.encode("a")[-1]), 3 + ord("9"), 3 + 0xC3
    assert [model.tokenizers.text.is_byte(id) for id in (word, nine, torn)] == [False, True, True]
    for id in (word, nine, torn, word):
        nothing = np.zeros((1, 1))
        answer.add(model, Chosen(np.array([id]), nothing[0], nothing.astype(int), nothing), 0)
    given = [events.get_nowait().text for _ in range(events.qsize())]
    assert given == ["a", "\ufffd\ufffda"]


def submitted(engine: Engine, parts: list[Any]) -> queue.Queue:
    """The events of a text that is asked for."""
    sequence = engine.weights.assembler.document(parts, is_open=True)
    events: queue.Queue = queue.Queue()
    answer = Answer(sequence, engine.chat.pieces(sequence), Decoding(tokens=12), 12, events.put)
    engine.submit([answer])
    return events


def text_of(events: queue.Queue) -> str:
    """The whole text."""
    text = ""
    while not isinstance(event := events.get(timeout=60), Ended):
        assert isinstance(event, Written), event
        text += event.text
    return text


@pytest.mark.slow
def test_a_chat_about_images_is_that_of_the_template() -> None:
    name = "gemma3"
    model, images = shown(name)
    messages = [
        {"role": "user", "content": [images[0], "a photo of", images[1]]},
        {"role": "assistant", "content": "the red dog"},
        {"role": "user", "content": ["a cat?", images[2]]},
    ]
    expected = "".join(model.chat(messages, tokens=8))
    with running(model, sessions=4, name=name) as (_, port):
        turns = [user(*one["content"]) if one["role"] == "user" else one for one in messages]
        body = {"model": name, "messages": turns, "temperature": 0, "max_tokens": 8}
        status, found = asked(port, CHAT, body)
        assert status == 200 and found["choices"][0]["message"]["content"] == expected, found
        assert asked(port, CHAT, body)[1]["choices"] == found["choices"], "read before, and the same"


def test_control_tokens_are_not_put_together_from_parts() -> None:
    model, _ = shown("gemma3")
    control = next(one for one in model.tokenizers.text.controls() if len(one) > 4)
    for halves in ((control[:2], control[2:]), (control[:2] + " ", control[2:])):
        with pytest.raises(ValueError, match="has the control token"):
            model.chat([{"role": "user", "content": [*halves]}])


def test_prompts_that_are_read_as_a_whole_have_a_limit() -> None:
    model, _ = shown("paligemma")
    lanes = ChatLanes(model, 1, 1, (8, 16))
    with pytest.raises(ValueError, match=f"may take {lanes.sizes[-1]} here: shorten it"):
        lanes.pieces(model.assembler.document(["a cat " * lanes.sizes[-1]], is_open=True))


def test_what_cannot_fit_is_refused_before_it_is_tokenized(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Generalist.load(FIXTURES / "mistral")
    prompter = Prompter(model)
    most = context(model) * model.tokenizers.text.longest
    with pytest.raises(ValueError, match="of the model's context of 128, so that an answer has room"):
        prompter.sequence([Message("user", ["a " * (most // 2 - 1)])])
    monkeypatch.setattr(type(model.tokenizers.text), "encode", lambda *_: pytest.fail("tokenized"))
    with pytest.raises(ValueError, match="more than fit into the model's context"):
        prompter.sequence([Message("user", ["a " * (most // 2)])])
