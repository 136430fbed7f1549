"""Any space's values become pieces and come back; what can't says so."""

import dataclasses
import json
import pickle

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces as gs
from hypothesis import given, settings
from hypothesis import strategies as st

from generalist.tokenizers.acting import Acting
from generalist.tokenizers.continuous import MuLaw, Quantile, Uniform
from generalist.tokenizers.pieces import Modality
from generalist.tokenizers.space_json import png_text
from generalist.tokenizers.spaces import SpaceTokenizer, TaskLayout, assign_offsets
from generalist.tokenizers.text import TextTokenizer
from generalist.tokenizers.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text=400, continuous=256, discrete=64)
CONTINUOUS, DISCRETE = (VOCABULARY.range(kind).start for kind in ("continuous", "discrete"))
TEXT = TextTokenizer.train(["open the door, close the drawer"], 400)

shapes = st.lists(st.integers(1, 3), max_size=2).map(tuple)


@st.composite
def boxes(draw) -> gs.Box:
    shape, dtype = draw(shapes), draw(st.sampled_from([np.float32, np.float64, np.int32, np.int64, np.uint8, np.int8]))
    if np.dtype(dtype).kind == "f":
        low = draw(st.sampled_from([-np.inf, -3.0, -1.0, 0.0]))
        return gs.Box(low, draw(st.sampled_from([0.0, 1.0, 4.0, np.inf])), shape, dtype)
    low = draw(st.integers(0, 20))
    return gs.Box(low, low + draw(st.integers(0, 63)), shape, dtype)


@st.composite
def multi_discretes(draw) -> gs.MultiDiscrete:
    shape = draw(st.sampled_from([(1,), (3,), (2, 2)]))
    numbers = st.lists(st.integers(1, 64), min_size=int(np.prod(shape)), max_size=int(np.prod(shape)))
    return gs.MultiDiscrete(np.array(draw(numbers)).reshape(shape), start=np.array(draw(numbers)).reshape(shape) - 30)


leaves = st.one_of(
    boxes(),
    st.builds(gs.Discrete, st.integers(1, 64), start=st.integers(-100, 100)),
    multi_discretes(),
    st.builds(gs.MultiBinary, st.integers(1, 4) | st.just([2, 3])),
    st.builds(gs.Text, st.integers(1, 12), min_length=st.integers(0, 1), charset=st.just("ab \u2581\n\u00e9")),
)
keys = st.text("abz_ 0\u00e9", max_size=3)
any_space = st.recursive(
    leaves,
    lambda parts: st.one_of(
        st.dictionaries(keys, parts, min_size=1, max_size=3).map(gs.Dict),
        st.lists(parts, min_size=1, max_size=3).map(gs.Tuple),
    ),
    max_leaves=5,
)


def tokens_of(pieces) -> np.ndarray:
    """The ids of one step."""
    return np.concatenate([piece.tokens for piece in pieces])


def assert_close(space: gym.Space, value, expected) -> None:
    if isinstance(space, gs.Dict):
        assert value.keys() == expected.keys()
        for key, part in space.spaces.items():
            assert_close(part, value[key], expected[key])
    elif isinstance(space, gs.Tuple):
        assert isinstance(value, tuple)
        for part, one, other in zip(space.spaces, value, expected, strict=True):
            assert_close(part, one, other)
    elif isinstance(space, gs.Box) and space.dtype.kind == "f":
        bound = 7 / 256 / 2 if space.is_bounded() else 0.02 + 0.05 * np.abs(expected)
        assert (np.abs(value - expected) <= bound + 1e-6).all()
    else:
        np.testing.assert_array_equal(value, expected)


@settings(max_examples=200, deadline=None)
@given(space=any_space, seed=st.integers(0, 2**31 - 1))
def test_any_space_comes_back(space, seed):
    space.seed(seed)
    tokenizer = SpaceTokenizer.from_space(space, vocabulary=VOCABULARY, text=TEXT)
    value = space.sample()
    tokens = tokens_of(tokenizer.encode(tokenizer.stack([value])))
    decoded = tokenizer.decode(tokens)
    assert decoded in space
    assert_close(space, decoded, value)
    # What is decoded is encoded as it was: ids are as good as values.
    np.testing.assert_array_equal(tokens_of(tokenizer.encode(tokenizer.stack([decoded]))), tokens)
    if tokenizer.tokens_per_step is not None:
        ranges = tokenizer.valid_ranges
        assert ranges.shape == (tokenizer.tokens_per_step, 2) == (len(tokens), 2)
        assert ((tokens >= ranges[:, 0]) & (tokens < ranges[:, 1])).all()


