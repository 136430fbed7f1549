"""The server on a mesh of simulated devices, in int8 and with caches in 16 bits: as the same weights alone."""

import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from generalist.inference.generalist import Generalist
from generalist.inference.placing import parse_mesh
from generalist.inference.policy import ControlPolicy
from generalist.inference.sampling import Decoding
from generalist.serve.answers import Answer, Ended
from generalist.serve.chat_lanes import ChatLanes
from generalist.serve.compilations import Compilations
from generalist.serve.engine import Engine
from generalist.serve.metrics import Metrics
from generalist.serve.sessions import Step, pools
from generalist.serve.warm_up import warm_up

FIXTURES = Path(__file__).parent.parent / "fixtures"


def texts(model: Generalist, prompts: list[list[Any]], compiled: Compilations) -> list[str]:
    """What the engine writes after prompts, all at once and then again; nothing may be compiled after its warm-up."""
    lanes = ChatLanes(model, 3, 2, (8, 16))
    warm_up(model, lanes, [], lambda line: None)
    engine = Engine(model, lanes, [], Metrics(), queue=40)
    before = compiled.count
    waiting: list[queue.Queue] = []
    for parts in prompts * 2:
        sequence = model.assembler.document(parts, is_open=True)
        waiting.append(queue.Queue())
        engine.submit([Answer(sequence, lanes.pieces(sequence), Decoding(tokens=10), 10, waiting[-1].put)])
    engine.start()
    found = []
    for events in waiting:
        text = ""
        while not isinstance(event := events.get(timeout=60), Ended):
            text += event.text
        found.append(text)
    assert engine.stop(30.0) and compiled.count == before
    assert found[: len(prompts)] == found[len(prompts) :]
    return found[: len(prompts)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "places"),
    [
        ("language/mistral", {"mesh": "tensor=8", "weights_type": "int8", "cache_type": "bfloat16"}),
        ("images/gemma3", {"mesh": "data=4,tensor=2"}),
        ("gated/flamingo_mpt", {"mesh": "data=2,tensor=4"}),
    ],
)
def test_texts_on_a_mesh_are_those_of_one_device(folder: str, places: dict[str, str]) -> None:
    compiled = Compilations()
    stored = np.load(FIXTURES / folder / "expected.npz")
    prompts: list[list[Any]] = [["a photo of the red dog"], ["a photo of a cat and the red dog"]]
    if "image0" in stored or "image_0" in stored:
        prompts += [[stored["image0" if "image0" in stored else "image_0"], "a photo of"]]
    alone = Generalist.load(FIXTURES / folder, **{name: one for name, one in places.items() if name != "mesh"})
    expected = [alone.prompt(parts, tokens=10) for parts in prompts]
    assert texts(Generalist.load(FIXTURES / folder, **places), prompts, compiled) == expected


@pytest.mark.slow
def test_agents_and_texts_of_our_own_weights_on_a_mesh(make_model: Callable[..., Any], tmp_path: Path) -> None:
    alone = make_model("frame")
    alone.save(tmp_path / "model")
    model = Generalist.load(tmp_path / "model", mesh="tensor=8")
    assert model.placing.mesh == parse_mesh("tensor=8")
    prompts: list[list[Any]] = [["push the red"], ["lift the blue block to the left"]]
    assert texts(model, prompts, Compilations()) == [alone.prompt(parts, tokens=10) for parts in prompts]
    (pool,) = agents = pools(model, ["classic/test"], 2, 32, 0.002)
    lanes = ChatLanes(model, 1, 1, (8,))
    warm_up(model, lanes, agents, lambda line: None)
    observations = [np.random.default_rng(number).normal(size=3).astype(np.float32) for number in range(6)]
    policy = ControlPolicy(alone, ["classic/test"])
    policy.reset([0], ["push"], [7])
    expected = [policy.act([seen])[0] for seen in observations]
    compiled, given, session = Compilations(), list[Any](), pool.open("classic/test")
    for number, seen in enumerate(observations):
        pool.waiting.append(Step(session, seen, None if number else ("push", 7), given.append))
        pool.act()
    assert given == expected and compiled.count == 0
