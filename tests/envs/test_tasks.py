"""The tasks: what the list says, that a seed decides an episode, and that experts do what they are for."""

import pickle
import re
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from generalist.envs import registry
from generalist.envs.episodes import play_expert
from generalist.envs.reference import with_tables
from generalist.envs.task import EVALUATION_SEED, MissingExtra
from generalist.system.time_limit import time_limit

ONE_A_SUITE = (
    *("metaworld/reach", "babyai/GoToObj", "atari/freeway", "classic/lunar-lander", "classic/reacher"),
    *("fetch/push", "fetch/pick-and-place"),
)
EXPERTS = (
    *("metaworld/reach", "babyai/GoToObj", "babyai/KeyCorridorS3R1", "classic/cartpole", "classic/lunar-lander"),
    *("classic/swimmer", "classic/hopper", "fetch/reach", "fetch/push", "fetch/pick-and-place"),
)
PAGE = Path(__file__).parents[2] / "docs" / "tasks.md"


def test_the_suites_are_complete():
    names = [task.name for task in registry.tasks()]
    assert registry.suites() == ["atari", "babyai", "classic", "fetch", "metaworld"]
    count = {suite: sum(name.startswith(suite) for name in names) for suite in registry.suites()}
    assert count["metaworld"] == 50 and count["babyai"] == 84 and count["atari"] >= 7 and count["classic"] == 13
    assert count["fetch"] == 3
    games = {"pong", "breakout", "freeway", "boxing", "skiing", "asterix", "gopher"}
    assert {f"atari/{game}" for game in games} <= set(names)


def test_every_task_has_an_instruction_and_measured_scores():
    for task in registry.tasks():
        assert task.instruction
        assert task.expert_score > task.random_score, task.name
        assert task.scored_episodes >= 10, task.name
        assert task.normalized(task.expert_score) == pytest.approx(100) and task.normalized(task.random_score) == 0
    ours = [task.instruction for task in registry.tasks(["metaworld/*", "classic/*", "atari/*", "fetch/*"])]
    assert len(ours) == len(set(ours))  # a policy must be able to tell them apart


def test_the_page_has_the_measured_scores():
    page = PAGE.read_text(encoding="utf-8")
    assert with_tables(page) == page, "run benchmarks/reference_scores.py --table"
    with pytest.raises(ValueError, match="no table of fetch"):
        with_tables(page.replace("<!-- table of fetch -->", ""))


def test_an_expert_whose_plan_fails_gives_up(monkeypatch: pytest.MonkeyPatch):
    from minigrid.utils.baby_ai_bot import BabyAIBot

    def confused(self: BabyAIBot, action: int | None) -> int:
        raise TypeError("'NoneType' object is not iterable")

    monkeypatch.setattr(BabyAIBot, "replan", confused)
    assert play_expert(registry.get("babyai/GoToObj"), EVALUATION_SEED, noisy=False, max_steps=8) is None


def test_an_equal_world_is_the_same_grid_in_other_colours():
    from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX

    task = registry.get("babyai/PutNextLocal")
    env, told = task.make(), set()

    def places(seen: np.ndarray, name: str) -> np.ndarray:
        colour, kind = name.split()
        cells = seen[:-1].reshape(49, 3)
        return (cells[:, 0] == OBJECT_TO_IDX[kind]) & (cells[:, 1] == COLOR_TO_IDX[colour])

    for seed in range(20):
        seen, info = env.reset(seed=seed)
        world = task.recast(np.random.default_rng(seed))
        instruction, other = world.instruction(info["instruction"]), world.observations({"": seen[None]})[""][0]
        things = [re.findall(r"(\w+ (?:ball|box|key))", text) for text in (info["instruction"], instruction)]
        assert len(things[0]) == len(things[1]) == 2
        for before, after in zip(*things, strict=True):
            np.testing.assert_array_equal(places(seen, before), places(other, after))
            told.add((before.split()[0], after.split()[0]))
        walls = seen[:-1].reshape(49, 3)[:, 0] < OBJECT_TO_IDX["door"]
        np.testing.assert_array_equal(other[:-1].reshape(49, 3)[walls], seen[:-1].reshape(49, 3)[walls])
        np.testing.assert_array_equal(other[[*range(0, 147, 3), *range(2, 147, 3), 147]],
                                      seen[[*range(0, 147, 3), *range(2, 147, 3), 147]])  # fmt: skip
    assert len(told) > 10
    with pytest.raises(NotImplementedError, match="atari/pong"):
        registry.get("atari/pong").recast(np.random.default_rng(0))


def test_a_grid_without_a_place_for_the_agent_is_drawn_anew():
    env = registry.get("babyai/SynthS5R2").make()
    with time_limit(20):
        first, info = env.reset(seed=720_137)  # minigrid alone seeks for ever here
    assert info["instruction"]
    np.testing.assert_array_equal(env.reset(seed=720_137)[0], first)


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(ValueError, match="did you mean 'atari/breakout'"):
        registry.get("atari/braekout")
    with pytest.raises(ValueError, match="no task matches 'chess/"):
        registry.tasks("chess/*")


@pytest.mark.parametrize("name", ONE_A_SUITE)
def test_a_seed_decides_the_episode(name: str):
    env = registry.get(name).make()

    def flat(observation: object) -> np.ndarray:
        return gym.spaces.flatten(env.observation_space, observation)

    def play(seed: int) -> list[np.ndarray]:
        observation, info = env.reset(seed=seed)
        assert isinstance(info["instruction"], str) and env.observation_space.contains(observation)
        seen = [flat(observation)]
        for _ in range(5):
            observation, *_ = env.step(env.action_space.sample() * 0)
            seen.append(flat(observation))
        return seen

    first, second, again = play(1), play(EVALUATION_SEED), play(1)
    assert any(not np.array_equal(one, other) for one, other in zip(first, second, strict=True))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    env.close()


@pytest.mark.parametrize("name", EXPERTS)
def test_the_expert_is_far_above_random(name: str):
    task = registry.get(name)
    episode = play_expert(task, EVALUATION_SEED, noisy=False, max_steps=task.max_steps)
    assert episode is not None
    assert task.normalized(episode.score) > 60
    noisy = play_expert(task, EVALUATION_SEED, noisy=True, max_steps=20)
    assert noisy is not None
    assert any(not np.array_equal(a, b) for a, b in zip(noisy.actions, noisy.executed, strict=True)) or task.noise < 0.2


def test_a_missing_package_is_one_line_with_the_remedy(monkeypatch: pytest.MonkeyPatch):
    import sys

    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(MissingExtra, match=r"pip install 'generalist\[atari\]'.*--data.atari.weight 0") as error:
        registry.get("atari/pong").make()
    assert "\n" not in str(error.value)
    again = pickle.loads(pickle.dumps(error.value))  # as a worker's error comes
    assert str(again) == str(error.value) and again.name == error.value.name and isinstance(again, MissingExtra)
