"""The image tokenizer: rounding and codes, both directions, training, its folder, refused input."""

import errno
import itertools
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from rich.console import Console

from generalist.config.run import TrainingConfig
from generalist.data.files import DocumentError
from generalist.data.stable_hash import stable_hash
from generalist.eval.held_out.image_tokenizer import signal_to_noise
from generalist.experiment.image_tokenizer import run_image_tokenizer
from generalist.image_tokenizer.config import ImageTokenizerConfig, check_effective
from generalist.image_tokenizer.data import open_batches, open_images, record_names, recorded_names
from generalist.image_tokenizer.train import make_image_trainer, perceptual_distance, place
from generalist.run.folder import check_same_settings
from generalist.vision.autoencoder import (
    AutoencoderConfig,
    bounded,
    joined,
    patches,
    rounded,
    to_codes,
    to_digits,
)
from generalist.vision.efficientnet import block_outputs, folded, weights_file
from generalist.vision.image_tokenizer import ImageTokenizer, fresh_autoencoder, standardised
from generalist.weights.folder import WeightsError
from generalist.weights.legacy_torch import read_tensors

TINY = AutoencoderConfig(size=16, patch=4, levels=(3, 2, 4), width=16, blocks=1)


@pytest.fixture(scope="module")
def tokenizer() -> ImageTokenizer:
    return ImageTokenizer(TINY, nnx.to_pure_dict(nnx.state(fresh_autoencoder(TINY, 0), nnx.Param)))


def test_codes_and_digits_in_the_radix_of_the_levels():
    # First digit least significant:  0 0 0 | 1 0 0 | 2 0 0 | 0 1 0 | ... | 2 1 3
    digits = np.array([(a, b, c) for c, b, a in itertools.product(range(4), range(2), range(3))], np.float32)
    np.testing.assert_array_equal(to_codes(jnp.asarray(digits), TINY.levels), np.arange(24))
    np.testing.assert_array_equal(to_digits(jnp.arange(24), TINY.levels), digits)


def test_every_level_is_reached_and_none_beyond():
    numbers = jnp.linspace(-50, 50, 20001)[:, None] * jnp.ones((1, 3))
    reached = np.round(np.asarray(bounded(numbers, TINY.levels)))
    assert [np.unique(column).tolist() for column in reached.T] == [[0, 1, 2], [0, 1], [0, 1, 2, 3]]


def test_rounding_has_the_gradient_of_the_identity():
    value, slope = jax.value_and_grad(lambda x: rounded(x)[0] * 3.0)(jnp.array([1.7]))
    assert (value, slope[0]) == (6.0, 3.0)


def test_patches_are_cut_and_joined():
    image = np.arange(4 * 6 * 3, dtype=np.float32).reshape(1, 4, 6, 3)
    cut = np.asarray(patches(jnp.asarray(image), 2))
    assert cut.shape == (1, 2, 3, 12)
    np.testing.assert_array_equal(cut[0, 1, 2].reshape(2, 2, 3), image[0, 2:4, 4:6])
    np.testing.assert_array_equal(joined(jnp.asarray(cut), 2), image)


def test_both_directions_for_any_number_and_size_of_images(tokenizer):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in [(16, 16), (40, 20), (5, 9)] * 12]
    codes = tokenizer.encode(images)
    assert codes.shape == (36, 16) and codes.dtype == np.int32 and codes.min() >= 0 and codes.max() < 24
    # An image's codes depend on no other image of its batch.
    np.testing.assert_array_equal(tokenizer.encode(images[34:35])[0], codes[34])
    decoded = tokenizer.decode(codes)
    assert decoded.shape == (36, 16, 16, 3) and decoded.dtype == np.uint8
    np.testing.assert_array_equal(tokenizer.decode(codes[34:35])[0], decoded[34])
    assert tokenizer.encode([]).shape == (0, 16)


