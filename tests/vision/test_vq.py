"""Published image tokenizers against LlamaGen's own classes (tests/fixtures/make_image_tokenizers.py), and broken files."""

import json
import shutil
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from generalist.vision.image_tokenizer import ImageTokenizer
from generalist.vision.vq import decode, tensor_shapes
from generalist.vision.vq_files import config_of, read_published
from generalist.weights.folder import WeightsError

FIXTURES = Path(__file__).parent.parent / "fixtures" / "image_tokenizers"
NAMES = ("llamagen", "vqgan")


@pytest.fixture(scope="module", params=NAMES)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(name: str, tmp_path_factory) -> Path:
    """A published file with the size of its images beside it."""
    path = tmp_path_factory.mktemp(name)
    shutil.copy(FIXTURES / f"{name}.pt", path)
    (path / "config.json").write_text('{"size": 32}')
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> ImageTokenizer:
    return ImageTokenizer.load(folder)


def test_codes_and_reconstructions_are_the_reference_s(name, tokenizer):
    expected = np.load(FIXTURES / f"{name}.npz")
    assert (tokenizer.codebook, tokenizer.side, tokenizer.config.patch) == (64, 16, 2)
    np.testing.assert_array_equal(tokenizer.encode([expected["image"]]), expected["codes"][None])
    assert len(np.unique(expected["codes"])) > 20  # else equal codes would show little
    cells = jnp.asarray(expected["codes"].reshape(1, 16, 16))
    found = decode(tokenizer.config, tokenizer.params, cells)[0]
    np.testing.assert_allclose(found, expected["reconstruction"], atol=1e-4)
    rounded = np.clip(127.5 * expected["reconstruction"] + 128, 0, 255).astype(np.uint8)  # as LlamaGen does it
    pixels = tokenizer.decode(expected["codes"][None])[0]
    assert pixels.dtype == np.uint8 and np.abs(pixels.astype(int) - rounded).max() <= 1
    assert (pixels == rounded).mean() > 0.99


def test_images_of_any_number_and_size(tokenizer):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in [(32, 32), (40, 20), (5, 9)] * 2]
    codes = tokenizer.encode(images)
    assert codes.shape == (6, 256) and codes.dtype == np.int32
    # An image's codes depend on no other image of its batch.
    np.testing.assert_array_equal(tokenizer.encode(images[5:])[0], codes[5])
    assert tokenizer.decode(codes).shape == (6, 32, 32, 3)
    with pytest.raises(ValueError, match="from 0 to 63"):
        tokenizer.decode(codes + 64)


def test_a_copy_is_the_same_tokenizer(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "copy")
    again = ImageTokenizer.load(tmp_path / "copy")
    assert (again.config, again.fingerprint) == (tokenizer.config, tokenizer.fingerprint)


def test_another_size_of_images(folder, tmp_path):
    larger = shutil.copytree(folder, tmp_path / "larger")
    (larger / "config.json").write_text('{"size": 48}')
    tokenizer = ImageTokenizer.load(larger)
    assert tokenizer.encode([np.zeros((9, 9, 3), np.uint8)]).shape == (1, 24 * 24)
    assert tokenizer.fingerprint != ImageTokenizer.load(folder).fingerprint
    assert read_published(next(folder.glob("*.pt")))[0].size == 256


