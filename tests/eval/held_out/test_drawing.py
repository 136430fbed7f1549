"""Scores of drawn images: known answers, and the whole part with weights that cannot draw yet."""

import dataclasses
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from rich.progress import Progress

from generalist.config.presets import debug
from generalist.config.versions import to_stored
from generalist.contrastive.config import ContrastiveConfig, TowersConfig
from generalist.contrastive.dual import fresh_towers
from generalist.contrastive.train import export
from generalist.data.emoji import drawings
from generalist.data.sources.drawing import TextToImage
from generalist.eval.held_out.drawing import discrepancy, named, nearest_class, nearest_distance
from generalist.eval.parts.drawing import COLUMNS, Draws, _gains
from generalist.eval.results.scores import proportion
from generalist.inference.generalist import Generalist
from generalist.model.transformer import create_separate
from generalist.run.tasks import stored
from generalist.run.tokenizers import Tokenizers
from generalist.tokenizers.text import TextTokenizer
from generalist.vision.autoencoder import AutoencoderConfig
from generalist.vision.image_tokenizer import ImageTokenizer, fresh_autoencoder

SHAPE = AutoencoderConfig(size=12, patch=4, levels=(3, 2, 4), width=16, blocks=1)
TOWERS = TowersConfig(
    size=24,
    patch=8,
    width=32,
    layers=1,
    text_layers=1,
    heads=2,
    hidden=48,
    embedding=16,
    text_pieces=400,
    text_length=12,
)


def test_the_right_name_must_be_more_similar_than_all_others():
    names = np.eye(4)
    images = np.array([[1, 0.9, 0, 0], [0, 0.5, 0.6, 0], [0, 0, 1, 1.0]])
    assert named(images, names, [0, 1, 2], seed=0).tolist() == [True, False, False]  # right, wrong, a tie
    # Everything alike is chance at most, however many names there are.
    assert not named(np.ones((5, 4)), np.ones((4, 4)), [0] * 5, seed=0).any()


def test_among_a_hundred_names_chance_is_one_percent():
    rng = np.random.default_rng(0)
    images, names = rng.normal(size=(4000, 8)), rng.normal(size=(300, 8))
    own = list(rng.integers(0, 300, 4000))
    assert 0.05 < named(images, rng.permutation(names), own, seed=1, among=10).mean() < 0.16


def test_the_nearest_class_mean():
    known = np.array([[1, 0.0], [0.8, 0.2], [0, 1], [0.1, 2]])
    images = np.array([[5, 1.0], [1, 4], [0.1, 1]])
    assert nearest_class(images, [0, 1, 0], known, np.array([0, 0, 1, 1])).value == pytest.approx(200 / 3)


def test_the_discrepancy_is_that_of_its_definition():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 3)), rng.normal(size=(6, 3)) + 1
    width = np.median([np.square(a - b).sum() for i, a in enumerate(y) for b in y[:i]])

    def kernel(a, b):
        return np.exp(-np.square(a - b).sum() / width)

    total = sum(
        kernel(x[i], x[j]) + kernel(y[i], y[j]) - kernel(x[i], y[j]) - kernel(x[j], y[i])
        for i in range(6)
        for j in range(6)
        if i != j
    )
    assert discrepancy(x, y).value == pytest.approx(1000 * total / 30)


def test_the_discrepancy_is_unbiased_and_its_interval_covers_zero_for_equal_distributions():
    rng = np.random.default_rng(0)
    same = [discrepancy(rng.normal(size=(40, 4)), rng.normal(size=(40, 4))) for _ in range(200)]
    assert abs(np.mean([one.value for one in same])) < 2
    assert np.mean([one.low <= 0 <= one.high for one in same]) > 0.9
    moved = discrepancy(rng.normal(size=(40, 4)) + 1, rng.normal(size=(40, 4)))
    assert moved.low > 0
    with pytest.raises(ValueError, match="two equally large sets of at least 3"):
        discrepancy(np.zeros((4, 2)), np.zeros((3, 2)))


def test_copies_are_at_distance_zero():
    train = np.eye(3)
    assert nearest_distance(2 * train[:2], train) == pytest.approx(0)
    assert nearest_distance(np.array([[1.0, 1, 0]]), train) == pytest.approx(1 - 0.5**0.5)


@pytest.fixture
def judge(tmp_path: Path) -> Path:
    """Towers that were never trained."""
    config = ContrastiveConfig(name="judge", runs=tmp_path, towers=TOWERS)
    config.folder.mkdir()
    texts = [one.name for one in drawings("train")]
    TextTokenizer.train(texts, 400).save(config.folder / "text.model")
    (config.folder / "config.json").write_text(json.dumps(to_stored(config)))
    export(config, nnx.to_pure_dict(nnx.state(fresh_towers(config), nnx.Param)))
    return config.folder


