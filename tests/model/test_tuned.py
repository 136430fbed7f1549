"""What stays frozen, what is trained, and that adapters and split layers compute what files say."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from generalist.config.run import TrainingConfig
from generalist.data.batch import Batch
from generalist.model.config import ModelConfig, ModelSpec
from generalist.model.params import flat, nested, united
from generalist.model.transformer import create
from generalist.model.tuned import ADAPTER, apart, create_tuned, divided, together
from generalist.model.tuning import LoraConfig, Tuning
from generalist.tokenizers.vocabulary import Vocabulary
from generalist.training.token_trainer import make_trainer
from generalist.weights.language import LanguageModel

FIXTURES = Path(__file__).parents[1] / "fixtures" / "language"
VOCABULARY = Vocabulary(text=300, continuous=4, discrete=4)
LORA = Tuning(lora=LoraConfig(rank=3, alpha=6.0))
UPPER = Tuning(trained_layers=1)


def spec_of(trunk: LanguageModel) -> ModelSpec:
    config = dataclasses.replace(ModelConfig(), trunk=str(trunk.folder.folder), **trunk.shape)
    return ModelSpec(config=config, vocabulary=VOCABULARY, projection_width=0, patches=False, frames=False)


def batch_of(rows: int = 8, length: int = 12) -> Batch:
    """Rows of text and other tokens."""
    tokens = np.random.default_rng(0).integers(3, VOCABULARY.size, (rows, length)).astype(np.int32)
    zeros = np.zeros_like(tokens)
    return Batch(
        tokens=tokens,
        targets=np.roll(tokens, -1, axis=1),
        loss_weight=np.ones(tokens.shape, np.float32),
        modality=zeros,
        local_position=zeros,
        position=np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        segment=zeros + 1,
        payload_index=zeros,
        image=zeros,
        block=zeros,
        source=zeros,
        tensors=np.zeros((0, 0), np.float32),
        frames=np.zeros((0, 0, 0, 3), np.uint8),
        patches=np.zeros((0, 16, 16, 3), np.uint8),
        intervals=np.zeros((0, 4), np.int32),
        images=np.zeros((0, 0, 0, 3), np.uint8),
        row_images=np.zeros((rows, 0), np.int32),
    )


def given(spec: ModelSpec, trunk: LanguageModel, tuning: Tuning) -> dict[str, Any]:
    """The trunk's parameters in training's layout."""
    arrays = flat(trunk.load(VOCABULARY))
    return nested(
        {name: part for path in arrays for name, part in apart(path, arrays[path], spec.config.layers, tuning).items()}
    )


def training(tuning: Tuning, **changed: Any) -> TrainingConfig:
    settings = {
        "steps": 8,
        "warmup": 1,
        "learning_rate": 1e-2,
        "lora": tuning.lora,
        "trained_layers": tuning.trained_layers,
    }
    return TrainingConfig(**(settings | changed))


@functools.cache
def trained(name: str, tuning: Tuning, steps: int = 3, **changed: Any) -> tuple[ModelSpec, Any, Any, list[float]]:
    """The model's shape, its state before and after some steps, and the losses."""
    trunk = LanguageModel(FIXTURES / name)
    spec = spec_of(trunk)
    trainer = make_trainer(spec, training(tuning, **changed), weights=[1.0])
    state = trainer.initialize(given(spec, trunk, tuning))
    before = jax.tree.map(np.asarray, state)
    batch, losses = trainer.place(batch_of()), []
    with jax.set_mesh(trainer.mesh):
        for _ in range(steps):
            state, metrics = trainer.step(state, batch, jax.random.key(0))
            losses.append(float(metrics.loss))
    return spec, before, jax.tree.map(np.asarray, state), losses


def hidden(model: Any, params: Any) -> np.ndarray:
    graph, _ = nnx.split(nnx.eval_shape(lambda: model), nnx.Param)
    return np.asarray(nnx.merge(graph, jax.tree.map(jnp.asarray, params)).hidden(jax.tree.map(jnp.asarray, batch_of())))


