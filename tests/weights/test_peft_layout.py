"""Adapters in PEFT's layout: the numbers of its formula, and there and back for every family."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from generalist.inference.generalist import Generalist
from generalist.model.config import ModelConfig
from generalist.model.lora import inputs, parts
from generalist.model.tuned import together
from generalist.model.tuning import PATHS, PLACES, LoraConfig, Tuning
from generalist.weights.folder import WeightsError
from generalist.weights.language import LanguageModel
from generalist.weights.peft_layout import PeftAdapter, save_adapter

FIXTURES = Path(__file__).parents[1] / "fixtures" / "language"
LORA = LoraConfig(rank=2, alpha=5.0)
# One of each way to lay out maps: apart, queries to values together, all together, and (inputs, outputs) instead of the reverse.
NAMES = ("llama", "gemma3", "mistral", "mpt", "gpt_neox", "phi3", "gpt2")


def drawn(model: LanguageModel, lora: LoraConfig) -> dict[str, np.ndarray]:
    """Adapters as training has them, none of which is zero."""
    rng, config, found = np.random.default_rng(1), ModelConfig(**model.shape), {}
    for place in lora.places:
        widths, rank = parts(config, place), lora.rank or 0
        shapes = {"a": (inputs(config, place), len(widths) * rank), "b": (rank, sum(widths))}
        for one, shape in shapes.items():
            path = f"blocks/{PATHS[place]}/adapter/{one}"
            found[path] = rng.normal(size=(config.layers, *shape)).astype(np.float32)
    return found


def saved(name: str, folder: Path, lora: LoraConfig = LORA) -> tuple[LanguageModel, dict[str, np.ndarray]]:
    model = LanguageModel(FIXTURES / name)
    arrays = drawn(model, lora)
    folder.mkdir()
    save_adapter(model, arrays, lora, folder)
    return model, arrays


@pytest.mark.parametrize("name", NAMES)
def test_the_merged_weights_are_those_of_peft_s_formula(name: str, tmp_path: Path):
    model, arrays = saved(name, tmp_path / "adapter")
    stored = load_file(tmp_path / "adapter/adapter_model.safetensors")
    settings = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    given = dict(model.arrays(Generalist.load(FIXTURES / name).vocabulary))
    whole = dict(together(given | arrays, ModelConfig(**model.shape), Tuning(lora=LORA)))
    used = set()
    for place in PLACES:
        path = f"blocks/{PATHS[place]}/kernel"
        for tensor, merged in model.recipes[0][path].tensors(whole[path]):
            end = (
                tensor.removesuffix(".weight").rpartition(".layers.")[2].rpartition(".h.")[2].rpartition(".blocks.")[2]
            )
            (module,) = {one.removesuffix(".lora_A.weight") for one in stored if one.endswith(f".{end}.lora_A.weight")}
            a, b = stored[f"{module}.lora_A.weight"], stored[f"{module}.lora_B.weight"]
            last = module.rpartition(".")[2]
            rank = settings["rank_pattern"].get(last, settings["r"])
            alpha = settings["alpha_pattern"].get(last, settings["lora_alpha"])
            assert len(a) == rank and (last in settings["target_modules"] or name == "gemma3")
            change = alpha / rank * (b @ a)
            change = change.T if settings["fan_in_fan_out"] else change
            np.testing.assert_allclose(merged, model.folder.tensor(tensor).astype(np.float32) + change, atol=1e-5)
            used |= {f"{module}.lora_A.weight", f"{module}.lora_B.weight"}
    assert used == set(stored)
    # Merged into the model that is loaded, as `--adapter` does.
    loaded = dict(Generalist.load(FIXTURES / name).with_adapter(tmp_path / "adapter").arrays())
    for path in given:
        atol = 1e-5 if given[path].dtype == np.float32 else 0.1
        np.testing.assert_allclose(loaded[path], whole[path].astype(np.float32), atol=atol)


@pytest.mark.parametrize("name", ["gemma3", "paligemma", "llava"])
def test_adapters_of_models_that_see_are_of_their_language_model(name: str, tmp_path: Path):
    model = LanguageModel(FIXTURES.parent / "images" / name)
    save_adapter(model, drawn(model, LORA), LORA, tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert all(one.startswith("base_model.model.model.language_model.layers.") for one in stored)
    only = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert re.fullmatch(only, "model.language_model.layers.0.self_attn.q_proj")
    assert not re.fullmatch(only, "model.vision_tower.encoder.layers.0.self_attn.q_proj")
    assert PeftAdapter(tmp_path, model).rank == 2


@pytest.mark.parametrize("lora", [LORA, LoraConfig(rank=3, places=("qkv", "down"))])
@pytest.mark.parametrize("name", NAMES)
def test_adapters_come_back_as_they_were(name: str, lora: LoraConfig, tmp_path: Path):
    model, arrays = saved(name, tmp_path / "adapter", lora)
    back = dict(PeftAdapter(tmp_path / "adapter", model).arrays(lora))
    assert back.keys() == arrays.keys()
    for path, array in arrays.items():
        np.testing.assert_array_equal(back[path], array)


def test_parts_that_share_their_first_matrix_are_trained_apart(tmp_path: Path):
    """As PEFT itself makes an adapter of a fused map."""
    model, arrays = saved("phi3", tmp_path / "adapter")
    file, settings = tmp_path / "adapter/adapter_model.safetensors", tmp_path / "adapter/adapter_config.json"
    stored = load_file(file)
    for name in [name for name in stored if "qkv_proj" in name or "gate_up" in name]:
        stored[name] = np.ascontiguousarray(stored[name][:2] if "lora_A" in name else stored[name][:, :2])
    save_file(stored, file)
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"rank_pattern": {}, "alpha_pattern": {}}))
    adapter = PeftAdapter(tmp_path / "adapter", model)
    tuned = dict(adapter.arrays(LORA))
    a = tuned["blocks/attention/qkv/adapter/a"]
    np.testing.assert_array_equal(a[..., :2], a[..., 4:])
    kernel = dict(model.arrays(Generalist.load(FIXTURES / "phi3").vocabulary))["blocks/attention/qkv/kernel"].astype(
        np.float32
    )
    config = ModelConfig(**model.shape)
    whole = dict(together({"blocks/attention/qkv/kernel": kernel} | tuned, config, Tuning(lora=LORA)))
    np.testing.assert_allclose(
        whole["blocks/attention/qkv/kernel"], adapter.merged("blocks/attention/qkv/kernel", kernel), atol=1e-5
    )
    assert arrays.keys() == tuned.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type = 'IA3'; supported is LORA"),
        ({"use_dora": True}, "use_dora = True, which is not supported"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save = \['lm_head'\], which is not supported"),
        ({"r": 4}, "rank 2 for model.layers.0.self_attn.q_proj, but its settings say 4"),
        ({"r": 0}, "r = 0: it must be above 0"),
        ({"lora_alpha": 3}, "lora_alpha = 3.0, not training.lora.rank = 2 and training.lora.alpha = 5.0: use the same"),
    ],
)
def test_settings_that_are_not_ours_are_refused(change: dict[str, Any], message: str, tmp_path: Path):
    model, _ = saved("llama", tmp_path / "adapter")
    path = tmp_path / "adapter/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(WeightsError, match=message):
        dict(PeftAdapter(tmp_path / "adapter", model).arrays(LORA))


def test_adapters_of_other_models_and_places_are_refused(tmp_path: Path):
    saved("llama", tmp_path / "adapter")
    with pytest.raises(WeightsError, match="it belongs to another model|has no place there"):
        PeftAdapter(tmp_path / "adapter", LanguageModel(FIXTURES / "qwen3"))
    with pytest.raises(WeightsError, match="has no place there"):
        PeftAdapter(tmp_path / "adapter", LanguageModel(FIXTURES / "gpt2"))
    other = dataclasses.replace(LORA, places=("out",))
    with pytest.raises(WeightsError, match="has one for .* choose training.lora.places to fit it"):
        dict(PeftAdapter(tmp_path / "adapter", LanguageModel(FIXTURES / "llama")).arrays(other))
    with pytest.raises(WeightsError, match=r"has no adapter_config.json"):
        PeftAdapter(FIXTURES / "llama", LanguageModel(FIXTURES / "llama"))
