"""Where our parameters stand in the files of published language models: names, shapes and orders of axes."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from generalist.weights.language_settings import LanguageSettings
from generalist.weights.recipe import Recipe, joined, mapped, stacked, tensor, transposed, zeros

IMAGE_PARTS = r"(model\.)?((vision_tower|multi_modal_projector)\..*|image_newline)"
"""Of a model with images, whose language model alone is read."""
UNUSED = (
    r".*\.attn\.(masked_)?bias",  # GPT-2's causal mask
    r".*\.attention\.(masked_)?bias",  # GPT-NeoX's
    r".*rotary_emb\.inv_freq",
    IMAGE_PARTS,
)
OUTPUTS = ("language_model.lm_head.weight", "embed_out.weight", "lm_head.weight")
"""Names of the output matrix."""

Recipes = dict[str, Recipe]
Shapes = Mapping[str, tuple[int, ...]]


def recipes(settings: LanguageSettings, shape: Mapping[str, Any]) -> tuple[Recipes, tuple[str, ...]]:
    """Recipes of our parameters, and patterns of tensors that may be present but are not used.

    Args:
        shape: of `generalist.weights.language_shape`.
    """
    stored, rows = settings.folder.shapes, settings.get("vocab_size")
    found = RECIPES.get(settings.family, _llama)(settings, shape, rows)
    if shape["tied_output"]:
        # Tied models may still store the output matrix, as a copy of the embedding.
        return found, (*UNUSED, *(name.replace(".", r"\.") for name in OUTPUTS))
    name = next((one for one in OUTPUTS if one in stored), OUTPUTS[-1])
    return found | {"output/text": tensor(name, rows, shape["width"])}, UNUSED


def _prefix(stored: Shapes, table: str, *prefixes: str) -> str:
    """The prefix of all names: files with an output layer have one, those of a trunk alone have not."""
    return next((one for one in (*prefixes, "") if f"{one}{table}.weight" in stored), prefixes[0])


def _layered(shape: Mapping[str, Any], layer: Callable[[int], Recipes]) -> Recipes:
    # One array per parameter with the layers as its first axis: the trunk scans over them.
    layers = [layer(index) for index in range(shape["layers"])]
    return {f"blocks/{name}": stacked([one[name] for one in layers]) for name in layers[0]}


def gain_less_one(name: str, length: int) -> Recipe:
    """The gain of a root-mean-square norm: ours is 1 + scale, as Gemma's is; the others store the gain itself."""
    # bfloat16 would round the difference.
    return mapped(
        tensor(name, length), lambda gain: gain.astype(np.float32) - 1, lambda one: one.astype(np.float32) + 1
    )


def layer_norm(ours: str, theirs: str, width: int, *, biased: bool = True) -> Recipes:
    """The scale and bias of a layer norm."""
    bias = tensor(f"{theirs}.bias", width) if biased else zeros(width)
    return {f"{ours}/scale": tensor(f"{theirs}.weight", width), f"{ours}/bias": bias}


def _linear(ours: str, theirs: str, outputs: int, inputs: int, *, biased: bool) -> Recipes:
    kernel = {f"{ours}/kernel": transposed(f"{theirs}.weight", outputs, inputs)}
    return kernel | ({f"{ours}/bias": tensor(f"{theirs}.bias", outputs)} if biased else {})


def _gpt2(settings: LanguageSettings, shape: Mapping[str, Any], rows: int) -> Recipes:
    width, hidden = shape["width"], shape["hidden"]
    prefix = _prefix(settings.folder.shapes, "wte", "transformer.")

    def linear(ours: str, theirs: str, inputs: int, outputs: int) -> Recipes:
        # Only GPT-2 stores kernels as (inputs, outputs).
        return {
            f"{ours}/kernel": tensor(f"{theirs}.weight", inputs, outputs),
            f"{ours}/bias": tensor(f"{theirs}.bias", outputs),
        }

    def layer(index: int) -> Recipes:
        name = f"{prefix}h.{index}"
        return {
            **layer_norm("attention_norm", f"{name}.ln_1", width),
            **linear("attention/qkv", f"{name}.attn.c_attn", width, 3 * width),
            **linear("attention/out", f"{name}.attn.c_proj", width, width),
            **layer_norm("feed_forward_norm", f"{name}.ln_2", width),
            **linear("feed_forward/up", f"{name}.mlp.c_fc", width, hidden),
            **linear("feed_forward/down", f"{name}.mlp.c_proj", hidden, width),
        }

    return {
        "tokens/text": tensor(f"{prefix}wte.weight", rows, width),
        "time_table": tensor(f"{prefix}wpe.weight", shape["learned_positions"], width),
        **layer_norm("final_norm", f"{prefix}ln_f", width),
        **_layered(shape, layer),
    }