@settings(max_examples=50, deadline=None)
@given(space=any_space, tensors=st.sampled_from(["tokens", "projected"]))
def test_any_tokenizer_survives_json_and_pickle(space, tensors):
    tokenizer = SpaceTokenizer.from_space(space, vocabulary=VOCABULARY, text=TEXT, tensors=tensors, offset=3)
    assert SpaceTokenizer.from_json(json.loads(json.dumps(tokenizer.to_json())), TEXT) == tokenizer
    assert pickle.loads(pickle.dumps(tokenizer)) == tokenizer


@settings(max_examples=50, deadline=None)
@given(space=any_space, seed=st.integers(0, 99))
def test_steps_together_are_steps_one_by_one(space, seed):
    space.seed(seed)
    tokenizer = SpaceTokenizer.from_space(space, vocabulary=VOCABULARY, text=TEXT)
    values = [space.sample() for _ in range(3)]
    together = tokenizer.encode(tokenizer.stack(values))
    alone = [tokenizer.encode(tokenizer.stack([value])) for value in values]
    for index, piece in enumerate(together):
        np.testing.assert_array_equal(piece.tokens, np.concatenate([pieces[index].tokens for pieces in alone]))
        assert piece.lengths.tolist() == [len(pieces[index].tokens) for pieces in alone]


@settings(max_examples=30, deadline=None)
@given(space=any_space, rng=st.randoms(use_true_random=False))
def test_every_valid_id_decodes_into_the_space(space, rng):
    """What a policy confined to `valid_ranges` can choose is always an action (trap 9)."""
    tokenizer = SpaceTokenizer.from_space(space, vocabulary=VOCABULARY, text=TEXT)
    if tokenizer.tokens_per_step is None:
        return
    rows = [[rng.randrange(low, high) for low, high in tokenizer.valid_ranges.tolist()] for _ in range(4)]
    assert all(value in space for value in tokenizer.decode_batch(np.array(rows)))


def test_parts_stand_in_key_order():
    parts = {
        "b": gs.Discrete(2),
        "a": gs.Tuple([gs.Discrete(3)] * 11),
        "B": gs.Dict({"z": gs.Discrete(4), "y": gs.Discrete(5)}),
    }
    tokenizer = SpaceTokenizer.from_space(gs.Dict(parts), vocabulary=VOCABULARY)
    assert [part.key for part in tokenizer.parts] == ["B/y", "B/z", *[f"a/{index}" for index in range(11)], "b"]


def test_ids_of_known_values():
    space = gs.Dict(
        a=gs.Box(-1, 1, (2,)), b=gs.Discrete(5, start=-2), c=gs.MultiBinary(2), d=gs.Box(10, 20, (1,), np.int32)
    )
    tokenizer = SpaceTokenizer.from_space(space, vocabulary=VOCABULARY)
    value = {
        "a": np.array([-1, 1], np.float32),
        "b": np.int64(1),
        "c": np.array([1, 0], np.int8),
        "d": np.array([12], np.int32),
    }
    pieces = tokenizer.encode(tokenizer.stack([value, value]))
    ids = [(CONTINUOUS, CONTINUOUS + 255), (DISCRETE + 3,), (DISCRETE + 1, DISCRETE), (DISCRETE + 2,)]
    modalities = [Modality.CONTINUOUS, Modality.DISCRETE, Modality.DISCRETE, Modality.DISCRETE]
    for piece, expected, modality in zip(pieces, ids, modalities, strict=True):
        assert piece.tokens.tolist() == [*expected, *expected] and piece.tokens.dtype == np.int32
        assert piece.modality == modality and piece.payload is None
    assert tokenizer.flatten(value)["b"].shape == () and tokenizer.flatten(value)["a"].shape == (2,)


def test_which_codec_a_box_gets():
    def codec(low, high, **settings):
        return SpaceTokenizer.from_space(gs.Box(low, high, (1,)), vocabulary=VOCABULARY, **settings).parts[0].codec

    assert codec(-2, 3) == Uniform(low=(-2.0,), high=(3.0,), bins=256)
    assert codec(-2, 3, bounded="mu_law") == MuLaw(bins=256)
    assert codec(0, 1, bounded="mu_law") == Uniform(low=(-1.0,), high=(1.0,), bins=256)  # Gato: no μ-law within [-1, 1]
    assert codec(-np.inf, np.inf) == codec(0, np.inf) == codec(-3e38, 3e38) == MuLaw(bins=256)
    fitted = Quantile.fit(np.linspace(0, 1, 50)[:, None], bins=16)
    assert codec(-2, 3, codecs={"": fitted}) == fitted


