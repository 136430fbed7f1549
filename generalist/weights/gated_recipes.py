"""Where the parameters of gated cross-attention and of the resampler stand in published files: names, shapes, orders of axes."""

import re
from collections.abc import Mapping
from typing import Any

from generalist.model.config import VisionConfig
from generalist.weights.gated_shape import additional_rows, prefix
from generalist.weights.language_recipes import Recipes, gain_less_one, layer_norm
from generalist.weights.language_settings import LanguageSettings
from generalist.weights.recipe import Recipe, joined, mapped, stacked, tensor, transposed, zeros

ADDITIONAL = ("embed_tokens.additional_embedding.weight", "lm_head.additional_fc.weight")
"""Matrices of an IDEFICS' additional rows: of the embedding, behind the prefix of all names, and of the output."""


def with_additional_rows(
    settings: LanguageSettings, shape: Mapping[str, Any], language: Recipes, unused: tuple[str, ...]
) -> tuple[Recipes, tuple[str, ...]]:
    """The recipes of a language model, with the rows that an IDEFICS adds to its text table and to its output matrix, and
    patterns of tensors that they do not use."""
    if settings.family != "idefics":
        return language, unused
    found = dict(language)
    if more := additional_rows(settings):
        for path, name in zip(
            ("tokens/text", "output/text"), (prefix(settings) + ADDITIONAL[0], ADDITIONAL[1]), strict=True
        ):
            if path in found:
                found[path] = joined([found[path], tensor(name, more, shape["width"])], axis=0)
        # Tied models may still store the output matrix, as a copy of the embedding.
        unused = (*unused, re.escape(ADDITIONAL[1])) if shape["tied_output"] else unused
    # `generalist.vision.vit` reads and checks the tower.
    parts = "vision_model", "gated_cross_attn_layers", "perceiver_resampler"
    return found, (*unused, *(rf"{re.escape(prefix(settings))}{part}\..*" for part in parts))


