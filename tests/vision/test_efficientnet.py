"""EfficientNet-Lite0: real weights see real images; its file is read without running it."""

import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from generalist.data.emoji import drawings
from generalist.vision.efficientnet import _depthwise, block_outputs, classify
from generalist.vision.encoder import Preparation
from generalist.vision.load import load_encoder
from generalist.weights.folder import WeightsError
from generalist.weights.legacy_torch import MAGIC, PROTOCOL, read_tensors

# Drawings whose class is among ImageNet's thousand (index of the class there).
CLASSES = {"strawberry": 949, "umbrella": 879, "tiger": 292}


@pytest.mark.slow
def test_it_recognises_drawings():
    encoder = load_encoder("efficientnet_lite0", 224)
    assert encoder is not None
    named = {drawing.name: drawing for split in ("train", "drawings", "names") for drawing in drawings(split)}
    grid = encoder.compiled()(encoder(np.stack([named[name].image() for name in CLASSES])))
    assert grid.shape == (3, 49, 1280)
    order = np.argsort(-np.asarray(classify(encoder.params, grid)), axis=1)[:, :3]
    for name, likeliest in zip(CLASSES, order, strict=True):
        assert CLASSES[name] in likeliest, name


def test_no_encoder():
    assert load_encoder("none", 224) is None


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
@pytest.mark.parametrize("length", [4, 7])
def test_shifted_products_are_the_convolution(size: int, stride: int, length: int):
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(rng.normal(size=(size, size, 1, 6)), jnp.float32)
    x = jnp.asarray(rng.normal(size=(2, length, length, 6)), jnp.float32)
    expected = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=6
    )
    np.testing.assert_allclose(_depthwise(kernel, x, stride), expected, atol=1e-5)


def test_the_fingerprint_knows_the_preparation():
    small, large = load_encoder("efficientnet_lite0", 96), load_encoder("efficientnet_lite0", 128)
    assert small is not None and large is not None
    assert small.fingerprint != large.fingerprint
    assert (small.cells, large.cells) == (9, 16)


def test_the_pyramid_has_the_pixels_first_and_the_deepest_block_last():
    plain, encoder = load_encoder("efficientnet_lite0", 64), load_encoder("efficientnet_lite0_pyramid", 64)
    assert plain is not None and encoder is not None
    assert encoder.cells == plain.cells == 4 and encoder.fingerprint != plain.fingerprint
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    found = np.asarray(encoder.compiled()(pixels))
    assert found.shape == (2, 4, encoder.channels) == (2, 4, 579)
    means = pixels.reshape(2, 2, 32, 2, 32, 3).mean(axis=(2, 4)).reshape(2, 4, 3)
    np.testing.assert_allclose(found[..., :3], (means - 127) / 64, atol=1e-4)
    deepest = np.asarray(block_outputs(encoder.params, pixels.astype(np.float32), 16)[-1]).reshape(2, 4, -1)
    np.testing.assert_allclose(found[..., -320:] * 2.1, deepest, rtol=1e-3, atol=1e-3)
    # A change in one cell's pixels reaches its own finest features and no other cell's.
    other = pixels.copy()
    other[:, :32, :32] = 255 - other[:, :32, :32]
    changed = np.abs(np.asarray(encoder.compiled()(other)) - found)[..., :3].max(axis=(0, 2)) > 1e-3
    assert changed.tolist() == [True, False, False, False]


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 40, 3), (40, 5, 4), (64, 64, 3)])
@pytest.mark.parametrize("crop", [False, True])
def test_images_of_any_size_are_prepared(shape: tuple[int, ...], crop: bool):
    prepared = Preparation(size=32, crop=crop, shortest=36 if crop else 0)(np.full(shape, 255, np.uint8))
    assert prepared.shape == (32, 32, 3)
    assert (prepared == 255).all()


class Bomb:
    """Its pickle would write a file when loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def write(path: Path, *parts: object) -> None:
    path.write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in parts))


def test_a_file_that_would_run_code_is_refused(tmp_path: Path):
    write(tmp_path / "a.pth", MAGIC, PROTOCOL, {}, {"weight": Bomb(tmp_path / "ran")}, [])
    with pytest.raises(WeightsError, match="which tensors do not need"):
        read_tensors(tmp_path / "a.pth")
    assert not (tmp_path / "ran").exists()


def test_other_and_truncated_files_are_refused(tmp_path: Path):
    write(tmp_path / "a.pth", 1, PROTOCOL)
    with pytest.raises(WeightsError, match=r"before version 1\.6"):
        read_tensors(tmp_path / "a.pth")
    write(tmp_path / "a.pth", MAGIC, PROTOCOL, {})
    with pytest.raises(WeightsError, match="truncated"):
        read_tensors(tmp_path / "a.pth")
