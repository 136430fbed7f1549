"""What a user's environment gives is what the model is given, in training and in acting alike; or a line says what is
wrong with it, and nothing is recorded."""

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from rich.console import Console

from generalist.config.presets import debug
from generalist.data.episodes import EpisodeCache, EpisodeReader
from generalist.data.sources.custom import Custom
from generalist.envs.custom import Demonstration, own_tasks, record_demonstrations, save_demonstrations
from generalist.experiment.beforehand import check
from generalist.experiment.layout_fit import fit_layout, losses, sample
from generalist.inference.policy import ControlPolicy
from generalist.tokenizers.parts import CLIP, DiscretePart, OneHotPart, TensorPart
from generalist.tokenizers.spaces import TaskLayout

STEPS, ANSWERS = 3, 9
QUICKLY = settings(
    deadline=None,
    max_examples=25,
    phases=(
        Phase.explicit,
        Phase.reuse,
        Phase.generate,
    ),  # an example takes a third of a second: shrinking would take minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


class Scripted(gym.Env):
    """Shows what is drawn from its observation space, in arrays that it goes on using; the right answer is worth 1."""

    def __init__(
        self, observation: gym.Space, action: gym.Space, spoil: Callable[[Any, int], Any] | None = None
    ) -> None:
        self.observation_space = observation
        self.action_space = spaces.Dict({"answer": spaces.Discrete(ANSWERS), "how": action})
        self._spoil = spoil

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._t, self._kept = 0, None
        return self._show(), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        reward = np.array([float(action["answer"] == self.answer)])  # as environments for numpy before 2.4 give it
        for array in arrays(action):
            array *= 0  # what it was given is its own
        self._t += 1
        return self._show(), reward, False, self._t >= STEPS, {}

    def _show(self) -> Any:
        self.answer = int(self.np_random.integers(ANSWERS))
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        self.shown = self.observation_space.sample()
        if self._spoil is not None:
            return self._spoil(self.shown, self._t)
        self._kept = overwritten(self._kept, self.shown)
        return self._kept


def arrays(value: Any) -> Iterator[np.ndarray]:
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, dict | tuple):
        for one in value.values() if isinstance(value, dict) else value:
            yield from arrays(one)


def overwritten(kept: Any, new: Any) -> Any:
    """The same arrays with new numbers in them."""
    if isinstance(new, np.ndarray):
        if kept is None:
            return np.array(new)
        kept[...] = new
        return kept
    if isinstance(new, dict):
        return {key: overwritten(None if kept is None else kept[key], one) for key, one in new.items()}
    if isinstance(new, tuple):
        return tuple(overwritten(None if kept is None else kept[at], one) for at, one in enumerate(new))
    return new


@pytest.fixture
def registered() -> Iterator[Callable[..., str]]:
    """Registers a `Scripted` environment; its id."""
    before = set(gym.registry)

    def register(*arguments: Any) -> str:
        def make() -> gym.Env:
            return Scripted(*arguments)

        make.__module__ = "__main__"  # no other process is asked whether it knows the id
        id = f"Scripted{len(gym.registry)}-v0"
        gym.register(id, make, max_episode_steps=STEPS)
        return id

    yield register
    for id in set(gym.registry) - before:
        gym.registry.pop(id)


def bounded(kind: Any, shape: tuple[int, ...], low: float, width: float) -> gym.Space:
    """A Box of a type whose numbers lie where that type can hold them."""
    if issubclass(kind, np.integer):
        least, most = int(np.iinfo(kind).min), int(np.iinfo(kind).max)
        start = min(max(least, round(low)), most - 1)
        return spaces.Box(start, min(most, start + 1 + round(width)), shape, kind)
    return spaces.Box(kind(low), kind(low + 1 + width), shape, kind)


