"""A published language model answers by its own chat template, one without any by the document of earlier turns."""

from pathlib import Path

import numpy as np
import pytest
from serving import asked, picture, running, user

from generalist.inference.generalist import Generalist
from generalist.serve.messages import Message, Prompter

FIXTURES = Path(__file__).parent.parent / "fixtures" / "language"
CHAT = "/v1/chat/completions"


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
        assert status == 400 and "leave the images out" in found["error"]["message"]
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


def test_published_models_are_served_with_text_alone() -> None:
    images = FIXTURES.parent / "images"
    prompter = Prompter(Generalist.load(images / "gemma3"))
    message = Message("user", ["a photo of"])
    assert len(prompter.sequence([message]))
    with pytest.raises(ValueError, match="text alone: leave the images out"):
        prompter.sequence([Message("user", [np.zeros((8, 8, 3), np.uint8), "a photo of"])])
    with pytest.raises(ValueError, match="paligemma sees its whole prompt in both directions"):
        Prompter(Generalist.load(images / "paligemma"))