def test_the_part_scores_bounds_and_drawings(judge: Path, monkeypatch: pytest.MonkeyPatch):
    few = {"train": drawings("train")[:30], "drawings": drawings("train")[2:30:4]}
    monkeypatch.setattr("generalist.eval.parts.drawing.drawings", few.__getitem__)
    base = debug()
    source = TextToImage(
        weight=1.0,
        evaluation_items=4,
        evaluation_judge=str(judge),
        evaluation_guidance=(2.0, 1.0),
        evaluation_best_of=(1, 2),
    )
    tokens = dataclasses.replace(base.tokens, image_codes=24, text_pieces=400)
    config = dataclasses.replace(
        base, tokens=tokens, data=dataclasses.replace(base.data.with_sources(drawing=source), only=("drawing",))
    )
    Draws().prepare(config)
    codes = ImageTokenizer(SHAPE, nnx.to_pure_dict(nnx.state(fresh_autoencoder(SHAPE, 0), nnx.Param)))
    text = TextTokenizer.load(judge / "text.model")
    tokenizers = Tokenizers(config=config, text=text, layouts={}, projection_width=0, codes=codes)
    graph, params = nnx.split(create_separate(tokenizers.model_spec(), 1), nnx.Param)
    generalist = Generalist(tokenizers, graph, jax.tree.map(lambda leaf: leaf * 2.0, nnx.to_pure_dict(params)), 0)
    part = Draws()
    jobs = part.jobs(generalist)
    assert [job.key for job in jobs] == [
        *("known names, bounds", "known names, guidance 2", "known names, guidance 1"),
        *("recombined names, bounds", "recombined names, guidance 2", "recombined names, guidance 1"),
    ]
    results = {"drawing": {job.key: job.compute(Progress(disable=True)) for job in jobs[:3]}}
    results = json.loads(json.dumps(results))
    assert [*results["drawing"]["known names, guidance 2"]] == ["best of 1", "best of 2"]
    gains = [f"known names, best of {count}: gain of guidance 2 over 1, points" for count in (1, 2)]
    assert len(part.numbers(results)) == 6 * len(COLUMNS) + 2
    assert [row.label for row in part.rows(results)[6:]] == gains
    part.check(results)
    floor, ceiling = results["drawing"]["known names, bounds"].values()
    assert floor["discrepancy"] == ceiling["discrepancy"] and floor["hits"] != []
    # Another judge in the same folder is another judge.
    weights = judge / "towers.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    assert all(one.settings != other.settings for one, other in zip(jobs, part.jobs(generalist), strict=True))
    assert all(np.isfinite([one.value, one.low, one.high]).all() for one in part.numbers(results).values())


def test_a_gain_is_that_of_the_same_names():
    def drawn(*hits: bool) -> dict:
        return {"best of 1": {"hits": hits, "named": dataclasses.asdict(proportion(sum(hits), len(hits)))}}

    # Both are right in half of the names: of the same names in one split, of others in the other.
    half, other = (True, False) * 50, (False, True) * 50
    results = {
        "drawing": {
            "known names, guidance 4": drawn(*half),
            "known names, guidance 1": drawn(*half),
            "recombined names, guidance 4": drawn(*(True,) * 100),
            "recombined names, guidance 1": drawn(*other),
        }
    }
    gains = _gains(results["drawing"])
    assert [*gains] == [
        "known names, best of 1: gain of guidance 4 over 1, points",
        "recombined names, best of 1: gain of guidance 4 over 1, points",
    ]
    same, more = gains.values()
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert more.value == 50 and 35 < more.low < 50 < more.high < 65
    Draws().check(results)
    results["drawing"]["known names, guidance 4"]["best of 1"]["named"]["value"] = 51.0
    with pytest.raises(ValueError, match="right of 100 names %, known names, guidance 4, best of 1 is 51"):
        Draws().check(results)


def test_a_judge_is_required_and_must_not_rank(judge: Path):
    def prepare(**settings: str) -> None:
        base, source = debug(), TextToImage(weight=1.0, evaluation_items=4, **settings)
        tokens = dataclasses.replace(base.tokens, image_codes=24)
        Draws().prepare(dataclasses.replace(base, tokens=tokens, data=base.data.with_sources(drawing=source)))

    prepare(evaluation_judge=str(judge))
    with pytest.raises(ValueError, match="evaluation_judge = '' is no run"):
        prepare()
    with pytest.raises(ValueError, match="evaluation_towers = 'nowhere' is no run"):
        prepare(evaluation_judge=str(judge), evaluation_towers="nowhere")
    with pytest.raises(ValueError, match="are the same towers: name another judge"):
        prepare(evaluation_judge=str(judge), evaluation_towers=f"{judge.parent}/./judge/")
    assert not Draws().sources(debug())
    (judge / "text.model").unlink()
    with pytest.raises(ValueError, match="is no run of `train.py contrastive` that can be loaded .*text.model"):
        prepare(evaluation_judge=str(judge))


@pytest.mark.parametrize("guidance", [(), (0.5,), (2.0, math.nan), (math.inf,)])
def test_impossible_guidance_is_refused_before_training(guidance: tuple[float, ...]):
    with pytest.raises(ValueError, match="evaluation_guidance must be numbers from 1 to 1000"):
        TextToImage(evaluation_guidance=guidance)


def test_drawing_is_not_evaluated_without_being_learned(tmp_path: Path):
    base = debug()
    config = dataclasses.replace(base, data=dataclasses.replace(base.data, folder=tmp_path))
    with pytest.raises(ValueError, match="evaluation_items = 5, but data.drawing.weight = 0"):
        TextToImage(evaluation_items=5).check("drawing", stored(config), False, print)
