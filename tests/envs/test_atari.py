"""The Atari games: every one starts, experts are far above random, planning leaves no trace, and actions stick when asked."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest

from generalist.envs import registry
from generalist.envs.episodes import play_expert
from generalist.envs.suites.atari import AtariEnv
from generalist.envs.suites.atari_experts import RULES, column
from generalist.envs.suites.atari_planner import Plan, Planner

GAMES = registry.tasks("atari/*")
SHOTS = Planner(horizon=6, holds=(3,), actions=("FIRE", "RIGHTFIRE", "LEFTFIRE"), seconds=("FIRE",))


def total(policy, env: AtariEnv, steps: int, seed: int = 0) -> float:
    """The score of `steps` decisions."""
    env.reset(seed=seed)
    return sum(float(env.step(policy())[1]) for _ in range(steps))


def test_there_are_enough_games():
    assert len(GAMES) >= 17 and len(RULES) >= 13
    assert set(RULES) <= {task.game for task in GAMES}


@pytest.mark.parametrize("task", GAMES, ids=lambda task: task.game)
def test_every_game_starts_and_its_expert_acts(task):
    episode = play_expert(task, 0, noisy=True, max_steps=3)
    assert episode is not None and len(episode.actions) == 3
    assert all(0 <= action < 18 for action in episode.actions)


# Decisions after which uniformly random actions have at most `low` points and the game's expert at least `high`.
@pytest.mark.parametrize(
    ("game", "steps", "low", "high"),
    [("pong", 500, -5, -1), ("freeway", 300, 0, 2), ("bowling", 600, 10, 25), ("kaboom", 400, 10, 40)],
)
def test_experts_are_far_above_random_with_sticky_actions_as_well(game: str, steps: int, low: float, high: float):
    for sticky in (0.0, 0.25):
        env, rule, rng = AtariEnv(game, sticky=sticky), RULES[game](), np.random.default_rng(0)
        assert total(partial(rng.integers, env.action_space.n), env, steps) <= low
        assert total(lambda env=env, rule=rule: env.press(rule(env.memory)), env, steps) >= high


def test_planning_leaves_the_environment_as_it_was():
    played = []
    for planning in (True, False):
        env = AtariEnv("demon_attack")
        env.reset(seed=3)
        seen = []
        for step in range(40):
            if planning:
                Plan(SHOTS, env)()
            observation, reward, *_ = env.step(step % env.action_space.n)
            seen.append((observation.tobytes(), reward, tuple(env.memory), env.lives))
        played.append(seen)
    assert played[0] == played[1]


@pytest.mark.slow
def test_plans_are_the_same_again_and_score():
    def play(env: AtariEnv) -> tuple[list[int], float]:
        env.reset(seed=5)
        plan, chosen, score = Plan(SHOTS, env), [], 0.0
        for _ in range(80):
            chosen.append(plan())
            score += float(env.step(chosen[-1])[1])
        return chosen, score

    env = AtariEnv("space_invaders")
    first, score = play(env)
    assert play(env) == (first, score) and play(AtariEnv("space_invaders"))[0] == first
    assert score > 0


def test_a_plan_is_followed_only_while_all_goes_as_foreseen():
    env = AtariEnv("demon_attack")
    env.reset(seed=1)
    settings = Planner(horizon=6, holds=(3,), keep=6, actions=("RIGHTFIRE", "LEFTFIRE"))
    plan = Plan(settings, env)
    first = plan()
    left = list(plan._plan)
    env.step(first)
    assert plan() == left[0] and plan._plan == left[1:]
    env.step(env.press("LEFT" if env.names[left[0]].startswith("RIGHT") else "RIGHT"))
    plan()
    assert len(plan._plan) == settings.horizon - 1  # a new one


def test_sticky_actions_repeat_by_the_seed_alone():
    def play(sticky: float) -> list[bytes]:
        env = AtariEnv("freeway", sticky=sticky)
        env.reset(seed=2)
        return [env.step(step % 3)[0].tobytes() for step in range(60)]

    assert play(0.25) == play(0.25) != play(0.0)
    with pytest.raises(ValueError, match=r"sticky must be .* less than 1, got 1.5"):
        AtariEnv("freeway", sticky=1.5)


def test_noise_comes_in_bursts_of_one_held_action():
    task = registry.get("atari/breakout")
    space, rng = task.make().action_space, np.random.default_rng(0)
    disturb = task.disturbance(space, rng)
    executed = np.array([disturb(-1) for _ in range(4000)])  # -1 stands for the expert's action
    assert 0.05 < np.mean(executed != -1) < 0.25
    edges = np.flatnonzero(np.diff(np.concatenate([[-1], executed, [-1]])))
    runs = [(executed[start], end - start) for start, end in pairwise(edges)]
    noisy = [length for action, length in runs if action != -1]
    assert np.mean(noisy) > 2.5 and max(noisy) <= 12  # two bursts may meet
    assert np.median([length for action, length in runs if action == -1]) > 10


# Upper half: how much less, from −8 to 7; lower half: steps of 15.
@pytest.mark.parametrize(("byte", "place"), [(0x05, 75), (0xC5, 79), (0x36, 87), (0xF6, 91), (0x80, 8)])
def test_places_in_the_video_chips_form(byte: int, place: int):
    assert column(byte) == place
