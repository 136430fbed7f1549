"""Demonstrations before an episode, over the robot protocols and in the playground, lead to the actions that they lead to in
process."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from serving import asked, events, running
from watched import TASK, metric, with_task
from websockets.sync.client import connect

from generalist.client import RobotClient, ServerError
from generalist.client.codec import to_json
from generalist.envs.episodes import play_expert
from generalist.envs.registry import get
from generalist.eval.control.policies import Prompt, shown_steps
from generalist.inference.generalist import Generalist
from generalist.inference.policy import ControlPolicy
from generalist.serve.demonstrations import MOST

ROOM = 96
PLAY = "/v1/play"


@pytest.fixture(scope="module")
def model(make_model: Callable[..., Any]) -> Generalist:
    return with_task(make_model("frame"))


@pytest.fixture(scope="module")
def port(model: Generalist) -> Iterator[int]:
    with running(model, lanes=1, prefix=ROOM) as (_, port):
        yield port


@pytest.fixture(scope="module")
def episode() -> Any:
    return play_expert(get(TASK), 2, noisy=False, max_steps=12)


def observations(seed: int, count: int = 6) -> list[np.ndarray]:
    return [one.astype(np.float32) for one in np.random.default_rng(seed).normal(size=(count, 4))]


def in_process(model: Generalist, shown: list[Any], steps: int, prompt: str = "push") -> list[Any]:
    """The actions after the last steps of episodes."""
    layout, policy = model.layouts[TASK], ControlPolicy(model, [TASK])
    windows = [(layout.observation.stack(seen[-steps:]), layout.action.stack(acted[-steps:])) for seen, acted in shown]
    policy.reset([0], [model.assembler.prefix(layout, prompt, windows)], [0])
    return [policy.act([one])[0] for one in observations(1)]


def through(port: int, demonstration: Any, prompt: str = "push") -> tuple[list[Any], Any]:
    """The actions of the same episode by a server."""
    with RobotClient(f"ws://127.0.0.1:{port}", layout=TASK) as robot:
        robot.reset(prompt=prompt, demonstration=demonstration)
        return [robot.act(one) for one in observations(1)], robot


def logits_differ(model: Generalist, steps: int, episode: Any) -> bool:
    """Whether what is shown changes anything."""
    layout, found = model.layouts[TASK], []
    for count in (0, steps):
        policy = ControlPolicy(model, [TASK])
        window = (
            layout.observation.stack(episode.observations[-count:]),
            layout.action.stack(episode.actions[-count:]),
        )
        policy.reset([0], [model.assembler.prefix(layout, "push", [window] if count else [])], [0])
        policy.act([observations(1)[0]])
        found.append(np.asarray(policy.logits))
    return bool(np.abs(found[0] - found[1]).max() > 1e-3)


@pytest.mark.parametrize("goal", [True, False])
def test_a_clients_episode_leads_to_the_same_actions(port: int, model: Generalist, episode: Any, goal: bool) -> None:
    steps = shown_steps(model, model.layouts[TASK], "push", Prompt(1, goal=goal))
    expected = in_process(model, [(episode.observations, episode.actions)], min(steps, 12))
    assert logits_differ(model, steps, episode)
    before = metric(port, "compilations_after_ready")
    own = {"observations": np.stack(episode.observations), "actions": np.array(episode.actions), "goal": goal}
    assert through(port, own)[0] == expected
    assert metric(port, "compilations_after_ready") == before, "one program for any number of shown steps"
    with connect(f"ws://127.0.0.1:{port}/v1/realtime/robot/json?layout={TASK}") as socket:
        socket.recv()
        lists = {name: np.asarray(own[name]).tolist() for name in ("observations", "actions")} | {"goal": goal}
        socket.send(json.dumps({"reset": True, "prompt": "push", "demonstration": lists}))
        assert json.loads(socket.recv()) == {"reset": True, "demonstration_steps": [min(steps, 12)]}
        found = []
        for number, one in enumerate(observations(1)):
            socket.send(to_json({"observation": one}))
            answer = json.loads(socket.recv())
            assert ("demonstration_steps" in answer) == (not number)
            found.append(answer["actions"]["data"])
        socket.send(to_json({"observation": observations(1)[0], "reset": True}))
        assert "demonstration_steps" not in json.loads(socket.recv()), "it is of one episode"
    assert len(found) == len(expected)


def test_several_are_shown_one_after_the_other(port: int, model: Generalist, episode: Any) -> None:
    other = play_expert(get(TASK), 3, noisy=False, max_steps=7)
    assert other is not None
    shown = [(one.observations, one.actions) for one in (episode, other)]
    goal = model.layouts[TASK].acting.prompt_steps
    expected = in_process(model, shown, goal)
    sent = [{"observations": seen, "actions": acted, "goal": True} for seen, acted in shown]
    assert through(port, sent)[0] == expected


@pytest.mark.slow
def test_the_tasks_expert_plays_on_the_server(port: int, model: Generalist) -> None:
    task = get(TASK)
    played = play_expert(task, 5, noisy=False, max_steps=task.record_steps)
    assert played is not None
    steps = shown_steps(model, model.layouts[TASK], "push", Prompt(1, goal=True))
    expected = in_process(model, [(played.observations, played.actions)], steps)
    for _ in range(2):  # the second time from memory
        assert through(port, {"task": TASK, "seed": 5, "goal": True})[0] == expected
    for wrong, message in (
        ({"task": "metaworld/reach"}, "is no task of classic/cartpole"),
        ("babyai/GoTo", "there are classic/cartpole"),
        ({"task": TASK, "seed": -1}, "seed must be a whole number"),
        ({"task": TASK, "recorded": 0}, "no recorded episode"),
    ):
        with pytest.raises(ServerError, match=message):
            through(port, wrong)


def test_what_is_no_demonstration_is_refused_by_name(port: int, model: Generalist) -> None:
    seen, acted = [np.zeros(4)] * 3, [0, 1, 0]
    for wrong, message in (
        (3, "must be a map"),
        ({"observations": seen}, "actions are missing"),
        ({"observations": seen, "actions": acted, "rewards": acted}, "'rewards'"),
        ({"observations": seen, "actions": acted, "goal": 1}, "goal must be true or false"),
        ({"observations": seen, "actions": []}, "3 observations and 0 actions"),
        ({"observations": seen[:1], "actions": acted}, "1 observations and 3 actions"),
        ({"observations": [np.zeros(3)] * 3, "actions": acted}, "step 0: the observation"),
        ({"observations": [*seen[:2], np.full(4, np.nan)], "actions": acted}, "step 2: the observation"),
        ({"observations": seen, "actions": [0, 2, 0]}, "step 1: the action"),
        ({"observations": seen, "actions": "lef"}, "step 0: the action"),
        ([{"observations": seen, "actions": acted}] * (MOST + 1), "more than 8"),
    ):
        with pytest.raises(ServerError, match=message):
            through(port, wrong)
    long = {"observations": [np.zeros(4)] * 999, "actions": [0] * 999, "goal": True}
    with pytest.raises(ServerError, match=r"serve with --prefix \d+"):
        through(port, [long] * 8, prompt="push " * 10)


def test_it_is_watched_in_the_playground(port: int, model: Generalist) -> None:
    found = events(asked(port, PLAY, {"task": TASK, "seed": 5, "demonstration": "goal"})[1])
    shown = [one["demonstration"] for one in found if "demonstration" in one]
    assert shown[0]["step"] == 0 and shown[-1]["step"] == len(expert_actions()) and "picture" in shown[0]
    begin = next(one["begin"] for one in found if "begin" in one)
    assert begin["demonstration_steps"] == [model.layouts[TASK].acting.prompt_steps]
    assert found[-1]["score"] is not None
    status, wrong = asked(port, PLAY, {"task": TASK, "demonstration": "all"})
    assert status == 400 and "goal or whole" in wrong["error"]["message"]


def expert_actions() -> list[Any]:
    played = play_expert(get(TASK), 5, noisy=False, max_steps=get(TASK).record_steps)
    assert played is not None
    return played.actions
