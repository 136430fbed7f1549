"""Published language models against the reference implementation (tests/fixtures/make_language.py), frozen and refused ones."""

import dataclasses
import functools
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rich.console import Console
from safetensors.numpy import load_file, save_file

from generalist.config.presets import debug
from generalist.config.run import TrainingConfig
from generalist.data.batch import Batch
from generalist.model.config import ModelConfig, ModelSpec
from generalist.model.params import flat, united
from generalist.model.transformer import Transformer, create
from generalist.model.tuned import divided
from generalist.run.trunk import with_trunk
from generalist.tokenizers.text import TextTokenizer
from generalist.tokenizers.vocabulary import Vocabulary
from generalist.training.token_trainer import make_trainer
from generalist.training.tokens import load_trunk
from generalist.weights.folder import WeightsError, WeightsFolder
from generalist.weights.language import LanguageModel
from generalist.weights.language_settings import FAMILIES

FIXTURES = Path(__file__).parent.parent / "fixtures" / "language"
NAMES = sorted(path.name for path in FIXTURES.iterdir())
VOCABULARY = Vocabulary(text=300, continuous=4, discrete=4)


def spec_of(trunk: LanguageModel) -> ModelSpec:
    config = dataclasses.replace(ModelConfig(), trunk=str(trunk.folder.folder), **trunk.shape)
    return ModelSpec(config=config, vocabulary=VOCABULARY, projection_width=0, patches=False, frames=False)


def text_batch(tokens: np.ndarray, present: np.ndarray) -> Batch:
    zeros = np.zeros_like(tokens)
    return Batch(
        tokens=tokens,
        targets=np.roll(tokens, -1, axis=1),
        loss_weight=present.astype(np.float32),
        modality=zeros,
        local_position=zeros,
        position=np.tile(np.arange(tokens.shape[1], dtype=np.int32), (len(tokens), 1)),
        segment=present,
        payload_index=zeros,
        image=zeros,
        block=zeros,
        source=zeros,
        tensors=np.zeros((0, 0), np.float32),
        frames=np.zeros((0, 0, 0, 3), np.uint8),
        patches=np.zeros((0, 16, 16, 3), np.uint8),
        intervals=np.zeros((0, 4), np.int32),
        images=np.zeros((0, 0, 0, 3), np.uint8),
        row_images=np.zeros((len(tokens), 0), np.int32),
    )


def stored(name: str) -> tuple[Batch, np.ndarray, np.ndarray]:
    """The fixture's batch, which positions are there, and the reference's logits."""
    expected = np.load(FIXTURES / name / "expected.npz")
    present = expected["present"].astype(np.int32)
    return text_batch(expected["ids"].astype(np.int32), present), present > 0, expected["logits"]


@functools.cache
def loaded(name: str) -> tuple[nnx.GraphDef, Any]:
    """Our model with the fixture's weights."""
    trunk = LanguageModel(FIXTURES / name)
    spec = spec_of(trunk)
    graph, _ = nnx.split(nnx.eval_shape(lambda: create(spec, 0)), nnx.Param)
    fresh = jax.jit(lambda: nnx.to_pure_dict(nnx.state(create(spec, 0), nnx.Param)))()
    return graph, united(fresh, trunk.load(VOCABULARY))


