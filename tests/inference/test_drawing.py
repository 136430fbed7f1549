"""Drawing: cached and guided drawing against whole passes, editing, ranking, and a run that learns to draw."""

import argparse
import dataclasses
import functools
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from rich.console import Console

from generalist.cli.draw import add_arguments, not_learned
from generalist.cli.main import main
from generalist.config.presets import debug
from generalist.config.run import Config, TrainingConfig
from generalist.data import emoji
from generalist.data.drawn import drawing_codes, open_cells
from generalist.data.packing import BatchIterator
from generalist.data.sources.drawing import TextToImage
from generalist.experiment.image_tokenizer import learn_image_tokenizer
from generalist.experiment.inherit import check_same_model
from generalist.experiment.prepare import prepare
from generalist.image_tokenizer.config import ImageTokenizerConfig
from generalist.inference.best_of import best_of
from generalist.inference.drawing import draw_images, grid, guided
from generalist.inference.drawing_settings import DrawingSettings
from generalist.inference.generalist import Generalist
from generalist.inference.rows import stack_rows
from generalist.model.transformer import create_separate
from generalist.run.drawn import is_to_be_learned, with_image_tokenizer
from generalist.tokenizers.drawing import drawing
from generalist.training.tokens import train
from generalist.vision.autoencoder import AutoencoderConfig
from generalist.vision.image_tokenizer import ImageTokenizer, fresh_autoencoder
from generalist.weights.folder import WeightsError

TINY = AutoencoderConfig(size=12, patch=4, levels=(3, 2, 4), width=16, blocks=1)
LIKELIEST = DrawingSettings(guidance=1.0, top_k=1)


@pytest.fixture(scope="module")
def tokenizer() -> ImageTokenizer:
    return ImageTokenizer(TINY, nnx.to_pure_dict(nnx.state(fresh_autoencoder(TINY, 0), nnx.Param)))


@pytest.fixture
def artist(make_model: Callable[..., Generalist], tokenizer: ImageTokenizer) -> Generalist:
    """Random weights with codes, so large that every code depends on those before it."""
    base = make_model()
    config = dataclasses.replace(base.config, tokens=dataclasses.replace(base.config.tokens, image_codes=24))
    tokenizers = dataclasses.replace(base.tokenizers, config=config, codes=tokenizer)
    graph, params = nnx.split(create_separate(tokenizers.model_spec(), 1), nnx.Param)
    params = jax.tree.map(lambda leaf: leaf * 4.0, nnx.to_pure_dict(params))
    return Generalist(tokenizers, graph, params, 0)