def _gpt_neox(settings: LanguageSettings, shape: Mapping[str, Any], rows: int) -> Recipes:
    width, hidden = shape["width"], shape["hidden"]
    prefix = _prefix(settings.folder.shapes, "embed_in", "gpt_neox.")

    def by_kind(array: np.ndarray) -> np.ndarray:
        # Stored head by head, each with its query, key and value; ours has all queries, then all keys, then all values.
        return array.reshape(shape["heads"], 3, shape["head_size"], -1).swapaxes(0, 1).reshape(array.shape)

    def by_head(array: np.ndarray) -> np.ndarray:
        return array.reshape(3, shape["heads"], shape["head_size"], -1).swapaxes(0, 1).reshape(array.shape)

    def layer(index: int) -> Recipes:
        name = f"{prefix}layers.{index}"
        qkv = f"{name}.attention.query_key_value"
        kernel = tensor(f"{qkv}.weight", 3 * width, width)
        fused = {"attention/qkv/kernel": mapped(kernel, lambda one: by_kind(one).T, lambda one: by_head(one.T))}
        if shape["qkv_bias"]:
            fused["attention/qkv/bias"] = mapped(tensor(f"{qkv}.bias", 3 * width), by_kind, by_head)
        return {
            **layer_norm("attention_norm", f"{name}.input_layernorm", width),
            **fused,
            **_linear("attention/out", f"{name}.attention.dense", width, width, biased=shape["out_bias"]),
            **layer_norm("feed_forward_norm", f"{name}.post_attention_layernorm", width),
            **_linear("feed_forward/up", f"{name}.mlp.dense_h_to_4h", hidden, width, biased=True),
            **_linear("feed_forward/down", f"{name}.mlp.dense_4h_to_h", width, hidden, biased=True),
        }

    return {
        "tokens/text": tensor(f"{prefix}embed_in.weight", rows, width),
        **layer_norm("final_norm", f"{prefix}final_layer_norm", width),
        **_layered(shape, layer),
    }


def _mpt(settings: LanguageSettings, shape: Mapping[str, Any], rows: int) -> Recipes:
    width, hidden = shape["width"], shape["hidden"]
    prefix = _prefix(settings.folder.shapes, "wte", "transformer.")

    newer = settings.family == "mpt"
    first, second, last = ("norm_1", "norm_2", "norm_f") if newer else ("ln_1", "ln_2", "ln_f")
    up, down = ("ffn.up_proj", "ffn.down_proj") if newer else ("mlp.mlp_up", "mlp.mlp_down")

    def layer(index: int) -> Recipes:
        name = f"{prefix}blocks.{index}"
        norms = {
            **layer_norm("attention/query_norm", f"{name}.attn.q_ln", width, biased=False),
            **layer_norm("attention/key_norm", f"{name}.attn.k_ln", width, biased=False),
        }
        return {
            **(norms if shape["qk_norm"] else {}),
            **layer_norm("attention_norm", f"{name}.{first}", width, biased=False),
            **_linear("attention/qkv", f"{name}.attn.Wqkv", 3 * width, width, biased=False),
            **_linear("attention/out", f"{name}.attn.out_proj", width, width, biased=False),
            **layer_norm("feed_forward_norm", f"{name}.{second}", width, biased=False),
            **_linear("feed_forward/up", f"{name}.{up}", hidden, width, biased=False),
            **_linear("feed_forward/down", f"{name}.{down}", width, hidden, biased=False),
        }

    return {
        "tokens/text": tensor(f"{prefix}wte.weight", rows, width),
        **layer_norm("final_norm", f"{prefix}{last}", width, biased=False),
        **_layered(shape, layer),
    }


