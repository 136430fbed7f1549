"""Inference on a mesh of simulated devices, in int8 and with caches in 16 bits: the same texts and actions as on one device.

Expected texts: tests/fixtures/make_language.py.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from generalist.cli.main import main
from generalist.inference.generalist import Generalist
from generalist.inference.placing import Placing, note_on_mesh, parameter_place, parse_mesh, placed, rounded
from generalist.inference.prompt import AgentPrompt, _begin
from generalist.model.layers import Int8Kernel
from generalist.model.params import flat
from generalist.weights.stored import Stored

FIXTURES = Path(__file__).parent.parent / "fixtures" / "language"
CASES = [
    ("mistral", "tensor=8"),
    ("gpt_neox", "data=2,tensor=4"),
    *(
        pytest.param(name, mesh, marks=pytest.mark.slow)
        for name, mesh in (
            ("llama", "data=4,tensor=2"),
            ("gpt2", "fsdp=2,tensor=4"),
            ("mpt", "tensor=8"),
            ("mpt", "fsdp=2,tensor=4"),
            ("qwen3_windows", "fsdp=2,tensor=4"),
        )
    ),
]
DOG = "a photo of the red dog"


@pytest.mark.parametrize(("name", "mesh"), CASES)
def test_greedy_text_on_a_mesh_is_the_reference_s(name: str, mesh: str):
    expected = np.load(FIXTURES / name / "expected.npz")
    generalist = Generalist.load(FIXTURES / name, mesh=mesh, cache_type="float32")
    # The 54 columns of MPT's queries, keys and values do not divide by 4: that kernel is whole, and all else is not.
    kernel = flat(generalist.params)["blocks/0/feed_forward/up/kernel"]
    assert kernel.addressable_shards[0].data.shape[1] * generalist.placing.mesh.shape["tensor"] == kernel.shape[1]
    text = generalist.prompt([str(expected["prompt"])], tokens=len(expected["written"]))
    assert text == str(expected["text"])


@pytest.fixture(scope="module")
def folder(make_model: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that reads images and acts, saved."""
    out = tmp_path_factory.mktemp("mesh") / "model"
    make_model("frame+encoder").save(out)
    return out


@pytest.fixture(scope="module")
def alone(folder: Path) -> Generalist:
    return Generalist.load(folder)


@pytest.fixture(scope="module")
def meshed(folder: Path) -> Generalist:
    return Generalist.load(folder, mesh="data=2,tensor=4")


def test_images_shots_and_choices_on_a_mesh(alone: Generalist, meshed: Generalist):
    rng = np.random.default_rng(0)
    image, other = rng.integers(0, 256, (2, 64, 64, 3), np.uint8)
    answers = []
    for one in (alone, meshed):
        after = one.read([image, " red", other, " blue"])
        answers.append(one.prompt([[image, "question: what is this? answer:"], ["The"]], after=after, tokens=8))
        answers.append(one.prompt([image], after=after, choices=[" red", " blue"]))
    assert answers[:2] == answers[2:]


def test_actions_on_a_mesh(alone: Generalist, meshed: Generalist):
    (name,) = alone.layouts
    for observation in np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32):
        asked = AgentPrompt(layout=name, observation=observation)
        assert alone.prompt(asked) == meshed.prompt(asked)


def test_no_device_has_more_than_its_part():
    leaves = flat(Generalist.load(mesh="data=2,tensor=4").params)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves.values())
    whole = sum(leaf.nbytes for leaf in leaves.values())
    assert held < 0.3 * whole  # a quarter, and the norms


@pytest.mark.parametrize("mesh", ["tensor=8", pytest.param("data=2,fsdp=2,tensor=2", marks=pytest.mark.slow)])
def test_a_tower_is_split_and_sees_the_same(mesh: str):
    folder = FIXTURES.parent / "images" / "gemma3"
    alone, meshed = Generalist.load(folder), Generalist.load(folder, mesh=mesh)
    picture = np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8)
    assert alone.encoder is not None and meshed.encoder is not None
    kernel = flat(meshed.encoder.params)["layers/up/kernel"]
    parts = meshed.placing.mesh.shape["tensor"] * meshed.placing.mesh.shape["fsdp"]
    assert kernel.addressable_shards[0].data.nbytes * parts == kernel.nbytes
    pixels = alone.encoder(picture[None])
    np.testing.assert_allclose(alone.features(pixels), meshed.features(pixels), atol=1e-5)
    asked = [["a photo of", picture, "a dog"], [picture]]
    assert alone.prompt(asked, tokens=8) == meshed.prompt(asked, tokens=8)


@pytest.mark.slow
def test_the_commands_give_the_same_on_a_mesh(tmp_path: Path):
    """Few-shot answers of a published model that sees, and episodes of weights that act."""
    folder, rng = FIXTURES.parent / "images" / "gemma3", np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(tmp_path / f"{number}.png")
    for split, numbers in (("train", (0, 1)), ("val", (2, 3))):
        lines = [{"image": f"{one}.png", "question": "what is it?", "answer": "a dog"} for one in numbers]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    asked = ["eval", "fewshot", "--weights", str(folder), "--data", "jsonl", "--folder", str(tmp_path)]
    fewshot = [*asked, "--kind", "vqa", "--shots", "2", "--seeds", "1", "--tokens", "3"]
    control = ["eval", "control", "--tasks", "babyai/GoToObj", "--episodes", "2"]
    for command, part in ((fewshot, "fewshot"), (control, "control")):
        found = []
        for name, more in (("alone", []), ("meshed", ["--mesh", "fsdp=2,tensor=4"])):
            assert main([*command, *more, "--out", str(tmp_path / f"{part}-{name}.json")]) == 0
            found.append(json.loads((tmp_path / f"{part}-{name}.json").read_text())[part])
        assert found[0] == found[1]


