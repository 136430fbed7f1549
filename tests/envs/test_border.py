"""Random streams are apart, corrections are copies, other processes know the ids, and RLDS of other tools means what it says."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import tensorflow_datasets as tfds
from gymnasium import spaces

from generalist.data.episodes import EpisodeCache, EpisodeReader
from generalist.envs.border import Border
from generalist.envs.corrections import Corrected
from generalist.envs.custom import join_demonstrations, own_tasks, record_demonstrations
from generalist.envs.custom_task import bare_id
from generalist.envs.registered import importable_id
from generalist.envs.task import Policy, Task, random_actions, stream
from generalist.envs.watching import chance

ROOT = Path(__file__).parents[2]


class Coin(gym.Env):
    """Whoever names the next side of the coin wins; it is drawn from the environment's own stream."""

    observation_space, action_space = spaces.Discrete(2), spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.coin, self.t = self.np_random.integers(2), 0
        return self.coin, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        won, self.t = float(action == self.coin), self.t + 1
        self.coin = self.np_random.integers(2)
        return self.coin, won, False, self.t >= 10, {}


class Pushed(gym.Env):
    """Its state is one array that it changes, and it counts the steps in it."""

    observation_space, action_space = spaces.Box(-99, 99, (1,), np.float32), spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.state, self.info = np.zeros(1, np.float32), {"instruction": "push", "steps": 0}
        return self.state, self.info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.state += 1
        self.info["steps"] += 1
        action[:] = 0
        return self.state, 1.0, False, False, self.info


class PushTask(Task):
    """Pushed, with an expert that answers with one array that it changes."""

    def build(self) -> gym.Env:
        return Pushed()

    def expert(self, env: gym.Env, rng: np.random.Generator) -> Policy:
        answer = np.zeros(1, np.float32)

        def act(observation: np.ndarray) -> np.ndarray:
            answer[:] = observation / 10
            observation[:] = 50
            return answer

        return act


PUSH = PushTask(
    **{"name": "classic/push", "suite": "classic", "layout": "classic/push", "instruction": "push", "max_steps": 4},
    **{"record_steps": 4, "episodes": 1, "seconds": 1.0, "noise": 0.0},
)


@pytest.fixture
def registered() -> Iterator[Callable[[str, type], str]]:
    ids = []

    def register(id: str, env: type) -> str:
        gym.register(id, env, max_episode_steps=10)
        ids.append(id)
        return id

    yield register
    for id in ids:
        gym.registry.pop(id)


def test_chance_does_not_know_what_the_environment_draws(
    tmp_path: Path, registered: Callable, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Coin, "__module__", "__main__")
    id = registered("Coin-v0", Coin)
    task = record_demonstrations(id, int, folder=tmp_path / "coin", episodes=2, instruction="guess", noise=0.5)
    assert task.expert_score == 10 and 4 < task.random_score < 6
    noisy = EpisodeReader(task.folder, EpisodeCache(1))
    assert [len(noisy[index]) for index in range(2)] == [10, 10]
    env = task.make()
    wins = []
    for seed in range(30):
        env.reset(seed=seed)
        policy = chance(task, env, "", seed)
        wins.append(sum(env.step(policy(None))[1] for _ in range(10)))
    assert 4 < np.mean(wins) < 6


def test_streams_of_one_seed_are_apart():
    own = np.random.default_rng(7).integers(2**31, size=8)
    drawn = [stream(7, purpose).integers(2**31, size=8) for purpose in ("actions", "expert", "noise", "corrections")]
    assert len({tuple(one) for one in [own, *drawn]}) == 5
    np.testing.assert_array_equal(stream(7, "noise").integers(9, size=4), stream(7, "noise").integers(9, size=4))
    space = spaces.Discrete(1000)
    first = [random_actions(space, 7)(None) for _ in range(3)]
    assert first == [random_actions(space, 7)(None) for _ in range(3)]


