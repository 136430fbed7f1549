"""Stored features: computed once, whole or absent, of these weights alone."""

import dataclasses
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from generalist.vision import features
from generalist.vision.encoder import Preparation, VisionEncoder
from generalist.vision.features import FeatureStore

QUIET = Console(quiet=True)
CELLS = VisionEncoder(
    name="means",
    prepare=Preparation(size=4, crop=False),
    cells=2,
    channels=3,
    weights_hash="0",
    params=jnp.float32(1),
    apply=lambda params, pixels: params * pixels.reshape(len(pixels), 2, 8, 3).astype(jnp.float32).mean(axis=2),
)
IMAGES = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3)).astype(np.uint8)


def filled(folder: Path, images: np.ndarray = IMAGES) -> FeatureStore:
    store = FeatureStore(folder, CELLS)
    store.ensure(images, len(images), QUIET)
    return store


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "SHARD", 3)
    monkeypatch.setattr(features, "BATCH", 2)


def test_they_come_back_from_the_disk(tmp_path: Path):
    filled(tmp_path)
    store = FeatureStore(tmp_path, CELLS)
    assert len(store) == 7
    expected = IMAGES.reshape(7, 2, 8, 3).mean(axis=2).astype(np.float16)
    np.testing.assert_allclose(store(IMAGES), expected, rtol=1e-3)
    assert store(IMAGES[:0]).shape == (0, 2, 3)


def test_only_what_is_missing_is_computed(tmp_path: Path):
    filled(tmp_path, IMAGES[:4])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    store = filled(tmp_path, np.concatenate([IMAGES, IMAGES]))
    assert len(store) == 7
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert len(list(tmp_path.rglob("*.npy"))) == len(before) + 1


def test_an_interrupted_shard_counts_for_nothing(tmp_path: Path):
    store = filled(tmp_path)
    (store.folder / "000001.keys").unlink()
    again = filled(tmp_path)
    assert len(again) == 7
    np.testing.assert_array_equal(again(IMAGES), store(IMAGES))


def test_two_processes_share_a_folder_but_no_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    replace = os.replace

    def after_another(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "replace", replace)
        filled(tmp_path, 255 - IMAGES[:3])
        replace(source, target)

    monkeypatch.setattr(os, "replace", after_another)
    filled(tmp_path, IMAGES[:3])
    store = FeatureStore(tmp_path, CELLS)
    for images in (IMAGES[:3], 255 - IMAGES[:3]):
        np.testing.assert_allclose(store(images), images.reshape(3, 2, 8, 3).mean(axis=2), rtol=1e-3)


def test_other_weights_or_pixels_have_other_features(tmp_path: Path):
    filled(tmp_path)
    assert not len(FeatureStore(tmp_path, dataclasses.replace(CELLS, weights_hash="1")))
    with pytest.raises(ValueError, match="not in .*run train.py again"):
        FeatureStore(tmp_path, CELLS)(255 - IMAGES)


def test_a_damaged_shard_is_named(tmp_path: Path):
    path = filled(tmp_path).folder / "000001.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"000001\.npy is damaged .*: delete it"):
        FeatureStore(tmp_path, CELLS)
    path.write_bytes(b"x")
    with pytest.raises(ValueError, match=r"000001\.npy is damaged"):
        FeatureStore(tmp_path, CELLS)


def test_features_too_large_for_float16(tmp_path: Path):
    store = FeatureStore(tmp_path, dataclasses.replace(CELLS, params=jnp.float32(1e4)))
    with pytest.raises(ValueError, match="float16 cannot hold"):
        store.ensure(IMAGES, 7, QUIET)