def test_a_mesh_that_does_not_fit_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(
        ValueError, match=r"--mesh tensor=3 is for 3 devices, but there are 8 \(cpu\): make the sizes multiply"
    ):
        parse_mesh("tensor=3")
    for text in ("tensor", "tensor=0", "heads=8", "tensor=4,tensor=2", "sequence=8"):
        with pytest.raises(
            ValueError, match="write each axis once, of data, fsdp, tensor, with its size, such as tensor=4"
        ):
            parse_mesh(text)
    with pytest.raises(ValueError, match="weights_type must be one of stored, int8, got 'int4'"):
        Placing.of(weights_type="int4")
    folder = str(FIXTURES / "mistral")
    assert main(["prompt", "--weights", folder, "--mesh", "tensor=5", "a"]) == 1
    assert "--mesh tensor=5 is for 5 devices, but there are 8" in " ".join(capsys.readouterr().out.split())
    # Fewer key-value heads than devices: possible, and said.
    assert main(["prompt", "--weights", folder, "--mesh", "tensor=8", "--tokens", "2", DOG]) == 0
    assert "2 key-value heads do not divide over 8 devices" in " ".join(capsys.readouterr().out.split())
    assert note_on_mesh(Generalist.load(FIXTURES / "mistral").config.model, None) is None


def test_a_vocabulary_of_an_odd_size_is_split_by_its_width():
    mesh = parse_mesh("tensor=8")
    assert parameter_place("tokens/text", (50257, 768), mesh)[1] == "tensor"
    assert parameter_place("tokens/text", (50304, 768), mesh)[0] == "tensor"


def test_int8_kernels(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    kernel = (rng.normal(size=(64, 48)) * rng.uniform(0.01, 10, 48)).astype(np.float32)
    numbers, scale = rounded(Stored.of(kernel))
    assert np.abs(numbers).max(axis=0).tolist() == [127] * 48
    assert (np.abs(numbers * scale - kernel) <= scale / 2 * 1.001).all()
    one = placed([("blocks/feed_forward/up/kernel", Stored.of(kernel[None]))], Placing(weights_type="int8"))
    assert isinstance(one["blocks"][0]["feed_forward"]["up"]["kernel"], Int8Kernel)


@pytest.mark.parametrize("name", ["mistral", "gpt_neox"])
def test_int8_and_16_bit_caches_change_little(name: str):
    prompts = [[ids] for ids in np.random.default_rng(0).integers(5, 200, (32, 20), np.int32)]

    def logits(**places: str) -> np.ndarray:
        return np.asarray(_begin(Generalist.load(FIXTURES / name, **places), prompts, None, 4)[1])

    whole, rounded, half = (
        logits(**{"cache_type": "float32", **one}) for one in ({}, {"weights_type": "int8"}, {"cache_type": "bfloat16"})
    )
    for other, bound in ((rounded, 0.3), (half, 0.1)):
        assert 0 < np.abs(whole - other).max() < bound * whole.std()
        assert (whole.argmax(axis=1) == other.argmax(axis=1)).mean() >= 0.9


def test_int8_weights_write_nearly_the_same_and_are_not_saved(tmp_path: Path):
    from generalist.inference.score import log_likelihood

    folder = FIXTURES / "qwen3"
    stored, small = Generalist.load(folder), Generalist.load(folder, weights_type="int8")
    document = dataclasses.replace(one := stored.assembler.document([DOG]), loss_weight=np.ones(len(one), np.float32))
    before, after = (log_likelihood(one, [document])[0] / len(document) for one in (stored, small))
    assert 0 < abs(before - after) < 0.05  # nats per position
    kernels = [path for path in flat(stored.params) if path.endswith("kernel")]
    assert {
        flat(small.params)[f"{path}/numbers"].nbytes * 4 == flat(stored.params)[path].nbytes for path in kernels
    } == {True}
    assert dict(small.arrays()).keys() == dict(stored.arrays()).keys()
    # On a mesh every device has its part of the same whole numbers.
    meshed = Generalist.load(folder, weights_type="int8", mesh="data=4,tensor=2")
    assert meshed.prompt([DOG], tokens=16) == small.prompt([DOG], tokens=16)
    with pytest.raises(ValueError, match="rounded to int8 when they were loaded"):
        small.save_published(tmp_path / "back")
    with pytest.raises(ValueError, match="rounded to int8 when they were loaded"):
        Generalist.load(weights_type="int8").save(tmp_path / "own")


def test_caches_in_16_bits_take_half_the_memory():
    from generalist.inference.decode import empty_caches

    folder = FIXTURES / "mistral"
    whole, half = Generalist.load(folder, cache_type="float32"), Generalist.load(folder)
    sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(empty_caches(one, 2, 32))) for one in (whole, half)]
    assert sizes[0] == 2 * sizes[1]
    expected = np.load(FIXTURES / "mistral" / "expected.npz")
    assert half.prompt([str(expected["prompt"])], tokens=16) == whole.prompt([str(expected["prompt"])], tokens=16)