@functools.partial(jax.jit, static_argnums=0)
def hidden_and_logits(graph: nnx.GraphDef, params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
    model = nnx.merge(graph, params)
    hidden = model.hidden(batch)
    return hidden, model.logits(hidden)


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_the_reference_s(name: str):
    graph, params = loaded(name)
    batch, present, expected = stored(name)
    ours = np.asarray(hidden_and_logits(graph, params, batch)[1])
    np.testing.assert_allclose(ours[..., :300][present], expected[present], atol=1e-4)
    # The tokens that the reference has not are no likelier than its own.
    assert ours[..., 300:][present].max() < 2 * np.abs(expected).max()


def test_every_family_has_a_fixture():
    # IDEFICS and MPT-1B are tested with their images (tests/inference/test_gated.py).
    found = {LanguageModel(FIXTURES / name).family for name in NAMES} | {"idefics", "mosaic_gpt"}
    assert found == set(FAMILIES)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_cached_and_packed_equal_rows_of_their_own(name: str):
    """Positions, windows and bounds also hold in parts with a cache, and behind another text in the same row."""
    graph, params = loaded(name)
    batch, _, expected = stored(name)
    batch = dataclasses.replace(batch, segment=np.ones_like(batch.segment))
    length = batch.tokens.shape[1]

    @jax.jit
    def step(params, part: Batch, caches, start):
        model: Transformer = nnx.merge(graph, params)
        at = jnp.arange(length)[None].repeat(2, 0)
        return model.hidden_cached(part, caches, (at < start + part.tokens.shape[1]).astype(jnp.int32), at, start)

    alone, _ = hidden_and_logits(graph, params, batch)
    # Both rows side by side in one.
    fields = [field.name for field in dataclasses.fields(Batch) if np.shape(getattr(batch, field.name)) == (2, length)]
    packed = dataclasses.replace(batch, segment=batch.segment + np.arange(2, dtype=np.int32)[:, None])
    rows: dict[str, Any] = {field: getattr(packed, field).reshape(1, -1) for field in fields}
    packed = dataclasses.replace(packed, **rows, row_images=np.zeros((1, 0), np.int32))
    together, _ = hidden_and_logits(graph, params, packed)
    np.testing.assert_allclose(together.reshape(alone.shape), alone, atol=1e-4)
    caches, model = nnx.merge(graph, params).empty_caches(2, length), nnx.merge(graph, params)
    for begin, end in ((0, 6), (6, 7), (7, 8), (8, length)):  # of two lengths
        part = dataclasses.replace(batch, **{field: getattr(batch, field)[:, begin:end] for field in fields})
        hidden, caches = step(params, part, caches, jnp.array(begin))
        np.testing.assert_allclose(hidden, alone[:, begin:end], atol=1e-4)
    assert expected.shape[1] == length and model.config.layers == len(caches)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "frozen"),
    [("llama", True), ("llama", False), *((name, False) for name in ("gpt_neox", "mpt", "olmo2", "smollm3"))],
)
def test_a_frozen_trunk_stays_as_it_is_and_costs_no_optimizer_memory(name: str, frozen: bool):
    trunk = LanguageModel(FIXTURES / name)
    spec = spec_of(trunk)
    spec = dataclasses.replace(spec, config=dataclasses.replace(spec.config, trunk_frozen=frozen))
    training = TrainingConfig(steps=4, warmup=1, learning_rate=1e-2, fsdp_axis=4, tensor_axis=2)
    trainer = make_trainer(spec, training, weights=[1.0])
    weights = trunk.load(VOCABULARY)
    state = trainer.initialize(weights)
    np.testing.assert_array_equal(state.params["tokens"]["other"], weights["tokens"]["other"])
    batch = trainer.place(stored(name)[0])
    with jax.set_mesh(trainer.mesh):
        for _ in range(3):
            state, _ = trainer.step(state, batch, jax.random.key(0))
    after = flat(united(state.params, state.frozen))
    same = {path for path, value in flat(weights).items() if np.array_equal(after[path], value)}
    brought = set(flat(weights)) - {"tokens/other", "output/other"}
    assert same - {"tokens/other"} == (brought if frozen else set())  # whose tokens the batch has not
    moments = {path for path in flat(state.opt_state) if any(path.endswith(name) for name in brought)}
    assert bool(moments) != frozen
    if frozen:
        held = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state))
        assert held < 2.1 * sum(leaf.size for leaf in jax.tree.leaves(state.params))


def test_frozen_matrices_are_kept_in_the_compute_type_and_norms_in_full():
    trunk = LanguageModel(FIXTURES / "qwen2")
    trainer = make_trainer(spec_of(trunk), TrainingConfig(dtype="bfloat16"), weights=[1.0])
    types = {path: leaf.dtype for path, leaf in flat(trainer.abstract_state.frozen).items()}
    assert types["blocks/attention/qkv/kernel"] == types["tokens/text"] == jnp.bfloat16
    assert types["blocks/attention_norm/scale"] == types["blocks/attention/qkv/bias"] == jnp.float32