def test_projected_numbers_are_standardised_and_cut_off():
    space = gs.Dict(a=gs.Box(-np.inf, np.inf, (2,)), b=gs.Discrete(3, start=5), c=gs.MultiDiscrete([2, 3]))
    statistics = {"a": (np.array([1.0, 0.0]), np.array([2.0, 1.0]))}
    tokenizer = SpaceTokenizer.from_space(
        space, vocabulary=VOCABULARY, tensors="projected", statistics=statistics, offset=7
    )
    values = {"a": np.array([[5, 1e38], [1, -1]], np.float32), "b": np.array([5, 7]), "c": np.array([[0, 2], [1, 0]])}
    (piece,) = tokenizer.encode(values)
    assert piece.payload.dtype == np.float32
    assert piece.payload.tolist() == [[2, 10, 1, 0, 0, 1, 0, 0, 0, 1], [0, -1, 0, 0, 1, 0, 1, 1, 0, 0]]
    assert piece.offset == 7 and piece.lengths.tolist() == [1, 1] and piece.tokens.tolist() == [VOCABULARY.pad] * 2
    assert tokenizer.projection_size == 10 and tokenizer.tokens_per_step == 1


def test_projected_parts_are_one_position_where_the_first_stands():
    space = gs.Dict(a=gs.Text(9), b=gs.Box(-1, 1, (2,)), c=gs.Box(0, 255, (16, 16, 3), np.uint8), d=gs.Discrete(3))
    tokenizer = SpaceTokenizer.from_space(space, vocabulary=VOCABULARY, text=TEXT, tensors="projected")
    values = [{"a": "x", "b": np.ones(2, np.float32), "c": np.zeros((16, 16, 3), np.uint8), "d": 2}] * 3
    pieces = tokenizer.encode(tokenizer.stack(values))
    assert [piece.modality for piece in pieces] == [Modality.TEXT, Modality.TENSOR, Modality.PATCH]
    assert pieces[1].payload.tolist() == [[1, 1, 0, 0, 1]] * 3 and len(pieces[1].lengths) == 3


def test_images_as_patches_and_as_frames():
    space = gs.Box(0, 255, (20, 40, 1), np.uint8)
    values = {"": np.full((2, 20, 40, 1), 9, np.uint8)}
    patches = SpaceTokenizer.from_space(space, vocabulary=VOCABULARY)
    piece = patches.encode(values)[0]
    assert patches.tokens_per_step == 6 and piece.lengths.tolist() == [6, 6]
    assert piece.payload.shape == (12, 16, 16, 3) and piece.intervals.shape == (12, 4)
    frame = SpaceTokenizer.from_space(space, vocabulary=VOCABULARY, images="frame", frame_size=32, frame_tokens=2)
    piece = frame.encode(values)[0]
    assert frame.tokens_per_step == 2 and piece.lengths.tolist() == [2, 2]
    assert piece.payload.shape == (2, 32, 32, 3) and (piece.payload == 9).all() and len(piece.tokens) == 4


def standardised_frames() -> SpaceTokenizer:
    """Of images of 4 pixels a side, usually 100 with a deviation of 12, and never other than 30 in the first row."""
    mean, deviation = np.full((4, 4, 3), 100, np.uint8), np.full((4, 4, 3), 12, np.uint8)
    mean[0], deviation[0] = 30, 0
    return SpaceTokenizer.from_space(
        gs.Box(0, 255, (4, 4, 3), np.uint8), vocabulary=VOCABULARY, images="frame", frame_size=4,
        statistics={"": (mean, deviation)},
    )  # fmt: skip


def test_frames_show_what_is_unusual():
    tokenizer = standardised_frames()
    image = np.full((4, 4, 3), 100, np.uint8)
    image[0] = 30
    image[0, 1], image[2, 2], image[3, 3], image[1, 0] = 32, 106, 255, 0
    (piece,) = tokenizer.encode({"": image[None]})
    # 40 levels a deviation, to which 8 is added: 2 · 40 / 8, 6 · 40 / 20, the rest cut off at the ends of a byte.
    expected = np.full((4, 4, 3), 128, np.uint8)
    expected[0, 1], expected[2, 2], expected[3, 3], expected[1, 0] = 138, 140, 255, 0
    np.testing.assert_array_equal(piece.payload, expected[None])
    assert SpaceTokenizer.from_json(json.loads(json.dumps(tokenizer.to_json()))) == tokenizer
    older = {key: value for key, value in tokenizer.to_json().items() if key != "frames"}
    (piece,) = SpaceTokenizer.from_json(older).encode({"": image[None]})
    np.testing.assert_array_equal(piece.payload, image[None])  # weights from before play with frames as they are


