"""An environment of one's own, from its id to its score; and what can be wrong with it, said before anything is computed."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from generalist.cli.main import main
from generalist.config.plain import from_plain, plain
from generalist.config.presets import debug
from generalist.config.run import Config
from generalist.data.episodes import EpisodeCache, EpisodeReader
from generalist.data.sources.custom import Custom
from generalist.envs.custom import (
    Demonstration,
    join_demonstrations,
    own_tasks,
    record_demonstrations,
    save_demonstrations,
)
from generalist.eval.control.agents import Demonstrations, parse_agent, play
from generalist.experiment.beforehand import check
from generalist.inference.generalist import Generalist
from generalist.inference.policy import ControlPolicy
from generalist.run.named_weights import run_settings

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
NO_OTHERS = "--data.only own"


@pytest.fixture(autouse=True)
def beacon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The module `beacon` is importable, here and in the processes started from here."""
    monkeypatch.syspath_prepend(str(FIXTURES))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FIXTURES), os.environ.get("PYTHONPATH", "")]))
    yield
    for id in ("Beacon-v0", "Endless-v0", "Talker-v0"):
        gym.registry.pop(id, None)
    sys.modules.pop("beacon", None)


def name_it(observation: dict[str, Any]) -> dict[str, Any]:
    """The best policy; plain Python numbers, as a user would write them."""
    return {"name": int(observation["lit"]), "turn": [0.5, -0.5]}


def record(folder: Path, episodes: int = 4, **settings: Any) -> Any:
    told = {"instruction": "name the lit beacon", "folder": folder} | settings
    return record_demonstrations("beacon:Beacon-v0", name_it, episodes=episodes, **told)


def config(tmp_path: Path, *demonstrations: object) -> Config:
    """A run of nothing but environments of one's own."""
    base = debug()
    own = Custom(demonstrations=tuple(map(str, demonstrations)))
    data = dataclasses.replace(base.data.with_sources(own=own), only=("own", "emoji", "prose"))
    return dataclasses.replace(base, runs=tmp_path, data=data)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which beacons were recorded, and trained on and evaluated by the command line."""
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FIXTURES))
        record(folder / "demos" / "beacon", 30, noise=0.2)
    steps = "--training.steps 60 --data.own.demonstrations demos/beacon --data.own.evaluation-episodes 4"
    command = [sys.executable, str(ROOT / "train.py"), "debug", *NO_OTHERS.split(), *steps.split()]
    path = os.pathsep.join([str(FIXTURES), os.environ.get("PYTHONPATH", "")])
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"  # the last one counts
    one_device = os.environ | {"PYTHONPATH": path, "XLA_FLAGS": flags}
    done = subprocess.run(command, cwd=folder, env=one_device, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def test_recorded_trained_and_evaluated(trained: Path):
    results = json.loads((trained / "runs/debug/results.json").read_text())
    assert results["failed"] == {} and set(results["control"]) == {"own"}
    task = results["control"]["own"]["tasks"]["own/beacon"]
    assert task["expert_score"] == 10.0 and 2 < task["random_score"] < 5
    assert [episode["seed"] for episode in task["episodes"]] == [1_000_000 + index for index in range(4)]
    assert task["percent"]["value"] > 60


def test_weights_act_where_there_are_no_demonstrations(trained: Path, tmp_path: Path):
    stored = run_settings(trained / "runs/debug")
    assert stored.data.sources["own"].demonstrations == ("demos/beacon",)
    Generalist.from_run(stored).save(tmp_path / "model")
    weights = Generalist.load(tmp_path / "model")  # the folder demos/beacon is not here
    assert not Path("demos/beacon").exists()
    env, policy = gym.make("beacon:Beacon-v0"), ControlPolicy(weights, ["own/beacon"])
    observation, _ = env.reset(seed=1_000_000)
    policy.reset([0], ["name the lit beacon"], [1_000_000])
    assert env.action_space.contains(policy.act([observation])[0])


def test_demonstrations_serve_prompts_and_the_nearest_neighbour(trained: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(trained)
    stored = run_settings(Path("runs/debug"))
    weights, (task,) = Generalist.from_run(stored), own_tasks(stored.data.sources["own"].demonstrations)
    demonstrations = Demonstrations(weights)
    demonstrations.ensure([task], 1, Console(quiet=True))
    played, _ = play(weights, parse_agent("nearest"), [task], 1, demonstrations, workers=1)
    assert played[0].score > 8  # the lit beacon is in every observation


def test_it_is_played_by_the_weights_that_know_it(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(trained)
    video = tmp_path / "beacon.gif"
    command = ["play", "own/beacon", "--run", "debug", "--video", str(video)]
    assert main(command) == 0
    with Image.open(video) as film:
        assert film.n_frames == 11  # the start and ten steps
    assert "own/beacon: name the lit beacon" in capsys.readouterr().out
    assert main([command[0], "own/other", *command[2:]]) == 1
    assert "the weights know no environment 'own/other'; your own environments that they know: own/beacon" in _line(
        capsys
    )
    assert main(["play", "own/beacon", "--random", "--video", str(video)]) == 1
    assert (
        "is known only to the weights that were trained on it: name them with --run or --weights, and leave"
        in _line(capsys)
    )


def _line(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed, as one line."""
    return " ".join(capsys.readouterr().out.split())