KINDS = st.sampled_from([np.float32, np.float64, np.float16, np.int8, np.uint8, np.int16, np.uint16, np.int64])
BOXES = st.builds(
    bounded, KINDS, st.sampled_from([(), (1,), (3,), (2, 2)]), st.floats(-1000, 1000), st.floats(1, 60_000)
)
LEAVES = st.one_of(
    BOXES,
    st.builds(lambda shape: spaces.Box(-np.inf, np.inf, shape, np.float32), st.sampled_from([(2,), (2, 3)])),
    st.builds(lambda channels: spaces.Box(0, 255, (6, 5, channels), np.uint8), st.sampled_from([1, 3])),
    st.builds(spaces.Discrete, st.integers(1, 9), start=st.integers(-5, 5)),
    st.builds(spaces.MultiDiscrete, st.lists(st.integers(1, 5), min_size=1, max_size=3)),
    st.builds(spaces.MultiBinary, st.integers(1, 4)),
)
ACTIONS = st.one_of(
    BOXES, st.builds(spaces.Discrete, st.integers(1, 9)), st.builds(spaces.MultiBinary, st.integers(1, 3))
)


def nested(leaves: st.SearchStrategy) -> st.SearchStrategy:
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.builds(spaces.Dict, st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3)),
            st.builds(lambda parts: spaces.Tuple(parts), st.lists(inner, min_size=1, max_size=3)),
        ),
        max_leaves=4,
    )