@pytest.mark.parametrize(
    ("name", "patch", "attention"),
    [
        ("vq_ds16_c2i", 16, [False] * 4 + [True]),
        ("vq_ds8_c2i", 8, [False] * 3 + [True]),
        ("vqgan_imagenet_f16_1024", 16, [False] * 4 + [True]),
        ("vqgan_imagenet_f16_16384", 16, [False] * 4 + [True]),
    ],
)
def test_the_tensors_of_published_models(name, patch, attention):
    shapes = {key: tuple(shape) for key, shape in json.loads((FIXTURES / "published.json").read_text())[name].items()}
    config = config_of(shapes, 256)
    assert config.patch == patch and config.codebook == (1024 if name.endswith("1024") else 16384)
    assert [level.attention for level in config.encoder] == attention
    shapes.pop("quantize.codebook_used", None)
    assert tensor_shapes(config) == shapes


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy in safetensors, whose tensors can be changed."""
    shutil.copy(FIXTURES / "llamagen.pt", tmp_path / "llamagen.pt")
    (tmp_path / "config.json").write_text('{"size": 32}')
    ImageTokenizer.load(tmp_path).save(tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"encoder.mid.0.norm1.bias": None}, r"missing tensors: encoder\.mid\.0\.norm1\.bias"),
        ({"decoder.more": np.zeros(1, np.float32)}, r"unknown tensors: decoder\.more"),
        ({"quant_conv.bias": np.zeros(9, np.float32)}, r"wrong shapes: quant_conv\.bias is \(9,\) instead of \(8,\)"),
        ({"quant_conv.bias": np.zeros(8, np.int32)}, r"types other than .*: quant_conv\.bias is I32"),
        ({"quant_conv.bias": np.full(8, np.nan, np.float32)}, r"non-finite numbers in quant_conv\.bias"),
        ({"quantize.embedding.weight": None}, r"no quantize\.embedding\.weight"),
        ({"quantize.embedding.weight": np.zeros((0, 8), np.float32)}, r"of shape \(0, 8\)"),
        ({"encoder.conv_in.weight": np.zeros((33, 3, 3, 3), np.float32)}, "multiples of 32 channels, got 33"),
        ({"decoder.conv_blocks.2.res.0.conv1.weight": np.zeros((32, 32, 3, 3), np.float32)}, "2 resolutions, but its"),
        (
            {"decoder.conv_blocks.9.res.0.conv1.weight": np.zeros((32, 32, 3, 3), np.float32)},
            r"no decoder\.conv_blocks\.2",
        ),
    ],
)
def test_other_tensors_are_refused(copy, changed, message):
    tensors = load_file(copy / "model.safetensors") | changed
    save_file({name: array for name, array in tensors.items() if array is not None}, copy / "model.safetensors")
    with pytest.raises(WeightsError, match=message):
        ImageTokenizer.load(copy)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ('{"size": 33}', "size must be a multiple of 2 up to 4096, got 33"),
        ('{"size": 1000000}', "up to 4096"),
        ('{"size": "32"}', "size = '32'"),
        ('{"size": -2}', "size = -2"),
        ("[]", 'has no "size", the height and width'),
        ('{"image_size": 32}', 'has no "size", the height and width'),
        ("{", "is not JSON"),
    ],
)
def test_other_settings_are_refused(copy, settings, message):
    (copy / "config.json").write_text(settings)
    with pytest.raises(WeightsError, match=message):
        ImageTokenizer.load(copy)


def test_a_folder_has_one_file(copy, tmp_path):
    shutil.copy(FIXTURES / "vqgan.pt", copy)
    with pytest.raises(WeightsError, match=r"but has model\.safetensors, vqgan\.pt"):
        ImageTokenizer.load(copy)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.md").touch()
    for name, message in (
        ("empty", "but has none"),
        ("nowhere.pt", r"nowhere\.pt is not there: name a file"),
        ("notes.md", r"notes\.md is no image tokenizer: name a file"),
    ):
        with pytest.raises(WeightsError, match=message):
            ImageTokenizer.load(tmp_path / name)


def test_nothing_in_a_file_is_run(tmp_path):
    mark = tmp_path / "ran"
    # Calls open(mark, "w"), if it is run.
    pickled = (
        b"\x80\x02cbuiltins\nopen\nX"
        + len(str(mark)).to_bytes(4, "little")
        + str(mark).encode()
        + b"X\x01\0\0\0w\x86R."
    )
    with zipfile.ZipFile(tmp_path / "vq.pt", "w") as archive:
        archive.writestr("vq/data.pkl", pickled)
    with pytest.raises(WeightsError, match=r"asks for builtins\.open, which tensors do not need"):
        ImageTokenizer.load(tmp_path / "vq.pt")
    assert not mark.exists()
    (tmp_path / "cut.pt").write_bytes((FIXTURES / "llamagen.pt").read_bytes()[:5000])
    with pytest.raises(WeightsError, match="truncated"):
        ImageTokenizer.load(tmp_path / "cut.pt")
