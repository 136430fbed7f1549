"""The engine: every text is the one that its request gets alone, whatever is computed beside it. Nothing compiles after ready."""

import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import Mock

import gymnasium as gym
import numpy as np
import pytest

from generalist.inference.policy import ControlPolicy
from generalist.inference.sampling import Decoding
from generalist.inference.weights import Weights
from generalist.serve import sessions as sessions_module
from generalist.serve.answers import Answer, Ended, Failed, Written
from generalist.serve.chat_lanes import ChatLanes
from generalist.serve.compilations import Compilations
from generalist.serve.engine import FAILED, Engine, Full
from generalist.serve.metrics import Metrics
from generalist.serve.sessions import Pool, Refused, Step, pools
from generalist.serve.warm_up import warm_up
from generalist.tokenizers.sequence import Sequence

LAYOUT = "classic/test"
COMPILED = Compilations()


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (48, 40, 3)).astype(np.uint8)


@pytest.fixture(scope="module", params=["frame", "patches+encoder"])
def model(request: pytest.FixtureRequest, make_model: Callable[..., Any]) -> Any:
    return make_model(request.param)


@pytest.fixture(scope="module")
def engine(model: Any) -> Iterator[Engine]:
    chat = ChatLanes(model, 3, 4, (8, 32))
    agents = pools(model, [LAYOUT], 2, 32, 0.002)
    warm_up(model, chat, agents, lambda line: None)
    engine = Engine(model, chat, agents, Metrics(), queue=40)
    engine.start()
    yield engine
    assert engine.stop(30.0)


def ask(engine: Engine, parts: list[Any], text: int = 0, **decoding: Any) -> tuple[Answer, queue.Queue]:
    settings = Decoding(**decoding)
    sequence = engine.weights.assembler.document(parts, is_open=True)
    events: queue.Queue = queue.Queue()
    room = min(settings.tokens, engine.chat.context - len(sequence))
    return Answer(sequence, engine.chat.pieces(sequence), settings, room, events.put, text=text), events


def whole(events: queue.Queue) -> tuple[str, Ended]:
    text = ""
    while True:
        event = events.get(timeout=60)
        assert not isinstance(event, Failed), event
        if isinstance(event, Ended):
            return text, event
        text += event.text


def wishes(model: Any) -> list[tuple[list[Any], dict[str, Any]]]:
    """Prompts of many lengths, with and without images, with every way of choosing."""
    return [
        (["push the red"], {"tokens": 12}),
        ([image(1), "lift"], {"tokens": 9, "temperature": 1.0, "seed": 3}),
        (["push the red block to the left " * 3], {"tokens": 20, "temperature": 0.7, "top_k": 4, "seed": 1}),
        ([image(2), " red", image(3), " blue", image(4)], {"tokens": 7}),
        ([image(2), " red", image(3), " blue", image(5)], {"tokens": 7}),
        (["lift the blue block"], {"tokens": 16, "temperature": 2.0, "top_p": 0.8, "seed": 2**40}),
        (["push"], {"tokens": 30, "stop": ("e", "the")}),
    ]


@pytest.mark.slow
def test_every_text_is_the_one_that_it_gets_alone(engine: Engine, model: Any) -> None:
    expected = [model.prompt(parts, **decoding) for parts, decoding in wishes(model)]
    assert len(set(expected)) > 3, "the texts differ, or the test shows nothing"
    rng = np.random.default_rng(0)
    asked = [int(one) for one in rng.integers(0, len(expected), 24)]
    waiting = []
    for number in asked:
        parts, decoding = wishes(model)[number]
        answer, events = ask(engine, parts, **decoding)
        engine.submit([answer])
        waiting.append(events)
        time.sleep(float(rng.random()) * 0.02)
    assert [whole(events)[0] for events in waiting] == [expected[number] for number in asked]
    assert engine.chat.reused > 0, "prompts that begin alike share what was read"


@pytest.mark.slow
def test_choices_are_those_of_several_prompts(engine: Engine, model: Any) -> None:
    decoding = {"tokens": 8, "temperature": 1.5, "seed": 5}
    expected = model.prompt([["push the red"]] * 3, **decoding)
    asked = [ask(engine, ["push the red"], text=number, **decoding) for number in range(3)]
    engine.submit([answer for answer, _ in asked])
    assert [whole(events)[0] for _, events in asked] == expected


