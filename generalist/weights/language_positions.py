"""How published language models tell positions apart: rotary settings in all the forms in which they are stored, windows, and
layers without rotary positions."""

import math
from typing import Any

from generalist.model.config import LayerKind, RopeConfig
from generalist.weights.folder import WeightsError
from generalist.weights.language_settings import LanguageSettings

SCALINGS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
LARGEST_WINDOW = 2**31 - 1
KINDS: dict[str, LayerKind] = {"full_attention": "full", "sliding_attention": "window"}
"""Their names of kinds of layers → ours."""


def rope(settings: LanguageSettings) -> RopeConfig:
    """The rotary settings.

    Raises:
        WeightsError: they are incomplete or not supported.
    """
    stored, local = _stored(settings)
    base = settings.number("rope_theta", settings.number("rotary_emb_base", 10_000.0))
    base = float(stored.get("rope_theta") or base)
    gemma3 = settings.family == "gemma3_text"
    near = float(local.get("rope_theta") or settings.number("rope_local_base_freq", base)) if gemma3 else base
    # Gemma 3 never stretches its windows; the other families have one set of angles for all layers.
    common: dict[str, Any] = {"base": base, "local_base": near, "scaled_windows": not gemma3}
    try:
        return RopeConfig(**common, share=_share(settings, stored), **_scaling(settings, stored))
    except KeyError as error:
        raise WeightsError(f"{settings.path}: {_kind(stored)} rotary positions lack {error}") from error


def context(settings: LanguageSettings) -> tuple[int, bool]:
    """Positions that the model was made for, and whether more would change the wavelengths of all."""
    name = {"gpt2": "n_positions", "mpt": "max_seq_len", "mosaic_gpt": "max_seq_len"}.get(
        settings.family, "max_position_embeddings"
    )
    length = settings.get(name)
    if settings.family in ("gpt2", "mpt", "mosaic_gpt"):
        return length, False
    stored, _ = _stored(settings)
    kind = _kind(stored)
    if kind == "longrope":
        # Longer contexts have another list of factors, which would also hold for what was read before.
        length = min(length, _original(settings, stored))
    return length, kind in ("dynamic", "longrope")


def windows(settings: LanguageSettings) -> tuple[int, tuple[LayerKind, ...]]:
    """Size of the sliding window, 0 without one, and the kind of every layer.

    Raises:
        WeightsError: kinds of layers are unknown, or contradict the other settings.
    """
    layers, family = settings.get("num_hidden_layers"), settings.family
    window, kinds = 0, ["full_attention"] * layers
    if family in ("gemma2", "gemma3_text"):
        window, every = settings.get("sliding_window"), settings.get("sliding_window_pattern")
        kinds = ["full_attention" if (index + 1) % every == 0 else "sliding_attention" for index in range(layers)]
    elif family in ("mistral", "phi3"):
        window = settings.optional("sliding_window") or 0
        kinds = ["sliding_attention" if window else "full_attention"] * layers
    elif family in ("qwen2", "qwen3", "smollm3") and settings.get("use_sliding_window", bool, False):
        window = settings.optional("sliding_window") or 0
        first = settings.folder.setting("max_window_layers", (int,), default=28) if family != "smollm3" else layers
        kinds = ["sliding_attention" if window and index >= first else "full_attention" for index in range(layers)]
    rotated = _rotated(settings, layers)
    if family == "smollm3" and window:
        kinds = ["full_attention" if one else "sliding_attention" for one in rotated]
    given = settings.get("layer_types", list, kinds)
    # The definitions of these two ignore the list.
    if len(given) != layers or not set(given) <= set(KINDS) or (family in ("mistral", "phi3") and given != kinds):
        raise settings.refused(
            f"has layer_types that do not fit its {layers} layers and sliding_window, or kinds other than {', '.join(KINDS)}"
        )
    if "sliding_attention" in given and not window:
        raise settings.refused("has layer_types in which layers have a window, but no sliding_window in use")
    if window > LARGEST_WINDOW:
        raise settings.refused(f"has sliding_window = {window!s:.40}: positions are counted up to {LARGEST_WINDOW:,}")
    named = [KINDS[one] for one in given]
    whole: dict[LayerKind, LayerKind] = {"full": "full_unrotated", "window": "window_unrotated"}
    every_kind = tuple(one if turned else whole[one] for one, turned in zip(named, rotated, strict=True))
    return window, ("full",) if set(every_kind) == {"full"} else every_kind