def test_a_trunk_is_placed_one_parameter_at_a_time(monkeypatch: pytest.MonkeyPatch):
    """A large one never stands on the host as a whole, and lies on the devices in its parts and in the compute type."""
    model = dataclasses.replace(debug().model, trunk=str(FIXTURES / "llama"))
    config = with_trunk(dataclasses.replace(debug(), model=model))
    trunk, training = LanguageModel(FIXTURES / "llama"), TrainingConfig(dtype="bfloat16", fsdp_axis=4, tensor_axis=2)
    trainer = make_trainer(spec_of(trunk), training, weights=[1.0])
    alive: list[weakref.ref] = []
    stream = WeightsFolder.stream

    def watched(*arguments):
        for path, array in stream(*arguments):
            assert sum(one() is not None for one in alive) <= 2, "earlier arrays are gone"
            if array.ndim == 3:  # kernels; norms stay float32, which a CPU need not copy
                alive.append(weakref.ref(array))
            yield path, array
            del array

    monkeypatch.setattr(WeightsFolder, "stream", watched)
    placed = load_trunk(config, spec_of(trunk), trainer, Console(quiet=True))
    monkeypatch.undo()
    whole = flat(united(trainer.state_shardings.params, trainer.state_shardings.frozen))
    for path, array in flat(placed).items():
        assert array.sharding == whole[path]
    kernel = placed["blocks"]["attention"]["qkv"]["kernel"]
    assert kernel.dtype == jnp.bfloat16
    assert kernel.addressable_shards[0].data.size == kernel.size // 8
    state = trainer.initialize(placed)
    expected = trunk.load(VOCABULARY)["blocks"]["attention"]["qkv"]["kernel"].astype(jnp.bfloat16)
    np.testing.assert_array_equal(state.frozen["blocks"]["attention"]["qkv"]["kernel"], expected)


def test_division_and_union_are_inverse():
    config = dataclasses.replace(ModelConfig(), trunk="x")
    params = {
        "blocks": {"up": {"kernel": 1}},
        "tokens": {"text": 2, "other": 3},
        "final_norm": {"scale": 4},
        "visual": 5,
    }
    trained, frozen = divided(params, config)
    assert trained == {"tokens": {"other": 3}, "visual": 5}
    assert united(trained, frozen) == params
    assert divided(params, dataclasses.replace(config, trunk_frozen=False)) == (params, {})


def test_marks_of_beginning_and_end_are_the_trunk_s():
    weights = LanguageModel(FIXTURES / "qwen3").load(VOCABULARY)
    for table in ("tokens", "output"):
        text, other = weights[table]["text"], weights[table]["other"]
        np.testing.assert_array_equal(other[VOCABULARY.bos - 300], text[1])
        np.testing.assert_array_equal(other[VOCABULARY.eos - 300], text[2])


def test_settings_follow_the_trunk():
    config = dataclasses.replace(debug(), model=dataclasses.replace(debug().model, trunk=str(FIXTURES / "gemma3")))
    config = with_trunk(config)
    assert (config.model.layers, config.model.window, config.model.layer_kinds) == (
        7,
        5,
        (*["window"] * 5, "full", "window"),
    )
    assert config.tokens.text_pieces == 300
    with pytest.raises(ValueError, match="data.length = 128, but the trunk has only 32 positions"):
        with_trunk(dataclasses.replace(config, model=dataclasses.replace(config.model, trunk=str(FIXTURES / "gpt2"))))
    data = dataclasses.replace(config.data, length=256)
    for name in ("phi3_long", "gpt_neox_serial"):
        other = dataclasses.replace(
            config, data=data, model=dataclasses.replace(config.model, trunk=str(FIXTURES / name))
        )
        with pytest.raises(
            ValueError, match="data.length = 256, but the trunk changes its rotary positions beyond 128"
        ):
            with_trunk(other)


@pytest.mark.parametrize("said", ["a photo of a cat", "</s> is text here", "é\n\t🙂", "", "a\0b ▁"])
def test_tokenizer_json_gives_every_text_back_and_no_control_token(said: str):
    text = LanguageModel(FIXTURES / "llama").text()
    ids = text.encode(said)
    assert text.decode(ids) == said
    assert not set(ids.tolist()) & {0, 1, 2}


def test_control_tokens_beyond_the_rows_are_left_aside(tmp_path: Path):
    """As in Gemma 3 without eyes, whose tokenizer still has a token for images."""
    tokenizer = json.loads((FIXTURES / "llama" / "tokenizer.json").read_text())
    common = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokenizer["added_tokens"] += [
        {"id": 295, "content": "<tool>", "special": False, **common},
        {"id": 400, "content": "<image>", "special": True, **common},
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    text = TextTokenizer.load(tmp_path / "tokenizer.json")
    said = "a <tool> and an <image>"
    assert text.decode(text.encode(said)) == said
    assert text.size == text.encode(said).max() + 1


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURES / "qwen2", tmp_path / "qwen2"))


