"""CLIP and SigLIP vision towers against the reference implementation (tests/fixtures/make_vision.py), and broken folders."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from generalist.vision.encoder import VisionEncoder
from generalist.vision.load import load_encoder
from generalist.vision.vit import vit_config
from generalist.weights.folder import WeightsError, WeightsFolder

FIXTURES = Path(__file__).parent.parent / "fixtures" / "vision"
NAMES = ("clip", "clip_gelu", "siglip")


def load(folder: Path) -> VisionEncoder:
    encoder = load_encoder(str(folder), 224)
    assert encoder is not None
    return encoder


def prepared(encoder: VisionEncoder, stored) -> np.ndarray:
    """The stored images, each of its own size, as the encoder takes them."""
    names = sorted(name for name in stored.files if name.startswith("image"))
    return np.stack([encoder.prepare(stored[name]) for name in names])


@pytest.mark.parametrize("name", NAMES)
def test_pixels_and_features_are_the_reference_s(name: str):
    encoder, stored = load(FIXTURES / name), np.load(FIXTURES / name / "expected.npz")
    pixels = prepared(encoder, stored)
    settings = json.loads((FIXTURES / name / "preprocessor_config.json").read_text())
    standardised = (pixels / 255 - settings["image_mean"]) / settings["image_std"]
    np.testing.assert_allclose(standardised.transpose(0, 3, 1, 2), stored["pixels"], atol=1e-5)
    features = encoder.compiled()(pixels)
    assert features.shape == (3, encoder.cells, encoder.channels)
    np.testing.assert_allclose(features, stored["features"], atol=1e-4)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURES / "clip", tmp_path / "clip"))


def test_a_whole_model_s_other_half_is_left_aside(copy: Path):
    tensors = {f"vision_model.{name}": value for name, value in load_file(copy / "model.safetensors").items()}
    save_file(tensors | {"text_model.x": np.zeros(1), "logit_scale": np.zeros(())}, copy / "model.safetensors")
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": settings}))
    stored = np.load(FIXTURES / "clip" / "expected.npz")
    encoder = load(copy)
    np.testing.assert_allclose(encoder.compiled()(prepared(encoder, stored)), stored["features"], atol=1e-4)


def test_a_newer_folder_s_processor(copy: Path):
    path = copy / "preprocessor_config.json"
    before = load(copy).prepare
    settings = json.loads(path.read_text()) | {"size": {"shortest_edge": 50}}
    (copy / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    path.unlink()
    assert load(copy).prepare == dataclasses.replace(before, shortest=50)


def test_pixels_that_are_not_standardised(copy: Path):
    path = copy / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_normalize": False}))
    config = vit_config(WeightsFolder(copy))
    assert (config.mean, config.deviation) == ((0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("clip", {"size": {"height": 0, "width": 34}}, "size must have whole numbers in 1..16384"),
        ("clip", {"crop_size": {"height": 20, "width": 24}}, "crop_size must be {'height': 24"),
        ("clip", {"do_center_crop": False}, "do_center_crop must be True"),
        ("clip", {"size": {"shortest_edge": "28"}}, "size must have whole numbers in 1..16384"),
        ("siglip", {"size": {"height": 48, "width": 48}}, "size must be {'height': 32"),
        ("siglip", {"rescale_factor": -1}, "rescale_factor must be a number above 0"),
        ("siglip", {"do_resize": False}, "do_resize must be True"),
        ("siglip", {"image_mean": [0.5, 0.5]}, "must be one number or three"),
        ("siglip", {"image_std": [0.5, 0.0, 0.5]}, "image_std must be above 0"),
        ("siglip", {"image_std": "wide"}, "could not convert"),
        ("siglip", {"resample": 77}, "77 is not a valid Resampling"),
        ("siglip", {"size": [32]}, "size must be"),
    ],
)
def test_another_preparation_is_refused(tmp_path: Path, name: str, settings: dict, message: str):
    folder = Path(shutil.copytree(FIXTURES / name, tmp_path / name))
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(WeightsError, match=message):
        load(folder)


def test_other_weights_have_another_fingerprint(copy: Path):
    tensors = load_file(copy / "model.safetensors")
    before = load(copy).fingerprint
    assert before == load(FIXTURES / "clip").fingerprint
    tensors["post_layernorm.bias"] = tensors["post_layernorm.bias"] + 1
    save_file(tensors, copy / "model.safetensors")
    assert load(copy).fingerprint != before


@pytest.mark.parametrize("change", [{"image_mean": [0.1, 0.2, 0.3]}, {"size": {"shortest_edge": 40}}, {"resample": 2}])
def test_another_preparation_has_another_fingerprint(copy: Path, change: dict):
    path = copy / "preprocessor_config.json"
    before = load(copy).fingerprint
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert load(copy).fingerprint != before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("post_layernorm.bias"), "missing tensors: post_layernorm.bias"),
        (lambda tensors: tensors.update(adapter=np.zeros(1)), "unknown tensors: adapter"),
        (
            lambda tensors: tensors.update({"post_layernorm.bias": np.zeros(3)}),
            r"post_layernorm.bias is \(3,\) instead of \(16,\)",
        ),
    ],
)
def test_tensors_that_do_not_fit(copy: Path, change, message: str):
    tensors = load_file(copy / "model.safetensors")
    change(tensors)
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(WeightsError, match=message):
        load(copy)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "dinov2", "architectures": ["Dinov2Model"]}, "holds a Dinov2Model .* are CLIP and SigLIP"),
        ({"hidden_act": "mish"}, "hidden_act must be one of gelu"),
        ({"num_attention_heads": 3}, "must be a multiple of heads"),
        ({"hidden_size": "wide"}, "hidden_size = 'wide'"),
        ({"num_attention_heads": 0}, "num_attention_heads = 0: it must be above 0"),
        ({"patch_size": 30}, r"patch_size \(30\) must be at most image_size \(24\)"),
    ],
)
def test_settings_that_do_not_fit(copy: Path, settings: dict, message: str):
    stored = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(stored | settings))
    with pytest.raises(WeightsError, match=message):
        load(copy)
