"""`/v1/images/generations`: images of a text are those that the weights draw alone, beside chats and agents."""

import base64
import concurrent.futures
import dataclasses
import http.client
import io
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from serving import asked, chat, running
from watched import metric

from generalist.client import RobotClient
from generalist.inference.drawing import draw_images
from generalist.inference.drawing_settings import DrawingSettings
from generalist.inference.generalist import Generalist
from generalist.model.transformer import create_separate
from generalist.serve.server import Server
from generalist.vision.autoencoder import AutoencoderConfig
from generalist.vision.image_tokenizer import ImageTokenizer, fresh_autoencoder

DRAW = "/v1/images/generations"
TINY = AutoencoderConfig(size=12, patch=4, levels=(3, 2, 4), width=16, blocks=1)
HELLO = [{"role": "user", "content": "push the red"}]


@pytest.fixture(scope="module")
def artist(make_model: Callable[..., Generalist]) -> Generalist:
    """Random weights with codes."""
    base = make_model()
    codes = ImageTokenizer(TINY, nnx.to_pure_dict(nnx.state(fresh_autoencoder(TINY, 0), nnx.Param)))
    config = dataclasses.replace(base.config, tokens=dataclasses.replace(base.config.tokens, image_codes=24))
    tokenizers = dataclasses.replace(base.tokenizers, config=config, codes=codes)
    graph, params = nnx.split(create_separate(tokenizers.model_spec(), 1), nnx.Param)
    params = jax.tree.map(lambda leaf: leaf * 1.5, nnx.to_pure_dict(params))
    return Generalist(tokenizers, graph, params, 0)


@pytest.fixture(scope="module")
def server(artist: Generalist) -> Iterator[tuple[Server, int]]:
    with running(artist, lanes=1) as found:
        yield found


def wish(text: str = "a red block", **settings: Any) -> dict[str, Any]:
    return {"model": "debug", "prompt": text} | settings


def images(found: Any) -> list[np.ndarray]:
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one["b64_json"])))) for one in found["data"]]


def test_images_are_those_of_the_weights_alone(server: tuple[Server, int], artist: Generalist) -> None:
    port = server[1]
    expected = draw_images(artist, ["push"] * 2, DrawingSettings(guidance=1.5, temperature=2.0, seed=7)).images
    assert not np.array_equal(*expected), "the images differ, or the test shows little"
    text = artist.prompt(["push the red"], tokens=30)
    before = metric(port, "compilations_after_ready")
    with RobotClient(f"ws://127.0.0.1:{port}", layout="classic/test") as robot:
        robot.reset()
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            drawing = pool.submit(asked, port, DRAW, wish("push", n=2, seed=7, guidance=1.5, temperature=2.0))
            writing = pool.submit(asked, port, "/v1/chat/completions", chat(HELLO, max_tokens=30))
            while not (drawing.done() and writing.done()):
                robot.act(np.ones(3, np.float32))
    status, found = drawing.result()
    assert status == 200 and found["size"] == "12x12" and found["output_format"] == "png"
    np.testing.assert_array_equal(images(found), expected)
    assert writing.result()[1]["choices"][0]["message"]["content"] == text
    assert metric(port, "compilations_after_ready") == before


def test_what_cannot_be_drawn_is_refused_by_name(server: tuple[Server, int]) -> None:
    for settings, message in (
        ({"prompt": ""}, "prompt: must be a text"),
        ({"prompt": 3}, "prompt: must be a text"),
        ({"prompt": "push " * 80}, "prompt: takes"),
        ({"prompt": "\ud800"}, "prompt: has a lone surrogate"),
        ({"n": 5}, "n: must be a whole number from 1 to 4"),
        ({"size": "1024x1024"}, "size: may be auto or 12x12"),
        ({"response_format": "url"}, "response_format: may be b64_json"),
        ({"guidance": 0.5}, "guidance: must be a number from 1 to 20"),
        ({"seed": -1}, "seed"),
        ({"quality": "high"}, "unknown field 'quality'"),
    ):
        status, found = asked(server[1], DRAW, wish() | settings)
        assert status == 400 and message in found["error"]["message"], found
    assert asked(server[1], DRAW, wish() | {"model": "other"})[0] == 404
    assert asked(server[1], DRAW)[0] == 405


def test_a_client_that_goes_ends_its_drawing(server: tuple[Server, int]) -> None:
    engine, port = server[0].engine, server[1]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", DRAW, json.dumps(wish(n=4)))
    connection.close()
    end = time.monotonic() + 20
    while engine.asides and time.monotonic() < end:
        time.sleep(0.01)
    assert not engine.asides
    assert asked(port, DRAW, wish())[0] == 200


def test_weights_without_codes_say_so(make_model: Callable[..., Generalist]) -> None:
    with running(make_model("frame"), lanes=1, sessions=0) as (_, port):
        status, found = asked(port, DRAW, wish())
        assert status == 400 and "have no image tokenizer, so they cannot draw" in found["error"]["message"]
        about = asked(port, "/v1/playground")[1]
        assert not about["draws"] and "docs/drawing.md" in about["no_drawing"]
