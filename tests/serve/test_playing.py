"""`/v1/play`: an agent plays in the server's process and is watched."""

import base64
import io
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image
from serving import asked, events, running
from watched import TASK, metric, with_task

from generalist.envs.registry import get
from generalist.envs.task import EVALUATION_SEED
from generalist.eval.control.policies import player
from generalist.inference.generalist import Generalist
from generalist.serve.distribution import BINS, distribution
from generalist.serve.playing import EPISODES
from generalist.tokenizers.spaces import SpaceTokenizer, TaskLayout

PLAY = "/v1/play"


@pytest.fixture(scope="module")
def model(make_model: Callable[..., Any]) -> Generalist:
    return with_task(make_model("frame"))


@pytest.fixture(scope="module")
def port(model: Generalist) -> Iterator[int]:
    with running(model, lanes=1) as (_, port):
        yield port


@pytest.mark.slow
def test_the_agent_plays_as_in_process(port: int, model: Generalist) -> None:
    assert [task["name"] for task in asked(port, "/v1/playground")[1]["tasks"]] == [TASK]
    compiled = metric(port, "compilations_after_ready")
    status, text = asked(port, PLAY, {"task": TASK, "seed": 3})
    assert metric(port, "compilations_after_ready") == compiled
    begin, *moments = events(text)
    assert status == 200 and begin["begin"]["task"] == TASK and begin["begin"]["instruction"] == get(TASK).instruction

    task = get(TASK)
    env = task.make()
    seed = EVALUATION_SEED + 3
    observation, info = env.reset(seed=seed)
    policy = player(model, task)(task, env, info["instruction"], seed)
    actions, done = [], False
    while not done:
        actions.append(policy(observation))
        observation, _, terminated, truncated, _ = env.step(actions[-1])
        done = terminated or truncated
    env.close()
    assert moments[-1]["step"] == len(actions) == moments[-1]["reward"] == moments[-1]["score"]
    assert moments[0] | {"picture": ""} == {
        "step": 0, "reward": 0.0, "score": None, "percent": None, "picture": "", "action": None,
    }  # fmt: skip
    for moment in moments[1:]:
        (number,) = moment["action"]
        assert number["chosen"] == actions[moment["step"] - 1] == int(np.argmax(number["probabilities"]))
        assert (number["low"], number["high"], number["discrete"]) == ("0", "1", True)
        assert number["values"] == ["push left", "push right"]
        assert sum(number["probabilities"]) == pytest.approx(1, abs=1e-3)
    picture = Image.open(io.BytesIO(base64.b64decode(moments[-1]["picture"].partition(",")[2])))
    assert picture.format == "JPEG" and max(picture.size) <= 320 and np.ptp(np.asarray(picture)) > 50


@pytest.mark.slow
def test_few_play_at_a_time_and_one_that_is_left_ends(port: int) -> None:
    import http.client

    clients = []
    for seed in range(EPISODES):
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        client.request("POST", PLAY, json.dumps({"task": TASK, "seed": seed, "instruction": "fall"}))
        response = client.getresponse()
        assert b"fall" in response.readline()
        clients.append((client, response))
    status, found = asked(port, PLAY, {"task": TASK})
    assert status == 429 and "2 episodes are being played" in found["error"]["message"]
    for client, response in clients:
        response.close()
        client.close()
    until = time.monotonic() + 30
    while metric(port, "sessions"):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert asked(port, PLAY, {"task": TASK})[0] == 200


def test_what_cannot_be_played_is_told(port: int) -> None:
    for body, param in (
        ({}, "task"),
        ({"task": "classic/pendulum"}, "task"),
        ({"task": ["x"]}, "task"),
        ({"task": TASK, "seed": -1}, "seed"),
        ({"task": TASK, "seed": True}, "seed"),
        ({"task": TASK, "instruction": 3}, "instruction"),
        ({"task": TASK, "instruction": "x" * 501}, "instruction"),
        ({"task": TASK, "path": "x"}, "path"),
        ({"task": TASK, "demonstration": "all"}, "demonstration"),
    ):
        status, found = asked(port, PLAY, body)
        assert (status, found["error"]["param"]) == (400, param), body
    _, text = asked(port, PLAY, {"task": TASK, "instruction": "push " * 90})
    assert "an instruction may take 32" in text


def test_numbers_have_bars_of_neighbouring_bins(make_model: Callable[..., Any]) -> None:
    base = make_model("frame")
    settings = {"vocabulary": base.config.tokens.vocabulary(), "text": base.tokenizers.text}
    space = gym.spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([1.0, 4.0], np.float32))
    layout = TaskLayout(
        "classic/test", base.layouts["classic/test"].observation, SpaceTokenizer.from_space(space, **settings)
    )
    action = np.array([-1.0, 4.0], np.float32)
    first, end = layout.action.valid_ranges[0]
    logits = np.zeros((2, base.vocabulary.size), np.float32)
    found = distribution(layout, action, logits)
    assert [one["name"] for one in found] == ["action[0]", "action[1]"]
    named = distribution(layout, action, logits, ("thigh", "foot"))
    assert [one["name"] for one in named] == ["thigh", "foot"] and not any(one["values"] for one in named)
    for one in found:
        assert len(one["probabilities"]) <= BINS < end - first and not one["discrete"]
        assert sum(one["probabilities"]) == pytest.approx(1, abs=1e-2)
    assert found[0]["chosen"] == 0 and found[1]["chosen"] == len(found[1]["probabilities"]) - 1
