"""What comes from outside against its space: the same value back in the space's own types, or a refusal that names the part."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import tensorflow_datasets as tfds
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from generalist.data.episodes import columns
from generalist.tokenizers.learnable import check_learnable
from generalist.tokenizers.space_values import checked, checked_flag, checked_reward, copied, steps_of
from generalist.tokenizers.spaces import SpaceTokenizer
from generalist.tokenizers.vocabulary import Vocabulary

BYTES = spaces.Box(0, 255, (8, 8, 3), np.uint8)
ARM = spaces.Dict(
    {"arm": spaces.Dict({"joints": spaces.Box(-1, 1, (2,), np.float32)}), "grip": spaces.Discrete(3, start=1)}
)


@pytest.mark.parametrize(
    ("space", "value", "entered"),
    [
        (spaces.Box(-1, 1, (2,), np.float32), [0, 1], np.float32([0, 1])),
        (spaces.Box(-1, 1, (2,), np.float32), np.float64([0.1, 7]), np.float32([0.1, 7])),  # beyond its bounds: as it is
        (spaces.Box(0, 99, (), np.int64), np.uint8(7), np.int64(7)),
        (spaces.Box(0, 255, (2,), np.uint8), [0, 255], np.uint8([0, 255])),
        (spaces.Box(0, 255, (4, 4, 4), np.uint8), np.full((4, 4, 4), 255), np.full((4, 4, 4), 255, np.uint8)),  # opaque
        (spaces.Discrete(3), True, np.int64(1)),
        (spaces.Discrete(3, start=-1), np.array(-1), np.int64(-1)),
        (spaces.MultiDiscrete([3, 2]), [2, 1], np.int64([2, 1])),
        (spaces.MultiBinary(2), np.array([True, False]), np.int8([1, 0])),
        (spaces.Text(5), np.str_("abc"), "abc"),
    ],
)  # fmt: skip
def test_a_value_enters_as_it_is(space: gym.Space, value: Any, entered: Any):
    found = checked(space, value, "it")
    np.testing.assert_array_equal(found, entered)
    assert np.asarray(found).dtype == np.asarray(entered).dtype


@pytest.mark.parametrize(
    ("space", "value", "message"),
    [
        (BYTES, np.full((8, 8, 3), 0.5), "it is of type float64, but its space holds integers of type uint8"),
        (BYTES, np.zeros((8, 8, 3), np.float32), "it is of type float32"),  # black, of a scaled image
        (BYTES, np.zeros((3, 8, 8), np.uint8), r"it has shape \(3, 8, 8\), but its space has \(8, 8, 3\)"),
        (BYTES, np.full((8, 8, 3), 256), "it is 256, outside 0..255"),
        (BYTES, None, "it is None, not numbers"),
        (spaces.Box(0, 99, (2,), np.int64), [5, 100], "it is 100, outside 0..99"),
        (spaces.Box(-1, 1, (2,), np.float32), [0, np.inf], r"it is inf at \[1\], not a finite number: mask or clip"),
        (spaces.Box(-1, 1, (2,), np.float32), [np.nan, 0], r"it is nan at \[0\]"),
        (spaces.Box(-1, 1, (1,), np.float32), [1e300], "float32 can't hold it"),
        (spaces.Box(-1, 1, (2,), np.float32), [[1], [1, 2]], "it is .*, not numbers"),
        (spaces.Box(-1, 1, (1,), np.float32), 0.5, r"it has shape \(\), but its space has \(1,\)"),
        (spaces.Box(-1, 1, (2,), np.float32), ["0", "1"], "not numbers of type float32"),
        (spaces.Box(0, 255, (4, 4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), "the last is not opaque"),
        (spaces.Discrete(3), 3, "it is 3, outside 0..2"),
        (spaces.Discrete(3), 1.0, "it is of type float64"),
        (spaces.Discrete(3), [1], r"it has shape \(1,\)"),
        (spaces.MultiDiscrete([3, 2]), [0, 2], r"it is 2 at \[1\], outside 0..1"),
        (spaces.MultiBinary(2), [0, 2], "it is 2, not 0 or 1"),
        (spaces.Text(3), "abcd", "it is 'abcd', not a string of"),
        (spaces.Text(3), b"abc", "not a string"),
        (ARM, {"arm": {"joints": [0, np.nan]}, "grip": 1}, r"it part 'arm/joints' is nan at \[1\]"),
        (ARM, {"arm": {}, "grip": 1}, "it part 'arm/joints' is missing"),
        (ARM, {"arm": {"joints": [0, 0]}, "grip": 0}, "it part 'grip' is 0, outside 1..3"),
        (ARM, {"arm": {"joints": [0, 0]}, "grip": 1, "force": 2}, "it has the key 'force', which its space lacks"),
        (ARM, [0, 1], r"it is \[0, 1\], not a dictionary"),
        (spaces.Tuple([spaces.Discrete(2)] * 2), (0, 1, 1), "not a tuple of 2 parts"),
        (spaces.Tuple([spaces.Discrete(2)] * 2), (0, 2), "it part '1' is 2, outside 0..1"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line_that_names_the_part(space: gym.Space, value: Any, message: str):
    with pytest.raises(ValueError, match=message) as error:
        checked(space, value, "it")
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_an_action_keeps_to_its_bounds():
    with pytest.raises(ValueError, match=r"it is 2.0 at \[0\], outside -1.0..1.0: clip it"):
        checked(spaces.Box(-1, 1, (1,), np.float32), [2.0], "it", bounded=True)


def test_parts_that_the_space_lacks_may_be_left_out():
    assert [*checked(spaces.Dict({"a": spaces.Discrete(2)}), {"a": 1, "b": "text"}, "it", exact=False)] == ["a"]


def test_nothing_is_shared_with_what_was_handed_over():
    joints = np.zeros(2, np.float32)
    value = {"arm": {"joints": joints}, "grip": 1}
    entered, copy = checked(ARM, value, "it"), copied(value)
    joints += 1
    assert entered["arm"]["joints"].sum() == copy["arm"]["joints"].sum() == 0


@pytest.mark.parametrize("reward", [1, 1.0, True, np.float32(1), np.array([1.0]), np.array([[1]])])
def test_a_reward_is_one_number(reward: Any):
    assert checked_reward(reward, "the reward") == 1.0


@pytest.mark.parametrize("reward", [None, "1", np.nan, np.inf, [1.0, 2.0], np.zeros(0), {"r": 1}])
def test_any_other_reward_is_refused(reward: Any):
    with pytest.raises(ValueError, match="^the reward is "):
        checked_reward(reward, "the reward")


def test_an_end_is_a_flag():
    assert checked_flag(np.array([True]), "terminated") is True and checked_flag(0, "terminated") is False
    for value in (None, "False", [True, False], 2, 0.5):
        with pytest.raises(ValueError, match="^terminated is "):
            checked_flag(value, "terminated")


def test_columns_are_taken_apart_into_steps():
    pairs = spaces.Tuple([spaces.Discrete(3), spaces.Box(-1, 1, (2,), np.float32)])
    rows = [(0, np.zeros(2)), (1, np.ones(2))]
    for values in (rows, tuple(rows), (np.array([0, 1]), np.array([[0, 0], [1, 1]]))):
        found = steps_of(pairs, values, "they")
        assert [one for one, _ in found] == [0, 1] and [two.sum() for _, two in found] == [0, 2]
    nested = steps_of(ARM, {"arm": {"joints": np.zeros((3, 2))}, "grip": [1, 2, 3]}, "they")
    assert [value["grip"] for value in nested] == [1, 2, 3] and nested[0]["arm"]["joints"].shape == (2,)
    with pytest.raises(ValueError, match="they are a dict that lacks the part 'grip'"):
        steps_of(ARM, {"arm": {"joints": np.zeros((3, 2))}}, "they")
    with pytest.raises(ValueError, match="they have parts of different lengths: {'arm': 3, 'grip': 2}"):
        steps_of(ARM, {"arm": {"joints": np.zeros((3, 2))}, "grip": [1, 2]}, "they")


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Dict({"tail": spaces.Sequence(spaces.Discrete(3))}), "the part 'tail' is Sequence"),
        (spaces.Dict({"a": spaces.OneOf([spaces.Discrete(3)])}), "the part 'a' is OneOf"),
        (spaces.Tuple([spaces.Graph(spaces.Discrete(2), None)]), "the part '0' is Graph"),
        (spaces.Dict({"walker/joints": spaces.Discrete(2)}), "the key 'walker/joints' .* rename it in a wrapper"),
        (spaces.Dict({"a": spaces.Dict({})}), "there is nothing to tokenise"),
        (spaces.Discrete(200_000), "would take 200000 one-hot columns, more than 131072: make it coarser"),
        (spaces.Box(-1, 1, (400, 400)), "has more than 131072 numbers"),
        (spaces.Box(0, 255, (84, 84), np.uint8), r"looks like a grey image .*ReshapeObservation\(env, \(84, 84, 1\)\)"),
        (spaces.Box(0, 255, (4, 84, 84), np.uint8), "looks like a stack of 4 frames: .* TransformObservation|Dict"),
        (spaces.Box(0, 255, (3, 84, 84), np.uint8), "looks like an image with its channels first"),
        (spaces.Box(0, 255, (84, 84, 12), np.uint8), r"looks like a stack of frames \(12 channels\)"),
        (spaces.Text(4), "is a Text, whose length varies"),
    ],
)
def test_a_space_that_cannot_be_learnt_is_refused_by_part(space: gym.Space, message: str):
    with pytest.raises(ValueError, match=message) as error:
        check_learnable("own/x", space, spaces.Discrete(2))
    assert str(error.value).startswith("own/x: the observation space can't be learned: ") and "\n" not in str(
        error.value
    )


@pytest.mark.parametrize(
    "space",
    [BYTES, ARM, spaces.Box(0, 255, (128,), np.uint8), spaces.Box(0, 9, (9, 9), np.uint8), spaces.Discrete(500)],
)
def test_any_other_can_be(space: gym.Space):
    check_learnable("own/x", space, spaces.MultiDiscrete([300, 2]))


LEAVES = st.one_of(
    st.builds(spaces.Discrete, st.integers(1, 9), start=st.integers(-5, 5)),
    st.builds(lambda shape, kind: spaces.Box(-3, 3, shape, kind), st.sampled_from([(), (2,), (2, 3)]),
              st.sampled_from([np.float32, np.float64, np.int8, np.int64])),
    st.builds(spaces.MultiDiscrete, st.lists(st.integers(1, 5), min_size=1, max_size=3)),
    st.builds(spaces.MultiBinary, st.integers(1, 4)),
)  # fmt: skip
NESTED = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(spaces.Dict, st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3)),
        st.builds(lambda parts: spaces.Tuple(parts), st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=6,
)


@settings(deadline=None, max_examples=60)
@given(space=NESTED, seed=st.integers(0, 2**20))
def test_every_value_of_any_space_enters_unchanged(space: gym.Space, seed: int):
    space.seed(seed)
    value = space.sample()
    entered = checked(space, value, "it", bounded=True)
    assert space.contains(entered)
    np.testing.assert_equal(entered, value)
    np.testing.assert_equal(checked(space, entered, "it"), entered)


def test_numbers_of_another_type_than_the_space_enter_training_as_they_enter_acting():
    """Data sets of other tools may hold float64 where the environment gives float32."""
    tokenizer = SpaceTokenizer.from_space(
        spaces.Box(-np.inf, np.inf, (1,), np.float32), vocabulary=Vocabulary(), tensors="projected",
        statistics={"": (np.array([1.7e9]), np.array([100.0]))},
    )  # fmt: skip
    stored = 1.7e9 + np.arange(0, 600, 100.0)[:, None]
    acting = np.stack([tokenizer.checked(value, "it") for value in stored])
    trained, acted = (tokenizer.encode({"": values})[0].payload for values in (stored, acting))
    np.testing.assert_array_equal(trained, acted)


def test_empty_keys_within_empty_keys_are_flat_keys_as_a_data_set_has_them():
    nested = spaces.Dict({"": spaces.Dict({"": spaces.Discrete(2)})})
    (part,) = SpaceTokenizer.from_space(nested, vocabulary=Vocabulary(), tensors="projected").parts
    feature = {"": {"": tfds.features.Scalar(np.int64)}}
    assert [key for key, _ in columns({"": {"": np.zeros(3, np.int64)}}, feature)] == [part.key] == ["/"]


@pytest.mark.parametrize("bound", [1.7e308, 1e101])
def test_bounds_that_nothing_is_drawn_between_are_refused(bound: float):
    with pytest.raises(ValueError, match="has bounds beyond 1e.100: use real bounds, or infinity"):
        check_learnable("own/x", spaces.Discrete(2), spaces.Box(-bound, bound, (1,), np.float64))
