"""The settings of our Transformer for published language models: a family is a set of them."""

from collections.abc import Callable
from typing import Any

from generalist.model.config import ModelConfig, RopeConfig
from generalist.weights.activation_names import GATED
from generalist.weights.activation_names import PLAIN as PLAIN_NAMES
from generalist.weights.folder import WeightsError
from generalist.weights.language_positions import rope, windows
from generalist.weights.language_settings import WHOLE, LanguageSettings

# What no family needs unless it says so. Every setting that a trunk determines is here: whatever else was given is replaced.
PLAIN: dict[str, Any] = {
    "norm": "rms",
    "pre_norms": True,
    "post_norms": False,
    "parallel_residual": False,
    "qkv_bias": False,
    "bias": False,
    "out_bias": None,
    "qkv_bound": 0.0,
    "qk_norm": False,
    "qk_norm_joint": False,
    "qk_norm_kind": "rms",
    "rope": RopeConfig(),
    "learned_positions": 0,
    "alibi": 0.0,
    "window": 0,
    "layer_kinds": ("full",),
    "embedding_scale": 1.0,
    "query_scale": None,
    "attention_softcap": 0.0,
    "logit_softcap": 0.0,
}
LLAVAS = ("llava", "llava_next")


def shape(settings: LanguageSettings) -> dict[str, Any]:
    """The fields of our `ModelConfig` that the checkpoint determines.

    Raises:
        WeightsError: a setting is missing, unsupported or inconsistent with another.
    """
    # ModelConfig checks consistency; its errors are re-raised with the file's name.
    try:
        found = PLAIN | SHAPES.get(settings.family, _llama)(settings)
        ModelConfig(**found)
    except WeightsError:
        raise
    except (ValueError, TypeError, OverflowError, ZeroDivisionError) as error:
        raise WeightsError(f"{settings.path} has inconsistent settings: {error}") from error
    return found


def _head_size(settings: LanguageSettings, width: int, heads: int) -> int:
    if width % heads:
        raise settings.refused(f"has {heads} heads, which do not divide its width {width}")
    return width // heads


def _activation(settings: LanguageSettings, name: str, ours: dict[str, str]) -> str:
    value = settings.get(name, str)
    if value not in ours:
        raise settings.refused(f"has {name} = {value!r:.60}; supported are {', '.join(ours)}")
    return ours[value]


def _tied(settings: LanguageSettings) -> bool:
    if settings.kind not in WHOLE:
        return settings.get("tie_word_embeddings", bool, False)
    # A model with images may have it in either section. LLaVA ties if one of them says so, the others by the outer one; of LLaVA
    # 1.6 the inner one counts only where the folder has no output matrix.
    given = settings.given("tie_word_embeddings")
    inner = settings.get("tie_word_embeddings", bool, False)
    outer = settings.folder.setting("tie_word_embeddings", bool, default=settings.kind not in LLAVAS)
    if settings.kind not in LLAVAS and given and inner != outer:
        raise settings.refused(
            f"has tie_word_embeddings = {outer}, but {inner} in its text_config: set both to one of them"
        )
    stored = any(name.endswith("lm_head.weight") for name in settings.folder.shapes)
    alone = settings.kind == "llava" or (settings.kind == "llava_next" and not stored)
    return outer or (inner and alone)


def _gpt2(settings: LanguageSettings) -> dict[str, Any]:
    # GPT-2's biases, layer norm and learned positions are fixed by the architecture, not by its config.json.
    width, heads = settings.get("n_embd"), settings.get("n_head")
    return {
        "width": width,
        "layers": settings.get("n_layer"),
        "heads": heads,
        "kv_heads": heads,
        "head_size": _head_size(settings, width, heads),
        "hidden": settings.get("n_inner", default=4 * width),
        "activation": _activation(settings, "activation_function", PLAIN_NAMES),
        "norm": "layer",
        "norm_epsilon": settings.number("layer_norm_epsilon"),
        "qkv_bias": True,
        "bias": True,
        "tied_output": _tied(settings),
        "learned_positions": settings.get("n_positions"),
        "query_scale": None if settings.get("scale_attn_weights", bool, True) else 1.0,
    }


def _gpt_neox(settings: LanguageSettings) -> dict[str, Any]:
    width, heads = settings.get("hidden_size"), settings.get("num_attention_heads")
    biased = settings.get("attention_bias", bool)
    return {
        "width": width,
        "layers": settings.get("num_hidden_layers"),
        "heads": heads,
        "kv_heads": heads,
        "head_size": _head_size(settings, width, heads),
        "hidden": settings.get("intermediate_size"),
        "activation": _activation(settings, "hidden_act", PLAIN_NAMES),
        "norm": "layer",
        "norm_epsilon": settings.number("layer_norm_eps"),
        "parallel_residual": settings.get("use_parallel_residual", bool),
        "qkv_bias": biased,
        "bias": True,
        "out_bias": biased,
        "tied_output": _tied(settings),
        "rope": rope(settings),
    }