def test_every_value_comes_back(tmp_path: Path):
    task = record(tmp_path / "beacon")
    reader, env = EpisodeReader(task.folder, EpisodeCache(1)), task.make()
    assert len(reader) == 4 and [*reader.lengths] == [10] * 4
    observation, info = env.reset(seed=2)
    assert reader[2].instruction == info["instruction"] == "name the lit beacon"
    observations, actions = reader[2].window(0, 10)
    for step in range(10):
        np.testing.assert_array_equal(observations["camera"][step], observation["camera"])
        np.testing.assert_array_equal(observations["wind"][step], observation["wind"])
        np.testing.assert_array_equal(observations["odd/0"][step], observation["odd"][0])
        np.testing.assert_array_equal(observations["odd/1"][step], observation["odd"][1])
        assert observations["lit"][step] == observation["lit"] == actions["name"][step]
        np.testing.assert_array_equal(actions["turn"][step], np.float32([0.5, -0.5]))
        observation, *_ = env.step(name_it(observation) | {"turn": np.float32([0.5, -0.5])})


def test_episodes_of_somebody_else_are_saved(tmp_path: Path):
    env, played = gym.make("beacon:Beacon-v0"), []
    for seed in range(3):
        observations, actions, rewards = [env.reset(seed=seed)[0]], [], []
        for _ in range(10):
            actions.append(name_it(observations[-1]) | {"turn": np.zeros(2, np.float32)})
            observation, reward, *_ = env.step(actions[-1])
            observations.append(observation)
            rewards.append(float(reward))
        played.append(Demonstration(observations=observations, actions=actions, rewards=rewards))
    task = save_demonstrations("beacon:Beacon-v0", played, folder=tmp_path / "played", instruction="name it")
    assert own_tasks([str(task.folder)]) == [task] and task.expert_score == 10
    assert [*EpisodeReader(task.folder, EpisodeCache(1)).lengths] == [10] * 3
    short = dataclasses.replace(played[0], rewards=[1.0])
    with pytest.raises(ValueError, match="demonstration 0 has 11 observations, 10 actions and 1 rewards"):
        save_demonstrations("beacon:Beacon-v0", [short], folder=tmp_path / "short", instruction="name it")


def test_what_another_tool_recorded_joins_by_its_id(tmp_path: Path):
    folder = record(tmp_path / "tool" / "1.0.0").folder
    for ours in ("task.json", "metadata.json"):
        (folder / ours).unlink()
    with pytest.raises(ValueError, match=f"does not say which environment it is of: give it as ID={folder}"):
        own_tasks([str(folder)])
    with pytest.raises(
        ValueError, match="has nothing as the observation part '', but the environment has real numbers of shape .4,."
    ):
        join_demonstrations("CartPole-v1", folder)
    (task,) = own_tasks([f"beacon:Beacon-v0={folder}"])
    assert (task.name, task.instruction, task.max_steps) == ("own/tool", "beacon:Beacon-v0", 10)
    assert task.expert_score == 10 and 2 < task.random_score < 5
    assert own_tasks([str(folder)]) == [task]
    with pytest.raises(ValueError, match="was recorded in beacon:Beacon-v0, not in CartPole-v1"):
        own_tasks([f"CartPole-v1={folder}"])


