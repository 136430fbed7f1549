"""The weights that are shown are those that layers compute with."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from generalist.inference.rows import stack_rows
from generalist.model.attention_weights import looks, openings
from generalist.model.cross_attention import GatedCrossAttention
from generalist.model.resampler import PerceiverAttention
from generalist.tokenizers.sequence import CHUNK_END


def row(model: Any, images: int) -> Any:
    """A prompt with images, text before and after each, as one row on the device."""
    pictures = [np.random.default_rng(seed).integers(0, 256, (48, 48, 3)).astype(np.uint8) for seed in range(images)]
    parts = [part for one in pictures for part in (one, " red block", CHUNK_END)]
    sequence = model.assembler.document(["push", CHUNK_END, *parts, "lift"], is_open=True)
    length = len(sequence) + 5
    return model.on_device(stack_rows([sequence], length, pad=model.vocabulary.pad, frame_tokens=1)), len(sequence)


@pytest.mark.slow
@pytest.mark.parametrize("images", ["frame+encoder", "patches", "frame"])
def test_weights_sum_to_one_over_what_is_visible(make_model: Callable[..., Any], images: str) -> None:
    model = make_model(images)
    batch, length = row(model, 2)
    structure, params = model.decoder
    module = structure.model(params)
    places = jnp.arange(length)
    found, hidden = looks(module, batch, places, jnp.float32)
    weights = np.asarray(found.positions)
    assert weights.shape == (module.config.layers, length, batch.tokens.shape[1])
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)
    assert (weights[:, *np.triu_indices(length, 1)] == 0).all(), "nothing later is seen"
    assert (weights[..., length:] == 0).all(), "no padding is seen"
    # The same forward pass as that of the model itself.
    np.testing.assert_allclose(hidden[:, :length], module.hidden(batch)[:, :length], atol=2e-4)
    if "encoder" in images:
        # Of the text before the first image nothing, then of the last image alone.
        of_images = np.asarray(found.images).sum(axis=-1)  # (G, Q, I)
        wanted = np.asarray(batch.image[0, :length])[:, None] == np.arange(1, 3)[None]
        np.testing.assert_allclose(of_images, np.broadcast_to(wanted, of_images.shape), atol=1e-5)


@pytest.mark.slow
def test_weights_times_values_are_the_layers_output(make_model: Callable[..., Any]) -> None:
    model = make_model("frame+encoder")
    batch, _ = row(model, 1)
    structure, params = model.decoder
    module = structure.model(params)
    sight = module.sights(batch)["full"]
    attention = module.blocks[1].attention
    x = jax.random.normal(jax.random.key(0), (*batch.tokens.shape, module.config.width))
    same = batch.segment[:, :, None] == batch.segment[:, None, :]
    mask = jnp.asarray(same & np.tri(batch.tokens.shape[1], dtype=bool)[None])
    weights = attention.weights(x, mask, sight.placed, jnp.arange(x.shape[1]))  # (1, N, L, L)
    _, _, _, value = attention._projected(x, sight.placed, sight.written)
    value = jnp.repeat(value, attention.heads // attention.kv_heads, axis=2)
    mixed = jnp.einsum("bnqs,bsnh->bqnh", weights, value).reshape(*x.shape[:2], -1)
    expected, _ = attention(x, *sight)
    np.testing.assert_allclose(attention.out(mixed), expected, atol=1e-4)


def test_weights_of_the_gated_layer_and_the_resampler_are_those_they_mix_with() -> None:
    from flax import nnx

    gated = GatedCrossAttention(16, 8, heads=2, head_size=4, hidden=8, rngs=nnx.Rngs(0))
    gated.attention_gate[...] = jnp.array(0.5)
    x = jax.random.normal(jax.random.key(1), (1, 3, 16))
    keys = gated.keys(jax.random.normal(jax.random.key(2), (1, 2, 5, 8)))
    mask = jnp.array([[[True, False], [True, True], [False, False]]])
    weights = gated.weights(x, keys, mask)  # (1, H, L, I, K)
    np.testing.assert_allclose(weights.sum(axis=(-1, -2)), 1, atol=1e-5)
    assert (weights[:, :, 0, 1] == 0).all()
    mixed = gated.out(jnp.einsum("bhlik,bhike->blhe", weights, keys.value).reshape(1, 3, -1))
    bare = gated(x, None, None)
    attended = x + jnp.tanh(0.5) * jnp.where(mask.any(axis=-1)[..., None], mixed, 0)
    np.testing.assert_allclose(gated(x, keys, mask), gated(attended, None, None), atol=1e-5)
    assert not np.allclose(gated(x, keys, mask), bare)

    resampling = PerceiverAttention(16, 2, 4, rngs=nnx.Rngs(0))
    features, latents = (
        jax.random.normal(jax.random.key(3), (1, 6, 16)),
        jax.random.normal(jax.random.key(4), (1, 3, 16)),
    )
    visible = jnp.array([[True] * 4 + [False] * 2])
    weights = resampling.weights(features, latents, visible)
    assert weights.shape == (1, 2, 3, 9) and (weights[..., 4:6] == 0).all()
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)


@pytest.mark.slow
def test_gates_and_sources(make_model: Callable[..., Any]) -> None:
    model = make_model("frame+encoder")
    structure, params = model.decoder
    module = structure.model(params)
    # The fixture adds 1 to the gates of attention, which are closed otherwise.
    np.testing.assert_allclose(openings(module), [[np.tanh(1.0), 0.0]] * module.config.gated_layers, atol=1e-6)
    batch, _ = row(model, 2)
    held = np.asarray(module.visual.sources(batch, jnp.float32))
    assert held.shape[0] == 2 and (held >= 0).all()
    np.testing.assert_allclose(held.sum(axis=-1), 1, atol=1e-5)
    assert openings(make_model("frame").decoder[0].model(make_model("frame").params)).shape == (0, 2)