@pytest.mark.parametrize(("name", "tuning"), [("llama", LORA), ("gemma3", UPPER), ("gpt_neox", LORA)])
def test_training_begins_with_exactly_what_the_trunk_computes(name: str, tuning: Tuning):
    trunk = LanguageModel(FIXTURES / name)
    spec = spec_of(trunk)
    plain, tuned = create(spec, 0), create_tuned(spec, 0, tuning)
    drawn = flat(nnx.to_pure_dict(nnx.state(plain, nnx.Param)))
    start = nested(drawn | flat(trunk.load(VOCABULARY)))
    of_training = nnx.to_pure_dict(nnx.state(tuned, nnx.Param))
    whole = united(of_training, given(spec, trunk, tuning))
    np.testing.assert_array_equal(hidden(tuned, whole), hidden(plain, start))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tuning", "optimizer"),
    [("llama", LORA, "adamw"), ("llama", UPPER, "muon"), ("gemma3", LORA, "muon"), ("gemma3", UPPER, "adamw")],
)
def test_what_is_frozen_stays_bit_for_bit_and_has_no_moments(name: str, tuning: Tuning, optimizer: str):
    _, before, after, losses = trained(name, tuning, optimizer=optimizer)
    assert losses[-1] < losses[0]
    for path, leaf in flat(before.frozen).items():
        np.testing.assert_array_equal(flat(after.frozen)[path], leaf)
    moments = {path for path in flat(before.opt_state) for frozen in flat(before.frozen) if path.endswith(frozen)}
    if tuning is LORA:
        assert moments == set() and "tokens/text" in flat(before.frozen)
        adapters = {path: leaf for path, leaf in flat(after.params).items() if ADAPTER.fullmatch(path)}
        assert len(adapters) == 8 and all(np.any(leaf != flat(before.params)[path]) for path, leaf in adapters.items())
    else:
        lower = {path.replace("lower/", "blocks/") for path in flat(before.frozen) if path.startswith("lower/")}
        assert lower and all(len(flat(after.params)[path]) == 1 for path in lower)
        assert all(np.any(flat(after.params)[path] != flat(before.params)[path]) for path in lower)
        assert not [path for path in flat(before.opt_state) if "lower/" in path]
    assert np.any(after.params["tokens"]["other"] != before.params["tokens"]["other"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tuning"),
    [("llama", LORA), ("qwen2", UPPER), ("mpt", Tuning(lora=LoraConfig(rank=2, places=("qkv", "down"))))],
)
def test_the_weights_of_files_compute_what_training_computed(name: str, tuning: Tuning):
    spec, _, after, _ = trained(name, tuning, optimizer="adamw")
    whole = united(after.params, after.frozen)
    files = nested(dict(together(flat(whole), spec.config, tuning)))
    assert flat(files).keys() == flat(nnx.to_pure_dict(nnx.state(create(spec, 0), nnx.Param))).keys()
    np.testing.assert_allclose(hidden(create(spec, 0), files), hidden(create_tuned(spec, 0, tuning), whole), atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tuning", "axes"),
    [(LORA, {"fsdp_axis": 4, "tensor_axis": 2}), (UPPER, {"data_axis": 2, "fsdp_axis": 2, "sequence_axis": 2})],
)
def test_sharded_training_is_unsharded_training(tuning: Tuning, axes: dict[str, int]):
    alone, spread = trained("llama", tuning, fsdp_axis=1, data_axis=8), trained("llama", tuning, **axes)
    np.testing.assert_allclose(spread[3], alone[3], rtol=1e-5)
    for path, leaf in flat(alone[2].params).items():
        np.testing.assert_allclose(flat(spread[2].params)[path], leaf, atol=1e-4)


def test_a_frozen_trunk_is_held_in_sixteen_bits_and_adapters_are_not():
    trainer = make_trainer(spec_of(LanguageModel(FIXTURES / "llama")), training(LORA, dtype="bfloat16"), weights=[1.0])
    frozen, params = flat(trainer.abstract_state.frozen), flat(trainer.abstract_state.params)
    assert frozen["blocks/attention/qkv/kernel"].dtype == jnp.bfloat16
    assert params["blocks/attention/qkv/adapter/a"].dtype == jnp.float32
    assert not set(frozen) & set(params)


def test_only_the_chosen_places_have_adapters_and_division_loses_nothing():
    spec = spec_of(LanguageModel(FIXTURES / "llama"))
    tuning = Tuning(lora=LoraConfig(rank=2, places=("out",)))
    params = nnx.to_pure_dict(nnx.state(create_tuned(spec, 0, tuning), nnx.Param))
    assert [path for path in flat(params) if "adapter" in path] == [
        f"blocks/attention/out/adapter/{one}" for one in "ab"
    ]
    assert flat(united(*divided(params, spec.config, tuning))).keys() == flat(params).keys()


def test_more_layers_than_there_are_are_refused():
    spec = spec_of(LanguageModel(FIXTURES / "llama"))
    with pytest.raises(ValueError, match=r"training.trained_layers = 9, but the model has only \d layers"):
        create_tuned(spec, 0, Tuning(trained_layers=9))