def test_corrections_are_copies(tmp_path: Path):
    (tmp_path / "work").mkdir()
    env = Corrected(PUSH.make(), PUSH, 0.0, tmp_path / "work")
    observation, _ = env.reset(seed=3)
    action = np.ones(1, np.float32)
    for step in range(4):
        assert observation == step
        action[:] = 0.1 * (step + 1)
        observation[:] = 77  # a player that writes into what it is shown
        observation, *_ = env.step(action)
        assert action == np.float32(0.1 * (step + 1))  # an environment that writes into what it is given
    (file,) = (tmp_path / "work").iterdir()
    from array_record.python.array_record_module import ArrayRecordReader

    from generalist.envs import rlds

    features = rlds.features((env.observation_space, env.action_space))
    steps = [*features.deserialize_example_np(ArrayRecordReader(str(file)).read_all()[0])["steps"]]
    assert [float(step["observation"][0]) for step in steps] == [0, 1, 2, 3]
    np.testing.assert_allclose([step["action"][0] for step in steps], [0, 0.1, 0.2, 0.3], rtol=1e-6)
    np.testing.assert_allclose([step["executed_action"][0] for step in steps], [0.1, 0.2, 0.3, 0.4], rtol=1e-6)


def test_infos_are_copies():
    env = Border(Pushed(), "own/x")
    infos = [env.reset(seed=0)[1], *(env.step(np.zeros(1, np.float32))[4] for _ in range(2))]
    assert [info["steps"] for info in infos] == [0, 1, 2]


@pytest.mark.parametrize(
    ("method", "value", "message"),
    [
        (
            "reset",
            (np.zeros(1), {"instruction": 3}),
            r'own/x: info\["instruction"\] of reset is 3: it must be a string',
        ),
        ("reset", np.zeros(1), r"own/x: reset\(\) must return an observation and a dictionary"),
        ("reset", (np.zeros(2), {}), r"own/x: the observation has shape \(2,\), but its space has \(1,\)"),
        ("step", (np.zeros(1), [1, 2], False, False, {}), r"own/x: the reward is \[1, 2\]: it must be one number"),
        ("step", (np.zeros(1), np.nan, False, False, {}), "own/x: the reward is nan: it must be finite"),
        ("step", (np.zeros(1), 1.0, None, False, {}), "own/x: terminated is None: it must be True or False"),
    ],
)
def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch, method: str, value: Any, message: str):
    env = Border(Pushed(), "own/x")
    env.reset(seed=0)
    monkeypatch.setattr(Pushed, method, lambda self, *given, **named: value)
    with pytest.raises(ValueError, match=message):
        env.reset() if method == "reset" else env.step(np.zeros(1))


RECORD = """
import sys, beacon
from generalist.envs.custom import record_demonstrations
policy = lambda seen: {"name": seen["lit"], "turn": [0, 0]}
record_demonstrations("Beacon-v0", policy, folder=sys.argv[1], episodes=1, instruction="name it")
"""


def test_the_module_that_registers_an_id_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Recorded where an import has registered it, made where nothing has."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests/fixtures"), os.environ.get("PYTHONPATH", "")])
    folder = tmp_path / "beacon"
    subprocess.run([sys.executable, "-c", RECORD, str(folder)], env=os.environ | {"PYTHONPATH": path}, check=True)
    (task,) = own_tasks([str(folder)])
    assert task.id == "beacon:Beacon-v0"
    (other,) = own_tasks([f"elsewhere:Beacon-v0={folder}"])
    assert other.id == "elsewhere:Beacon-v0" and bare_id(other.id) == "Beacon-v0"
    with pytest.raises(ValueError, match="was recorded in beacon:Beacon-v0, not in beacon:Bacon-v0"):
        own_tasks([f"beacon:Bacon-v0={folder}"])


def test_an_id_of_this_process_alone_is_noted(registered: Callable, capsys: pytest.CaptureFixture[str]):
    assert importable_id("CartPole-v1") == "CartPole-v1" and importable_id("Unknown-v0") == "Unknown-v0"
    assert importable_id("module:Id-v0") == "module:Id-v0" and capsys.readouterr().err == ""
    assert importable_id(registered("Coin-v0", Coin)) == "Coin-v0"
    assert "no module that can be imported registers Coin-v0" in capsys.readouterr().err