def _mpt(settings: LanguageSettings) -> dict[str, Any]:
    """MPT, and the MPT-1B that came before it, whose settings of attention are in no section."""
    older = settings.family == "mosaic_gpt"
    clip, qk_norm = ("attn_clip_qkv", "attn_qk_ln") if older else ("attn_config.clip_qkv", "attn_config.qk_ln")
    section = "" if older else "attn_config."
    width, heads = settings.get("d_model"), settings.get("n_heads")
    norm = settings.get("norm_type", str, "low_precision_layernorm")
    if norm not in ("low_precision_layernorm", "layernorm"):
        raise settings.refused(f"has norm_type = {norm!r}; supported is low_precision_layernorm, layernorm")
    scale = settings.optional(f"{section}softmax_scale", (int, float))
    # The definition in transformers has ALiBi whatever the file says. MPT's own would have a table of positions, which the folder
    # would then hold, unless it has neither.
    if (
        not older
        and not settings.get("attn_config.alibi", bool, True)
        and not settings.get("learned_pos_emb", bool, True)
    ):
        raise settings.refused("has attn_config.alibi = False and learned_pos_emb = False, which is not supported")
    return {
        "width": width,
        "layers": settings.get("n_layers"),
        "heads": heads,
        "kv_heads": heads,
        "head_size": _head_size(settings, width, heads),
        "hidden": _mpt_hidden(settings, width, older),
        "activation": "exact_gelu",
        "norm": "layer",
        "norm_epsilon": settings.number("layer_norm_epsilon"),
        "qkv_bound": float(settings.optional(clip, (int, float)) or 0.0),
        # The definition in transformers leaves these norms out; MPT's own applies them to all heads together.
        "qk_norm": settings.get(qk_norm, bool, False),
        "qk_norm_joint": True,
        "qk_norm_kind": "layer",
        "tied_output": _tied(settings),
        # The definition in transformers takes 8 whatever the file says; MPT's own takes this number (StoryWriter has 16).
        "alibi": settings.number(f"{section}alibi_bias_max", 8.0),
        "query_scale": None if scale is None else float(scale),
    }


def _mpt_hidden(settings: LanguageSettings, width: int, older: bool) -> int:
    ratio = settings.get("mlp_ratio" if older else "expansion_ratio")
    # The definition in transformers takes 4 whatever the file says; MPT's own takes its number.
    (rows, *_) = settings.folder.shapes.get("transformer.blocks.0.ffn.up_proj.weight") or (0,)
    return 4 * width if not older and rows == 4 * width else ratio * width


def _llama(settings: LanguageSettings) -> dict[str, Any]:
    """Llama and the families that grew from it."""
    width, heads = settings.get("hidden_size"), settings.get("num_attention_heads")
    biased = settings.get("attention_bias", bool, False)
    window, kinds = windows(settings)
    found = {
        "width": width,
        "layers": settings.get("num_hidden_layers"),
        "heads": heads,
        # The first Llama had no grouped heads, and its files lack the setting.
        "kv_heads": settings.get("num_key_value_heads", default=heads),
        # Where it is given, heads · head_dim may differ from the width, as in Qwen 3 and Gemma.
        "head_size": settings.get("head_dim", default=0) or _head_size(settings, width, heads),
        "hidden": settings.get("intermediate_size"),
        "activation": "geglu" if settings.gemma else _activation(settings, "hidden_act", GATED),
        "norm_epsilon": settings.number("rms_norm_eps", 1e-6),
        "qkv_bias": settings.family == "qwen2" or biased,
        "bias": settings.get("mlp_bias", bool, False),
        "out_bias": biased,
        "qk_norm": settings.family in ("qwen3", "olmo2", "gemma3_text"),
        "tied_output": _tied(settings),
        "rope": rope(settings),
        "window": window,
        "layer_kinds": kinds,
    }
    if settings.family == "olmo2":
        found |= {"pre_norms": False, "post_norms": True, "qk_norm_joint": True}
    return found | (_of_gemma(settings, width) if settings.gemma else {})


def _idefics(settings: LanguageSettings) -> dict[str, Any]:
    """A Llama without grouped heads, whose images enter through gated cross-attention."""
    width, heads = settings.get("hidden_size"), settings.get("num_attention_heads")
    size = _head_size(settings, width, heads)
    # Its attention ignores both, but its rotary positions do not.
    for name, own in (("head_dim", size), ("num_key_value_heads", heads)):
        if settings.get(name, default=own) != own:
            raise settings.refused(f"has {name} = {settings.get(name)}; an IDEFICS has {own}")
    return _llama(settings)


def _of_gemma(settings: LanguageSettings, width: int) -> dict[str, Any]:
    # Files of the first Gemma that say "gelu" mean the approximation, as their own code does.
    early = {"gelu": "geglu"} if settings.family == "gemma" else {}
    name = "hidden_activation" if settings.family != "gemma" or not settings.given("hidden_act") else "hidden_act"
    found = {
        "activation": _activation(settings, name, GATED | early),
        "embedding_scale": float(width**0.5),
    }
    if settings.family == "gemma":
        return found
    # Not always the head size: Gemma 2 27B divides by √144 with heads of 128 channels.
    scalar = settings.number("query_pre_attn_scalar")
    return {
        **found,
        "post_norms": True,
        "query_scale": scalar**-0.5,
        # Gemma 3 has the setting too, but its definition does not use it. Null means no bound.
        "attention_softcap": float(settings.optional("attn_logit_softcapping", (int, float)) or 0.0)
        if settings.family == "gemma2"
        else 0.0,
        # The definitions of Gemma 3 with images and of LLaVA leave it out; PaliGemma's has it.
        "logit_softcap": 0.0
        if settings.kind in ("gemma3", *LLAVAS)
        else float(settings.optional("final_logit_softcapping", (int, float)) or 0.0),
    }


SHAPES: dict[str, Callable[[LanguageSettings], dict[str, Any]]] = {
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "mpt": _mpt,
    "mosaic_gpt": _mpt,
    "idefics": _idefics,
}