def test_codes_are_those_of_the_decoded_image(tokenizer):
    graph, params = nnx.split(fresh_autoencoder(TINY, 0), nnx.Param)
    del params

    def first(images):  # without settling
        latents = nnx.merge(graph, tokenizer.params).latents(standardised(jnp.stack(images)))
        return np.asarray(to_codes(jnp.round(latents), TINY.levels)).reshape(len(images), -1)

    images = list(np.random.default_rng(2).integers(0, 256, (32, 16, 16, 3), np.uint8))
    codes = tokenizer.encode(images)
    np.testing.assert_array_equal(codes, first(list(tokenizer.decode(first(images)))))
    assert (codes != first(images)).any()


def test_codes_of_another_tokenizer_are_refused(tokenizer):
    with pytest.raises(ValueError, match="has 16 codes, got codes of shape"):
        tokenizer.decode(np.zeros((1, 15), np.int32))
    with pytest.raises(ValueError, match="from 0 to 23, got 0 to 24"):
        tokenizer.decode(np.array([[24] + [0] * 15], np.int32))


def test_a_folder_gives_the_same_tokenizer(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer")
    again = ImageTokenizer.load(tmp_path / "tokenizer")
    assert again.config == TINY
    image = np.random.default_rng(1).integers(0, 256, (16, 16, 3), np.uint8)
    codes = tokenizer.encode([image])
    np.testing.assert_array_equal(again.encode([image]), codes)
    np.testing.assert_array_equal(again.decode(codes), tokenizer.decode(codes))
    with pytest.raises(FileExistsError):
        tokenizer.save(tmp_path / "tokenizer")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"levels": [3, 2, "4"]}, "must be whole numbers"),
        ({"levels": [3, 2, 1]}, "at least 2"),
        ({"levels": [3, 2, 4, 5]}, "shape"),
        ({"width": 1e999}, "must be above 0|expected type"),
        ({"size": 15}, "multiple of shape.patch"),
        ({"blocks": 1_000_000}, "shape.blocks must be at least 1 and at most 128"),
        ({"architectures": ["SiglipVisionModel"]}, "not an image tokenizer"),
    ],
)
def test_a_damaged_folder_is_refused(tokenizer, tmp_path, changed, message):
    tokenizer.save(tmp_path / "tokenizer")
    path = tmp_path / "tokenizer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(WeightsError, match=message):
        ImageTokenizer.load(tmp_path / "tokenizer")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"size": 70}, "multiple of shape.patch"),
        ({"levels": ()}, "one or more numbers"),
        ({"levels": (64, 64, 64, 64)}, "more than 1,048,576"),
        ({"width": 0}, "at least 1"),
    ],
)
def test_impossible_shapes_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        AutoencoderConfig(**changed)


def config(tmp_path: Path, **changed) -> ImageTokenizerConfig:
    training = TrainingConfig(steps=4, warmup=1, learning_rate=2e-3, checkpoint_every=2, log_every=2, data_axis=1)
    return ImageTokenizerConfig(
        **{"runs": tmp_path, "batch": 8, "shape": TINY, "perceptual": 0.0, "training": training} | changed
    )


def test_settings_without_effect_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"training\.z_loss has no effect on an image tokenizer"):
        check_effective(config(tmp_path, training=TrainingConfig(z_loss=0.5)))
    with pytest.raises(
        ValueError, match=r"training\.dtype has no effect on an image tokenizer, since it is computed in"
    ):
        check_effective(config(tmp_path, training=TrainingConfig(dtype="bfloat16")))
    with pytest.raises(ValueError, match="stability must not be negative, got nan"):
        config(tmp_path, stability=float("nan"))


def test_training_lowers_the_loss_and_makes_codes_stable(tmp_path):
    settings = config(
        tmp_path, stability=0.1, training=TrainingConfig(steps=150, warmup=5, learning_rate=5e-3, data_axis=1)
    )
    trainer, seen = make_image_trainer(settings), []
    images, _ = open_images(settings)
    batches = open_batches(settings, images)
    state, key = trainer.initialize({}), jax.random.key(0)
    with jax.set_mesh(trainer.mesh):
        for _ in range(150):
            state, metrics = trainer.step(state, place(next(batches), trainer.mesh), key)
            seen.append((float(metrics.loss), float(metrics.parts.psnr), float(metrics.parts.stable)))
    batches.close()
    first, last = np.mean(seen[:5], axis=0), np.mean(seen[-20:], axis=0)
    assert last[0] < first[0] / 3 and last[1] > first[1] + 5 and last[2] > 0.8


