"""What a model is made of: sizes, checked where they are set."""

import dataclasses
from typing import Literal

from generalist.tokenizers.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Images through a frozen encoder, the Perceiver resampler and gated cross-attention (Flamingo, section 2)."""

    encoder: str = "none"
    """The frozen encoder: none, efficientnet_lite0, or a folder of CLIP or SigLIP weights (config.json, *.safetensors)."""
    size: int = 128
    """Height and width that efficientnet_lite0 sees, in pixels (a multiple of 32); published folders know their own."""
    width: int = 128
    """Width of the resampler and of the visual tokens it gives."""
    latents: int = 8
    """Visual tokens an image or video (Flamingo: 64)."""
    layers: int = 2
    """Layers of the resampler (Flamingo: 6)."""
    heads: int = 4
    """Heads of the resampler and of the cross-attention."""
    head_size: int = 32
    """Size of one of these heads."""
    hidden_factor: int = 4
    """Hidden width of the new feed-forwards, in widths."""
    every: int = 1
    """Blocks that share one gated cross-attention, which stands before the first of them."""
    attend_to: Literal["last", "all"] = "last"
    """Which images a position sees: the last before it (Flamingo), or all of its sequence so far."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type in (int, "int") and value < 1:
                raise ValueError(f"model.vision.{field.name} must be at least 1, got {value}")
        if self.size % 32:
            raise ValueError(f"model.vision.size must be a multiple of 32, got {self.size}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of the Transformer and of its embedders."""

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
    """Width of each branch of the gated feed-forward."""
    activation: Literal["geglu", "swiglu"] = "geglu"
    """Which gate the feed-forward uses."""
    qk_norm: bool = True
    """Normalise queries and keys."""
    tied_output: bool = True
    """Read logits off the token embedding instead of a matrix of their own."""
    rope_base: float = 10_000.0
    """Base of the rotary wavelengths: order in time."""
    local_positions: int = 512
    """Size of the table of positions within a timestep; its last row is shared by all action tokens."""
    frame_size: int = 84
    """Height and width that an image is resized to for the frame embedder, in pixels (a multiple of 4)."""
    frame_tokens: int = 1
    """Embeddings a frame."""
    frame_channels: int = 32
    """Channels of the frame embedder's first layer; the others have twice as many."""
    patch_channels: int = 32
    """Channels of the patch embedder's ResNet block (not published by Gato)."""
    vision: VisionConfig = VisionConfig()
    """Images through a frozen encoder and cross-attention."""
    remat: bool = False
    """Recompute a block's activations in the backward pass: less memory for about a quarter more compute."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type in (int, "int") and value < 1:
                raise ValueError(f"model.{field.name} must be at least 1, got {value}")
        if self.heads % self.kv_heads:
            raise ValueError(f"model.heads ({self.heads}) must be a multiple of model.kv_heads ({self.kv_heads})")
        if self.head_size % 2:
            raise ValueError(f"model.head_size must be even for rotary positions, got {self.head_size}")
        if self.frame_size % 4:
            raise ValueError(f"model.frame_size must be a multiple of 4, got {self.frame_size}")
        if self.patch_channels % 4:
            raise ValueError(f"model.patch_channels must be a multiple of 4, got {self.patch_channels}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model together with what its data fixes: the vocabulary and the width of the tensor projection."""

    config: ModelConfig
    vocabulary: Vocabulary
    projection_width: int
    """Columns of the tensor projection: all layouts' projected tensors side by side; 0 when none is projected."""
    patches: bool
    """Whether images enter as patches; without, the model has no patch embedder."""
    frames: bool
    """Whether images enter as whole frames; without, the model has no frame embedder."""
    channels: int = 0
    """Channels of the frozen encoder's features; 0 without an encoder: the model then has no cross-attention."""
