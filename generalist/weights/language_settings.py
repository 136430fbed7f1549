"""The `config.json` of published language models: families that can be loaded, what an older file omits, what is refused."""

from pathlib import Path
from typing import Any

from generalist.weights.folder import WeightsError, WeightsFolder

_SILU = {"hidden_act": "silu"}
_GEMMA = {"head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True}
DEFAULTS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
        "tie_word_embeddings": True,
        "n_positions": 1024,
    },
    "gpt_neox": {
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu",
        "attention_bias": True,
        "use_parallel_residual": True,
        "rotary_pct": 0.25,
        "max_position_embeddings": 2048,
    },
    "mpt": {
        "layer_norm_epsilon": 1e-5,
        "expansion_ratio": 4,
        "tie_word_embeddings": True,
        "max_seq_len": 2048,
    },
    "mosaic_gpt": {
        "layer_norm_epsilon": 1e-5,
        "mlp_ratio": 4,
        "tie_word_embeddings": True,
        "max_seq_len": 2048,
        "no_bias": False,
        "alibi": False,
    },
    "llama": {**_SILU, "max_position_embeddings": 2048},
    "idefics": {**_SILU, "max_position_embeddings": 2048},
    "mistral": {**_SILU, "max_position_embeddings": 131_072, "sliding_window": 4096},
    "qwen2": {**_SILU, "max_position_embeddings": 32_768, "sliding_window": 4096, "max_window_layers": 28},
    "qwen3": {
        **_SILU,
        "max_position_embeddings": 32_768,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "head_dim": 128,
    },
    "phi3": {**_SILU, "max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
    "olmo2": {**_SILU, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5},
    "smollm3": {
        **_SILU,
        "max_position_embeddings": 32_768,
        "rope_theta": 2_000_000.0,
        "no_rope_layer_interval": 4,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    },
    "gemma": {**_GEMMA, "max_position_embeddings": 8192},
    "gemma2": {
        **_GEMMA,
        "max_position_embeddings": 8192,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 2,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3_text": {
        **_GEMMA,
        "max_position_embeddings": 131_072,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "vocab_size": 262_208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
}
"""Family → settings that an older config.json omits, with the defaults of the family's own definition."""
FAMILIES = tuple(DEFAULTS)
_LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3", "phi3", "olmo2", "smollm3", "gemma", "gemma2", "gemma3_text")
WHOLE: dict[str, tuple[str, ...]] = {
    "gemma3": ("gemma3_text",),
    "paligemma": ("gemma", "gemma2"),
    "llava": _LLAMA_LIKE,
    "llava_next": _LLAMA_LIKE,
}
"""Types of models with images → families of their language models, the usual one first."""


def _sizes(width: int, hidden: int, layers: int, heads: int, kv_heads: int, rows: int) -> dict[str, int]:
    names = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
    )
    return dict(zip(names, (width, hidden, layers, heads, kv_heads, rows), strict=True))


SECTIONS: dict[str, dict[str, Any]] = {
    "llama": _sizes(4096, 11_008, 32, 32, 32, 32_000),
    "mistral": _sizes(4096, 14_336, 32, 32, 8, 32_000),
    "gemma": _sizes(3072, 24_576, 28, 16, 16, 256_000),
    "gemma2": _sizes(2304, 9216, 26, 8, 4, 256_000),
    "gemma3_text": _sizes(2304, 9216, 26, 8, 4, 262_208),
}
"""Sizes that the section of a model with images omits where they are its family's defaults, as in LLaVA 1.5."""

ATTENTION_BIASES = ("llama", "qwen3", "olmo2", "smollm3", "gemma", "gemma2", "gemma3_text", "gpt_neox")
"""Families whose definition has the setting `attention_bias`."""
LAYERS = {"gpt2": "n_layer", "mpt": "n_layers", "mosaic_gpt": "n_layers"}
"""Their names of the number of layers, where it is not num_hidden_layers."""
# Switches that change the computation, with the one value that we support.
REFUSED: dict[str, Any] = {
    "scale_attn_by_inverse_layer_idx": False,
    "use_bidirectional_attention": False,
    "add_cross_attention": False,
    "no_bias": True,
    "attn_config.attn_type": "multihead_attention",
    "attn_config.prefix_lm": False,
    "attn_config.attn_uses_sequence_id": False,
    "attn_config.qk_gn": False,
    "alibi": True,  # of MPT-1B, as the next two
    "prefix_lm": False,
    "attn_uses_sequence_id": False,
    "attn_config.rope": False,
}