@pytest.mark.parametrize("text", ["", "no base 64", "QUJD", 3, None, png_text(np.zeros((5, 5, 3), np.uint8))])
def test_damaged_statistics_of_frames_are_found(text):
    data = standardised_frames().to_json()
    data["frames"][""][0] = text
    with pytest.raises(ValueError, match="not an RGB image of 4 pixels per side") as error:
        SpaceTokenizer.from_json(data)
    assert "\n" not in str(error.value)


def test_offsets_follow_the_names():
    spaces = {
        "z": gs.Box(-1, 1, (4,)),
        "a": gs.Tuple([gs.Discrete(3), gs.Text(5), gs.MultiDiscrete([2, 2])]),
        "m": gs.Discrete(1),
    }
    offsets, width = assign_offsets(spaces)
    assert offsets == {"a": 0, "m": 7, "z": 8} and width == 12
    for name, space in spaces.items():
        tokenizer = SpaceTokenizer.from_space(
            space, vocabulary=VOCABULARY, text=TEXT, tensors="projected", offset=offsets[name]
        )
        assert offsets[name] + tokenizer.projection_size <= width


@pytest.mark.parametrize(
    ("space", "settings", "message"),
    [
        (gs.Sequence(gs.Discrete(2)), {}, r"part '' is Sequence.*can't be tokenised.*wrapper"),
        (gs.Dict(x=gs.Graph(gs.Discrete(2), None)), {}, "part 'x' is Graph.*can't be tokenised"),
        (gs.OneOf([gs.Discrete(2)]), {}, "can't be tokenised"),
        (gs.Discrete(65), {}, "has 65 values but vocabulary.discrete is 64: raise it"),
        (gs.Text(3), {"text": None}, "text tokenizer: pass one"),
        (gs.Dict({"a/b": gs.Discrete(2)}), {}, "'a/b'.*rename"),
        (gs.Dict({}), {}, "nothing to tokenise"),
        (gs.Box(0, 1, (0, 3)), {}, "has no numbers"),
        (gs.Box(0, 1, (2,)), {"codecs": {"": Uniform(low=(0.0,), high=(1.0,))}}, "1024 bins"),
        (gs.Box(0, 1, (2,)), {"codecs": {"": Uniform(low=(0.0,), high=(1.0,), bins=8)}}, "2 numbers.*1 dimensions"),
        (gs.Box(0, 1, (2,)), {"codecs": {"x": MuLaw(bins=8)}}, r"codecs has the key 'x'.*\[''\]"),
        (gs.Box(0, 1, (2,)), {"tensors": "projected", "statistics": {"": (np.zeros(2), np.zeros(2))}}, "positive deviations"),
        (gs.Box(0, 255, (9, 9, 3), np.uint8), {"images": "frame", "statistics": {"": (np.zeros(2),) * 2}}, "of its frames"),
        (gs.Box(0, 1, (2,)), {"tensors": "project"}, 'tensors must be "tokens" or "projected"'),
        (gs.Discrete(2**20), {"tensors": "projected"}, "one-hot columns"),
    ],
)  # fmt: skip
def test_what_does_not_fit_says_so(space, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        SpaceTokenizer.from_space(space, **({"vocabulary": VOCABULARY, "text": TEXT} | settings))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"a": np.zeros((1, 2))}, r"lack the part 'b'"),
        ({"a": np.zeros((1, 3)), "b": np.array([0])}, r"'a' must have shape \(T, 2\), got \(1, 3\)"),
        ({"a": np.full((1, 2), np.nan), "b": np.array([0])}, "part 'a': a number is NaN"),
        ({"a": np.zeros((1, 2)), "b": np.array([9])}, r"part 'b': value 9 of number 0 is outside 0\.\.3"),
        ({"a": np.zeros((1, 2)), "b": np.array([0.5])}, "part 'b': .*integer"),
    ],
)
@pytest.mark.parametrize("tensors", ["tokens", "projected"])
def test_values_that_are_not_of_the_space(values, message, tensors):
    space = gs.Dict(a=gs.Box(-1, 1, (2,)), b=gs.Discrete(4))
    tokenizer = SpaceTokenizer.from_space(space, vocabulary=VOCABULARY, tensors=tensors)
    with pytest.raises(ValueError, match=message):
        tokenizer.encode(values)


