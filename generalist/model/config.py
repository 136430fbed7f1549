"""Model settings, checked where they are set."""

import dataclasses
import math
from pathlib import Path
from typing import Literal

from generalist.tokenizers.vocabulary import Vocabulary

REQUIRED = "required"
"""Placeholder in a preset for a folder that only its user can name: its sizes are known, its weights are not. Planning accepts
it, training refuses it."""


ALIBI_SIZE = 8
"""Dimensions that ALiBi adds to queries and keys; GPU kernels take heads of a multiple of 8."""

PlainActivation = Literal["gelu", "exact_gelu", "quick_gelu", "relu", "squared_relu", "silu"]
"""Activations. gelu is its approximation by tanh, quick_gelu by a sigmoid."""
Gate = Literal["geglu", "exact_geglu", "quick_geglu", "reglu", "squared_reglu", "swiglu"]
Activation = Literal[PlainActivation, Gate]
"""Activations of feed-forwards; the last six are of a gate."""

LayerKind = Literal["full", "window", "full_unrotated", "window_unrotated"]
"""What a layer's attention sees and how it tells positions apart: all earlier positions or those of a window; with or without
rotary positions."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Images through a frozen encoder, then the Perceiver resampler and gated cross-attention (Flamingo, section 2), or projected
    into positions of the sequence (LLaVA)."""

    encoder: str = "none"
    """The frozen encoder: none, efficientnet_lite0, efficientnet_lite0_pyramid with its features of all depths, or a folder with
    CLIP or SigLIP weights (config.json, *.safetensors), alone or as the tower of a Gemma 3, PaliGemma or LLaVA. "required" stands
    in a preset for a folder that you must name."""
    size: int = 128
    """Height and width of EfficientNet-Lite0's input, in pixels (a multiple of 32); published folders define their own."""
    width: int = 128
    """Width of the resampler and of its visual tokens."""
    latents: int = 8
    """Visual tokens per image or video (Flamingo: 64)."""
    layers: int = 2
    """Layers of the resampler (Flamingo: 6)."""
    heads: int = 4
    """Heads of the resampler, and of the cross-attention unless `gated_heads` is set."""
    head_size: int = 32
    """Size of each of these heads."""
    gated_heads: int = 0
    """Heads of the cross-attention; 0: same as the resampler."""
    gated_head_size: int = 0
    """Size of each of these heads; 0: same as the resampler."""
    hidden_factor: int = 4
    """Hidden width of the new feed-forwards, as a multiple of their width."""
    resampler_hidden: int = 0
    """Hidden width of the resampler's feed-forwards; 0: `hidden_factor` times the width."""
    gated_hidden: int = 0
    """Hidden width of the gated cross-attention's feed-forwards; 0: `hidden_factor` times the width."""
    every: int = 1
    """Blocks per gated cross-attention, which is placed before the first of them."""
    first: int = 0
    """Blocks before the first gated cross-attention, less than `every` (OpenFlamingo: `every` - 1)."""
    resampled: bool = True
    """Resample an image's features; if not, they are its visual tokens themselves, `latents` of them, `width` wide (IDEFICS)."""
    resampler_activation: Activation = "squared_relu"
    """Activation of the resampler's feed-forwards (IDEFICS: relu, OpenFlamingo: exact_gelu)."""
    resampler_qk_norm: bool = False
    """Normalise each head's queries and keys in the resampler (IDEFICS)."""
    gated_activation: Activation = "squared_relu"
    """Activation of the gated cross-attention's feed-forwards (IDEFICS: swiglu, OpenFlamingo: exact_gelu)."""
    gated_norm: Literal["layer", "rms"] = "layer"
    """Norm of the gated cross-attention's inputs (IDEFICS: rms)."""
    gated_epsilon: float = 1e-5
    """Added to the variance in these norms."""
    gated_qk_norm: bool = False
    """Normalise each head's queries and keys in the gated cross-attention (IDEFICS)."""
    gate: Literal["scalar", "vector"] = "scalar"
    """One number per gate, or one per channel."""
    attend_to: Literal["last", "all"] = "last"
    """Which images a position sees: the last before it (Flamingo), or all of its sequence so far."""
    positions: int = 16
    """Positions per image that is projected into the sequence: a square number, to which the encoder's grid is averaged, or the
    number of its cells."""
    projector_hidden: int = 0
    """Hidden width of the projector (LLaVA: the model's width); 0: a linear map alone (PaliGemma)."""
    projector_activation: PlainActivation = "gelu"
    """Its activation. GELU is its tanh approximation, but for exact_gelu."""
    projector_bias: bool = True
    """Biases of the projector."""
    projector_norm: bool = False
    """Normalise what it projects (Gemma 3)."""
    projector_epsilon: float = 1e-6
    """Added to the variance there."""
    projector_places: bool = False
    """Add learned embeddings of the row and the column of each of an image's positions, which tell a new model sooner where
    things are; published ones have none."""
    row_ends: bool = False
    """An embedding ends each row of cells of an image that is cut into tiles (LLaVA 1.6)."""

    def __post_init__(self) -> None:
        # Fields whose 0 means "same as another field", or none, may be 0; all other sizes must be positive.
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = int(not field.name.startswith(("gated_", "resampler_", "projector_", "first")))
            if field.type in (int, "int") and value < least:
                raise ValueError(f"model.vision.{field.name} must be at least {least}, got {value}")
        if self.size % 32:
            raise ValueError(f"model.vision.size must be a multiple of 32, got {self.size}")
        if self.first >= self.every:
            raise ValueError(f"model.vision.first ({self.first}) must be less than model.vision.every ({self.every})")
        if self.projector_places and math.isqrt(self.positions) ** 2 != self.positions:
            raise ValueError(
                f"model.vision.projector_places needs a square number of positions, and positions is {self.positions}: set it "
                "to a square, such as 16 or 36"
            )
        if not 0 < self.gated_epsilon < 1:  # not NaN either
            raise ValueError(f"model.vision.gated_epsilon must be above 0 and below 1, got {self.gated_epsilon}")

    @property
    def cross_attention(self) -> tuple[int, int]:
        """Number of heads of the cross-attention, and the size of each."""
        return self.gated_heads or self.heads, self.gated_head_size or self.head_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary positions: the wavelengths, and how published models stretch them to longer contexts."""

    base: float = 10_000.0
    """Base of the wavelengths."""
    local_base: float = 10_000.0
    """Base of the wavelengths in layers with a window (Gemma 3)."""
    share: float = 1.0
    """Share of each head's dimensions that is rotated, the first ones (GPT-NeoX: 0.25)."""
    scaling: Literal["none", "linear", "llama3", "yarn", "listed"] = "none"
    """How wavelengths are stretched. linear: all by `factor`. llama3 (Llama 3.1), yarn (Peng et al., 2023): long ones by
    `factor`, short ones not. listed (LongRoPE): each by its own one of `factors`."""
    scaled_windows: bool = False
    """Stretch the wavelengths of layers with a window too."""
    factor: float = 1.0
    """Factor by which wavelengths are stretched."""
    factors: tuple[float, ...] = ()
    """listed: the factor of each wavelength, the shortest first."""
    low_frequency: float = 1.0
    """llama3, yarn: wavelengths above `length` / `low_frequency` are stretched in full."""
    high_frequency: float = 4.0
    """llama3, yarn: wavelengths below `length` / `high_frequency` are not stretched."""
    length: int = 8192
    """llama3, yarn: length of the context that the model was first trained with, in tokens."""
    whole_steps: bool = True
    """yarn: the stretch begins and ends at whole numbers of wavelengths."""
    attention_factor: float = 1.0
    """Factor of rotated queries and of rotated keys (YaRN's temperature, LongRoPE)."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            for number in value if isinstance(value, tuple) else (value,):
                # `not >` instead of `<=`: it also refuses NaN.
                if type(number) in (int, float) and not number > 0:
                    raise ValueError(f"model.rope.{field.name} must be above 0, got {value}")
        if self.scaling == "yarn" and self.base <= 1:  # whose logarithm is a divisor
            raise ValueError(f"model.rope.base must be above 1 for yarn, got {self.base}")
        if self.share > 1:
            raise ValueError(f"model.rope.share must be at most 1, got {self.share}")
        # The blend between stretched and kept wavelengths divides by their difference.
        if self.high_frequency <= self.low_frequency:
            raise ValueError(
                f"model.rope.high_frequency ({self.high_frequency}) must be above low_frequency ({self.low_frequency})"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of the Transformer and of its embedders."""

    trunk: str = "none"
    """A folder with a published language model (docs/published-models.md), which provides the blocks, the text embeddings, the
    tokenizer and the settings from `width` to `logit_softcap`; its projector too if `vision.encoder` names the same folder. none:
    everything is learned from scratch. "required" stands in a preset for a folder that you must name."""
    trunk_frozen: bool = True
    """Freeze the trunk's weights and train only the new ones (Flamingo, section 2)."""
    width: int = 128
    """Width of the residual stream."""
    layers: int = 4
    """Number of Transformer blocks."""
    heads: int = 4
    """Number of query heads."""
    kv_heads: int = 2
    """Number of key-value heads; fewer than `heads` is grouped-query attention."""
    head_size: int = 32
    """Size of one head."""
    hidden: int = 384
    """Width of the feed-forward's hidden layer, of each branch if it is gated."""
    activation: Activation = "geglu"
    """Activation of the feed-forward, with a gate (geglu, exact_geglu, quick_geglu, reglu, squared_reglu, swiglu) or without one.
    GELU is its tanh approximation, but for exact_gelu and exact_geglu."""
    norm: Literal["rms", "layer"] = "rms"
    """Root-mean-square or layer normalisation."""
    norm_epsilon: float = 1e-6
    """Added to the variance."""
    pre_norms: bool = True
    """Normalise the inputs of attention and feed-forward (OLMo 2 does not)."""
    post_norms: bool = False
    """Normalise the outputs of attention and feed-forward before they are added (Gemma 2, OLMo 2)."""
    parallel_residual: bool = False
    """Feed-forwards read the same input as attention, instead of the stream with attention's output (GPT-NeoX)."""
    qkv_bias: bool = False
    """Biases for queries, keys and values."""
    bias: bool = False
    """Biases for the other linear maps of a block."""
    out_bias: bool | None = None
    """Bias of attention's output map; None: as `bias`."""
    qkv_bound: float = 0.0
    """Queries, keys and values are clipped to plus and minus this number (MPT); 0: not."""
    qk_norm: bool = True
    """Normalise queries and keys."""
    qk_norm_joint: bool = False
    """Normalise the queries, and the keys, of all heads together (OLMo 2) instead of each head."""
    qk_norm_kind: Literal["rms", "layer"] = "rms"
    """How queries and keys are normalised: by root-mean-square, or as layer normalisation does (MPT)."""
    tied_output: bool = True
    """Compute logits with the token embedding instead of a separate matrix."""
    rope: RopeConfig = RopeConfig()
    """Rotary positions."""
    learned_positions: int = 0
    """Rows of a learned table of positions that replaces rotary positions (GPT-2); 0: rotary."""
    alibi: float = 0.0
    """Scores fall with distance instead of rotary positions (ALiBi): the largest exponent of the heads' slopes, which are powers
    of 1/2 (MPT: 8); 0: rotary."""
    window: int = 0
    """Positions that layers with a sliding window look back, themselves included; 0: no layer has one."""
    layer_kinds: tuple[LayerKind, ...] = ("full",)
    """The kinds of the layers from the first on, repeated over all layers: without or with a window, and without rotary positions
    if the name ends in _unrotated (Gemma 2: window full; SmolLM 3: full full full full_unrotated)."""
    blocks: Literal["none", "windowed", "whole"] = "none"
    """Whether positions of one block (`Batch.block`), such as those of a projected image, see each other in both directions. In
    layers with a window only within it (windowed: Gemma 3), or all of the block (whole: PaliGemma 2)."""
    embedding_scale: float | None = None
    """Factor of the token embeddings; None: the square root of the width."""
    query_scale: float | None = None
    """Factor of the attention scores; None: one over the square root of the head size."""
    attention_softcap: float = 0.0
    """Bound of attention scores, by a tanh (Gemma 2); 0: none."""
    logit_softcap: float = 0.0
    """Bound of logits, by a tanh (Gemma 2); 0: none."""
    local_positions: int = 512
    """Size of the table of positions within a timestep; its last row is shared by all action tokens."""
    tensor_hidden: int = 512
    """Width between the two linear maps that embed a projected tensor."""
    frame_size: int = 84
    """Height and width that an image is resized to for the frame embedder, in pixels (a multiple of 4)."""
    frame_tokens: int = 1
    """Embeddings per frame."""
    frame_channels: int = 32
    """Channels of the frame embedder's first layer; the others have twice as many."""
    patch_channels: int = 32
    """Channels of the patch embedder's ResNet block (not published by Gato)."""
    vision: VisionConfig = VisionConfig()
    """Images through a frozen encoder and cross-attention."""
    stochastic_depth: float = 0.0
    """Probability that a training row skips an attention or feed-forward sub-layer (Gato's pretraining: 0.1)."""
    remat: Literal["none", "products", "block"] = "products"
    """Which activations the backward pass recomputes. none: nothing. products: everything but matrix products and attention
    outputs, which on a CPU is also faster than fetching from memory. block: everything but a block's input, which takes the
    least memory, for about a third more compute."""
    layers_unrolled: int = 0
    """Layers per round of the loop over the layers; as many as there are, or more: no loop, which lets the compiler fuse across
    layers, and takes longer to compile. 0: no loop on a GPU or TPU if there are 12 layers at most;
    else 1."""

    def __post_init__(self) -> None:
        # These mean "off" or "as it suits" at 0; every other size must be positive.
        for field in dataclasses.fields(self):
            value, least = (
                getattr(self, field.name),
                int(field.name not in ("window", "learned_positions", "layers_unrolled")),
            )
            if field.type in (int, "int") and value < least:
                raise ValueError(f"model.{field.name} must be at least {least}, got {value}")
        if not 0 <= self.stochastic_depth < 1:
            raise ValueError(f"model.stochastic_depth must be at least 0 and below 1, got {self.stochastic_depth}")
        for name in ("attention_softcap", "logit_softcap", "qkv_bound", "alibi"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"model.{name} must not be negative, got {getattr(self, name)}")
        if self.query_scale is not None and not self.query_scale > 0:
            raise ValueError(f"model.query_scale must be above 0, got {self.query_scale}")
        if self.heads % self.kv_heads:
            raise ValueError(f"model.heads ({self.heads}) must be a multiple of model.kv_heads ({self.kv_heads})")
        self._check_positions()
        if self.vision.first >= self.layers:
            raise ValueError(f"model.vision.first ({self.vision.first}) must be less than model.layers ({self.layers})")
        if not (self.pre_norms or self.post_norms):
            raise ValueError(
                "model.pre_norms or model.post_norms must be set: without norms the stream grows without bound"
            )
        # The frame embedder's stem takes 4×4 blocks.
        if self.frame_size % 4:
            raise ValueError(f"model.frame_size must be a multiple of 4, got {self.frame_size}")
        # GroupNorm takes groups of four channels, and 32 groups at most.
        if self.patch_channels % (4 if self.patch_channels <= 128 else 32):
            raise ValueError(
                f"model.patch_channels must be a multiple of 4 up to 128, and of 32 above, got {self.patch_channels}"
            )

    def _check_positions(self) -> None:
        """Raises `ValueError` if the settings of positions or windows contradict each other."""
        if self.learned_positions and self.alibi:
            raise ValueError("model.learned_positions and model.alibi exclude each other: set one of them to 0")
        if not self.layer_kinds:
            raise ValueError('model.layer_kinds is empty: name the kind of at least one layer, such as "full"')
        if not self.window and any(kind.startswith("window") for kind in self.kind_of_layers):
            raise ValueError(
                "model.layer_kinds has layers with a window: set model.window to the positions that they look back"
            )
        # A bound of scores would act on the slopes too, which are part of them (`generalist.model.alibi`).
        if self.alibi and self.attention_softcap:
            raise ValueError("model.alibi and model.attention_softcap exclude each other: set one of them to 0")
        # Rotary positions pair the two halves of what they rotate.
        if self.rotary and (self.rotated % 2 or not self.rotated):
            raise ValueError(
                f"model.head_size times model.rope.share must be an even number of dimensions for rotary positions, got "
                f"{self.head_size} · {self.rope.share} = {self.rotated}"
            )
        if self.rope.scaling == "listed" and self.rotary and len(self.rope.factors) != self.rotated // 2:
            raise ValueError(
                f"model.rope.factors must have one factor per wavelength, {self.rotated // 2}, got {len(self.rope.factors)}"
            )

    @property
    def trunk_sees(self) -> bool:
        """Whether the encoder is the tower of the trunk itself, whose projector comes with it."""
        return self.trunk != "none" and Path(self.trunk) == Path(self.vision.encoder)

    @property
    def gated_layers(self) -> int:
        """Number of gated cross-attentions."""
        return -(-(self.layers - self.vision.first) // self.vision.every)  # rounded up: the last group may be shorter

    @property
    def rotary(self) -> bool:
        """Whether positions are rotary."""
        return not self.learned_positions and not self.alibi

    @property
    def rotated(self) -> int:
        """Dimensions of a head that are rotated."""
        return int(self.head_size * self.rope.share)

    @property
    def key_size(self) -> int:
        """Dimensions of queries and keys when they meet, and of the values beside them."""
        return self.head_size + (ALIBI_SIZE if self.alibi else 0)

    @property
    def kind_of_layers(self) -> tuple[LayerKind, ...]:
        """The kind of every layer."""
        return tuple(self.layer_kinds[layer % len(self.layer_kinds)] for layer in range(self.layers))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model's settings together with what its data determines: the vocabulary and the width of the tensor projection."""

    config: ModelConfig
    vocabulary: Vocabulary
    projection_width: int
    """Columns of the tensor projection: the projected tensors of all layouts side by side; 0 if none is projected."""
    patches: bool
    """Whether images enter as patches; otherwise the model has no patch embedder."""
    frames: bool
    """Whether images enter as whole frames; otherwise the model has no frame embedder."""
    channels: int = 0
    """Channels of the frozen encoder's features; 0 without an encoder: the model then has no cross-attention."""
    projected: bool = False
    """Whether these features are projected into positions of the sequence, instead of read by cross-attention."""
    action_dimensions: int = 0
    """Dimensions of the largest parallel action; 0 if there is none: the model then has no action head."""

    @property
    def crossed(self) -> bool:
        """Whether the model reads images by cross-attention."""
        return bool(self.channels) and not self.projected