def another_tools(folder: Path, rewards: list[list[float]], split: str = "train", **spoilt: Any) -> Path:
    """RLDS as TFDS writes it: each episode ends with the final observation, whose action means nothing."""
    flag, number = tfds.features.Scalar(np.bool_), tfds.features.Scalar(np.float32)
    steps = {"observation": tfds.features.Scalar(np.int64), "action": tfds.features.Scalar(np.int64)}
    steps |= {"language_instruction": tfds.features.Text()}
    steps |= {"reward": number, "is_first": flag, "is_last": flag, "is_terminal": flag}

    with tfds.core.registered.skip_registration():

        class Tool(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self) -> tfds.core.DatasetInfo:
                fields = tfds.features.FeaturesDict({"steps": tfds.features.Dataset(steps)})
                return tfds.core.DatasetInfo(builder=self, features=fields)

            def _split_generators(self, _: Any) -> dict[str, Any]:
                return {name: self._generate_examples() for name in split.split("+")}

            def _generate_examples(self) -> Any:
                for episode, several in enumerate(rewards):
                    length = len(several)
                    yield episode, {"steps": [
                        {"observation": 1, "action": 1 if index < length else 0, "is_first": index == 0,
                         "reward": several[index] if index < length else 99.0, "is_last": index == length,
                         "language_instruction": f"guess {episode}", "is_terminal": index == length} | spoilt
                        for index in range(length + 1)
                    ]}  # fmt: skip

    Tool(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder / "tool" / "1.0.0"


def test_the_final_observation_is_no_decision(tmp_path: Path, registered: Callable, capsys: pytest.CaptureFixture[str]):
    id = registered("Coin-v0", Coin)
    folder = another_tools(tmp_path, [[1, 1, 1], [], [1]], split="validation")  # the only split is read
    task = join_demonstrations(id, folder, instruction="guess", random_score=0.0)
    assert task.expert_score == 2 and task.episodes == 2
    assert "1 of 3 episodes in" in capsys.readouterr().err
    reader = EpisodeReader(folder, EpisodeCache(1))
    assert sorted(reader.lengths) == [1, 3]
    assert all((reader[index].actions[""] == 1).all() for index in range(2))
    assert {reader[index].instruction for index in range(2)} == {"guess 0", "guess 2"}


@pytest.mark.parametrize(
    ("rewards", "how", "message"),
    [
        ([[1.0]], {"split": "test+validation"}, "has the splits test, validation, and none is called train"),
        ([[], []], {}, "has no episode with a decision in it"),
        ([[1.0]], {"observation": 2}, "episode 0, step 0: the observation is 2, outside 0..1"),
        ([[1.0]], {"action": 5}, "episode 0, step 0: the action is 5, outside 0..1"),
        ([[np.nan]], {}, "episode 0: the reward is nan"),
        ([[1.0, 1.0]], {"is_last": True}, "is_last marks step 0 of 3: store one episode per record"),
        ([[1.0]], {"language_instruction": b"\xe9"}, "episode 0: its language_instruction is no UTF-8 text"),
        ([[-1.0]], {}, "score -1, no more than uniformly random actions"),
    ],
)
def test_other_data_that_does_not_fit_is_refused_when_it_joins(
    tmp_path: Path, registered: Callable, rewards: list[list[float]], how: dict[str, Any], message: str
):
    folder = another_tools(tmp_path, rewards, **how)
    with pytest.raises(ValueError, match=message):
        join_demonstrations(registered("Coin-v0", Coin), folder, random_score=0.0)
    assert not (folder / "task.json").exists()


def test_only_the_call_of_reset_is_blamed_on_its_parameters() -> None:
    class Old(Coin):
        def reset(self) -> Any:  # of old gym
            return 0

    class Mistaken(Coin):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return np.zeros(3, size=2)  # a mistake inside

    for wrapped in (Old(), gym.wrappers.OrderEnforcing(Old())):
        with pytest.raises(ValueError, match="coin: reset must take seed and options"):
            Border(wrapped, "coin").reset(seed=1)
    with pytest.raises(TypeError, match="'size'"):
        Border(Mistaken(), "coin").reset(seed=1)