def idefics_recipes(
    settings: LanguageSettings, shape: Mapping[str, Any], language: Recipes, unused: tuple[str, ...]
) -> tuple[Recipes, tuple[str, ...]]:
    """Recipes of an IDEFICS and patterns of tensors that they do not use.

    Args:
        language: the recipes of its language model, without the additional rows.
        unused: their patterns.
    """
    found, unused = with_additional_rows(settings, shape, language, unused)
    vision, begin = shape["vision"], prefix(settings)
    layers = [
        _idefics_layer(f"{begin}gated_cross_attn_layers.{index}", vision, shape["width"])
        for index in range(shape["layers"] // vision.every)
    ]
    found |= {f"visual/gated/{name}": stacked([one[name] for one in layers]) for name in layers[0]}
    if vision.resampled:
        found |= _idefics_resampler(f"{begin}perceiver_resampler", vision)
    kept = tuple(one for one in unused if "gated_cross" not in one and "perceiver" not in one)
    return found, kept


def _idefics_layer(name: str, vision: VisionConfig, width: int) -> Recipes:
    heads, size = vision.cross_attention
    inner, hidden, attention = heads * size, vision.gated_hidden, f"{name}.cross_attn"
    shape = () if vision.gate == "scalar" else (width,)
    gates = {"attention_gate": "alpha_cross_attn", "feed_forward_gate": "alpha_dense"}
    found = {
        "norm/scale": gain_less_one(f"{name}.input_layernorm.weight", width),
        "query/kernel": transposed(f"{attention}.q_proj.weight", inner, width),
        "key_value/kernel": _side_by_side([f"{attention}.{one}_proj" for one in "kv"], inner, vision.width),
        "out/kernel": transposed(f"{attention}.o_proj.weight", width, inner),
        "feed_forward/norm/scale": gain_less_one(f"{name}.post_attention_layernorm.weight", width),
        "feed_forward/up/kernel": _side_by_side([f"{name}.mlp.{one}_proj" for one in ("gate", "up")], hidden, width),
        "feed_forward/down/kernel": transposed(f"{name}.mlp.down_proj.weight", width, hidden),
        **{ours: _gate(f"{name}.{theirs}", shape) for ours, theirs in gates.items()},
    }
    if vision.gated_qk_norm:
        found["query_norm/scale"] = gain_less_one(f"{attention}.q_layer_norm.weight", size)
        found["key_norm/scale"] = gain_less_one(f"{attention}.k_layer_norm.weight", size)
    return found


def _gate(name: str, shape: tuple[int, ...]) -> Recipe:
    """A gate, stored as (1,) or, with one per channel, as (1, 1, D)."""
    theirs = (1, 1, *shape) if shape else (1,)
    return mapped(tensor(name, *theirs), lambda one: one.reshape(shape), lambda one: one.reshape(theirs))


def _side_by_side(names: list[str], outputs: int, inputs: int) -> Recipe:
    return joined([transposed(f"{name}.weight", outputs, inputs) for name in names])


def _idefics_resampler(name: str, vision: VisionConfig) -> Recipes:
    width, hidden, inner = vision.width, vision.resampler_hidden, vision.heads * vision.head_size

    def layer(index: int) -> Recipes:
        attention, fed = f"{name}.blocks.{index}.0", f"{name}.blocks.{index}.1"
        found = {
            **layer_norm("attention/feature_norm", f"{attention}.context_layer_norm", width),
            **layer_norm("attention/latent_norm", f"{attention}.latents_layer_norm", width),
            "attention/query/kernel": transposed(f"{attention}.q_proj.weight", inner, width),
            "attention/key_value/kernel": _side_by_side([f"{attention}.{one}_proj" for one in "kv"], inner, width),
            "attention/out/kernel": transposed(f"{attention}.output_proj.weight", width, inner),
            **layer_norm("feed_forward/norm", f"{fed}.ln", width),
            "feed_forward/up/kernel": transposed(f"{fed}.fc.weight", hidden, width),
            "feed_forward/down/kernel": transposed(f"{fed}.c_proj.weight", width, hidden),
        }
        if vision.resampler_qk_norm:
            found |= layer_norm("attention/query_norm", f"{attention}.q_layer_norm", vision.head_size)
            found |= layer_norm("attention/key_norm", f"{attention}.k_layer_norm", vision.head_size)
        return found

    return _resampler([layer(index) for index in range(vision.layers)], name, "layer_norm", vision)


def _resampler(layers: list[Recipes], name: str, last: str, vision: VisionConfig) -> Recipes:
    return {
        "visual/resampler/latents": tensor(f"{name}.latents", vision.latents, vision.width),
        "visual/resampler/time_table": zeros(1, vision.width),  # images have no time
        **{f"visual/resampler/layers/{path}": stacked([one[path] for one in layers]) for path in layers[0]},
        **layer_norm("visual/resampler/norm", f"{name}.{last}", vision.width),
    }


def open_flamingo_recipes(vision: VisionConfig, width: int, places: list[int]) -> Recipes:
    """Recipes of an OpenFlamingo's resampler and gated layers, by the names that `generalist.weights.open_flamingo` gives them.

    Args:
        places: the blocks before which the gated layers stand.
    """
    heads, size = vision.cross_attention
    inner, hidden = heads * size, vision.gated_hidden

    def fed(ours: str, theirs: str, width: int, hidden: int) -> Recipes:
        return {
            **layer_norm(f"{ours}/norm", f"{theirs}.0", width),
            f"{ours}/up/kernel": transposed(f"{theirs}.1.weight", hidden, width),
            f"{ours}/down/kernel": transposed(f"{theirs}.3.weight", width, hidden),
        }

    def gated(place: int) -> Recipes:
        name = f"gated.{place}"
        return {
            **layer_norm("norm", f"{name}.attn.norm", width),
            "query/kernel": transposed(f"{name}.attn.to_q.weight", inner, width),
            "key_value/kernel": transposed(f"{name}.attn.to_kv.weight", 2 * inner, vision.width),
            "out/kernel": transposed(f"{name}.attn.to_out.weight", width, inner),
            **fed("feed_forward", f"{name}.ff", width, hidden),
            "attention_gate": _gate(f"{name}.attn_gate", ()),
            "feed_forward_gate": _gate(f"{name}.ff_gate", ()),
        }

    def layer(index: int) -> Recipes:
        name, own = f"perceiver.layers.{index}", vision.heads * vision.head_size
        return {
            **layer_norm("attention/feature_norm", f"{name}.0.norm_media", vision.width),
            **layer_norm("attention/latent_norm", f"{name}.0.norm_latents", vision.width),
            "attention/query/kernel": transposed(f"{name}.0.to_q.weight", own, vision.width),
            "attention/key_value/kernel": transposed(f"{name}.0.to_kv.weight", 2 * own, vision.width),
            "attention/out/kernel": transposed(f"{name}.0.to_out.weight", vision.width, own),
            **fed("feed_forward", f"{name}.1", vision.width, vision.resampler_hidden),
        }

    layers = [gated(place) for place in places]
    return {
        **{f"visual/gated/{path}": stacked([one[path] for one in layers]) for path in layers[0]},
        **_resampler([layer(index) for index in range(vision.layers)], "perceiver", "norm", vision),
    }
