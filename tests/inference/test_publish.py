"""Language models written in the layout that they came in: bit for bit, from runs with them as the trunk, and what is refused."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from generalist.cli.main import main
from generalist.config.presets import debug
from generalist.inference.generalist import Generalist
from generalist.model.params import flat, layers_apart, nested
from generalist.model.transformer import create_separate
from generalist.run.tokenizers import Tokenizers
from generalist.run.trunk import with_trunk
from generalist.weights.folder import WeightsError, WeightsFolder
from generalist.weights.language import LanguageModel
from generalist.weights.language_saving import BESIDE, save_language_model

FIXTURES = Path(__file__).parent.parent / "fixtures" / "language"
NAMES = sorted(path.name for path in FIXTURES.iterdir())


def tensors(folder: Path) -> dict[str, np.ndarray]:
    opened = WeightsFolder(folder)
    return {name: opened.tensor(name) for name in opened.shapes}


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """The same names, dtypes and bits."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array), name


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_is_loaded_and_saved_is_the_same_bit_for_bit(name: str, tmp_path: Path):
    before, out = Generalist.load(FIXTURES / name), tmp_path / "out"
    assert before.save_published(out) == []
    assert_same(tensors(out), tensors(FIXTURES / name))
    after = Generalist.load(out)
    # The same structure and the same parameters: every logit is the same.
    assert after.decoder[0] == before.decoder[0]
    assert_same(flat(after.params), flat(before.params))
    kept = {path.name for path in (FIXTURES / name).iterdir() if BESIDE.fullmatch(path.name)}
    assert {path.name for path in out.iterdir()} == kept | {"config.json", "model.safetensors"}
    assert all((out / one).read_bytes() == (FIXTURES / name / one).read_bytes() for one in kept)
    assert WeightsFolder(out).config == WeightsFolder(FIXTURES / name).config


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_has_an_inverse(name: str):
    """The way of trained weights, of which no tensor is found unchanged; a gain less 1 loses the last bits of small gains."""
    model = LanguageModel(FIXTURES / name)
    given, (recipes, ignored) = tensors(FIXTURES / name), model.recipes
    for path, array in model.folder.stream(recipes, ignored):
        for one, tensor in recipes[path].tensors(array):
            back = tensor.astype(given[one].dtype)
            np.testing.assert_allclose(back.astype(np.float32), given[one].astype(np.float32), rtol=0, atol=6e-8)
            if not path.endswith("scale"):
                np.testing.assert_array_equal(back, given[one])


def with_trunk_of(folder: Path) -> Generalist:
    """A run's weights with an unfrozen trunk, as they are before training."""
    base = debug()
    shape = dataclasses.replace(base.model, trunk=str(folder), trunk_frozen=False)
    config = with_trunk(dataclasses.replace(base, model=shape, data=dataclasses.replace(base.data, length=32)))
    trunk = LanguageModel(folder)
    tokenizers = Tokenizers(config=config, text=trunk.text(), layouts={}, projection_width=0)
    graph, params = nnx.split(create_separate(tokenizers.model_spec(), 1), nnx.Param)
    leaves = flat(nnx.to_pure_dict(params))
    for path, array in trunk.arrays(tokenizers.assembler.vocabulary):
        leaves |= {one: jax.numpy.asarray(part, np.float32) for one, part in layers_apart(path, array).items()}
    return Generalist(tokenizers, graph, nnx.restore_int_paths(nested(leaves)), 5)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "mistral", "phi3", "gemma3"])
def test_a_trained_trunk_is_taken_back(name: str, tmp_path: Path):
    run = with_trunk_of(FIXTURES / name)
    trained = run.with_arrays({path: array * 1.5 for path, array in run.arrays()})
    left_out = trained.save_published(tmp_path / "out", np.float32)
    assert {"tokens/other", "position_table"} < {*left_out}
    assert not [path for path in left_out if path.startswith(("blocks/", "tokens/text", "final_norm"))]
    after = {path: array for path, array in Generalist.load(tmp_path / "out").arrays() if path not in left_out}
    assert len(after) > 5
    expected = dict(trained.arrays())
    for path, array in after.items():
        np.testing.assert_allclose(array, expected[path], rtol=1e-6, atol=1e-7)
    # Nothing trained: the files are those of the trunk, in their own dtypes.
    run.save_published(tmp_path / "same")
    assert_same(tensors(tmp_path / "same"), tensors(FIXTURES / name))