class LanguageSettings:
    """The settings of a language model with its family's defaults."""

    def __init__(self, folder: WeightsFolder):
        """
        Raises:
            WeightsError: it holds another architecture, or has a setting that is not supported.
        """
        self.folder = folder
        self.path: Path = folder.folder / "config.json"
        self.kind = folder.setting("model_type", str)
        """The type of the whole model, of which the language model may be a part."""
        # A model with images keeps the settings of its language model in a section.
        self._section = "text_config." if self.kind in WHOLE else ""
        self.family = (
            folder.setting("text_config.model_type", str, default=WHOLE[self.kind][0]) if self._section else self.kind
        )
        if self.family not in FAMILIES:
            # Such files name code of their own: what it would compute cannot be known without running it.
            own = "; its own code (auto_map) is never run" if "auto_map" in folder.config else ""
            raise WeightsError(
                f"{folder.folder} holds a {folder.architecture} ({self.family}){own}; the language models that can be loaded are "
                f"{', '.join((*FAMILIES, *WHOLE))}"
            )
        if self._section and self.family not in WHOLE[self.kind]:
            raise self.refused(
                f"has a language model of type {self.family!r}; supported in a {self.kind} are {', '.join(WHOLE[self.kind])}"
            )
        self._defaults = DEFAULTS[self.family] | (SECTIONS.get(self.family, {}) if self._section else {})
        self._refuse()
        # Checked here, since lists of layers are built before tensors are looked for.
        name = LAYERS.get(self.family, "num_hidden_layers")
        if (layers := self.get(name)) > len(folder.shapes):
            raise self.refused(f"has {name} = {layers}, but only {len(folder.shapes)} tensors")

    @property
    def gemma(self) -> bool:
        """Whether it is one of the Gemma families."""
        return self.family.startswith("gemma")

    def get(self, name: str, kind: type | tuple[type, ...] = int, default: Any = None) -> Any:
        """A setting, its family's default or, without one, `default`.

        Raises:
            WeightsError: it is missing and has no default, or `WeightsFolder.setting` refuses it.
        """
        default = self._defaults.get(name, default)
        given = {} if default is None else {"default": default}
        return self.folder.setting(self._section + name, kind, **given)

    def optional(self, name: str, kind: type | tuple[type, ...] = int) -> Any:
        """A setting, None if it is null, its family's default (or None) if it is missing."""
        settings: Any = self.folder.config
        for part in (self._section + name).split(".")[:-1]:
            settings = settings.get(part) if isinstance(settings, dict) else None
        if isinstance(settings, dict) and settings.get(name.rpartition(".")[2], ...) is None:
            return None
        return self.folder.setting(self._section + name, kind, default=self._defaults.get(name))

    def given(self, name: str) -> bool:
        """Whether the file has the setting."""
        section = self.folder.config.get("text_config") if self._section else self.folder.config
        return isinstance(section, dict) and name in section

    def number(self, name: str, default: float | None = None) -> float:
        """A number of either type."""
        return float(self.get(name, (int, float), default))

    def refused(self, what: str) -> WeightsError:
        """The error for settings that are not supported."""
        return WeightsError(f"{self.folder.folder} {what}")

    def _refuse(self) -> None:
        # A prefix that sees itself in both directions is PaliGemma's own.
        allowed = ("use_bidirectional_attention",) if self.kind == "paligemma" else ()
        for name, value in REFUSED.items():
            if name in allowed:
                continue
            given = self.get(name, type(value), value)
            if given != value:
                raise self.refused(f"has {name} = {given}, which is not supported")
        biases = {"attention_bias": self.family in ATTENTION_BIASES, "mlp_bias": self.family in ("llama", "smollm3")}
        for name, supported in biases.items():
            if not supported and self.get(name, bool, False):
                raise self.refused(f"has {name} = True, which is not supported for {self.family}")
        if self.folder.config.get("quantization_config") is not None:
            raise self.refused("has a quantization_config: quantised weights are not supported; name the original ones")
        if self.folder.config.get("logit_scale") is not None:  # of MPT
            raise self.refused("has a logit_scale, which is not supported")