def test_a_sentencepiece_model_serves_as_well(copy: Path, write_sentencepiece: Callable[[Path], None]):
    write_sentencepiece(copy / "tokenizer.model")
    (copy / "tokenizer.json").unlink()
    text = LanguageModel(copy).text()
    assert text.decode(text.encode("a photo of é")) == "a photo of é"
    (copy / "tokenizer.model").unlink()
    with pytest.raises(WeightsError, match=r"neither tokenizer.json nor tokenizer.model"):
        LanguageModel(copy).text()
    (copy / "tokenizer.json").write_text("{broken")
    with pytest.raises(WeightsError, match="text model is damaged"):
        LanguageModel(copy).text()


def changed(folder: Path, changes: dict[str, Any]) -> LanguageModel:
    settings = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(settings))
    return LanguageModel(folder)


def rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, **values}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_type": "mamba"},
            r"holds a Qwen2ForCausalLM \(mamba\); the language models that can be loaded are gpt2, ",
        ),
        ({"model_type": "x", "auto_map": {"AutoModel": "a.B"}}, r"its own code \(auto_map\) is never run"),
        ({"attention_bias": True}, "attention_bias = True, which is not supported for qwen2"),
        ({"mlp_bias": True}, "mlp_bias = True, which is not supported for qwen2"),
        ({"quantization_config": {"bits": 4}}, "quantised weights are not supported"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention = True, which is not supported"),
        ({"hidden_act": "mish"}, "hidden_act = 'mish'; supported are gelu, "),
        (rope("ntk"), "by 'ntk'; supported are linear, dynamic, llama3, yarn, longrope"),
        (rope("yarn", truncate="no", factor=2.0), "yarn with truncate = 'no'"),
        (rope("dynamic", alpha=3), "'dynamic' with alpha"),
        (rope("longrope", short_factor=[1.0], factor=2.0), "one factor per wavelength, 2, got 1"),
        (rope("longrope", factor=2.0), "longrope rotary positions lack 'short_factor'"),
        (
            rope("default", partial_rotary_factor=0.5),
            "rotates a share of each head, 0.5, which is not supported for qwen2",
        ),
        ({"rope_scaling": {"type": "linear"}, "rope_parameters": None}, "linear rotary positions lack 'factor'"),
        ({"hidden_size": None}, "has no 'hidden_size'"),
        ({"hidden_size": "16"}, "not of the expected type"),
        ({"num_hidden_layers": -2}, "num_hidden_layers = -2: it must be above 0"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000, but only 26 tensors"),
        ({"num_attention_heads": 0}, "num_attention_heads = 0: it must be above 0"),
        ({"num_attention_heads": 5}, "5 heads, which do not divide its width 16"),
        ({"num_attention_heads": 8, "num_key_value_heads": 3}, r"model\.heads \(8\) must be a multiple of"),
        (rope("linear", factor="much"), "inconsistent settings: could not convert"),
        (rope("linear", factor=-2.0), "model.rope.factor must be above 0"),
        ({"rope_parameters": {"rope_theta": -1.0}}, "model.rope.base must be above 0"),
        (
            {"layer_types": ["sliding_attention", "full_attention"]},
            "layers have a window, but no sliding_window in use",
        ),
        (
            {"layer_types": ["sliding_attention"] * 2, "use_sliding_window": True, "sliding_window": 10**40},
            "positions are counted up to 2,147,483,647",
        ),
        ({"layer_types": ["full_attention"]}, "layer_types that do not fit its 2 layers"),
        ({"layer_types": ["chunked_attention"] * 2}, "kinds other than full_attention, sliding_attention"),
    ],
)
def test_settings_that_are_not_supported(copy: Path, change: dict[str, Any], message: str):
    with pytest.raises(WeightsError, match=message):
        _ = changed(copy, change).shape


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("mpt", {"attn_config": {"qk_gn": True}}, "attn_config.qk_gn = True, which is not supported"),
        (
            "mpt",
            {"attn_config": {"alibi": False}, "learned_pos_emb": False},
            "alibi = False and learned_pos_emb = False",
        ),
        ("mpt", {"attn_config": {"attn_type": "multiquery_attention"}}, "attn_type = multiquery_attention"),
        ("mpt", {"logit_scale": 0.5}, "has a logit_scale"),
        ("mpt", {"norm_type": "rmsnorm"}, "norm_type = 'rmsnorm'"),
        ("gpt_neox", {"hidden_act": "mish"}, "hidden_act = 'mish'"),
        (
            "smollm3",
            {"no_rope_layers": [1, 0]},
            r"no_rope_layers = \[1, 0\]: it must have a 0 or a 1 for each of 6 layers",
        ),
        ("mistral", {"layer_types": ["full_attention"] * 3}, "layer_types that do not fit"),
        (
            "gemma3",
            {"rope_parameters": {"full_attention": {}, "sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            "stretches rotary positions of layers with a window by a rule of their own",
        ),
    ],
)
def test_settings_of_one_family_that_are_not_supported(tmp_path: Path, name: str, change: dict, message: str):
    folder = Path(shutil.copytree(FIXTURES / name, tmp_path / name))
    with pytest.raises(WeightsError, match=message):
        _ = changed(folder, change).shape