def test_what_has_no_place_or_no_architecture_is_refused(tmp_path: Path, make_model: Any):
    with pytest.raises(WeightsError, match=r"debug is no published language model .* \(model.trunk = none\)"):
        make_model().save_published(tmp_path / "out")
    run = with_trunk_of(FIXTURES / "mpt")
    moved = run.with_arrays({path: array + 1 for path, array in run.arrays()})
    with pytest.raises(
        WeightsError, match="attention_norm/bias cannot be written as a MptForCausalLM: the architecture has no"
    ):
        moved.save_published(tmp_path / "out")
    huge = run.with_arrays({path: array * (1e6 if path == "tokens/text" else 1) for path, array in run.arrays()})
    with pytest.raises(WeightsError, match="numbers that float16 cannot hold"):
        huge.save_published(tmp_path / "out", np.float16)
    other = with_trunk_of(Path(shutil.copytree(FIXTURES / "llama", tmp_path / "llama")))
    shutil.rmtree(tmp_path / "llama")
    with pytest.raises(WeightsError, match="there is no folder"):
        other.save_published(tmp_path / "out")
    shutil.copytree(FIXTURES / "qwen2", tmp_path / "llama")
    with pytest.raises(WeightsError, match="holds another model than the one that debug began with"):
        other.save_published(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llama"]  # nothing half written


def test_copies_of_tied_embeddings_are_new_and_unused_tensors_stay(tmp_path: Path):
    folder = Path(shutil.copytree(FIXTURES / "gpt2", tmp_path / "gpt2"))
    stored = load_file(folder / "model.safetensors")
    unused = {"lm_head.weight": stored["transformer.wte.weight"], "transformer.h.0.attn.bias": np.ones((4, 4), bool)}
    save_file(stored | unused, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text()) | {"auto_map": {"AutoModel": "modeling.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling.py").write_text("raise SystemExit")
    model, out = LanguageModel(folder), tmp_path / "out"
    vocabulary = Generalist.load(folder).vocabulary
    out.mkdir()
    doubled = ((path, array * 2) for path, array in model.arrays(vocabulary))
    assert save_language_model(model, doubled, out, ml_dtypes.bfloat16, shard_bytes=20_000) == ["tokens/other"]
    assert len(list(out.glob("model-*.safetensors"))) > 1
    found = tensors(out)
    assert_same({"x": found["lm_head.weight"]}, {"x": found["transformer.wte.weight"]})
    expected = (2 * stored["transformer.wte.weight"]).astype(ml_dtypes.bfloat16)
    assert_same({"x": found["lm_head.weight"]}, {"x": expected})
    assert_same({"x": found["transformer.h.0.attn.bias"]}, {"x": unused["transformer.h.0.attn.bias"]})
    settings = WeightsFolder(out).config
    assert "auto_map" not in settings and not (out / "modeling.py").exists()
    assert settings.get("dtype", settings.get("torch_dtype")) == "bfloat16"
    with pytest.raises(WeightsError, match=r"the weights lack \d+ tensors of"):
        save_language_model(model, [], out)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out, command = tmp_path / "out", ["export", str(tmp_path / "out"), "--weights", str(FIXTURES / "mistral")]
    assert main(command) == 1
    assert "mistral is a published language model: save it with" in capsys.readouterr().out.replace("\n", " ")
    assert main([*command, "--layout", "huggingface", "--dtype", "float32"]) == 0
    assert f"{out}: step 0" in capsys.readouterr().out
    given = {name: array.astype(np.float32) for name, array in tensors(FIXTURES / "mistral").items()}
    assert_same(tensors(out), given)
