"""The resampler and the gated cross-attention against the reference implementation (tests/fixtures/make_flamingo.py)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from generalist.model.cross_attention import AttendTo, GatedCrossAttention, image_mask
from generalist.model.resampler import PerceiverResampler

STORED = np.load(Path(__file__).parent.parent / "fixtures" / "flamingo.npz")


def weights(prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): STORED[name] for name in STORED.files if name.startswith(prefix)}


def norm(stored: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {"scale": stored[f"{name}.weight"], "bias": stored[f"{name}.bias"]}


def kernel(stored: dict[str, np.ndarray], *names: str) -> dict[str, np.ndarray]:
    return {"kernel": np.concatenate([stored[f"{name}.weight"] for name in names]).T}


def resampler_layer(index: int) -> dict:
    stored = weights(f"resampler.blocks.{index}.")
    return {
        "attention": {
            "feature_norm": norm(stored, "0.context_layer_norm"),
            "latent_norm": norm(stored, "0.latents_layer_norm"),
            "query": kernel(stored, "0.q_proj"),
            "key_value": kernel(stored, "0.k_proj", "0.v_proj"),
            "out": kernel(stored, "0.output_proj"),
        },
        "feed_forward": {
            "norm": norm(stored, "1.ln"),
            "up": kernel(stored, "1.fc"),
            "down": kernel(stored, "1.c_proj"),
        },
    }


@pytest.mark.parametrize("frames", [1, 2])
def test_visual_tokens_are_the_reference_s(frames: int):
    def make() -> PerceiverResampler:
        return PerceiverResampler(16, 16, layers=2, latents=3, heads=2, head_size=8, frames=2, rngs=nnx.Rngs(0))

    graph, _ = nnx.split(nnx.eval_shape(make), nnx.Param)
    stored = weights("resampler.")
    params = {
        "latents": stored["latents"],
        "time_table": STORED["time"],
        "layers": jax.tree.map(lambda *leaves: np.stack(leaves), resampler_layer(0), resampler_layer(1)),
        "norm": norm(stored, "layer_norm"),
    }
    run = jax.jit(lambda params, features: nnx.merge(graph, params)(features))
    tokens = run(jax.tree.map(jnp.asarray, params), STORED[f"features{frames}"])
    np.testing.assert_allclose(tokens, STORED[f"tokens{frames}"], atol=1e-4)


@pytest.mark.parametrize("attend_to", ["last", "all"])
def test_gated_cross_attention_is_the_reference_s(attend_to: AttendTo):
    """Rows with text before the first image, with several images, padded, and without any image."""

    def make() -> GatedCrossAttention:
        return GatedCrossAttention(24, 16, heads=4, head_size=6, hidden=40, rngs=nnx.Rngs(0))

    graph, _ = nnx.split(nnx.eval_shape(make), nnx.Param)
    stored = weights("gated.")
    params = {
        "norm": norm(stored, "input_layernorm"),
        "query": kernel(stored, "cross_attn.q_proj"),
        "key_value": kernel(stored, "cross_attn.k_proj", "cross_attn.v_proj"),
        "out": kernel(stored, "cross_attn.o_proj"),
        "feed_forward": {
            "norm": norm(stored, "post_attention_layernorm"),
            "up": kernel(stored, "mlp.0"),
            "down": kernel(stored, "mlp.2"),
        },
        "attention_gate": stored["alpha_cross_attn"].reshape(()),
        "feed_forward_gate": stored["alpha_dense"].reshape(()),
    }

    @jax.jit
    def run(params, hidden, visual, image):
        module = nnx.merge(graph, params)
        return module(
            hidden, module.keys(visual), image_mask(image, jnp.ones_like(image), jnp.arange(1, 4)[None], attend_to)
        )

    out = run(jax.tree.map(jnp.asarray, params), STORED["hidden"], STORED["visual"], STORED["image"])
    np.testing.assert_allclose(out, STORED[f"out_{attend_to}"], atol=1e-4)