def test_settings_of_mpt_that_transformers_does_not_read(tmp_path: Path):
    copy = Path(shutil.copytree(FIXTURES / "mpt", tmp_path / "mpt"))
    usual = LanguageModel(copy).shape
    found = changed(copy, {"attn_config": {"alibi": False}, "expansion_ratio": 3})
    found.check()
    assert found.shape["alibi"] == 8 and found.shape["hidden"] == usual["hidden"] == 4 * usual["width"]


def test_sizes_that_no_array_can_have(copy: Path):
    with pytest.raises(WeightsError, match=r"config.json has sizes that no array can have"):
        changed(copy, {"hidden_size": 2**62}).check()


def test_a_gpt_2_may_leave_its_scores_as_they_are(tmp_path: Path):
    folder = Path(shutil.copytree(FIXTURES / "gpt2", tmp_path / "gpt2"))
    assert LanguageModel(folder).shape["query_scale"] is None
    assert changed(folder, {"scale_attn_weights": False}).shape["query_scale"] == 1.0


def test_what_older_files_omit_is_their_family_s(tmp_path: Path):
    """Names of settings that were replaced later, and null where that means "none"."""
    older = {"rope_parameters": None, "rotary_emb_base": 77, "rotary_pct": 0.7}
    neox = changed(Path(shutil.copytree(FIXTURES / "gpt_neox", tmp_path / "neox")), older).shape
    assert (neox["rope"].base, neox["rope"].share) == (77, 0.7)
    folder = Path(shutil.copytree(FIXTURES / "mistral", tmp_path / "mistral"))
    assert changed(folder, {"sliding_window": None}).shape["layer_kinds"] == ("full",)
    settings = json.loads((folder / "config.json").read_text())
    del settings["sliding_window"]
    (folder / "config.json").write_text(json.dumps(settings))
    assert LanguageModel(folder).shape["window"] == 4096
    folder = Path(shutil.copytree(FIXTURES / "phi3_long", tmp_path / "phi3"))
    scaling = {"type": "su", "short_factor": [1.0, 2.0], "long_factor": [3.0, 4.0]}
    rope = changed(folder, {"rope_parameters": None, "rope_scaling": scaling}).shape["rope"]
    assert rope.factors == (1, 2) and rope.attention_factor == pytest.approx((1 + np.log(4) / np.log(128)) ** 0.5)
    assert LanguageModel(folder).context == (128, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), "missing tensors: model.norm.weight"),
        (lambda tensors: tensors.update(lora=np.zeros(1)), "unknown tensors: lora"),
        (
            lambda tensors: tensors.update({"model.norm.weight": np.zeros(3)}),
            r"model.norm.weight is \(3,\) instead of \(16,\)",
        ),
    ],
)
def test_tensors_that_do_not_fit(copy: Path, change, message: str):
    tensors = load_file(copy / "model.safetensors")
    change(tensors)
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(WeightsError, match=message):
        LanguageModel(copy).load(VOCABULARY)
    config = dataclasses.replace(debug(), model=dataclasses.replace(debug().model, trunk=str(copy)))
    with pytest.raises(WeightsError, match=message):  # before any data are made
        with_trunk(config)


def test_truncated_shards_and_pickles(tmp_path: Path):
    folder = Path(shutil.copytree(FIXTURES / "llama", tmp_path / "llama"))
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    whole = shards[0].read_bytes()
    shards[0].write_bytes(whole[:-10])
    with pytest.raises(WeightsError, match="truncated"):
        LanguageModel(folder)
    shards[0].unlink()
    with pytest.raises(WeightsError, match="lacks shards that its index names"):
        LanguageModel(folder)
    for path in (*shards[1:], folder / "model.safetensors.index.json"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(WeightsError, match=r"pytorch_model.bin, which is refused because it could run code"):
        LanguageModel(folder)
