"""Gated cross-attention: who sees which image, closed gates, no image, no leak; the resampler against plain numpy."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from generalist.config.run import TrainingConfig
from generalist.data.batch import Batch
from generalist.inference.rows import POSITIONAL
from generalist.model.attend import by_blocks
from generalist.model.attention import Cache
from generalist.model.config import ModelConfig, ModelSpec, VisionConfig
from generalist.model.cross_attention import GatedCrossAttention, first_image, image_mask
from generalist.model.params import flat
from generalist.model.resampler import PerceiverResampler, time_embeddings
from generalist.model.transformer import Transformer, create
from generalist.model.tuned import create_tuned
from generalist.model.tuning import Tuning
from generalist.model.visual import ImageCache
from generalist.tokenizers.pieces import Modality
from generalist.tokenizers.vocabulary import Vocabulary
from generalist.training.token_trainer import make_trainer
from generalist.vision.vit import SO400M, ViTLayer

CHANNELS, CELLS = 6, 4
LANGUAGE = ModelSpec(
    config=ModelConfig(width=32, layers=3, heads=4, kv_heads=2, head_size=8, hidden=48),
    vocabulary=Vocabulary(text=40, continuous=0, discrete=0),
    projection_width=0,
    patches=False,
    frames=False,
)


def seeing(**settings) -> ModelSpec:
    vision = VisionConfig(
        **({"encoder": "x", "width": 16, "latents": 3, "layers": 2, "heads": 2, "head_size": 8} | settings)
    )
    return dataclasses.replace(LANGUAGE, config=dataclasses.replace(LANGUAGE.config, vision=vision), channels=CHANNELS)


def opened(model: Transformer, seed: int = 0) -> Transformer:
    """The model with its gates open."""
    rng = np.random.default_rng(seed)
    for gate in (model.visual.gated.attention_gate, model.visual.gated.feed_forward_gate):
        gate[...] = jnp.asarray(rng.uniform(0.5, 1.0, gate.shape), jnp.float32)
    return model


def packed() -> Batch:
    """Row 0: text, image, text, image, text. Row 1: two segments, the second with an image, the first without; padding."""
    rng = np.random.default_rng(0)
    modality = np.full((2, 8), Modality.TEXT, np.int32)
    modality[0, [1, 4]], modality[1, 4] = Modality.IMAGE, Modality.IMAGE
    zeros = np.zeros((2, 8), np.int32)
    payload = zeros.copy()
    payload[0, 4], payload[1, 4] = 1, 2
    return Batch(
        tokens=rng.integers(0, 40, (2, 8)).astype(np.int32),
        targets=rng.integers(0, 40, (2, 8)).astype(np.int32),
        loss_weight=np.ones((2, 8), np.float32),
        modality=modality,
        local_position=zeros,
        position=np.array([np.arange(8), [0, 1, 2, 0, 1, 2, 3, 0]], np.int32),
        segment=np.array([[1] * 8, [1, 1, 1, 2, 2, 2, 2, 0]], np.int32),
        payload_index=payload,
        image=np.array([[0, 1, 1, 1, 2, 2, 2, 2], [0, 0, 0, 0, 1, 1, 1, 0]], np.int32),
        block=np.zeros((2, 8), np.int32),
        source=zeros,
        tensors=np.zeros((0, 0), np.float32),
        frames=np.zeros((0, 80, 80, 3), np.uint8),
        patches=np.zeros((0, 16, 16, 3), np.uint8),
        intervals=np.zeros((0, 4), np.int32),
        images=rng.normal(size=(3, CELLS, CHANNELS)).astype(np.float16),
        row_images=np.array([[0, 1], [2, 0]], np.int32),
    )


@partial(jax.jit, static_argnums=0)
def jitted_logits(graph: nnx.GraphDef, params: nnx.State, batch: Batch) -> jax.Array:
    model = nnx.merge(graph, params)
    return model.logits(model.hidden(batch))


def logits(model: Transformer, batch: Batch) -> np.ndarray:
    return np.asarray(jitted_logits(*nnx.split(model, nnx.Param), batch))


def test_masks_by_eye():
    image = jnp.array([[0, 1, 1, 2, 2, 3, 3]])
    first = jnp.array([[1, 1, 1, 2, 2, 2, 2]])
    for attend_to, table in {
        "last": [".xx....", "...xx..", ".....xx"],
        "all": [".xx....", "...xxxx", ".....xx"],
    }.items():
        mask = np.asarray(image_mask(image, first, jnp.arange(1, 4)[None], attend_to))[0].T
        assert ["".join(".x"[int(cell)] for cell in row) for row in mask] == table


def test_the_first_image_of_a_segment():
    is_image = jnp.array([[0, 1, 0, 1, 1, 0, 1]], bool)
    position = jnp.array([[0, 1, 2, 0, 1, 2, 0]])
    assert first_image(is_image, position).tolist() == [[1, 1, 1, 2, 2, 2, 4]]


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 2])
def test_closed_gates_leave_the_language_model_bit_for_bit(every: int):
    batch = packed()
    np.testing.assert_array_equal(logits(create(seeing(every=every), 0), batch), logits(create(LANGUAGE, 0), batch))


@pytest.mark.slow
def test_gates_open_by_their_gradient():
    graph, params = nnx.split(create(seeing(), 0), nnx.Param)
    batch = jax.tree.map(jnp.asarray, packed())
    gradient = jax.jit(jax.grad(lambda params: jnp.square(nnx.merge(graph, params).hidden(batch)).mean()))(params)
    assert (np.abs(gradient["visual"]["gated"]["attention_gate"][...]) > 0).all()
    assert (np.abs(gradient["visual"]["gated"]["feed_forward_gate"][...]) > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("attend_to", ["last", "all"])
@pytest.mark.parametrize("every", [1, 2])
def test_positions_see_their_images_and_no_others(attend_to: str, every: int):
    model, batch = opened(create(seeing(attend_to=attend_to, every=every), 0)), packed()
    before = logits(model, batch)
    for number, seen in enumerate([(0, slice(1, 8)), (0, slice(4, 8)), (1, slice(4, 7))]):
        images = batch.images.copy()
        images[number] += 1
        changed = np.abs(logits(model, dataclasses.replace(batch, images=images)) - before).max(axis=-1) > 1e-5
        expected = np.zeros((2, 8), bool)
        expected[seen] = True
        np.testing.assert_array_equal(changed & (batch.segment > 0), expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"first": 1, "every": 2, "gated_activation": "exact_gelu", "resampler_activation": "exact_gelu"},
        {
            "gated_activation": "swiglu",
            "gated_norm": "rms",
            "gated_qk_norm": True,
            "gate": "vector",
            "resampler_qk_norm": True,
        },
        {"resampled": False, "width": CHANNELS, "latents": CELLS, "first": 2, "every": 3, "gated_activation": "geglu"},
    ],
)
def test_stacked_layers_equal_separate_ones_in_every_variant(settings: dict):
    spec, batch = seeing(**settings), packed()
    model, separate = opened(create(spec, 0)), opened(create(spec, 0))
    separate.unstack()
    found = logits(model, batch)
    np.testing.assert_allclose(found, logits(separate, batch), atol=1e-5)
    blind = logits(model, dataclasses.replace(batch, images=batch.images[:0], row_images=batch.row_images[:, :0]))
    changed = np.abs(found - blind).max(axis=-1) > 1e-4
    np.testing.assert_array_equal(changed, batch.image > 0)


def test_settings_that_contradict_each_other():
    with pytest.raises(ValueError, match=r"model.vision.first \(2\) must be less than model.vision.every \(2\)"):
        VisionConfig(first=2, every=2)
    with pytest.raises(ValueError, match=r"model.vision.first \(3\) must be less than model.layers \(3\)"):
        seeing(first=3, every=4)
    with pytest.raises(ValueError, match=r"model.vision.gated_epsilon must be above 0"):
        VisionConfig(gated_epsilon=0.0)
    with pytest.raises(ValueError, match=r"model.vision.width \(16\) must be the 6 channels"):
        create(seeing(resampled=False), 0)
    with pytest.raises(ValueError, match="an image has 4 features, but model.vision.latents is 3"):
        logits(create(seeing(resampled=False, width=CHANNELS), 0), packed())


def test_last_and_all_differ_where_there_are_two_images():
    batch = packed()
    last, every = (logits(opened(create(seeing(attend_to=how), 0)), batch) for how in ("last", "all"))
    changed = np.abs(last - every).max(axis=-1) > 1e-5
    np.testing.assert_array_equal(changed[0], [False] * 4 + [True] * 4)
    assert not changed[1, :7].any()


@pytest.mark.slow
def test_no_image_gives_zero_attention():
    module = GatedCrossAttention(32, 16, heads=2, head_size=8, hidden=64, rngs=nnx.Rngs(0))
    module.attention_gate[...] = jnp.float32(1)
    x = jax.random.normal(jax.random.key(0), (1, 3, 32))
    keys = module.keys(jax.random.normal(jax.random.key(1), (1, 2, 4, 16)))
    mask = jnp.array([[[False, False], [True, False], [False, True]]])
    y = module(x, keys, mask)
    np.testing.assert_array_equal(y[0, 0], x[0, 0])
    assert (np.abs(y[0, 1:] - x[0, 1:]).max(axis=-1) > 1e-3).all()


def test_a_batch_without_images_takes_the_same_weights():
    model, batch = opened(create(seeing(), 0)), packed()
    blind = dataclasses.replace(batch, image=np.zeros_like(batch.image))
    none = dataclasses.replace(blind, images=batch.images[:0], row_images=batch.row_images[:, :0])
    np.testing.assert_allclose(logits(model, blind), logits(model, none), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("attend_to", ["last", "all"])
def test_cached_equals_uncached(attend_to: str):
    """One position at a time, with the images held from the start, as an `ImageCache` counts them."""
    model = opened(create(seeing(attend_to=attend_to, every=2), 0))
    batch = jax.tree.map(lambda leaf: jnp.asarray(leaf[:1]), packed())
    batch = dataclasses.replace(batch, images=jnp.asarray(packed().images))
    whole = model.hidden(batch)
    images = ImageCache(model.visual.keys(batch, jnp.float32), jnp.arange(1, 3)[None])
    caches = model.empty_caches(1, 8)
    for at in range(8):
        part = {name: getattr(batch, name)[:, at : at + 1] for name in POSITIONAL}
        step = dataclasses.replace(batch, **part)
        segment = jnp.where(jnp.arange(8) <= at, 1, 0)[None]
        hidden, caches = model.hidden_cached(step, caches, segment, jnp.arange(8)[None], jnp.int32(at), images)
        np.testing.assert_allclose(hidden[0, 0], whole[0, at], atol=1e-5)
    assert isinstance(caches[0], Cache)


def test_pixels_are_not_features():
    with pytest.raises(ValueError, match="takes an encoder's features"):
        logits(create(seeing(), 0), dataclasses.replace(packed(), images=np.zeros((3, 8, 8, 3), np.uint8)))


def resampler(width_in: int = 16, frames: int = 1, layers: int = 1) -> PerceiverResampler:
    return PerceiverResampler(
        width_in, 16, layers=layers, latents=3, heads=2, head_size=8, frames=frames, rngs=nnx.Rngs(0)
    )


def norm(x: np.ndarray) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)


@pytest.mark.slow
def test_blocks_on_a_cpu_give_what_other_platforms_compute(monkeypatch: pytest.MonkeyPatch):
    """Of a resampler with frames that are absent, a gated layer with a position that sees no image, and a layer of a ViT."""
    resampler = PerceiverResampler(12, 16, layers=2, latents=64, heads=2, head_size=8, frames=2, rngs=nnx.Rngs(0))
    layer = GatedCrossAttention(16, 16, heads=2, head_size=8, hidden=16, rngs=nnx.Rngs(1))
    layer.attention_gate[...] = jnp.ones_like(layer.attention_gate[...])
    tower = ViTLayer(dataclasses.replace(SO400M, width=16, heads=2, hidden=16), rngs=nnx.Rngs(2))
    features = jax.random.normal(jax.random.key(2), (4, 2, 5, 12))
    frames = jnp.array([[True, True], [True, False], [True, True], [False, False]])
    x, mask = jax.random.normal(jax.random.key(3), (2, 64, 16)), jnp.tri(64, 2, -1, bool)[None].repeat(2, 0)

    def mixed(modules: tuple[PerceiverResampler, GatedCrossAttention, ViTLayer], features: Any, x: Any) -> jax.Array:
        visual = modules[0](features, frames).reshape(2, 2, 64, 16)
        return jnp.sin(modules[2](modules[1](x, modules[1].keys(visual), mask))).sum()

    modules = ("model.cross_attention", "model.resampler", "vision.vit")
    taken: list[bool] = []

    def found(blocks: bool) -> list[np.ndarray]:
        for module in modules:
            monkeypatch.setattr(
                f"generalist.{module}.by_blocks", lambda *shape: taken.append(by_blocks(*shape)) or blocks
            )
        gradients = nnx.grad(mixed, argnums=(0, 1, 2))((resampler, layer, tower), features, x)
        return [np.asarray(one) for one in jax.tree.leaves(gradients)]

    for block, plain in zip(found(True), found(False), strict=True):
        np.testing.assert_allclose(block, plain, atol=5e-5)
    assert all(taken) and len(taken) > 4


def test_few_queries_are_not_computed_in_blocks():
    """A step of decoding would copy the keys of every head into a loop."""
    layer = GatedCrossAttention(16, 16, heads=2, head_size=8, hidden=16, rngs=nnx.Rngs(1))
    keys = layer.keys(jax.random.normal(jax.random.key(3), (2, 3, 4, 16)))
    step = jax.make_jaxpr(lambda x: layer(x, keys, jnp.ones((2, 1, 3), bool)))(jnp.ones((2, 1, 16)))
    assert "scan" not in str(step) and "while" not in str(step)


@pytest.mark.slow
def test_the_resampler_by_hand():
    module = resampler(frames=2)
    features = np.random.default_rng(0).normal(size=(2, 2, 5, 16)).astype(np.float32)
    layer = jax.tree.map(lambda leaf: np.asarray(leaf[0]), nnx.to_pure_dict(nnx.state(module.layers, nnx.Param)))
    attention, feed = layer["attention"], layer["feed_forward"]
    x = (features + np.asarray(module.time_table[...])[None, :, None]).reshape(2, 10, 16)
    latents = np.tile(np.asarray(module.latents[...]), (2, 1, 1))
    query = norm(latents) @ attention["query"]["kernel"]
    key, value = np.split(np.concatenate([norm(x), norm(latents)], 1) @ attention["key_value"]["kernel"], 2, axis=-1)
    mixed = np.zeros_like(query)
    for head in (slice(0, 8), slice(8, 16)):
        scores = np.einsum("nke,nse->nks", query[..., head], key[..., head]) / np.sqrt(8)
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        mixed[..., head] = weights @ value[..., head]
    latents = latents + mixed @ attention["out"]["kernel"]
    hidden = np.maximum(norm(latents) @ feed["up"]["kernel"], 0) ** 2
    latents = norm(latents + hidden @ feed["down"]["kernel"])
    np.testing.assert_allclose(module(jnp.asarray(features)), latents, atol=1e-5)


@pytest.mark.slow
def test_absent_frames_do_not_matter():
    module, rng = resampler(width_in=6, frames=3), np.random.default_rng(0)
    features = rng.normal(size=(1, 3, 4, 6)).astype(np.float32)
    present = jnp.array([[True, True, False]])
    other = features.copy()
    other[:, 2] = 9
    np.testing.assert_array_equal(module(jnp.asarray(features), present), module(jnp.asarray(other), present))
    assert np.abs(module(jnp.asarray(features)) - module(jnp.asarray(other))).max() > 1e-3


@pytest.mark.slow
def test_time_is_interpolated():
    table = jnp.array([[0.0, 8.0], [2.0, 4.0]])
    assert time_embeddings(table, 2) is table
    np.testing.assert_allclose(time_embeddings(table, 5)[:, 0], [0, 0.5, 1, 1.5, 2])
    np.testing.assert_allclose(time_embeddings(table, 1), table[:1])
    assert resampler(frames=2)(jnp.ones((1, 7, 4, 16))).shape == (1, 3, 16)


@pytest.mark.parametrize(
    ("every", "first"), [(3, 0), *(pytest.param(*one, marks=pytest.mark.slow) for one in ((1, 0), (2, 1), (4, 3)))]
)
def test_upper_layers_apart_see_as_all_together(every: int, first: int):
    """Gated layers stand where they stood, wherever the frozen layers end."""
    spec = seeing(every=every)
    vision = dataclasses.replace(spec.config.vision, first=first)
    spec = dataclasses.replace(spec, config=dataclasses.replace(spec.config, layers=5, vision=vision))
    whole = logits(opened(create(spec, 0)), packed())
    for layers in (1, 2, 4, 5):
        tuned = opened(create_tuned(spec, 0, Tuning(trained_layers=layers)))
        np.testing.assert_allclose(logits(tuned, packed()), whole, atol=1e-5)


@pytest.mark.slow
def test_frozen_layers_between_gated_ones_stay_bit_for_bit():
    spec = seeing(every=1)
    training = TrainingConfig(steps=4, warmup=1, learning_rate=1e-2, trained_layers=1)
    trainer = make_trainer(spec, training, weights=[1.0])
    params = nnx.state(opened(create_tuned(spec, 0, training.tuning)), nnx.Param)
    state = trainer.initialize(nnx.to_pure_dict(params))
    before, losses = jax.tree.map(np.asarray, state), []
    eight: dict[str, Any] = {name: np.repeat(getattr(packed(), name), 4, axis=0) for name in POSITIONAL}
    batch = trainer.place(dataclasses.replace(packed(), **eight, row_images=np.repeat(packed().row_images, 4, axis=0)))
    with jax.set_mesh(trainer.mesh):
        for _ in range(3):
            state, metrics = trainer.step(state, batch, jax.random.key(0))
            losses.append(float(metrics.loss))
    assert losses[-1] < losses[0]
    frozen, trained = flat(before.frozen), flat(before.params)
    assert "lower/attention/qkv/kernel" in frozen and not [path for path in frozen if "visual" in path]
    for path, leaf in frozen.items():
        np.testing.assert_array_equal(flat(state.frozen)[path], leaf)
    for path in ("blocks/attention/qkv/kernel", "visual/gated/attention_gate", "visual/gated/query/kernel"):
        moved = np.abs(np.asarray(flat(state.params)[path]) - trained[path])
        # In every gated layer, also in those before frozen ones.
        assert moved.reshape(len(moved), -1).max(axis=1).min() > 0, path