def test_ids_that_are_no_value():
    tokenizer = SpaceTokenizer.from_space(gs.Tuple([gs.Discrete(4), gs.Discrete(4)]), vocabulary=VOCABULARY)
    with pytest.raises(ValueError, match="at position 0 of part '1' is outside"):
        tokenizer.decode(np.array([DISCRETE, DISCRETE + 4]))
    with pytest.raises(ValueError, match="takes 2 ids"):
        tokenizer.decode(np.array([DISCRETE]))
    image = SpaceTokenizer.from_space(gs.Box(0, 255, (16, 16, 3), np.uint8), vocabulary=VOCABULARY)
    with pytest.raises(ValueError, match="can't be decoded"):
        image.decode(np.array([0]))
    words = SpaceTokenizer.from_space(gs.Text(5), vocabulary=VOCABULARY, text=TEXT)
    with pytest.raises(ValueError, match="no end marker"):
        words.decode(np.array([5]))


def test_values_that_lack_a_part():
    tokenizer = SpaceTokenizer.from_space(gs.Dict(a=gs.Discrete(2)), vocabulary=VOCABULARY)
    with pytest.raises(ValueError, match="lacks the part 'a'"):
        tokenizer.stack([{"b": 1}])


def layout() -> TaskLayout:
    observation = SpaceTokenizer.from_space(
        gs.Dict(a=gs.Box(-np.inf, np.inf, (2,)), b=gs.Box(0, 255, (16, 16, 3), np.uint8)),
        vocabulary=VOCABULARY,
        tensors="projected",
    )
    return TaskLayout("toy", observation, SpaceTokenizer.from_space(gs.Box(-1, 1, (2,)), vocabulary=VOCABULARY))


def test_an_action_must_be_tokens():
    good = layout()
    with pytest.raises(ValueError, match="action part 'a' of toy enters as an embedding"):
        TaskLayout("toy", good.observation, good.observation)
    other = SpaceTokenizer.from_space(gs.Discrete(2), vocabulary=Vocabulary())
    with pytest.raises(ValueError, match="different vocabularies"):
        TaskLayout("toy", good.observation, other)


def test_a_layout_survives_json():
    acting = Acting(steps=96, hide_actions=False, temperature=0.3, prompt_steps=2)
    one = dataclasses.replace(layout(), acting=acting)
    described = json.loads(json.dumps(one.to_json(), allow_nan=False))
    assert TaskLayout.from_json(described) == one
    # Of before layouts said how they are acted in: whoever reads one says it.
    del described["acting"]
    assert TaskLayout.from_json(described, acting=acting) == one


def damaged(path, value):
    data = json.loads(json.dumps(layout().to_json()))
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return data


@pytest.mark.parametrize(
    "data",
    [
        [], None, {}, {"name": "x"},
        damaged(["name"], None),
        damaged(["action"], None),
        damaged(["action"], 3),
        damaged(["action", "space"], {"type": "Graph"}),
        damaged(["action", "space", "shape"], [10**6, 10**6]),
        damaged(["action", "space", "shape"], [-1]),
        damaged(["action", "space", "low"], "low"),
        damaged(["action", "space", "low"], [1, 2, 3]),
        damaged(["action", "space", "dtype"], "object"),
        damaged(["action", "space", "dtype"], "nonsense"),
        damaged(["action", "codecs", ""], {"type": "mu_law"}),
        damaged(["action", "vocabulary", "text"], -5),
        damaged(["action", "vocabulary", "words"], 5),
        damaged(["observation", "offset"], -1),
        damaged(["observation", "offset"], "1"),
        damaged(["observation", "frame_size"], 0.5),
        damaged(["observation", "tensors"], "projekted"),
        damaged(["observation", "statistics", "a", "std"], [1.0]),
        damaged(["observation", "statistics", "a", "std"], [1.0, "wide"]),
        damaged(["observation", "space", "spaces"], [1]),
        damaged(["acting"], None),
        damaged(["acting"], 3),
        damaged(["acting", "steps"], None),
        damaged(["acting", "steps"], 0),
        damaged(["acting", "steps"], 8.0),
        damaged(["acting", "hide_actions"], 1),
        damaged(["acting", "temperature"], "warm"),
        damaged(["acting", "temperature"], -0.1),
        damaged(["acting", "temperature"], float("nan")),
        damaged(["acting", "prompt_steps"], True),
        damaged(["acting", "haste"], 1),
    ],
)  # fmt: skip
def test_a_damaged_layout_is_a_one_line_error(data):
    with pytest.raises(ValueError, match=r"task layout .* damaged.*train again") as error:
        TaskLayout.from_json(data)
    assert "\n" not in str(error.value)
