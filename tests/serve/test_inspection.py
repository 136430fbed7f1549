"""`/v1/inspect`: what is told about an answer is what the model computes."""

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from serving import asked, chat, picture, running, user
from watched import metric

from generalist.inference.generalist import Generalist
from generalist.inference.rows import stack_rows
from generalist.inference.writing import writable
from generalist.model.attention_weights import looks
from generalist.serve.inspection import IDS, inline_images
from generalist.serve.messages import Message, Prompter
from generalist.tokenizers.pieces import Modality
from generalist.tokenizers.sequence import CHUNK_END

INSPECT = "/v1/inspect"
FIXTURES = Path(__file__).parent.parent / "fixtures"


@pytest.fixture(scope="module")
def model(make_model: Callable[..., Any]) -> Any:
    return make_model("frame+encoder")


@pytest.fixture(scope="module")
def port(model: Any) -> Iterator[int]:
    with running(model, inspect=True, sessions=0) as (_, port):
        yield port


def array(found: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(found["data"]), "<f4").reshape(found["shape"])


@pytest.mark.slow
def test_what_it_tells_is_what_the_model_computes(port: int, model: Any) -> None:
    messages = [user(picture(1)), {"role": "assistant", "content": "red"}, user(picture(2), "push")]
    choice = asked(port, "/v1/chat/completions", chat(messages, max_tokens=6, logprobs=True))[1]["choices"][0]
    ids = [token["id"] for token in choice["logprobs"]["content"]]
    assert model.tokenizers.text.written(np.array(ids, np.int32)) == choice["message"]["content"]
    compiled = metric(port, "compilations_after_ready")
    status, found = asked(port, INSPECT, {"model": "debug", "messages": messages, "answer": ids})
    assert status == 200, found
    assert metric(port, "compilations_after_ready") == compiled

    prompt = model.assembler.document([picture(1), " red", CHUNK_END, picture(2), "push"], is_open=True)
    whole = model.assembler.concatenate([prompt, model.assembler.text(np.array(ids, np.int32), bos=False, eos=False)])
    batch = model.on_device(stack_rows([whole], len(whole), pad=model.vocabulary.pad, frame_tokens=1))
    structure, params = model.decoder
    places = jnp.arange(len(prompt) - 1, len(whole) - 1)
    expected, hidden = looks(structure.model(params), batch, places, jnp.float32)
    np.testing.assert_allclose(array(found["attention"]), expected.positions, atol=1e-4)
    np.testing.assert_allclose(array(found["images"]), expected.images, atol=1e-4)
    # From these positions the answer's ids were predicted: they are the likeliest ids of text there.
    logits = np.asarray(structure.model(params).logits(hidden[0, places]))[:, : len(model.vocabulary.range("text"))]
    picked = np.take_along_axis(logits, np.array(ids)[:, None], axis=1)[:, 0]
    assert (picked >= logits.max(axis=1) - 1e-3).mean() > 0.9

    assert [gate["attention"] for gate in found["gates"]] == pytest.approx(
        [np.tanh(1.0)] * len(found["gates"]), abs=1e-6
    )
    assert found["inline"] == [[place] for place in np.flatnonzero(whole.modality == Modality.FRAME)]
    (row,) = found["sequence"]["rows"]
    assert len(row["cells"]) == len(whole) and row["cells"][3]["sees"] == [[0, 4]]


def test_what_cannot_be_looked_into_is_told(port: int) -> None:
    hello = [{"role": "user", "content": "push"}]
    for body, param in (
        ({"answer": []}, "answer"),
        ({"answer": [1] * (IDS + 1)}, "answer"),
        ({"answer": [-1]}, "answer"),
        ({"answer": [1.5]}, "answer"),
        ({"answer": [True]}, "answer"),
        ({"answer": [10**9]}, "answer"),
        ({}, "answer"),
        ({"answer": [1], "stream": True}, "stream"),
        ({"answer": [1], "messages": []}, "messages"),
        ({"answer": [1] * IDS, "messages": [{"role": "user", "content": "push the " * 30}]}, "messages"),
    ):
        status, found = asked(port, INSPECT, {"model": "debug", "messages": hello} | body)
        assert (status, found["error"]["param"]) == (400, param), body
    assert asked(port, INSPECT, {"model": "other", "messages": hello, "answer": [1]})[0] == 404


def test_without_the_option_there_is_no_such_route(make_model: Callable[..., Any]) -> None:
    with running(make_model("frame+encoder"), sessions=0) as (_, port):
        assert asked(port, INSPECT, {})[0] == 404
        assert asked(port, "/v1/playground")[1]["inspects"] is False


@pytest.mark.slow
def test_projected_images_are_positions_of_the_sequence() -> None:
    name = "gemma3"
    folder = FIXTURES / "images" / name
    model, image = Generalist.load(folder), np.load(folder / "expected.npz")["image0"]
    messages = [user(image, "a photo of")]
    with running(model, inspect=True, sessions=0, name=name) as (_, port):
        body = {"model": name, "messages": messages, "temperature": 0, "max_tokens": 4, "logprobs": True}
        content = asked(port, "/v1/chat/completions", body)[1]["choices"][0]["logprobs"]["content"]
        ids = [token["id"] for token in content]
        compiled = metric(port, "compilations_after_ready")
        status, found = asked(port, INSPECT, {"model": name, "messages": messages, "answer": ids})
        assert status == 200, found
        assert metric(port, "compilations_after_ready") == compiled
    prompt = Prompter(model).sequence([Message("user", [image, "a photo of"])])
    whole = model.assembler.concatenate([prompt, model.assembler.text(np.array(ids, np.int32), bos=False, eos=False)])
    batch = model.on_device(stack_rows([whole], len(whole), pad=model.vocabulary.pad))
    structure, params = model.decoder
    places = jnp.arange(len(prompt) - 1, len(whole) - 1)
    expected, hidden = looks(structure.model(params), batch, places, jnp.float32)
    np.testing.assert_allclose(array(found["attention"]), expected.positions, atol=1e-4)
    count = model.config.model.vision.positions
    begin = int(np.flatnonzero(whole.modality == Modality.IMAGE)[0])
    assert found["inline"] == [list(range(begin, begin + count))]
    # From these positions the ids were written, with the image read in pieces of its own.
    logits = jnp.where(writable(model)[0], structure.model(params).logits(hidden[0, places]), -jnp.inf)
    logged = jax.nn.log_softmax(logits)[jnp.arange(len(ids)), jnp.array(ids)]
    np.testing.assert_allclose([token["logprob"] for token in content], logged, atol=1e-3)


def test_images_in_the_sequence_are_found_by_their_positions(make_model: Callable[..., Any]) -> None:
    for images, counts in (("patches", [9, 6]), ("frame", [1, 1]), ("encoder", [])):
        assembler = make_model(images).assembler
        one, other = np.zeros((48, 48, 3), np.uint8), np.zeros((32, 48, 3), np.uint8)
        sequence = assembler.document([one, "push", other, "red"], is_open=True)
        assert [len(places) for places in inline_images(sequence, 1)] == counts