def edit(folder: Path, **changes: Any) -> Path:
    """Other words in task.json."""
    path = folder / "task.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "nowhere:Beacon-v0"}, "needs a module that can't be imported.*nowhere.*PYTHONPATH"),
        ({"id": "Beaker-v0"}, "Gymnasium can't make the environment Beaker-v0.*check the id"),
        ({"id": "beacon:Beacn-v0"}, "Did you mean: `Beacon`.*check the id"),
        ({"arguments": {"colour": 1}}, "does not take the arguments .'colour': 1"),
        ({"arguments": {"beacons": 4}}, "was recorded with the action space .*but beacon:Beacon-v0 now has"),
        ({"max_steps": "many"}, "task.json is damaged"),
        ({"format": 2, "max_steps": "many"}, r"task\.json has format 2, but .*: update the package"),
    ],
)
def test_an_environment_that_does_not_fit_is_said_before_anything(tmp_path: Path, changes: dict, message: str):
    folder = edit(record(tmp_path / "beacon").folder, **changes)
    with pytest.raises(ValueError, match=message) as error:
        check(config(tmp_path, folder), Console(quiet=True))
    assert "\n" not in str(error.value)


def test_a_folder_without_demonstrations_is_said(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="nowhere holds no data set"):
        check(config(tmp_path, tmp_path / "nowhere"), Console(quiet=True))
    with pytest.raises(FileNotFoundError, match="nowhere holds no data set"):
        own_tasks([f"CartPole-v1={tmp_path / 'nowhere'}"])
    folder = record(tmp_path / "a" / "beacon").folder
    shutil.copytree(folder, tmp_path / "b" / "beacon")
    with pytest.raises(ValueError, match="would both be the task own/beacon: rename"):
        own_tasks([str(folder), str(tmp_path / "b" / "beacon")])
    with pytest.raises(ValueError, match=r"no task matches 'own/x\*': data.own.demonstrations has own/beacon"):
        own_tasks([str(folder)], "x*")
    with pytest.raises(ValueError, match=r"data.own.episodes = 3"):
        Custom(episodes=3)


@pytest.mark.parametrize(
    ("id", "policy", "message"),
    [
        ("beacon:Endless-v0", name_it, "has no limit of steps: .* max_steps="),
        ("beacon:Talker-v0", name_it, r"the observation space can't be learned: the part '1' is a Text.*info"),
        (
            "beacon:Beacon-v0",
            lambda seen: {"name": 7, "turn": [0, 0]},
            "own/x: the action part 'name' is 7, outside 1..3",
        ),
        (
            "beacon:Beacon-v0",
            lambda seen: {"name": 1 + seen["lit"] % 3, "turn": [0, 0]},
            "no more than uniformly random",
        ),
    ],
)
def test_what_can_t_be_recorded_leaves_nothing(tmp_path: Path, id: str, policy: Any, message: str):
    with pytest.raises(ValueError, match=message):
        record_demonstrations(id, policy, folder=tmp_path / "demos" / "x", episodes=2, instruction="try")
    assert not [*tmp_path.rglob("*.*")] and not (tmp_path / "demos" / "x").exists()


def test_demonstrations_are_replaced_only_when_asked_and_only_whole(tmp_path: Path):
    folder = record(tmp_path / "beacon").folder
    before = (folder / "task.json").read_text()
    with pytest.raises(FileExistsError, match="beacon exists already: .* replace=True"):
        record(folder)

    def breaks(observation: Any) -> Any:
        raise RuntimeError("the user's policy fails")

    with pytest.raises(RuntimeError, match="the user's policy fails"):
        record_demonstrations("beacon:Beacon-v0", breaks, folder=folder, episodes=2, instruction="", replace=True)
    assert (folder / "task.json").read_text() == before and [path.name for path in tmp_path.iterdir()] == ["beacon"]
    assert record(folder, 2, replace=True).episodes == 2
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="holds no demonstrations of ours"):
        record(tmp_path / "mine", replace=True)


KILLED = """
import os, sys
from generalist.data.sources.custom import Custom
from generalist.envs.custom import record_demonstrations
asked = []
def policy(observation):
    asked.append(observation)
    if len(asked) == 555: os.kill(os.getpid(), 9)
    return {"name": observation["lit"], "turn": [0, 0]}
record_demonstrations("beacon:Beacon-v0", policy, folder=sys.argv[1], episodes=90, instruction="name it")
"""


def test_a_killed_recording_is_not_taken_for_whole(tmp_path: Path):
    folder = tmp_path / "beacon"
    path = os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder)], env=os.environ | {"PYTHONPATH": path})
    assert killed.returncode == -9
    (left,) = tmp_path.iterdir()  # the first file is whole, the second was never written
    assert left.name.startswith(".beacon.recording.") and len([*left.iterdir()]) == 1
    for half in (folder, left):
        with pytest.raises(FileNotFoundError, match="holds no data set"):
            own_tasks([str(half)])
    record(folder)
    assert [one.name for one in tmp_path.iterdir()] == ["beacon"]