def recorded(id: str, folder: Path) -> tuple[Any, list[Any], list[Any]]:
    """The task of two recorded episodes, with what was shown and what was done at each step."""
    shown, done = [], []
    env = gym.make(id, disable_env_checker=True).unwrapped
    rng = np.random.default_rng(0)

    def policy(observation: Any) -> Any:
        if env.shown is None or len(shown) % STEPS == 0:
            env.reset(seed=len(shown) // STEPS)
        shown.append(env.shown)
        env.action_space["how"].seed(int(rng.integers(2**31)))
        action = {"answer": env.answer, "how": env.action_space["how"].sample()}
        done.append({"answer": env.answer, "how": overwritten(None, action["how"])})
        env.step({"answer": env.answer, "how": overwritten(None, action["how"])})
        return action

    env.shown = None
    task = record_demonstrations(id, policy, folder=folder / "x", episodes=2, instruction="answer", max_steps=STEPS)
    return task, shown, done


def layout_of(task: Any, reader: EpisodeReader, env: gym.Env) -> tuple[TaskLayout, Any]:
    found = sample([reader], env.observation_space, env.action_space, debug().model.frame_size)
    layout = fit_layout(debug(), task.layout, env.observation_space, env.action_space, 0, None, found)
    return layout, found


def given_to_the_model(layout: TaskLayout, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What numbers the parts' pieces stand for, by key; images are left out."""
    numbers = {}
    for part in layout.observation.parts:
        payload = part.encode(values[part.key]).payload if isinstance(part, TensorPart | OneHotPart) else None
        if isinstance(part, TensorPart):
            assert np.abs(payload).max() < CLIP
            numbers[part.key] = payload.astype(np.float64) * part.std + part.mean
        elif isinstance(part, OneHotPart):
            sizes = np.cumsum(part.codec.sizes)[:-1]
            numbers[part.key] = np.stack(
                [
                    one.argmax(axis=1) + start
                    for one, start in zip(np.split(payload, sizes, axis=1), part.codec.starts, strict=True)
                ],
                axis=1,
            )
    return numbers  # fmt: skip


@pytest.mark.slow
@QUICKLY
@given(observation=nested(LEAVES), action=nested(ACTIONS))
def test_the_model_is_given_what_the_environment_gave(
    registered: Callable[..., str], observation: gym.Space, action: gym.Space
):
    with tempfile.TemporaryDirectory() as folder:
        task, shown, done = recorded(registered(observation, action), Path(folder))
        assert task.expert_score == STEPS
        reader, env = EpisodeReader(task.folder, EpisodeCache(1)), task.make()
        layout, found = layout_of(task, reader, env)
        assert not losses(layout, found) or all("bins are fitted" in line for line in losses(layout, found))
        for episode in range(2):
            trained, acted = reader[episode].window(0, STEPS)
            rows = slice(episode * STEPS, episode * STEPS + STEPS)
            checked = [layout.observation.checked(value, "it") for value in shown[rows]]
            acting = layout.observation.stack(checked)
            numbers = given_to_the_model(layout, trained)
            for key, values in acting.items():
                np.testing.assert_array_equal(trained[key], values)
                if key in numbers:
                    given_numbers = np.asarray(values, np.float64).reshape(STEPS, -1)
                    scale = np.abs(given_numbers).max() + 1e-9
                    np.testing.assert_allclose(numbers[key], given_numbers, rtol=1e-5, atol=1e-5 * scale)
            for one, other in zip(layout.observation.encode(trained), layout.observation.encode(acting), strict=True):
                np.testing.assert_array_equal(one.tokens, other.tokens)
                np.testing.assert_array_equal(one.payload, other.payload)
            tokens = np.concatenate([piece.tokens.reshape(STEPS, -1) for piece in layout.action.encode(acted)], axis=1)
            for wanted, decoded in zip(done[rows], layout.action.decode_batch(tokens), strict=True):
                check_action(layout, layout.action.stack([wanted]), layout.action.stack([decoded]), found)


def check_action(layout: TaskLayout, wanted: dict, decoded: dict, found: Any) -> None:
    """Whole choices come back as they were; numbers to what their bins hold apart."""
    for part in layout.action.parts:
        if isinstance(part, DiscretePart):
            np.testing.assert_array_equal(decoded[part.key], wanted[part.key])
        else:
            seen = found.actions[part.key].reshape(-1, part.size)
            tolerance = np.maximum(0.06 * (seen.max(axis=0) - seen.min(axis=0)), 0.02 * np.abs(seen).max(axis=0) + 1e-6)
            off = np.abs(decoded[part.key].reshape(-1).astype(np.float64) - wanted[part.key].reshape(-1))
            assert (off <= tolerance + (0.5 if part.dtype.startswith(("i", "u")) else 0)).all(), (off, tolerance)


def _wrong_type(leaf: np.ndarray) -> Any:
    return leaf.astype(np.float32) + 0.5 if leaf.dtype.kind in "iub" else leaf.astype(str)


SPOILT = {
    "type": _wrong_type,
    "shape": lambda leaf: np.stack([leaf, leaf]),
    "number": lambda leaf: np.full(leaf.shape, np.nan),
    "nothing": lambda leaf: None,
    "text": lambda leaf: "here",
    "ragged": lambda leaf: [[1], [1, 2]],
}


@QUICKLY
@given(
    leaf=LEAVES, others=nested(LEAVES), how=st.sampled_from([*SPOILT, "missing", "key"]), when=st.integers(0, STEPS - 1)
)
def test_what_is_spoilt_is_refused_by_its_name_and_leaves_nothing(
    registered: Callable[..., str], leaf: gym.Space, others: gym.Space, how: str, when: int
):
    def spoil(value: Any, step: int) -> Any:
        if step != when:
            return value
        if how == "missing":
            return {"others": value["others"]}
        if how == "key":
            return value | {"odd": 1}
        return value | {"odd one": SPOILT[how](np.asarray(value["odd one"]))}

    space = spaces.Dict({"odd one": leaf, "others": others})
    with tempfile.TemporaryDirectory() as folder:
        with pytest.raises(ValueError, match=r"own/x: the observation (part 'odd one'|has the key 'odd')") as error:
            record_demonstrations(
                registered(space, spaces.Discrete(2), spoil),
                lambda seen: {"answer": 0, "how": 0},
                folder=Path(folder) / "x",
                episodes=1,
                instruction="answer",
            )
        assert "\n" not in str(error.value) and not [*Path(folder).iterdir()]


def test_the_policy_acts_on_what_it_is_given_then(make_model: Callable[..., Any]):
    """An environment that writes into its array right after, and one that hands over another type, give the same action."""
    generalist = make_model("frame")
    name, layout = next(iter(generalist.layouts.items()))
    policy = ControlPolicy(generalist, [name])
    observation = layout.observation.space.sample()
    actions = []
    for given_as in (lambda seen: seen, lambda seen: np.asarray(seen, np.float64).tolist()):
        policy.reset([0], ["push the red block"], [0])
        actions.append(policy.act([given_as(observation)])[0])
    np.testing.assert_array_equal(actions[0], actions[1])
    assert policy.cut_off == {}
    policy.act([np.float32([1000, 0, 0])])
    assert policy.cut_off == {name: 1 / 9}
    for lanes, prefixes, seeds, message in (
        ([1], ["go"], [0], "lanes must be different numbers from 0 to 0"),
        ([0], "go", [0], "give lists"),
        ([0], ["go"], [], "one prefix and one seed per lane"),
    ):
        with pytest.raises(ValueError, match=message):
            policy.reset(lanes, prefixes, seeds)
    with pytest.raises(ValueError, match="lane 0 acts before its first episode has begun"):
        ControlPolicy(generalist, [name]).act([observation])
    with pytest.raises(ValueError, match="needs the name of a layout for each lane"):
        ControlPolicy(generalist, [])
    with pytest.raises(ValueError, match=f"{name}: the observation has shape .4,., but its space has"):
        policy.act([np.zeros(4, np.float32)])
    with pytest.raises(ValueError, match=f"{name}: the observation is nan at"):
        policy.act([np.full(layout.observation.space.shape, np.nan)])


def test_choices_without_ids_are_refused_before_anything_is_recorded(registered: Callable[..., str], tmp_path: Path):
    id = registered(spaces.Discrete(3), spaces.Discrete(100))
    played = [Demonstration(observations=[0], actions=[{"answer": 0, "how": 99}], rewards=[9])]
    task = save_demonstrations(id, played, folder=tmp_path / "x", instruction="go")
    base = debug()
    own = Custom(demonstrations=(str(task.folder),))
    data = dataclasses.replace(base.data.with_sources(own=own), only=("own",))
    with pytest.raises(
        ValueError, match="part 'how' is Discrete.100., which has 100 values .*--tokens.discrete-values"
    ):
        check(dataclasses.replace(base, data=data, runs=tmp_path / "runs"), Console(quiet=True))


def test_a_dict_of_arrays_is_a_demonstration(registered: Callable[..., str], tmp_path: Path):
    """As Minari stores it, one observation more than actions."""
    space = spaces.Dict({"place": spaces.Box(-1, 1, (2,)), "goal": spaces.Tuple([spaces.Discrete(3)])})
    rng = np.random.default_rng(0)
    for steps in (2, 3):
        seen = {"place": rng.uniform(-1, 1, (steps + 1, 2)), "goal": (rng.integers(0, 3, steps + 1),)}
        done = {"answer": np.zeros(steps, int), "how": rng.uniform(-1, 1, (steps, 1))}
        played = Demonstration(observations=seen, actions=done, rewards=np.ones(steps))
        id = registered(space, spaces.Box(-1, 1, (1,)))
        task = save_demonstrations(id, [played], folder=tmp_path / f"x{steps}", instruction="go")
        observations, actions = EpisodeReader(task.folder, EpisodeCache(1))[0].window(0, 9)
        np.testing.assert_array_equal(observations["place"], seen["place"][:-1].astype(np.float32))
        np.testing.assert_array_equal(observations["goal/0"], seen["goal"][0][:-1])
        np.testing.assert_array_equal(actions["how"], done["how"].astype(np.float32))
    with pytest.raises(
        ValueError, match="x9: demonstration 0: the observations are a dict that lacks the part 'place'"
    ):
        spoilt = dataclasses.replace(played, observations={"goal": seen["goal"]})
        save_demonstrations(id, [spoilt], folder=tmp_path / "x9", instruction="go")


def test_a_text_that_does_not_change_is_the_instruction(tmp_path: Path):
    id = "minigrid:MiniGrid-GoToDoor-5x5-v0"
    with pytest.raises(
        ValueError, match="given what the observation part 'mission' says as instruction, score 0, no more"
    ):
        record_demonstrations(id, lambda seen: 1, folder=tmp_path / "x", episodes=1, instruction="go", max_steps=5)
    told = []
    env = gym.make(id)
    for seed in range(3):
        told.append(env.reset(seed=seed)[0]["mission"])
    played = [Demonstration(observations=[env.reset(seed=seed)[0]], actions=[1], rewards=[1.0]) for seed in range(3)]
    untold = [
        dataclasses.replace(one, observations=[{key: one.observations[0][key] for key in ("image", "direction")}])
        for one in played
    ]
    with pytest.raises(
        ValueError, match="gives its own instruction, 'go to the .*: give each Demonstration .*it was played with"
    ):
        save_demonstrations(id, untold, folder=tmp_path / "x", instruction="go", max_steps=5)
    task = save_demonstrations(id, played, folder=tmp_path / "x", instruction="go", max_steps=5)
    made = own_tasks([str(task.folder)])[0].make()
    assert [made.reset(seed=seed)[1]["instruction"] for seed in range(3)] == told
    reader = EpisodeReader(task.folder, EpisodeCache(1))
    assert [reader[seed].instruction for seed in range(3)] == told
    assert "mission" not in made.observation_space.spaces