def _rotated(settings: LanguageSettings, layers: int) -> list[bool]:
    """Whether each layer has rotary positions (SmolLM 3)."""
    if settings.family != "smollm3":
        return [True] * layers
    every = settings.get("no_rope_layer_interval")
    listed = settings.get("no_rope_layers", list, [int((index + 1) % every != 0) for index in range(layers)])
    if len(listed) < layers or not set(listed) <= {0, 1}:  # 1 is a layer with rotary positions, despite the name
        raise settings.refused(
            f"has no_rope_layers = {listed!r:.60}: it must have a 0 or a 1 for each of {layers} layers"
        )
    return [bool(one) for one in listed[:layers]]


def _stored(settings: LanguageSettings) -> tuple[dict[str, Any], dict[str, Any]]:
    """Stored rotary settings of layers without a window, and those of layers with one where they differ."""
    # Newest form: rope_parameters, for Gemma 3 per kind of layer. Older: rope_theta and rope_scaling.
    stored: dict[str, Any] = settings.get("rope_parameters", dict, {})
    local: dict[str, Any] = {}
    if "full_attention" in stored:
        local = settings.get("rope_parameters.sliding_attention", dict, {})
        stored = settings.get("rope_parameters.full_attention", dict)
        if _kind(local) != "default" or settings.family != "gemma3_text":
            raise settings.refused(
                "stretches rotary positions of layers with a window by a rule of their own: not supported"
            )
    scaling: dict[str, Any] = {} if "rope_type" in stored else settings.get("rope_scaling", dict, {})
    return {**stored, **scaling}, local


def _kind(stored: dict[str, Any]) -> str:
    kind = str(stored.get("rope_type", stored.get("type", "default")))
    return "longrope" if kind == "su" else kind


def _share(settings: LanguageSettings, stored: dict[str, Any]) -> float:
    share = stored.get("partial_rotary_factor") or settings.number("partial_rotary_factor", 1.0)
    if settings.family == "gpt_neox":
        share = stored.get("partial_rotary_factor") or settings.number("rotary_pct")
    elif settings.family != "phi3" and share != 1:
        raise settings.refused(f"rotates a share of each head, {share}, which is not supported for {settings.family}")
    return float(share)


def _original(settings: LanguageSettings, stored: dict[str, Any]) -> int:
    """Length of the first training."""
    within = stored.get("original_max_position_embeddings", settings.get("max_position_embeddings"))
    return int(settings.get("original_max_position_embeddings", default=within))


def _scaling(settings: LanguageSettings, stored: dict[str, Any]) -> dict[str, Any]:
    """The fields of `RopeConfig` that say how wavelengths are stretched."""
    kind = _kind(stored)
    # The definition of Phi-3 takes the one for the other: its first files were named so.
    kind = "longrope" if settings.family == "phi3" and kind == "yarn" else kind
    if kind not in SCALINGS:
        raise settings.refused(f"stretches rotary positions by {kind!r}; supported are {', '.join(SCALINGS[1:])}")
    if kind == "dynamic" and "alpha" in stored:
        raise settings.refused("stretches rotary positions by 'dynamic' with alpha, which is not supported")
    if kind in ("default", "dynamic"):
        return {}  # dynamic: nothing is stretched within `context`, beyond which prompts are refused
    if kind == "linear":
        return {"scaling": kind, "factor": float(stored["factor"])}
    original = _original(settings, stored)
    factor = float(stored.get("factor") or settings.get("max_position_embeddings") / original)
    if kind == "llama3":
        low, high, factor = (float(stored[name]) for name in ("low_freq_factor", "high_freq_factor", "factor"))
        return {"scaling": kind, "factor": factor, "length": original, "low_frequency": low, "high_frequency": high}
    if kind == "longrope":
        temperature = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        return {
            "scaling": "listed",
            "factors": tuple(float(one) for one in stored["short_factor"]),
            "attention_factor": float(stored.get("attention_factor") or temperature),
        }
    truncate = stored.get("truncate", True)
    if not isinstance(truncate, bool):
        raise settings.refused(
            f"stretches rotary positions by yarn with truncate = {truncate!r:.40}: set true or false"
        )
    return {
        "scaling": "yarn",
        "factor": factor,
        "length": original,
        "whole_steps": truncate,
        "low_frequency": float(stored.get("beta_slow") or 1),
        "high_frequency": float(stored.get("beta_fast") or 32),
        "attention_factor": float(stored.get("attention_factor") or _yarn_temperature(stored, factor)),
    }


def _yarn_temperature(stored: dict[str, Any], factor: float) -> float:
    """YaRN's factor of queries and keys (Peng et al., 2023, section 3.4); DeepSeek's, if both of its numbers are given."""

    def scale(by: float) -> float:
        return 0.1 * by * math.log(factor) + 1 if factor > 1 else 1.0

    scales = stored.get("mscale"), stored.get("mscale_all_dim")
    return scale(float(scales[0])) / scale(float(scales[1])) if scales[0] and scales[1] else scale(1.0)
