"""An evaluation that plays through a server gives the scores of one in process."""

import argparse
import contextlib
import dataclasses
import time
from pathlib import Path
from typing import Any, ClassVar

import jax
import pytest
from flax import nnx
from rich.console import Console
from serving import asked, running
from troubled import Troubled

from generalist import client
from generalist.cli import eval_served
from generalist.cli.eval_served import served
from generalist.client import ServerError
from generalist.config.presets import debug
from generalist.envs.registry import get
from generalist.eval.control import served as served_policy
from generalist.eval.control.lanes import evaluate_control
from generalist.eval.control.policies import ModelPolicy, Prompt
from generalist.eval.control.served import ServedPolicy
from generalist.inference.generalist import Generalist
from generalist.model.transformer import create_separate
from generalist.run.tokenizers import Tokenizers
from generalist.tokenizers.spaces import SpaceTokenizer, TaskLayout
from generalist.tokenizers.text import TextTokenizer

TASK = "classic/cartpole"


@pytest.fixture(scope="module")
def model() -> Generalist:
    """Random weights that know a task."""
    env = get(TASK).make()
    config = dataclasses.replace(debug())
    text = TextTokenizer.train(["push the red block to the left", "balance the pole"] * 20, 512)
    settings: dict[str, Any] = {"vocabulary": config.tokens.vocabulary(), "text": text}
    seen = SpaceTokenizer.from_space(env.observation_space, tensors="projected", **settings)
    layout = TaskLayout(get(TASK).layout, seen, SpaceTokenizer.from_space(env.action_space, **settings))
    env.close()
    width = seen.projection_size
    tokenizers = Tokenizers(config=config, text=text, layouts={layout.name: layout}, projection_width=width)
    graph, params = nnx.split(create_separate(tokenizers.model_spec(), 1), nnx.Param)
    return Generalist(tokenizers, graph, jax.tree.map(lambda leaf: leaf * 2.0, nnx.to_pure_dict(params)), 0)


@pytest.mark.slow
def test_episodes_through_the_server_are_those_in_process(
    model: Generalist, capsys: pytest.CaptureFixture[str]
) -> None:
    def in_process(layouts: list[str]) -> Any:
        return ModelPolicy(model, layouts, Prompt(), lambda task: pytest.fail("no demonstration is shown"))

    expected = evaluate_control(in_process, [get(TASK)], 4, workers=1, lanes=2)
    with running(model, sessions=2) as (_, port):
        server = f"ws://127.0.0.1:{port}"

        def through(layouts: list[str]) -> Any:
            return ServedPolicy(server, layouts)

        assert evaluate_control(through, [get(TASK)], 4, workers=1, lanes=2) == expected
        policy = through([get(TASK).layout] * 2)  # the group's policy has given its lanes back
        with pytest.raises(ServerError, match="all 2 lanes"):
            through([get(TASK).layout])
        policy.close()
        policy.close()
        end = time.monotonic() + 30
        while asked_sessions(port) and time.monotonic() < end:
            time.sleep(0.01)
        given = argparse.Namespace(server=server, tasks=[TASK], episodes=2, lanes=2, prompt="goal", seed=1_000_000)
        assert served(given, Console(width=200)) == 0
        assert f"{TASK}: " in capsys.readouterr().out
        given.tasks = ["babyai/GoTo"]
        with pytest.raises(ValueError, match="plays none of these tasks"):
            served(given, Console())


def asked_sessions(port: int) -> float:
    """Number of open sessions, as the metrics have it."""
    text = asked(port, "/metrics")[1]
    return float(next(line for line in text.splitlines() if line.startswith("generalist_sessions ")).split()[1])


def test_groups_of_one_shape_share_the_lanes_of_the_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A server with two lanes, and three groups, each of which needs both of them."""
    tasks = [Troubled(name=f"plain {layout}", layout=layout, folder=tmp_path) for layout in "abc"]
    opened: list[Any] = []

    class Robot(contextlib.AbstractContextManager[Any]):
        metadata: ClassVar[dict[str, Any]] = {"layouts": ["a", "b", "c"]}

        def __init__(self, server: str, layout: str = "", **settings: Any):
            if layout and len(opened) == 2:
                raise ServerError("all 2 lanes for steps of this shape are taken: try again later")
            if layout:
                opened.append(self)

        def reset(self, **begin: Any) -> None: ...
        def send(self, observation: Any) -> None: ...

        def receive(self) -> int:
            return 0

        def close(self) -> None:
            opened.remove(self)

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(client, "RobotClient", Robot)
    monkeypatch.setattr(served_policy, "RobotClient", Robot)
    monkeypatch.setattr(eval_served, "tasks", lambda patterns: tasks)
    monkeypatch.setattr(eval_served, "cores", lambda: 3)
    given = argparse.Namespace(server="ws://one", tasks=["*"], episodes=2, lanes=2, prompt="none", seed=1_000_000)
    assert eval_served.served(given, Console(width=200)) == 0
    assert not opened