def test_the_perceptual_distance_is_zero_only_for_equal_images():
    distance = perceptual_distance()
    image = jax.random.uniform(jax.random.key(0), (2, 64, 64, 3)) * 2 - 1
    blurred = jnp.repeat(jnp.repeat(image[:, ::2, ::2], 2, axis=1), 2, axis=2)
    assert distance(image, image) == 0
    assert distance(blurred, image) > 0.05
    slope = jax.grad(lambda one: distance(one, image))(blurred)
    assert np.isfinite(slope).all() and np.abs(slope).max() > 0


def test_block_outputs_halve_the_image_by_stages():
    params = folded(read_tensors(weights_file()))
    shapes = [x.shape for x in block_outputs(params, jnp.zeros((1, 64, 64, 3)), 5)]
    assert shapes == [(1, 32, 32, 16), (1, 16, 16, 24), (1, 16, 16, 24), (1, 8, 8, 40), (1, 8, 8, 40)]


def test_signal_to_noise_of_a_known_error():
    zeros = np.zeros((1, 2, 2, 3), np.uint8)
    np.testing.assert_allclose(signal_to_noise(zeros, zeros + np.uint8(51)), [20 * np.log10(5)])
    assert np.isfinite(signal_to_noise(zeros, zeros)).all()


def test_a_whole_run_on_own_images_goes_on_and_exports(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images" / "more").mkdir(parents=True)
    for number in range(40):
        ramp = np.linspace(0, 255, 20).astype(np.uint8)[:, None, None] * np.ones((1, 24, 3), np.uint8)
        shown = np.where(rng.random((1, 1, 3)) < 0.5, ramp, 255 - ramp).astype(np.uint8)
        Image.fromarray(shown).save(tmp_path / "images" / ("more" if number % 2 else "") / f"{number}.png")
    settings = config(tmp_path / "runs", images=str(tmp_path / "images"))
    run_image_tokenizer(settings, ["train.py", "image_tokenizer"], Console(quiet=True))
    results = json.loads((settings.folder / "results.json").read_text())
    assert results["step"] == 4 and results["items"] == 4 and 0 < results["used"] <= 1 and np.isfinite(results["psnr"])
    assert ImageTokenizer.load(settings.folder / "tokenizer").config == TINY
    # The same command again finds the run complete, and writes the folder anew.
    run_image_tokenizer(settings, ["train.py", "image_tokenizer"], Console(quiet=True))
    assert check_same_settings(settings)
    assert len(json.loads((settings.folder / "held_out.json").read_text())) == 4
    with pytest.raises(ValueError, match=r"stability = 0\.02, not 0\.5"):
        check_same_settings(config(tmp_path / "runs", images=str(tmp_path / "images"), stability=0.5))


def test_another_image_moves_none_from_held_out_to_trained(tmp_path):
    for number in range(200):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number:03}.png")
    settings = config(tmp_path, images=str(tmp_path))
    sides = [{file.name for file in one.files} for one in open_images(settings)]
    assert 4 < len(sides[1]) < 20 and not sides[0] & sides[1]
    for name in ("0000.png", "050x.png", "zzz.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    again = [{file.name for file in one.files} for one in open_images(settings)]
    assert all(one <= other for one, other in zip(sides, again, strict=True))


def test_a_damaged_held_out_image_is_found_before_training(tmp_path):
    for number in range(40):
        Image.new("RGB", (64, 64)).save(tmp_path / f"{number}.bmp")
    settings = config(tmp_path, images=str(tmp_path))
    (held, *_) = open_images(settings)[1].files
    held.write_bytes(held.read_bytes()[:-6000])  # its header is whole
    with pytest.raises(DocumentError, match=held.name):
        open_images(settings)


def test_broken_and_missing_images_are_refused_before_training(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        open_images(config(tmp_path, images=str(tmp_path / "nothing")))
    for number in range(20):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number:02}.png")
    with pytest.raises(ValueError, match="there are 19 images for a batch of 32"):
        open_images(config(tmp_path, images=str(tmp_path), batch=32))
    (tmp_path / "05.png").write_bytes(b"no image")
    with pytest.raises(DocumentError, match=r"05\.png is no image"):
        open_images(config(tmp_path, images=str(tmp_path)))


def blank(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(file)


def names(settings: ImageTokenizerConfig, recorded: frozenset[str] = frozenset()) -> list[list[str]]:
    """The images that are trained on, and the held-out ones."""
    sides = open_images(settings, recorded)
    return [[file.relative_to(str(settings.images)).as_posix() for file in one.files] for one in sides]


def test_folders_behind_links_are_read_once(tmp_path):
    images, other = tmp_path / "images", tmp_path / "other"
    blank(*(images / f"{number:02}.png" for number in range(20)), images / "z" / "inner.png", other / "linked.png")
    (images / "a").symlink_to(images / "z")  # read by its own name
    (images / "link").symlink_to(other)
    (images / "same").symlink_to(other)
    (images / "z" / "up").symlink_to(images)
    (images / "again.png").symlink_to(images / "00.png")
    (images / "outside.png").symlink_to(other / "linked.png")  # the same image as link/linked.png
    (other / "back").symlink_to(other)
    found = sorted(itertools.chain(*names(config(tmp_path, images=str(images)))))
    assert found == [*(f"{number:02}.png" for number in range(20)), "outside.png", "z/inner.png"]


def test_what_cannot_be_followed_is_refused(tmp_path, monkeypatch):
    images = tmp_path / "images"
    blank(*(images / f"{number:02}.png" for number in range(20)), images / "closed" / "one.png")
    (images / "photos").symlink_to(tmp_path / "gone")
    settings = config(tmp_path, images=str(images))
    with pytest.raises(DocumentError, match=r"photos' is a broken link: restore what it leads to, or remove it"):
        open_images(settings)
    (images / "photos").unlink()
    (images / "\udcff.png").write_bytes((images / "00.png").read_bytes())
    with pytest.raises(DocumentError, match=r"\\udcff\.png' is not UTF-8: rename the file"):
        open_images(settings)
    (images / "\udcff.png").unlink()
    listed = os.scandir

    def closed(place: str) -> Any:  # permissions mean nothing to root, as whom containers run
        if Path(place).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", str(place))
        return listed(place)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(DocumentError, match=r"the folder '.*closed' cannot be read \(Permission denied\): make it"):
        open_images(settings)


def test_a_run_that_continues_holds_out_the_same_images(tmp_path):
    images = tmp_path / "images"
    ordered = sorted((f"{number}.png" for number in range(60)), key=stable_hash)
    own = [name for name in ordered if stable_hash(name) % 20 == 0]
    others = [name for name in ordered if stable_hash(name) % 20]
    smallest, *begun = others[:25]
    blank(*(images / name for name in begun))
    settings = config(tmp_path, images=str(images))
    trained, (held,) = names(settings)
    assert held == begun[0]
    settings.folder.mkdir()
    record_names(settings, open_images(settings)[1], frozenset())
    recorded = recorded_names(settings)
    assert recorded == {held}
    # An image that is held out by its own hash was never trained on; another one goes to training whatever its hash.
    blank(images / smallest, images / own[0])
    assert names(settings, recorded) == [sorted([*trained, smallest]), sorted([held, own[0]])]
    record_names(settings, open_images(settings, recorded)[1], recorded)
    assert recorded_names(settings) == {held, own[0]}
    for name in (held, own[0]):
        (images / name).unlink()
    with pytest.raises(FileNotFoundError, match=r"no longer holds any image that the run has held out.*: restore one"):
        open_images(settings, recorded)
    (settings.folder / "held_out.json").write_text('{"0.png": 1}')
    with pytest.raises(DocumentError, match=r"held_out\.json is no list of names: restore it"):
        recorded_names(settings)