def _llama(settings: LanguageSettings, shape: Mapping[str, Any], rows: int) -> Recipes:
    width = shape["width"]
    # Multimodal files of older and of newer libraries, a model with its output layer, a trunk alone.
    names = ("model.", "language_model.model.", "model.language_model.")
    prefix = _prefix(settings.folder.shapes, "embed_tokens", *names)

    def norm(ours: str, theirs: str, length: int = width) -> Recipes:
        name = f"{theirs}.weight"
        return {f"{ours}/scale": tensor(name, length) if settings.gemma else gain_less_one(name, length)}

    def layer(index: int) -> Recipes:
        name = f"{prefix}layers.{index}"
        found = _llama_maps(name, shape, fused=settings.family == "phi3")
        if shape["pre_norms"]:
            found |= norm("attention_norm", f"{name}.input_layernorm")
        if shape["post_norms"]:
            # With these names post_attention_layernorm is a post-norm, otherwise it is the pre-norm of the feed-forward.
            found |= norm("attention_post_norm", f"{name}.post_attention_layernorm")
            found |= norm("feed_forward_post_norm", f"{name}.post_feedforward_layernorm")
        if shape["pre_norms"]:
            last = "pre_feedforward_layernorm" if shape["post_norms"] else "post_attention_layernorm"
            found |= norm("feed_forward_norm", f"{name}.{last}")
        if shape["qk_norm"]:
            size = shape["head_size"]
            heads = (shape["heads"], shape["kv_heads"]) if shape["qk_norm_joint"] else (1, 1)
            found |= norm("attention/query_norm", f"{name}.self_attn.q_norm", heads[0] * size)
            found |= norm("attention/key_norm", f"{name}.self_attn.k_norm", heads[1] * size)
        return found

    return {
        "tokens/text": tensor(f"{prefix}embed_tokens.weight", rows, width),
        **norm("final_norm", f"{prefix}norm"),
        **_layered(shape, layer),
    }


def _llama_maps(name: str, shape: Mapping[str, Any], *, fused: bool) -> Recipes:
    """The linear maps of a layer of Llama's kind.

    Args:
        fused: whether kernels that read the same input are stored as one (Phi-3), as they are here.
    """
    width, hidden, size = shape["width"], shape["hidden"], shape["head_size"]
    inner, kv_inner = shape["heads"] * size, shape["kv_heads"] * size
    found = {
        **_linear("attention/out", f"{name}.self_attn.o_proj", width, inner, biased=shape["out_bias"]),
        **_linear("feed_forward/down", f"{name}.mlp.down_proj", width, hidden, biased=shape["bias"]),
    }
    if fused:
        qkv, up = f"{name}.self_attn.qkv_proj", f"{name}.mlp.gate_up_proj"
        return {
            **found,
            **_linear("attention/qkv", qkv, inner + 2 * kv_inner, width, biased=False),
            **_linear("feed_forward/up", up, 2 * hidden, width, biased=False),
        }
    heads = [(f"{name}.self_attn.{which}_proj", inner if which == "q" else kv_inner) for which in "qkv"]
    gates = [(f"{name}.mlp.{which}_proj", hidden) for which in ("gate", "up")]
    for ours, parts, biased in (
        ("attention/qkv", heads, shape["qkv_bias"]),
        ("feed_forward/up", gates, shape["bias"]),
    ):
        found[f"{ours}/kernel"] = joined([transposed(f"{one}.weight", rows, width) for one, rows in parts])
        if biased:
            found[f"{ours}/bias"] = joined([tensor(f"{one}.bias", rows) for one, rows in parts])
    return found


RECIPES: dict[str, Callable[[LanguageSettings, Mapping[str, Any], int], Recipes]] = {
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "mpt": _mpt,
    "mosaic_gpt": _mpt,
}