def whole_logits(artist: Generalist, text: str, codes: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Log-probabilities of all codes at each drawn cell, from a whole pass without a cache, (M, codebook)."""
    sequence = drawing(artist.assembler, text, codes, drawn)
    batch = artist.on_device(stack_rows([sequence], 48, pad=artist.vocabulary.pad))
    module = nnx.merge(artist.graph, artist.params)
    logits = np.asarray(module.logits(module.hidden(batch)))[0, sequence.loss_weight.nonzero()[0]]
    return np.asarray(jax.nn.log_softmax(logits[:, list(artist.vocabulary.range("image_codes"))], axis=-1))


@pytest.mark.parametrize("cells", [range(9), (1, 4, 5)])
def test_the_likeliest_codes_are_those_of_whole_passes(artist, cells):
    given, drawn = np.arange(9, dtype=np.int32), np.isin(np.arange(9), list(cells))
    found = draw_images(artist, ["push the red", "lift"], LIKELIEST, given=given, drawn=drawn)
    assert found.images.shape == (2, 12, 12, 3)
    for text, codes, fit in zip(["push the red", "lift"], found.codes, found.fit, strict=True):
        np.testing.assert_array_equal(codes[~drawn], given[~drawn])
        with_text, without = (whole_logits(artist, one, codes, drawn) for one in (text, ""))
        np.testing.assert_array_equal(with_text.argmax(axis=1), codes[drawn])
        gained = (with_text - without)[np.arange(drawn.sum()), codes[drawn]].sum()
        np.testing.assert_allclose(fit, gained, rtol=1e-3, atol=1e-3)


def test_guidance_moves_away_from_what_is_likely_without_the_text(artist):
    found = draw_images(artist, ["push the red"], DrawingSettings(guidance=4.0, top_k=1, min_p=0.0))
    everything = np.ones((9,), bool)
    with_text, without = (whole_logits(artist, one, found.codes[0], everything) for one in ("push the red", ""))
    np.testing.assert_array_equal((without + 4 * (with_text - without)).argmax(axis=1), found.codes[0])
    assert (with_text.argmax(axis=1) != found.codes[0]).any()


def test_guided_logits_are_drawn_from_allowed_ids():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)).at[:, 0].set(50.0)
    allowed = np.array([False, False, True, True, True, False])
    draws = np.stack([np.zeros(2), np.arange(2), np.zeros(2)], axis=1).astype(np.uint32)
    seen = {
        int(one)
        for step in range(60)
        for one in guided(logits, allowed, 2.0, draws + np.uint32(step), 1.0, 0, 1.0, 0.0)[0]
    }
    assert seen == {2, 3, 4}


def test_guidance_draws_nothing_that_is_unlikely_with_the_text():
    # The last id is a thousand times likelier with the text than without, and hardly ever right.
    with_text, without = np.log([[0.6, 0.3, 0.1 - 1e-5, 1e-5]]), np.log([[0.5, 0.3, 0.2 - 1e-8, 1e-8]])
    logits, allowed = jnp.asarray(np.concatenate([with_text, without]), jnp.float32), np.ones(4, bool)
    draws = np.zeros((1, 3), np.uint32)

    def seen(min_p: float) -> set[int]:
        return {int(guided(logits, allowed, 4.0, draws + np.uint32(k), 1.0, 0, 1.0, min_p)[0][0]) for k in range(80)}

    assert 3 in seen(0.0)
    assert {0, 1} <= seen(0.1) <= {0, 1, 2} and seen(0.4) == {0, 1}
    with pytest.raises(ValueError, match=r"min_p must be at least 0 and below 1, got 1.0"):
        DrawingSettings(min_p=1.0)


def test_an_image_depends_on_its_seed_and_number_alone(artist):
    seventh = DrawingSettings(seed=7, guidance=1.0, temperature=3.0, min_p=0.0)
    four = draw_images(artist, ["lift"] * 4, seventh).codes
    assert len(np.unique(four, axis=0)) == 4
    np.testing.assert_array_equal(draw_images(artist, ["lift"] * 2, seventh).codes, four[:2])
    other = dataclasses.replace(seventh, seed=8)
    assert (draw_images(artist, ["lift"], other).codes != four[:1]).any()


def test_images_of_several_passes_are_those_of_one(artist, monkeypatch):
    settings, told = DrawingSettings(guidance=2.0, seed=5), []
    whole = draw_images(artist, ["lift", "push", "lift"], settings)
    monkeypatch.setattr("generalist.inference.drawing.AT_ONCE", 2)
    parts = draw_images(
        artist, ["lift", "push", "lift"], settings, progress=lambda done, total: told.append((done, total))
    )
    np.testing.assert_array_equal(parts.codes, whole.codes)
    np.testing.assert_allclose(parts.fit, whole.fit, atol=1e-4)
    assert told == [(done, 18) for done in range(1, 19)]


def test_the_best_come_first(artist):
    drawn = draw_images(artist, ["lift"] * 6, DrawingSettings(seed=1))
    best = best_of(artist, "lift", DrawingSettings(seed=1), count=3, candidates=6)
    np.testing.assert_array_equal(best.fit, np.sort(drawn.fit)[::-1][:3])
    np.testing.assert_array_equal(best.images[0], drawn.images[drawn.fit.argmax()])
    np.testing.assert_array_equal(artist.draw("lift", best_of=6, seed=1), best.images[:1])


def test_only_what_the_box_touches_is_drawn_anew(artist):
    image = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    codes, edited = artist.tokenizers.codes.encode([image])[0], artist.draw("lift", image=image, box=(0, 5, 4, 12))
    assert edited.shape == (1, 12, 12, 3)
    found = best_of(
        artist, "lift", DrawingSettings(), count=1, candidates=1, given=codes, drawn=np.isin(np.arange(9), [1, 2])
    )
    np.testing.assert_array_equal(edited, found.images)
    np.testing.assert_array_equal(found.codes[0, [0, *range(3, 9)]], codes[[0, *range(3, 9)]])


def test_what_cannot_be_drawn_is_refused(artist, make_model):
    image = np.zeros((12, 12, 3), np.uint8)
    with pytest.raises(ValueError, match="no image tokenizer"):
        make_model().draw("lift")
    with pytest.raises(ValueError, match="no image tokenizer"):
        make_model().draw("lift", image=image, box=(0, 0, 4, 4))
    with pytest.raises(ValueError, match="go together"):
        artist.draw("lift", image=image)
    with pytest.raises(ValueError, match="must be within 0 to 12"):
        artist.draw("lift", image=image, box=(0, 0, 13, 4))
    with pytest.raises(
        ValueError, match=r"must be uint8 \(H, W, C\), got uint8 \(0, 12, 3\): a grey image has one channel"
    ):
        artist.draw("lift", image=image[:0], box=(0, 0, 4, 4))
    with pytest.raises(ValueError, match="the text has <loc0102>, but a drawing is of the whole image"):
        artist.draw("lift <loc0102>")
    with pytest.raises(ValueError, match="best_of must be at least count = 4, .* got 2: raise it"):
        artist.draw("lift", count=4, best_of=2)
    with pytest.raises(ValueError, match="the text is empty: say what the image shows"):
        artist.draw(" ")
    wrong = (
        ("guidance", 0.5),
        ("guidance", 1e39),
        ("temperature", 0.0),
        ("temperature", 1e300),
        ("top_k", -1),
        ("top_k", 2**31),
        ("top_p", math.nan),
        ("top_p", 1e-300),
    )
    for name, value in wrong:
        with pytest.raises(ValueError, match=re.escape(f"got {value}: ")):
            artist.draw("lift", **{name: value})


@pytest.mark.parametrize("part", [{}, {"image": np.zeros((12, 12, 3), np.uint8), "box": (0, 0, 4, 4)}])
def test_a_text_that_is_too_long_is_refused_before_anything_is_computed(artist, part, monkeypatch):
    pieces = 128 - 9  # the other positions: the markers and all codes but the last
    text = "push " * 90
    taken = len(artist.assembler.text_tokenizer.encode(text)) - pieces + 1
    monkeypatch.setattr(ImageTokenizer, "encode", None)
    with pytest.raises(ValueError, match=f"trained on rows of 128: shorten the text by {taken} pieces"):
        artist.draw(text, **part)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--guidance", "0.5"), "guidance must be a number from 1 to 1000, got 0.5"),
        (("--count", "3", "--best-of", "2"), "best_of must be at least count = 3"),
        (("--edit", "nowhere.png", "--box", "0", "0", "4", "4"), "--edit: there is no image nowhere.png"),
        ((), "the weights have no image tokenizer"),
        (("",), "the text is empty: say what the image shows"),
    ],
)
def test_the_command_refuses_before_weights_are_loaded(given, message, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr("generalist.cli.draw.load_weights", None)
    text = [] if given == ("",) else ["a heart"]
    assert main(["draw", *text, "--out", str(tmp_path / "heart.png"), *given]) == 1
    assert message in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "given", "told"),
    [
        (TextToImage(weight=1.0), ("--edit", "face.png"), []),
        (TextToImage(), (), ["no source of the weights' own training draws"]),
        (TextToImage(weight=1.0, without_text=0.0), (), ["data.drawing.without_text = 0"]),
        (
            TextToImage(weight=1.0, without_text=0.0),
            ("--guidance", "1", "--best-of", "2"),
            ["data.drawing.without_text"],
        ),
        (TextToImage(weight=1.0, without_text=0.0), ("--guidance", "1", "--best-of", "2", "--towers", "t"), []),
        (TextToImage(weight=1.0, infilling=0.0), ("--edit", "face.png"), ["data.drawing.infilling = 0"]),
    ],
)
def test_what_a_training_did_not_teach_is_told(source: TextToImage, given: tuple[str, ...], told: list[str]):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    arguments = parser.parse_args(["a heart", "--out", "heart.png", *given])
    base = debug()
    tokens = dataclasses.replace(base.tokens, image_codes=24)
    named = dataclasses.replace(base, tokens=tokens, data=base.data.with_sources(drawing=source))
    found = not_learned(named, arguments)
    assert len(found) == len(told) and all(part in line for part, line in zip(told, found, strict=True))


def test_codes_that_fit_no_drawing_or_no_row_are_refused_with_the_settings(tokenizer, tmp_path: Path):
    tokenizer.save(tmp_path / "codes")
    with pytest.raises(ValueError, match="data.length = 11, but a name and its drawing of 9 codes take at least 12"):
        run_settings(tmp_path, tmp_path / "codes", length=11)
    assert run_settings(tmp_path, tmp_path / "codes", length=12).tokens.image_codes == 24
    fine = AutoencoderConfig(size=69, patch=3, levels=(2, 2), width=16, blocks=1)
    many = ImageTokenizer(fine, nnx.to_pure_dict(nnx.state(fresh_autoencoder(fine, 0), nnx.Param)))
    many.save(tmp_path / "many")
    with pytest.raises(
        ValueError, match="69 × 69 pixels has 529 codes, .* at most 510: .* images of at most 66 pixels"
    ):
        run_settings(tmp_path, tmp_path / "many", length=600)
    with pytest.raises(ValueError, match="shape.patch = 3 gives 529 codes per image, .* lower shape.size to 66"):
        ImageTokenizerConfig(shape=fine)


def test_a_grid_is_white_between_its_images():
    images = np.zeros((3, 2, 2, 3), np.uint8)
    np.testing.assert_array_equal(
        grid(images, 2, gap=1)[..., 0] == 255,
        [
            [0, 0, 1, 0, 0],
            [0, 0, 1, 0, 0],
            [1, 1, 1, 1, 1],
            [0, 0, 1, 1, 1],
            [0, 0, 1, 1, 1],
        ],
    )


def test_open_cells_are_a_rectangle_or_its_outside():
    rng, shares = np.random.default_rng(0), []
    for _ in range(200):
        cells = open_cells(4, rng).reshape(4, 4)
        assert cells.any()
        one = cells if cells.all() or not (cells[0, 0] and cells[-1, -1] and cells[0, -1] and cells[-1, 0]) else ~cells
        rows, columns = one.any(axis=1), one.any(axis=0)
        if not cells.all() and (one != rows[:, None] & columns[None]).any():
            one = ~one  # the outside of a rectangle at an edge
            rows, columns = one.any(axis=1), one.any(axis=0)
        np.testing.assert_array_equal(one, rows[:, None] & columns[None])
        shares.append(cells.mean())
    assert min(shares) < 0.1 and max(shares) == 1


def test_codes_of_drawings_are_computed_once(tokenizer, tmp_path):
    some = emoji.drawings("train")[:70]
    codes = drawing_codes(some, 2, tokenizer, tmp_path)
    assert codes.shape == (70, 2, 9)
    np.testing.assert_array_equal(codes[69, 0], tokenizer.encode([some[69].image()])[0])
    np.testing.assert_array_equal(codes[69, 1], tokenizer.encode([emoji.variant(some[69], 1)])[0])
    (file,) = tmp_path.glob("*.npy")
    assert list(tmp_path.iterdir()) == [file]
    before = file.stat().st_mtime_ns
    np.testing.assert_array_equal(drawing_codes(some, 2, tokenizer, tmp_path), codes)
    assert file.stat().st_mtime_ns == before
    # A drawing that another version of its package has changed has other codes.
    renewed = tmp_path / "renewed.png"
    Image.fromarray(255 - some[0].rgba()[..., :3]).save(renewed)
    changed = (dataclasses.replace(some[0], path=renewed), *some[1:])
    assert not np.array_equal(drawing_codes(changed, 2, tokenizer, tmp_path / "changed"), codes)
    np.save(file, codes + 24)
    with pytest.raises(ValueError, match="is damaged: delete it"):
        drawing_codes(some, 2, tokenizer, tmp_path)


def test_parts_that_an_interrupted_run_computed_are_kept(tokenizer, tmp_path, monkeypatch):
    some, encode, calls = emoji.drawings("train")[:70], ImageTokenizer.encode, []
    codes = drawing_codes(some, 2, tokenizer, tmp_path / "whole")

    def interrupted(self, images):
        calls.append(len(images))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(self, images)

    monkeypatch.setattr(ImageTokenizer, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        drawing_codes(some, 2, tokenizer, tmp_path / "parts")
    np.testing.assert_array_equal(drawing_codes(some, 2, tokenizer, tmp_path / "parts"), codes)
    assert calls == [128, 12, 12]


def test_a_source_without_an_image_tokenizer_is_refused():
    base = debug()
    with pytest.raises(ValueError, match=r"data\.drawing needs an image tokenizer"):
        dataclasses.replace(base, data=base.data.with_sources(drawing=TextToImage(weight=1.0)))


def run_settings(folder: Path, codes: Path, *, length: int = 64, **training) -> Config:
    """A run that only draws, with the codes of an image tokenizer."""
    base = debug()
    return with_image_tokenizer(
        dataclasses.replace(
            base,
            name="artist",
            runs=folder / "runs",
            model=dataclasses.replace(base.model, width=64),
            tokens=dataclasses.replace(base.tokens, text_pieces=400, image_tokenizer=str(codes)),
            data=dataclasses.replace(
                base.data.with_sources(drawing=TextToImage(weight=1.0, variants=1)),
                only=("drawing",),
                folder=folder / "data",
                length=length,
            ),
            training=dataclasses.replace(base.training, **training),
        )
    )


def trained_run(config: Config) -> Generalist:
    """The weights of the run, once it is over."""
    console = Console(quiet=True)
    prepared = prepare(config, console)
    assert isinstance(prepared.iterator, BatchIterator)
    train(config, prepared.tokenizers.model_spec(), prepared.batch_spec, prepared.iterator, prepared.sources, console)
    return Generalist.from_run(config)


def test_a_run_with_a_published_image_tokenizer_and_its_export_draw(tmp_path: Path, monkeypatch):
    published = tmp_path / "published"
    published.mkdir()
    shutil.copy(Path(__file__).parent.parent / "fixtures" / "image_tokenizers" / "llamagen.pt", published)
    (published / "config.json").write_text('{"size": 8}')
    some = emoji.drawings("train")[:4]
    monkeypatch.setattr("generalist.data.sources.drawing.drawings", lambda split: some)
    config = run_settings(tmp_path, published, steps=2, checkpoint_every=2)
    assert config.tokens.image_codes == 64
    generalist = trained_run(config)
    shutil.rmtree(published)  # runs and exports have copies
    generalist.save(tmp_path / "weights")
    drawn = draw_images(Generalist.load(tmp_path / "weights"), ["a heart"], LIKELIEST)
    assert drawn.codes.shape == (1, 16) and drawn.images.shape == (1, 8, 8, 3)
    np.testing.assert_array_equal(drawn.images, draw_images(Generalist.from_run(config), ["a heart"], LIKELIEST).images)
    # Without its settings the copy would have images of another size.
    (tmp_path / "weights" / "image_tokenizer" / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"has no config\.json: restore"):
        Generalist.load(tmp_path / "weights")


def test_an_image_tokenizer_is_learned_first(tmp_path: Path, monkeypatch):
    small = functools.partial(
        ImageTokenizerConfig, shape=TINY, perceptual=0.0, batch=8, training=TrainingConfig(steps=2, data_axis=1)
    )
    monkeypatch.setattr("generalist.experiment.image_tokenizer.ImageTokenizerConfig", small)
    monkeypatch.setattr("generalist.run.drawn.AutoencoderConfig", lambda: TINY)
    some = emoji.drawings("train")[:4]
    monkeypatch.setattr("generalist.data.sources.drawing.drawings", lambda split: some)
    config = run_settings(tmp_path, Path("learned"), steps=2, checkpoint_every=2)
    assert config.tokens.image_codes == 24 and is_to_be_learned(config)
    silent = dataclasses.replace(config, data=debug().data)  # nothing is learned for sources that do not draw
    assert not is_to_be_learned(silent) and with_image_tokenizer(silent).tokens.image_tokenizer == "none"
    with pytest.raises(
        ValueError, match="is the folder of the image tokenizer that is learned first: choose another --name"
    ):
        with_image_tokenizer(dataclasses.replace(config, name="image_tokenizer"))
    learn_image_tokenizer(config, Console(quiet=True))
    scores = tmp_path / "runs" / "image_tokenizer" / "results.json"
    assert not is_to_be_learned(config) and scores.exists()
    written = scores.stat().st_mtime_ns
    learn_image_tokenizer(config, Console(quiet=True))  # is there
    assert scores.stat().st_mtime_ns == written
    drawn = draw_images(trained_run(with_image_tokenizer(config)), ["a heart"], LIKELIEST)
    assert drawn.images.shape == (1, 12, 12, 3)
    # A run that has begun has a copy, and one that begins with its weights has theirs.
    shutil.rmtree(scores.parent)
    assert not is_to_be_learned(config) and with_image_tokenizer(config).tokens.image_codes == 24
    begun = dataclasses.replace(config.training, start=str(config.folder))
    assert not is_to_be_learned(dataclasses.replace(config, name="second", training=begun))
    assert is_to_be_learned(dataclasses.replace(config, name="second"))
    other = dataclasses.replace(config.tokens, image_tokenizer="my/other")
    with pytest.raises(
        ValueError, match=r"has tokens\.image_tokenizer = learned, not my/other: leave these settings out"
    ):
        check_same_model(dataclasses.replace(config, tokens=other, training=begun), config)


def test_a_run_learns_to_draw_and_its_export_draws(tokenizer, tmp_path: Path, monkeypatch):
    tokenizer.save(tmp_path / "codes")
    some = emoji.drawings("train")[:24]
    monkeypatch.setattr("generalist.data.sources.drawing.drawings", lambda split: some)
    config = run_settings(tmp_path, tmp_path / "codes", steps=150, learning_rate=5e-3, checkpoint_every=150)
    assert config.tokens.image_codes == 24
    generalist = trained_run(config)
    generalist.save(tmp_path / "weights")
    again = Generalist.load(tmp_path / "weights")
    texts = [f"a {one.name}" for one in some]
    drawn = draw_images(again, texts, LIKELIEST)
    np.testing.assert_array_equal(drawn.codes, draw_images(generalist, texts, LIKELIEST).codes)
    # The right drawing more often than another one: chance is 1 in 24, and few codes are those of several drawings.
    true = tokenizer.encode([one.image() for one in some])
    nearest = (drawn.codes[:, None] == true[None]).mean(axis=2).argmax(axis=1)
    assert (nearest == np.arange(24)).mean() > 0.3
    assert (
        main(
            [
                "draw",
                texts[0],
                "--weights",
                str(tmp_path / "weights"),
                "--count",
                "2",
                "--best-of",
                "3",
                "--out",
                str(tmp_path / "out.png"),
            ]
        )
        == 0
    )
    with Image.open(tmp_path / "out.png") as image:
        assert image.size == (28, 12)
    # Weights with another image tokenizer in their folder would draw noise.
    (tmp_path / "weights" / "image_tokenizer" / "config.json").unlink()
    with pytest.raises(WeightsError):
        Generalist.load(tmp_path / "weights")
