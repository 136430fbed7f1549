"""Reading RLDS: a data set written by TFDS itself comes back step for step; what is wrong with one is said in a line."""

import io
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from generalist.data.episodes import EpisodeCache, EpisodeReader
from generalist.data.examples import ControlExamples, TextExamples
from generalist.data.mixture import Opened, mix
from generalist.experiment.layout_fit import sample, statistics
from generalist.tokenizers.image import moved
from generalist.tokenizers.sequence import Assembler
from generalist.tokenizers.spaces import SpaceTokenizer, TaskLayout
from generalist.tokenizers.text import TextTokenizer
from generalist.tokenizers.vocabulary import Vocabulary

LENGTHS = (3, 9, 1, 10)
VOCABULARY = Vocabulary(text=300, continuous=16, discrete=32)


def png(value: int) -> io.BytesIO:
    buffer = io.BytesIO()
    image = np.full((4, 4, 3), value, np.uint8)
    image[2, 1] = 255
    Image.fromarray(image).save(buffer, "PNG")
    buffer.seek(0)
    return buffer


def step(episode: int, index: int, length: int) -> dict[str, Any]:
    return {
        "observation": {"camera": png(10 * episode + index), "state": np.array([episode, index], np.float32)},
        "action": index if index < length else 0,  # of the final observation: it means nothing
        "reward": 0.0,
        "is_first": index == 0,
        "is_last": index == length,
        "is_terminal": False,
    }


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes of so many decisions, each closed by the final observation as RLDS asks, and one without a decision; a step's
    state is (episode, step), its action the step."""
    features = tfds.features

    class TinyEpisodes(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> tfds.core.DatasetInfo:
            flag, observation = (
                features.Scalar(np.bool_),
                {
                    "camera": features.Image(shape=(4, 4, 3), encoding_format="png"),
                    "state": features.Tensor(shape=(2,), dtype=np.float32),
                },
            )
            steps = {
                "observation": observation,
                "action": features.Scalar(np.int64),
                "reward": features.Scalar(np.float32),
            }
            steps |= dict.fromkeys(("is_first", "is_last", "is_terminal"), flag)
            fields = {"steps": features.Dataset(steps), "language": features.Text()}
            return tfds.core.DatasetInfo(builder=self, features=features.FeaturesDict(fields))

        def _split_generators(self, _: Any) -> dict[str, Any]:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Any:
            for episode, length in enumerate([*LENGTHS, 0]):
                steps = [step(episode, index, length) for index in range(length + 1)]
                yield episode, {"language": "ignored", "steps": steps}

    folder = tmp_path_factory.mktemp("rlds")
    TinyEpisodes(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder / "tiny_episodes" / "1.0.0"


def examples(dataset: Path, **how: Any) -> ControlExamples:
    reader = EpisodeReader(dataset, EpisodeCache(1), instruction="count")
    space = gym.spaces.Dict(
        {"camera": gym.spaces.Box(0, 255, (4, 4, 3), np.uint8), "state": gym.spaces.Box(-np.inf, np.inf, (2,))}
    )
    observation = SpaceTokenizer.from_space(
        space, vocabulary=VOCABULARY, tensors="projected", images="frame", frame_size=4
    )
    action = SpaceTokenizer.from_space(gym.spaces.Discrete(20), vocabulary=VOCABULARY)
    text = TextTokenizer.train(["count the steps"] * 9, 300)
    assembler = Assembler(vocabulary=VOCABULARY, text_tokenizer=text, projection_width=2, frame_size=4)
    settings = {"steps": 4, "hide_actions": 1.0} | how
    return ControlExamples(
        reader=reader, layout=TaskLayout("tiny", observation, action), assembler=assembler, **settings
    )


def test_every_step_comes_back(dataset: Path):
    reader = EpisodeReader(dataset, EpisodeCache(1), instruction="count")
    assert sorted(reader.lengths) == sorted(LENGTHS)  # no metadata of ours: found by reading
    for episode in (reader[index] for index in range(len(reader))):
        observations, actions = episode.window(0, 99)
        number = int(observations["state"][0, 0])
        assert len(episode) == LENGTHS[number] and episode.instruction == "count"
        np.testing.assert_array_equal(actions[""], np.arange(LENGTHS[number]))
        np.testing.assert_array_equal(observations["camera"][:, 0, 0, 0], 10 * number + np.arange(LENGTHS[number]))


def test_windows_cover_every_step(dataset: Path):
    source, rng, seen = examples(dataset), np.random.default_rng(0), set()
    assert len(source) == sum(-(-length // 4) for length in LENGTHS)
    for _ in range(40):
        for index in range(len(source)):
            sequence = source.example(index, rng)
            assert len(sequence.tensors) <= 4
            seen |= {tuple(row) for row in sequence.tensors.astype(int)}
            np.testing.assert_array_equal(sequence.frames[:, 0, 0, 0], sequence.tensors @ [10, 1])
    assert seen == {(episode, index) for episode, length in enumerate(LENGTHS) for index in range(length)}


def test_a_prompt_is_from_another_episode(dataset: Path):
    source, rng = examples(dataset, prompt_fraction=1.0, prompt_steps=2), np.random.default_rng(0)
    for index in [*range(len(source))] * 5:
        sequence = source.example(index, rng)
        prompt_steps = min(2, int((sequence.tensors[:, 0] != sequence.tensors[-1, 0]).sum()))
        assert prompt_steps >= 1
        assert sequence.tensors[0, 0] != sequence.tensors[-1, 0]
        assert (sequence.loss_weight[: np.flatnonzero(sequence.loss_weight)[0]] == 0).all()


def test_longer_prompts_show_several_other_episodes_and_fill_a_row_at_most(dataset: Path):
    source = examples(dataset, prompt_fraction=1.0, prompt_steps=2, prompt_demonstrations=3, length=40)
    room = source.assembler.room(source.layout, "count", window=4, length=40)
    rng, counts, shown = np.random.default_rng(0), set(), set()
    for index in [*range(len(source))] * 20:
        sequence = source.example(index, rng)
        assert len(sequence.tokens) <= 40
        steps = sequence.tensors[:, 0].astype(int)
        others = steps[steps != steps[-1]].tolist()
        assert sequence.tensors[: len(others), 0].tolist() == others  # first the prompts, then the window
        counts.add(len(set(others)))
        shown.add(len(others))
    assert counts == {1, 2, 3}
    assert {2, room - 1} <= shown and max(shown) <= room


def test_an_only_episode_is_not_its_own_prompt(dataset: Path, monkeypatch: pytest.MonkeyPatch):
    source = examples(dataset, prompt_fraction=1.0, prompt_steps=2, prompt_demonstrations=3, length=40)
    monkeypatch.setattr(EpisodeReader, "__len__", lambda _: 1)
    assert len(source.example(0, np.random.default_rng(0)).tensors) == LENGTHS[0]


def test_images_move_together_and_nothing_else_does(dataset: Path):
    still, shaken, seen = examples(dataset), examples(dataset, shift=1), set()
    around = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    for seed, index in enumerate([*range(len(still))] * 4):
        one, other = (source.example(index, np.random.default_rng(seed)) for source in (still, shaken))
        moves = [move for move in around if np.array_equal(moved(one.frames, *move), other.frames)]
        assert len(moves) == 1  # one for all frames of the window
        seen.add(moves[0])
        np.testing.assert_array_equal(one.tensors, other.tensors)
        np.testing.assert_array_equal(one.targets, other.targets)
    assert len(seen) > 4


def test_an_equal_world_is_that_of_the_window_and_its_prompts(dataset: Path):
    class Shifted:
        def __init__(self, rng: np.random.Generator):
            self.by = rng.integers(1, 9) / 16

        def instruction(self, instruction: str) -> str:
            return instruction

        def observations(self, observations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {**observations, "state": observations["state"] + self.by}

    source, worlds = examples(dataset, prompt_fraction=1.0, prompt_steps=2, recast=Shifted), set()
    for seed, index in enumerate([*range(len(source))] * 3):
        tensors = source.example(index, np.random.default_rng(seed)).tensors
        assert tensors[0, 0] != tensors[-1, 0]  # of a prompt and of the window
        (world,) = set((tensors % 1 * 16).ravel().tolist())
        worlds.add(world)
    assert worlds <= set(range(1, 9)) and len(worlds) > 3


def test_frames_are_known_by_their_mean_and_deviation(dataset: Path):
    reader = EpisodeReader(dataset, EpisodeCache(1), instruction="count")
    seen = np.concatenate([reader[index].window(0, 99)[0]["camera"] for index in range(len(reader))])
    assert len(reader) <= 8
    layout = examples(dataset).layout
    found = sample([reader], layout.observation.space, layout.action.space, seen.shape[1])
    mean, deviation = statistics(found)["camera"]
    np.testing.assert_array_equal(mean, np.rint(seen.mean(axis=0)).astype(np.uint8))
    np.testing.assert_array_equal(deviation, np.rint(seen.std(axis=0)).astype(np.uint8))


@pytest.mark.slow
def test_larger_tasks_get_more_of_a_source_but_not_in_proportion(dataset: Path):
    """Of nine times as many tokens, three times as many are seen."""
    assembler = examples(dataset).assembler
    parts = [
        TextExamples(ids=np.full((size,), 300, np.int32), length=length, assembler=assembler)
        for size, length in ((300, 10), (2700, 15))
    ]
    draw = mix([Opened(name="both", weight=1.0, parts=parts)], seed=0)[0]
    lengths = [len(draw(number)[1].tokens) for number in range(1500)]
    tokens = [sum(length for length in lengths if length == 1 + one.length) for one in parts]
    assert tokens[1] / tokens[0] == pytest.approx(3, rel=0.15)


@pytest.mark.slow
def test_shares_of_the_tokens(dataset: Path):
    """A source with windows of a quarter of the length gets four times as many of them."""
    sources = [
        Opened(name=name, weight=weight, parts=[examples(dataset, steps=steps)])
        for name, weight, steps in (("long", 1.0, 8), ("short", 3.0, 2))
    ]
    draw = mix(sources, seed=0)[0]
    tokens = np.zeros((2,))
    for number in range(1500):
        source, sequence = draw(number)
        tokens[source] += len(sequence.tokens)
    np.testing.assert_allclose(tokens[1] / tokens.sum(), 0.75, atol=0.1)


def test_the_cache_stays_within_its_bytes(dataset: Path):
    cache = EpisodeCache(1)
    cache.limit = 700
    reader = EpisodeReader(dataset, cache)
    for index in [0, 1, 2, 3, 0]:
        reader[index]
    assert 0 < cache.used <= max(700, max(reader[index].nbytes for index in range(4)))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "dataset_info.json").unlink(), "holds no data set"),
        (lambda folder: (folder / "features.json").write_text("{"), "not a readable TFDS data set"),
        (lambda folder: next(folder.glob("*array_record*")).unlink(), "record it again"),
        (lambda folder: next(folder.glob("*array_record*")).write_bytes(b"nonsense"), "damaged"),
    ],
)
def test_damage_is_named(dataset: Path, tmp_path: Path, harm: Any, message: str):
    folder = tmp_path / "tiny_episodes" / "1.0.0"
    shutil.copytree(dataset, folder)
    harm(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        EpisodeReader(folder, EpisodeCache(1))
    assert "\n" not in str(error.value)


def test_a_flipped_byte_in_a_record_is_named(dataset: Path, tmp_path: Path):
    folder = tmp_path / "tiny_episodes" / "1.0.0"
    shutil.copytree(dataset, folder)
    (folder / "metadata.json").write_text('{"lengths": [3, 9, 1, 10]}')
    shard = next(folder.glob("*array_record*"))
    content = bytearray(shard.read_bytes())
    written = [index for index, byte in enumerate(content) if byte]  # the file is padded with zeros
    for index in written[len(written) // 3 : len(written) // 2]:
        content[index] ^= 0x55
    shard.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="record it again"):
        reader = EpisodeReader(folder, EpisodeCache(1))
        for index in range(len(reader)):
            reader.parse(index)
