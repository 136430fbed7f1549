"""Published language models as our trunk: GPT-2, Llama (SmolLM), Qwen 2 and 3, Gemma 2 and 3, in HuggingFace's layout.

A family is a set of settings of our Transformer and a map of names. Settings that we do not support are refused, not guessed.

Dimension key: V rows of the text table, O rows of the vocabulary's other tokens, D width.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from generalist.model.config import ModelConfig, RopeConfig
from generalist.model.params import nested
from generalist.tokenizers.text import TextTokenizer
from generalist.tokenizers.vocabulary import Vocabulary
from generalist.weights.folder import (
    Recipe,
    Tensor,
    WeightsError,
    WeightsFolder,
    joined,
    mapped,
    stacked,
    tensor,
    transposed,
)

FAMILIES = ("gpt2", "llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "gemma3")
ACTIVATIONS = {
    "gpt2": ("gelu", ("gelu_new", "gelu_pytorch_tanh")),
    "gemma": ("geglu", ("gelu_pytorch_tanh",)),
    "others": ("swiglu", ("silu",)),
}
"""Family → our activation, and the names of it in their files."""
# Settings that an older config.json omits, with the defaults of the families' own definitions.
DEFAULTS: dict[str, dict[str, Any]] = {
    "gpt2": {"layer_norm_epsilon": 1e-5},
    "llama": {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "hidden_act": "silu"},
    "qwen2": {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "hidden_act": "silu"},
    "qwen3": {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "hidden_act": "silu", "head_dim": 128},
    "gemma2": {
        "rms_norm_eps": 1e-6,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 2,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "hidden_activation": "gelu_pytorch_tanh",
    },
    "gemma3": {
        "rms_norm_eps": 1e-6,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "vocab_size": 262_208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "hidden_activation": "gelu_pytorch_tanh",
    },
}
# Switches that change the computation, with the one value that we support.
REFUSED = {
    "attention_bias": False,
    "mlp_bias": False,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "use_sliding_window": False,
    "use_bidirectional_attention": False,
    "add_cross_attention": False,
}
UNUSED = (
    r".*\.attn\.(masked_)?bias",  # GPT-2's causal mask
    r".*rotary_emb\.inv_freq",
    r"(model\.)?(vision_tower|multi_modal_projector)\..*",  # of a multimodal Gemma 3
)


class LanguageModel:
    """An opened folder with a language model: our settings for it, and its weights when `load` is called."""

    def __init__(self, folder: Path | str):
        """
        Raises:
            WeightsError: the folder does not exist, holds another architecture, or has an unsupported setting.
        """
        self.folder = WeightsFolder(Path(folder))
        self.family = self.folder.setting("model_type", str)
        if self.family not in FAMILIES:
            raise WeightsError(
                f"{folder} holds a {self.folder.architecture} ({self.family}); the language models that can be loaded are "
                f"{', '.join(FAMILIES)}"
            )
        # A multimodal Gemma 3 keeps the settings of its language model in a section.
        self._section = "text_config." if self.family == "gemma3" else ""
        self._defaults = DEFAULTS["gemma3" if self.family.startswith("gemma3") else self.family]
        for name, value in REFUSED.items():
            if self._get(name, bool, value) != value:
                raise WeightsError(f"{folder} has {name} = {self._get(name, bool)}, which is not supported")

    def _get(self, name: str, kind: type | tuple[type, ...] = int, default: Any = None) -> Any:
        # The family's own default comes first; without any, a missing setting is an error.
        default = self._defaults.get(name, default)
        given = {} if default is None else {"default": default}
        return self.folder.setting(self._section + name, kind, **given)

    @cached_property
    def vocabulary(self) -> int:
        """Rows of the text table."""
        return self._get("vocab_size")

    @cached_property
    def shape(self) -> dict[str, Any]:
        """The fields of our `ModelConfig` that the checkpoint determines.

        Raises:
            WeightsError: a setting is missing, unsupported or inconsistent with another.
        """
        # ModelConfig checks consistency; its errors are re-raised with the file's name.
        try:
            shape = self._gpt2_shape() if self.family == "gpt2" else self._llama_shape()
            ModelConfig(**shape)
        except WeightsError:
            raise
        except (ValueError, TypeError) as error:
            raise WeightsError(f"{self.folder.folder / 'config.json'} has inconsistent settings: {error}") from error
        return shape

    def _head_size(self, width: int, heads: int) -> int:
        if width % heads:
            raise WeightsError(f"{self.folder.folder} has {heads} heads, which do not divide its width {width}")
        return width // heads

    def _tied(self, default: bool) -> bool:
        return self._get("tie_word_embeddings", bool, self.folder.setting("tie_word_embeddings", bool, default=default))

    def _gpt2_shape(self) -> dict[str, Any]:
        # GPT-2's biases, layer norm and learned positions are fixed by the architecture, not by its config.json.
        width, heads = self._get("n_embd"), self._get("n_head")
        return {
            "width": width,
            "layers": self._get("n_layer"),
            "heads": heads,
            "kv_heads": heads,
            "head_size": self._head_size(width, heads),
            "hidden": self._get("n_inner", default=4 * width),
            "activation": self._activation("activation_function", "gpt2"),
            "norm": "layer",
            "norm_epsilon": float(self._get("layer_norm_epsilon", (int, float))),
            "post_norms": False,
            "qkv_bias": True,
            "bias": True,
            "qk_norm": False,
            "tied_output": self._tied(True),
            "rope": RopeConfig(),
            "learned_positions": self._get("n_positions"),
            "window": 0,
            "alibi": 0.0,
            "layer_kinds": ("full",),
            "embedding_scale": 1.0,
            "query_scale": None,
            "attention_softcap": 0.0,
            "logit_softcap": 0.0,
        }

    def _llama_shape(self) -> dict[str, Any]:
        width, heads = self._get("hidden_size"), self._get("num_attention_heads")
        gemma = self.family.startswith("gemma")
        window, every = self._windows()
        # Not always the head size: Gemma 2 27B divides by √144 with heads of 128 channels.
        scalar = self._get("query_pre_attn_scalar", (int, float)) if gemma else None
        return {
            "width": width,
            "layers": self._get("num_hidden_layers"),
            "heads": heads,
            # The first Llama had no grouped heads, and its files lack the setting.
            "kv_heads": self._get("num_key_value_heads", default=heads),
            # Where it is given, heads · head_dim may differ from the width, as in Qwen 3 and Gemma.
            "head_size": self._get("head_dim", default=0) or self._head_size(width, heads),
            "hidden": self._get("intermediate_size"),
            "activation": self._activation(*(("hidden_activation", "gemma") if gemma else ("hidden_act", "others"))),
            "norm": "rms",
            "norm_epsilon": float(self._get("rms_norm_eps", (int, float))),
            "post_norms": gemma,
            "qkv_bias": self.family == "qwen2",
            "bias": False,
            "qk_norm": self.family in ("qwen3", "gemma3", "gemma3_text"),
            "tied_output": self._tied(gemma),
            "rope": self._rope(),
            "learned_positions": 0,
            "window": window,
            "layer_kinds": ("window",) * (every - 1) + ("full",),
            "embedding_scale": float(width**0.5) if gemma else 1.0,
            "query_scale": float(scalar**-0.5) if scalar is not None else None,
            # Gemma 3 has the setting too, but its definition does not use it.
            "attention_softcap": self._softcap("attn_logit_softcapping") if self.family == "gemma2" else 0.0,
            "logit_softcap": self._softcap("final_logit_softcapping"),
        }

    def _softcap(self, name: str) -> float:
        settings = self.folder.setting("text_config", dict) if self._section else self.folder.config
        if not self.family.startswith("gemma") or (name in settings and settings[name] is None):  # null means no bound
            return 0.0
        return float(self._get(name, (int, float), 0.0))

    def _activation(self, name: str, family: str) -> str:
        # Early Gemma files say "gelu" and mean the approximation, as their own code does.
        ours, allowed = ACTIVATIONS[family]
        value = self._get(name, str, allowed[0])
        if value not in allowed:
            raise WeightsError(f"{self.folder.folder} has {name} = {value!r}; supported is {', '.join(allowed)}")
        return ours

    def _windows(self) -> tuple[int, int]:
        """Size of the sliding window, and n such that every n-th layer has none."""
        # Newer files list a kind per layer, older ones give only the pattern's period.
        layers, gemma = self._get("num_hidden_layers"), self.family.startswith("gemma")
        every = self._get("sliding_window_pattern") if gemma else 1
        kinds = self._get("layer_types", list, _kinds(layers, every))
        # Without a full layer, a period beyond the last one.
        every = kinds.index("full_attention") + 1 if "full_attention" in kinds else layers + 1
        if kinds != _kinds(layers, every) or (every > 1 and not gemma):
            raise WeightsError(
                f"{self.folder.folder} has layer_types in an unsupported order: every n-th layer must be full_attention and "
                "all others sliding_attention"
            )
        return (self._get("sliding_window"), every) if every > 1 else (0, 1)

    def _rope(self) -> RopeConfig:
        """The rotary settings, from either of the forms in which the families have stored them."""
        # Newest form: rope_parameters, for Gemma 3 per kind of layer. Older: rope_theta and rope_scaling.
        stored: dict[str, Any] = self._get("rope_parameters", dict, {})
        local: dict[str, Any] = {}
        if "full_attention" in stored:
            local = self._get("rope_parameters.sliding_attention", dict, {})
            stored = self._get("rope_parameters.full_attention", dict)
        older: dict[str, Any] = self._get("rope_scaling", dict, {})
        base = stored.get("rope_theta", self._get("rope_theta", (int, float), 10_000.0))
        local_base = local.get("rope_theta", self._get("rope_local_base_freq", (int, float), base))
        scaling = stored if "rope_type" in stored else older
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if local.get("rope_type", "default") != "default" or (self.family == "gemma2" and kind != "default"):
            raise WeightsError(
                f"{self.folder.folder} stretches rotary positions of layers with a window, which is not supported"
            )
        if kind == "default":
            return RopeConfig(base=float(base), local_base=float(local_base))
        if kind not in ("linear", "llama3"):
            raise WeightsError(
                f"{self.folder.folder} stretches rotary positions by {kind!r}; supported are linear and llama3"
            )
        try:
            names = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
            # Linear scaling does not use the three: RopeConfig's own defaults keep its checks content.
            low, high, length = (scaling[name] for name in names) if kind == "llama3" else (1.0, 4.0, 8192)
            return RopeConfig(
                base=float(base),
                local_base=float(local_base),
                scaling=kind,
                factor=float(scaling["factor"]),
                low_frequency=float(low),
                high_frequency=float(high),
                length=int(length),
            )
        except KeyError as error:
            raise WeightsError(f"{self.folder.folder / 'config.json'}: {kind} rotary positions lack {error}") from error

    def text(self) -> TextTokenizer:
        """Its tokenizer: `tokenizer.json` or, if it is missing, a SentencePiece `tokenizer.model`.

        Raises:
            WeightsError: both are missing, the file is damaged, or it has more pieces than the model has rows.
            ImportError: `tokenizer.json` needs the package `tokenizers`, which is not installed.
        """
        # tokenizer.json first: it also has the added tokens, which the SentencePiece model lacks.
        for name in ("tokenizer.json", "tokenizer.model"):
            path = self.folder.folder / name
            if path.is_file():
                try:
                    text = TextTokenizer.load(path)
                except ValueError as error:
                    raise WeightsError(str(error)) from error
                # Fewer pieces than rows are common: tables are padded to a round number of rows.
                if text.size > self.vocabulary:
                    raise WeightsError(f"{path} has {text.size} pieces, but the model only {self.vocabulary} rows")
                return text
        raise WeightsError(f"{self.folder.folder} has neither tokenizer.json nor tokenizer.model: add one")

    def marks(self) -> dict[str, int]:
        """The ids of its markers of a text's beginning and end, "bos" and "eos", as far as it has them."""
        found, own = {}, self.folder.setting("text_config", dict, default={})
        for name in ("bos", "eos"):
            value = own.get(f"{name}_token_id", self.folder.config.get(f"{name}_token_id"))
            # Chat models list several end markers; the first ends a text.
            value = value[0] if isinstance(value, list) and value else value
            if isinstance(value, int) and 0 <= value < self.vocabulary:
                found[name] = value
        return found

    def load(self, vocabulary: Vocabulary, place: Callable[[str, Tensor], Any] | None = None) -> dict[str, Any]:
        """The parameters that the checkpoint provides, nested, float32, with rows for the vocabulary's other tokens. Those are
        drawn with the mean and deviation of each column of the text rows, so that their logits are no larger; our markers of
        beginning and end get the checkpoint's rows.

        Args:
            place: path and array, in the file's dtype → what is kept of it, called as soon as it is read: at most two arrays
                are then in this machine's memory at once. None keeps float32 here.

        Raises:
            WeightsError: tensors are missing, left over or have unexpected shapes.
        """
        keep = place or (lambda path, array: np.asarray(array, np.float32))
        # A fixed seed: every host of a run draws the same rows for tokens that the checkpoint lacks.
        rng, arrays = np.random.default_rng(0), {}
        for path, array in self.folder.stream(*self._recipes()):
            if path in ("tokens/text", "output/text"):
                table = path.removesuffix("/text")
                arrays[f"{table}/other"] = keep(f"{table}/other", self._other_rows(array, vocabulary, rng))
            arrays[path] = keep(path, array)
        return nested(arrays)

    def check(self) -> None:
        """Raises `WeightsError` unless its tensors match its settings; reads no number."""
        self.folder.check(*self._recipes())

    def _recipes(self) -> tuple[dict[str, Recipe], tuple[str, ...]]:
        """Recipes of our parameters, and patterns of tensors that may be present but are not used."""
        recipes = self._gpt2_recipes() if self.family == "gpt2" else self._llama_recipes()
        if self.shape["tied_output"]:
            # Tied models may still store the output matrix, as a copy of the embedding.
            return recipes, (*UNUSED, r"(language_model\.)?lm_head\.weight")
        heads = ("language_model.lm_head.weight", "lm_head.weight")
        name = next((one for one in heads if one in self.folder.shapes), heads[1])
        return recipes | {"output/text": tensor(name, self.vocabulary, self.shape["width"])}, UNUSED

    def _other_rows(
        self, text: Float[np.ndarray, "V D"], vocabulary: Vocabulary, rng: np.random.Generator
    ) -> Float32[np.ndarray, "O D"]:
        """Rows of the tokens that the text table lacks."""
        # Before the sums: NumPy adds up in the array's own dtype, and bfloat16 would lose most of 100,000 rows.
        text = text.astype(np.float32)
        count = vocabulary.size - vocabulary.text
        other = text.mean(axis=0) + text.std(axis=0) * rng.standard_normal((count, text.shape[1]), np.float32)
        for mark, row in self.marks().items():
            other[getattr(vocabulary, mark) - vocabulary.text] = text[row]
        return other

    def _layered(self, layer: Callable[[int], Mapping[str, Recipe]]) -> dict[str, Recipe]:
        # One array per parameter with the layers as its first axis: the trunk scans over them.
        layers = [layer(index) for index in range(self.shape["layers"])]
        return {f"blocks/{name}": stacked([one[name] for one in layers]) for name in layers[0]}

    def _gpt2_recipes(self) -> dict[str, Recipe]:
        width, hidden = self.shape["width"], self.shape["hidden"]
        # A trunk saved without its output layer (GPT2Model) has no prefix.
        prefix = "transformer." if "transformer.wte.weight" in self.folder.shapes else ""

        def norm(ours: str, theirs: str) -> dict[str, Recipe]:
            return {
                f"{ours}/scale": tensor(f"{theirs}.weight", width),
                f"{ours}/bias": tensor(f"{theirs}.bias", width),
            }

        def linear(ours: str, theirs: str, inputs: int, outputs: int) -> dict[str, Recipe]:
            # Only GPT-2 stores kernels as (inputs, outputs).
            return {
                f"{ours}/kernel": tensor(f"{theirs}.weight", inputs, outputs),
                f"{ours}/bias": tensor(f"{theirs}.bias", outputs),
            }

        def layer(index: int) -> dict[str, Recipe]:
            name = f"{prefix}h.{index}"
            return {
                **norm("attention_norm", f"{name}.ln_1"),
                **linear("attention/qkv", f"{name}.attn.c_attn", width, 3 * width),
                **linear("attention/out", f"{name}.attn.c_proj", width, width),
                **norm("feed_forward_norm", f"{name}.ln_2"),
                **linear("feed_forward/up", f"{name}.mlp.c_fc", width, hidden),
                **linear("feed_forward/down", f"{name}.mlp.c_proj", hidden, width),
            }

        return {
            "tokens/text": tensor(f"{prefix}wte.weight", self.vocabulary, width),
            "time_table": tensor(f"{prefix}wpe.weight", self.shape["learned_positions"], width),
            **norm("final_norm", f"{prefix}ln_f"),
            **self._layered(layer),
        }

    def _llama_recipes(self) -> dict[str, Recipe]:
        shape = self.shape
        width, hidden, size = shape["width"], shape["hidden"], shape["head_size"]
        inner, kv_inner = shape["heads"] * size, shape["kv_heads"] * size
        gemma = self.family.startswith("gemma")
        # Multimodal files of older and of newer libraries, a model with its output layer, a trunk alone.
        prefixes = ("language_model.model.", "model.language_model.", "model.", "")
        prefix = next((one for one in prefixes if f"{one}embed_tokens.weight" in self.folder.shapes), "model.")

        def norm(ours: str, theirs: str, length: int = width) -> dict[str, Recipe]:
            # Our gain is 1 + scale, as Gemma's is; the others store the gain itself. bfloat16 would round the difference.
            stored = tensor(f"{theirs}.weight", length)
            return {f"{ours}/scale": stored if gemma else mapped(stored, lambda gain: gain.astype(np.float32) - 1)}

        def layer(index: int) -> dict[str, Recipe]:
            # Kernels that read the same input are one matrix here: query, key and value; gate and up.
            name = f"{prefix}layers.{index}"
            heads = [(f"{name}.self_attn.{which}_proj", inner if which == "q" else kv_inner) for which in "qkv"]
            recipes = {
                **norm("attention_norm", f"{name}.input_layernorm"),
                "attention/qkv/kernel": joined([transposed(f"{one}.weight", rows, width) for one, rows in heads]),
                "attention/out/kernel": transposed(f"{name}.self_attn.o_proj.weight", width, inner),
                "feed_forward/up/kernel": joined(
                    [transposed(f"{name}.mlp.{which}_proj.weight", hidden, width) for which in ("gate", "up")]
                ),
                "feed_forward/down/kernel": transposed(f"{name}.mlp.down_proj.weight", width, hidden),
            }
            if gemma:
                # Gemma's names: its post_attention_layernorm is a post-norm, in the others the pre-norm of the feed-forward.
                recipes |= norm("attention_post_norm", f"{name}.post_attention_layernorm")
                recipes |= norm("feed_forward_norm", f"{name}.pre_feedforward_layernorm")
                recipes |= norm("feed_forward_post_norm", f"{name}.post_feedforward_layernorm")
            else:
                recipes |= norm("feed_forward_norm", f"{name}.post_attention_layernorm")
            if shape["qkv_bias"]:
                recipes["attention/qkv/bias"] = joined([tensor(f"{one}.bias", rows) for one, rows in heads])
            if shape["qk_norm"]:
                recipes |= norm("attention/query_norm", f"{name}.self_attn.q_norm", size)
                recipes |= norm("attention/key_norm", f"{name}.self_attn.k_norm", size)
            return recipes

        return {
            "tokens/text": tensor(f"{prefix}embed_tokens.weight", self.vocabulary, width),
            **norm("final_norm", f"{prefix}norm"),
            **self._layered(layer),
        }


def _kinds(layers: int, every: int) -> list[str]:
    """The kinds of layers if every `every`-th is full and the others have a window."""
    return ["full_attention" if (index + 1) % every == 0 else "sliding_attention" for index in range(layers)]