@pytest.mark.slow
def test_agents_act_as_alone_and_nothing_compiles(engine: Engine, model: Any) -> None:
    alone = ControlPolicy(model, [LAYOUT])
    observations = [one.astype(np.float32) for one in np.random.default_rng(4).normal(size=(12, 3))]
    alone.reset([0], ["push"], [7])
    expected = [alone.act([one])[0] for one in observations]
    for parts, decoding in wishes(model):  # their encoding alone may compile; the server's must not
        model.prompt(parts, **decoding)
    before = COMPILED.count
    sessions = [engine.open(LAYOUT) for _ in range(2)]
    with pytest.raises(Refused, match="all 2 lanes"):
        engine.open(LAYOUT)
    texts = []
    for parts, decoding in wishes(model):
        answer, events = ask(engine, parts, **decoding)
        engine.submit([answer])
        texts.append(events)

    def play(session: Any, found: list[Any]) -> None:
        for number, one in enumerate(observations):
            given: queue.Queue = queue.Queue()
            engine.step(Step(session, one, ("push", 7) if not number else None, given.put))
            found.append(given.get(timeout=60))

    found: list[list[Any]] = [[], []]
    threads = [threading.Thread(target=play, args=one) for one in zip(sessions, found, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for events in texts:
        whole(events)
    assert found == [expected, expected]
    assert COMPILED.count == before
    for session in sessions:
        engine.close(session)


def test_what_a_client_did_wrong_is_refused(engine: Engine) -> None:
    end = time.monotonic() + 30
    while engine.counts()["sessions"] and time.monotonic() < end:  # those of another test are just being closed
        time.sleep(0.01)
    session = engine.open(LAYOUT)
    given: queue.Queue = queue.Queue()
    with pytest.raises(ValueError, match=r"classic/test: the observation"):
        engine.step(Step(session, "none", None, given.put))
    with pytest.raises(Refused, match="positions"):
        engine.step(Step(session, np.zeros(3, np.float32), ("push " * 200, 0), given.put))
    engine.step(Step(session, np.zeros(3, np.float32), None, given.put))
    assert "send reset" in str(given.get(timeout=30))
    engine.step(Step(session, np.zeros(3, np.float32), ("", 0), given.put, deadline=time.monotonic() - 1))
    assert "deadline" in str(given.get(timeout=30))
    engine.close(session)
    with pytest.raises(Refused, match="no layout 'none'"):
        engine.open("none")


def test_texts_that_nobody_waits_for_are_dropped(engine: Engine) -> None:
    late, of_late = ask(engine, ["push"], tokens=40)
    late.deadline = time.monotonic() - 1
    gone, of_gone = ask(engine, ["push"], tokens=40)
    gone.cancelled = True
    engine.submit([late, gone])
    for events in (of_late, of_gone):
        event = events.get(timeout=30)
        while isinstance(event, Written):
            event = events.get(timeout=30)
        assert isinstance(event, Failed) and event.kind == "deadline"
    with pytest.raises(Full, match="wait already"):
        engine.submit([ask(engine, ["push"], tokens=2)[0] for _ in range(44)])  # 3 lanes, and 40 that may wait


def test_weights_are_exchanged_between_texts(engine: Engine, model: Any) -> None:

    import jax

    other = dataclasses.replace(model, params=jax.tree.map(lambda leaf: -leaf, model.params))
    session = engine.open(LAYOUT)
    given: queue.Queue = queue.Queue()
    engine.step(Step(session, np.zeros(3, np.float32), ("", 0), given.put))
    given.get(timeout=30)
    before = COMPILED.count
    engine.exchange(other)
    answer, events = ask(engine, [image(1), "push the red"], tokens=6)
    engine.submit([answer])
    text, _ = whole(events)
    engine.step(Step(session, np.zeros(3, np.float32), None, given.put))
    assert "weights were exchanged" in str(given.get(timeout=30))
    assert COMPILED.count == before
    assert text == other.prompt([image(1), "push the red"], tokens=6)
    engine.close(session)
    engine.exchange(model)


def test_what_fails_is_told_to_every_client_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that are just being computed, and a text that gets no lane; the engine goes on."""
    policy = Mock()
    policy.return_value.act.side_effect = FloatingPointError("no finite logits")
    monkeypatch.setattr(sessions_module, "ControlPolicy", policy)
    weights = Mock(spec=Weights)
    weights.step = 0
    pool = Pool(weights, [LAYOUT], 3, 32, 0.0)
    agents: list[queue.Queue] = [queue.Queue() for _ in range(2)]
    for given in agents:
        pool.waiting.append(Step(pool.open(LAYOUT), np.zeros(3, np.float32), (Mock(spec=Sequence), 0), given.put))
    chat = Mock(spec=ChatLanes, free=1, lanes=[], reused=0)
    chat.take.side_effect = FloatingPointError("no finite logits")
    engine = Engine(weights, chat, [pool], Metrics(), queue=4)
    events: queue.Queue = queue.Queue()
    engine.submit([Answer(Mock(spec=Sequence), [], Decoding(), 4, events.put)])
    engine.start()
    for given in agents:
        assert "the server failed on this observation" in str(given.get(timeout=30))
    assert events.get(timeout=30) == FAILED
    assert not pool.waiting and policy.return_value.reset.called
    assert engine.stop(30.0)


def test_weights_with_other_layouts_are_refused_before_anything_is_exchanged(make_model: Callable[..., Any]) -> None:
    """The same names, but other observations, or steps of another shape."""
    model = make_model("frame")
    pool = Mock(spec=Pool, layouts=[LAYOUT])
    engine = Engine(model, Mock(spec=ChatLanes, lanes=[]), [pool], Metrics(), queue=4)
    layout = model.layouts[LAYOUT]
    space = gym.spaces.Box(-1, 1, (3,))
    observation = dataclasses.replace(layout.observation, space=space)
    longer = dataclasses.replace(layout, acting=dataclasses.replace(layout.acting, steps=layout.acting.steps + 1))

    def with_layout(one: Any) -> Any:
        tokenizers = dataclasses.replace(model.tokenizers, layouts={LAYOUT: one})
        return dataclasses.replace(model, tokenizers=tokenizers)

    with pytest.raises(ValueError, match="other observations or actions in the layout classic/test: start the server"):
        engine.exchange(with_layout(dataclasses.replace(layout, observation=observation)))
    with pytest.raises(ValueError, match="steps of another shape in the layout classic/test: start the server"):
        engine.exchange(with_layout(longer))
    assert not engine._calls
    engine.exchange(with_layout(layout))
    assert engine._calls