def test_noise_disturbs_what_is_done_not_what_is_recorded(tmp_path: Path):
    task = record(tmp_path / "beacon", 6, noise=1.0)
    assert task.expert_score == 10  # of the undisturbed episodes
    metadata = json.loads((task.folder / "metadata.json").read_text())
    assert metadata["noisy"] == [False, True] * 3
    assert all((score == 10) != noisy for score, noisy in zip(metadata["scores"], metadata["noisy"], strict=True))
    assert all(
        (reader := EpisodeReader(task.folder, EpisodeCache(1)))[1].actions["name"] == reader[1].observations["lit"]
    )


def test_settings_with_folders_are_written_and_read(tmp_path: Path):
    chosen = config(tmp_path, "a", "Id-v0=b")
    assert from_plain(Config, json.loads(json.dumps(plain(chosen)))) == chosen
    assert plain(chosen)["data"]["own"]["demonstrations"] == ["a", "Id-v0=b"]
    with pytest.raises(ValueError, match=re.escape("data.own.demonstrations[1] must be of type str, got 3")):
        from_plain(Config, plain(chosen) | {"data": {"own": {"demonstrations": ["a", 3]}}})


def test_what_appears_in_the_folder_meanwhile_stays(tmp_path: Path):
    def late(observation: dict[str, Any]) -> dict[str, Any]:
        (tmp_path / "late").mkdir(exist_ok=True)
        (tmp_path / "late" / "thesis.txt").write_text("x")
        return name_it(observation)

    with pytest.raises(FileExistsError, match="late exists already"):
        record_demonstrations("beacon:Beacon-v0", late, folder=tmp_path / "late", episodes=1, instruction="name it")
    assert [path.name for path in (tmp_path / "late").iterdir()] == ["thesis.txt"]
    with pytest.raises(FileExistsError, match="exists already"):
        record(tmp_path / "new" / "..")
    assert (tmp_path / "late" / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": None}, "the rewards are None: give a list"),
        ({"rewards": {0: 1.0}}, "the rewards are .0: 1.0.: give a list"),
        ({"rewards": [1e39] * 10}, "step 0: the reward is 1e.39: .* no larger than float32 holds"),
        (
            {"rewards": np.ma.masked_array(np.ones(10), np.eye(10)[0])},
            "step 0: the reward is .*: it must be one number",
        ),
        ({"terminated": "no"}, "terminated is 'no': it must be True or False"),
        ({"instruction": 5}, "the instruction must be a text, got 5"),
        ({"instruction": "half \ud800"}, "half a character at 5"),
    ],
)
def test_a_demonstration_that_does_not_fit_is_refused(tmp_path: Path, changes: dict, message: str):
    env = gym.make("beacon:Beacon-v0")
    seen = [env.reset(seed=index)[0] for index in range(10)]
    whole = Demonstration(observations=seen, actions=[*map(name_it, seen)], rewards=np.ones(10))
    with pytest.raises(ValueError, match=message) as error:
        save_demonstrations(
            "beacon:Beacon-v0", [dataclasses.replace(whole, **changes)], folder=tmp_path / "x", instruction="name it"
        )
    assert "\n" not in str(error.value) and not [*tmp_path.iterdir()]
    with pytest.raises(ValueError, match="has 10 decisions, but episodes of beacon:Beacon-v0 end after 5"):
        save_demonstrations("beacon:Beacon-v0", whole, folder=tmp_path / "x", instruction="name it", max_steps=5)
    with pytest.raises(ValueError, match="demonstrations must be Demonstration.*, got dict"):
        save_demonstrations("beacon:Beacon-v0", [{}], folder=tmp_path / "x", instruction="name it")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"instruction": 5}, "the instruction must be a text, got 5"),
        ({"max_steps": 2.5}, "max_steps must be a whole number of at least 1, got 2.5"),
        ({"noise": "a"}, "noise must be from 0 to 1, got a"),
        ({"episodes": 2.0}, "episodes must be a whole number from 1"),
        ({"arguments": {"told": (1, 2)}}, "arguments must be JSON values"),
        ({"arguments": {"told": float("nan")}}, "arguments must be JSON values"),
    ],
)
def test_arguments_of_a_recording_are_checked(tmp_path: Path, how: dict, message: str):
    with pytest.raises(ValueError, match=message):
        record_demonstrations(
            "beacon:Beacon-v0", name_it, **{"folder": tmp_path / "x", "episodes": 1, "instruction": "name it"} | how
        )
