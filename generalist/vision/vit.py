"""Vision Transformers (Dosovitskiy et al., 2021) as CLIP (Radford et al., 2021) and SigLIP (Zhai et al., 2023) build them.

Dimension key: N images, S pixels per side, L positions, T patches, D width, H heads, E head size.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8
from PIL import Image

from generalist.model.activations import PLAIN
from generalist.model.attend import by_blocks
from generalist.model.blocked_attention import shown_attention
from generalist.model.constrain import constrain
from generalist.model.layers import LayerNorm, Linear, stack
from generalist.model.params import flat, nested
from generalist.vision.encoder import Preparation, VisionEncoder
from generalist.vision.processor import DEVIATIONS, MEANS, Family, processor
from generalist.weights.activation_names import PLAIN as PLAIN_NAMES
from generalist.weights.folder import WeightsError, WeightsFolder, save_tensors
from generalist.weights.recipe import Recipe, joined, mapped, stacked, tensor, transposed
from generalist.weights.tower import Tower

ACTIVATIONS = {theirs: PLAIN[ours] for theirs, ours in PLAIN_NAMES.items()}
"""By the names of published files."""
UNUSED = (
    r"text_model\..*",
    r"logit_scale",
    r"logit_bias",
    r"(visual|text)_projection\.weight",
    r".*position_ids",
    r"(vision_model\.)?head\..*",
)
"""Tensors of a whole CLIP or SigLIP, or of a pooling head, that a grid of features does not need."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """The shape of a Vision Transformer."""

    family: Family
    """CLIP has a class position and a norm before the first layer; SigLIP has neither, but biased patches."""
    size: int
    patch: int
    width: int
    layers: int
    heads: int
    hidden: int
    activation: str
    """One of `ACTIVATIONS`."""
    epsilon: float
    mean: tuple[float, ...]
    """Mean and deviation of each colour, in 0..1, that standardise pixels."""
    deviation: tuple[float, ...]
    taps: tuple[int, ...] = ()
    """As in `Tower`."""
    normed: bool = True
    skipped: int | None = None

    def __post_init__(self) -> None:
        if self.patch > self.size:
            raise ValueError(f"patch_size ({self.patch}) must be at most image_size ({self.size})")
        if self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be a multiple of heads ({self.heads})")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"hidden_act must be one of {', '.join(ACTIVATIONS)}, got {self.activation!r}")

    @property
    def cells(self) -> int:
        """T: patches per image."""
        return (self.size // self.patch) ** 2

    @property
    def dropped(self) -> int:
        """Positions in front that are left out."""
        return int(self.family == "clip") if self.skipped is None else self.skipped

    @property
    def outputs(self) -> int:
        """Positions that come out."""
        return self.cells + (self.family == "clip") - self.dropped

    @property
    def used(self) -> int:
        """Layers that are computed."""
        return max(self.taps) if self.taps else self.layers

    @property
    def channels(self) -> int:
        """F: numbers of each position that comes out."""
        return self.width * max(1, len(self.taps))


SO400M = ViTConfig(
    family="siglip",
    size=224,
    patch=14,
    width=1152,
    layers=27,
    heads=16,
    hidden=4304,
    activation="gelu_pytorch_tanh",
    epsilon=1e-6,
    mean=MEANS["siglip"],
    deviation=DEVIATIONS["siglip"],
)
"""SigLIP So400m/14 (Zhai et al., 2023): the published encoder that is closest in size to Flamingo's."""


class ViTLayer(nnx.Module):
    """Pre-norm attention over all positions and feed-forward, each added to the residual stream."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        self.heads, self.activation = config.heads, config.activation
        self.attention_norm = LayerNorm(config.width, rngs=rngs, epsilon=config.epsilon)
        self.qkv = Linear(config.width, 3 * config.width, rngs=rngs, bias=True)
        self.out = Linear(config.width, config.width, rngs=rngs, bias=True)
        self.feed_forward_norm = LayerNorm(config.width, rngs=rngs, epsilon=config.epsilon)
        self.up = Linear(config.width, config.hidden, rngs=rngs, bias=True)
        self.down = Linear(config.hidden, config.width, rngs=rngs, bias=True)

    def __call__(self, x: Float[Array, "N L D"]) -> Float[Array, "N L D"]:
        # (N, L, 3 · D) → three of (N, L, H, E)
        query, key, value = (
            part.reshape(*part.shape[:2], self.heads, -1)
            for part in jnp.split(self.qkv(self.attention_norm(x)), 3, axis=-1)
        )
        if by_blocks(*query.shape[:3]):
            mask = jnp.ones((*x.shape[:2], x.shape[1]), bool)
            mixed = shown_attention(query, key, value, mask, scale=query.shape[-1] ** -0.5)  # (N, L, H, E)
        else:
            mixed = jax.nn.dot_product_attention(query, key, value)
        x = x + self.out(mixed.reshape(x.shape))
        # Keeps images on their devices and gathers weights there; otherwise the compiler sums activations over all devices.
        x = constrain(x, "batch", None, None)
        return x + self.down(ACTIVATIONS[self.activation](self.up(self.feed_forward_norm(x))))


class ViT(nnx.Module):
    """Pixels to the normalised features of every patch after the last layer, in raster order.

    CLIP's own output is the class position, which is left out here, since a grid is needed; LLaVA and the successors of
    OpenFlamingo read the patches too.
    """

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        self.config = config
        # The initial values matter only for a tower that is trained from scratch, in contrastive pretraining.
        # CLIP's table has a row for the class position, in front.
        positions = config.cells + (config.family == "clip")
        self.patches = Linear(config.patch**2 * 3, config.width, rngs=rngs, bias=config.family == "siglip")
        self.position_table = nnx.Param(jax.random.normal(rngs.params(), (positions, config.width)) * 0.02)
        clip = config.family == "clip"
        self.class_embedding = nnx.Param(jax.random.normal(rngs.params(), (config.width,)) * 0.02) if clip else None
        self.first_norm = LayerNorm(config.width, rngs=rngs, epsilon=config.epsilon) if clip else None
        self.layers = stack(lambda rngs: ViTLayer(config, rngs=rngs), config.used, rngs.params())
        self.last_norm = LayerNorm(config.width, rngs=rngs, epsilon=config.epsilon) if config.normed else None

    def positions(self, pixels: UInt8[Array, "N S S 3"], dtype: DTypeLike | None = None) -> Float[Array, "N L F"]:
        """All positions after the last layer or those of `taps`, before the last norm; CLIP's class position comes first.

        Args:
            dtype: of the computation; None: that of the parameters.
        """
        config = self.config
        dtype = self.position_table[...].dtype if dtype is None else dtype
        mean, deviation = (jnp.array(values, dtype).reshape(1, 1, 1, 3) for values in (config.mean, config.deviation))
        x = (pixels.astype(dtype) / 255 - mean) / deviation
        # Pixels beyond the last whole patch are cut off, as a strided convolution without padding does.
        side = config.size // config.patch
        x = x[:, : side * config.patch, : side * config.patch]
        # (N, rows, P, columns, P, 3) → (N, rows, columns, P · P · 3): each patch's pixels side by side.
        x = x.reshape(-1, side, config.patch, side, config.patch, 3).transpose(0, 1, 3, 2, 4, 5)
        x = self.patches(x.reshape(len(pixels), side * side, -1))  # (N, T, D)
        if self.class_embedding is not None:
            start = jnp.broadcast_to(self.class_embedding[...].astype(dtype)[None, None], (len(x), 1, x.shape[-1]))
            x = jnp.concatenate([start, x], axis=1)  # (N, L, D), L = 1 + T
        x = constrain(x + self.position_table[...].astype(dtype)[None], "batch", None, None)
        if self.first_norm is not None:
            x = self.first_norm(x)
        # One compiled layer for all of them.
        graph, stacked_layers = nnx.split(self.layers)
        taken, before = {0: x}, 0
        for tap in sorted(set(config.taps or (config.used,))):
            between = jax.tree.map(lambda leaf, first=before, last=tap: leaf[first:last], stacked_layers)
            x, _ = jax.lax.scan(lambda x, params: (nnx.merge(graph, params)(x), None), x, between)
            taken[tap], before = x, tap
        return jnp.concatenate([taken[tap] for tap in config.taps], axis=-1) if config.taps else x

    def __call__(self, pixels: UInt8[Array, "N S S 3"], dtype: DTypeLike | None = None) -> Float[Array, "N T F"]:
        x = self.positions(pixels, dtype)
        x = x if self.last_norm is None else self.last_norm(x)
        return x[:, self.config.dropped :]


def check_vit(folder: WeightsFolder, tower: Tower | None = None) -> None:
    """Raises `WeightsError` where `load_vit` would, except for non-finite numbers, since no number is read."""
    tower = alone(folder) if tower is None else tower
    config = vit_config(folder, tower)
    folder.check(vit_recipes(config, tower.prefix), _unused(config, tower))
    preparation(folder, tower)


def preparation(folder: WeightsFolder, tower: Tower | None = None) -> Preparation:
    """How the tower's images are prepared; no weights are read.

    Raises:
        WeightsError: the folder holds another architecture, or prepares images in an unsupported way.
    """
    tower = alone(folder) if tower is None else tower
    size = vit_config(folder, tower).size
    return processor(folder, tower.family, size, stretched=tower.stretched, even=tower.even).preparation


def load_vit(folder: WeightsFolder, tower: Tower | None = None) -> VisionEncoder:
    """Loads the vision tower of a CLIP, SigLIP or SigLIP 2 (of fixed resolution) model.

    Args:
        tower: where a larger model's folder has it; None: the folder is the tower's own, or that of a CLIP or SigLIP.

    Raises:
        WeightsError: the folder holds another architecture, or tensors that do not match its settings.
    """
    tower = alone(folder) if tower is None else tower
    config = vit_config(folder, tower)
    arrays = folder.read(vit_recipes(config, tower.prefix), _unused(config, tower))
    # The structure alone: no random weights are drawn only to be replaced.
    graph, _ = nnx.split(nnx.eval_shape(lambda: ViT(config, rngs=nnx.Rngs(0))), nnx.Param)
    # The files do not fix the standardisation, and another mean gives other features.
    weights_hash = f"{_hash_of(arrays) if tower.part else folder.content_hash()} {config.mean} {config.deviation}"
    kept = arrays if tower.part else {name: array.astype(np.float32) for name, array in arrays.items()}
    return VisionEncoder(
        name=f"{config.family}:{folder.folder.name}",
        prepare=preparation(folder, tower),
        cells=config.outputs,
        channels=config.channels,
        weights_hash=weights_hash,
        params=nested(jax.device_put(kept)),
        apply=lambda params, pixels: nnx.merge(graph, params)(pixels, jnp.float32),
        folder=folder.folder,
    )


def vit_shapes(config: ViTConfig, dtype: DTypeLike) -> dict[str, Any]:
    """The shapes of a tower's parameters, nested."""
    params = nnx.state(nnx.eval_shape(lambda: ViT(config, rngs=nnx.Rngs(0))), nnx.Param)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), nnx.to_pure_dict(params))


def _hash_of(arrays: Mapping[str, np.ndarray]) -> str:
    # Of the tower alone: the files of a large model would take minutes to read.
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.view(np.uint8).reshape(-1).data)
    return digest.hexdigest()


def _unused(config: ViTConfig, tower: Tower) -> tuple[str, ...]:
    """Patterns of tensors that are not read."""
    prefix = re.escape(tower.prefix)
    later = "|".join(str(layer) for layer in range(config.used, config.layers))
    found: tuple[str, ...] = (*UNUSED, rf"{prefix}head\..*")
    found += (rf"{prefix}encoder\.layers\.({later})\..*",) if later else ()
    found += () if config.normed else (rf"{prefix}post_layernorm\..*",)
    return (*found, rf"(?!{prefix}).*") if tower.part else found


def tower_tensors(folder: WeightsFolder, tower: Tower) -> list[str]:
    """The names of the tensors that a tower is made from."""
    made = vit_recipes(vit_config(folder, tower), tower.prefix).values()
    return [name for recipe in made for name, _ in recipe.sources]


def alone(folder: WeightsFolder) -> Tower:
    """The tower of a CLIP or SigLIP, or one that was saved alone.

    Raises:
        WeightsError: it holds another architecture.
    """
    kind = folder.setting("model_type", str)
    families: dict[str, Family] = {
        "clip": "clip",
        "clip_vision_model": "clip",
        "siglip": "siglip",
        "siglip_vision_model": "siglip",
    }
    family = families.get(kind)
    if family is None:
        raise WeightsError(
            f"{folder.folder} holds a {folder.architecture} ({kind}); the vision encoders that can be loaded are CLIP and "
            "SigLIP (also SigLIP 2 of a fixed resolution)"
        )
    return Tower(
        family=family,
        # A tower saved alone has its settings at the top level.
        section="vision_config." if kind in ("clip", "siglip") else "",
        prefix="vision_model." if any(name.startswith("vision_model.") for name in folder.shapes) else "",
    )


def vit_config(folder: WeightsFolder, tower: Tower | None = None) -> ViTConfig:
    """The settings of the folder's vision tower.

    Raises:
        WeightsError: another architecture, or a missing or unsupported setting.
    """
    tower = alone(folder) if tower is None else tower
    clip = tower.family == "clip"

    def setting(name: str, default: Any, kind: type | tuple[type, ...] = int) -> Any:
        if tower.settings is not None:
            return tower.settings[name]
        return folder.setting(tower.section + name, kind, default=default)

    # The defaults are those of the families' own definitions: published files leave out settings that equal them.
    size, layers = setting("image_size", 224), setting("num_hidden_layers", 12)
    if layers > len(folder.shapes):  # checked here, since lists of layers are built before tensors are looked for
        raise WeightsError(
            f"{folder.folder}: num_hidden_layers = {layers} of its vision tower, but only {len(folder.shapes)} tensors"
        )
    prepared = processor(folder, tower.family, size, stretched=tower.stretched)
    try:
        return ViTConfig(
            family=tower.family,
            size=size,
            patch=setting("patch_size", 32 if clip else 16),
            width=setting("hidden_size", 768),
            layers=layers,
            heads=setting("num_attention_heads", 12),
            hidden=setting("intermediate_size", 3072),
            activation=setting("hidden_act", "quick_gelu" if clip else "gelu_pytorch_tanh", str),
            epsilon=setting("layer_norm_eps", 1e-5 if clip else 1e-6, (int, float)),
            mean=prepared.mean,
            deviation=prepared.deviation,
            taps=tower.taps,
            normed=tower.normed,
            skipped=tower.skipped,
        )
    except ValueError as error:
        raise WeightsError(f"{folder.folder}: {error}") from error


def vit_recipes(config: ViTConfig, prefix: str) -> dict[str, Recipe]:
    """Path of each of our parameters → the recipe that makes it from the folder's tensors."""
    # Keys are paths of our parameters, values the tensors of the published files.
    clip, width, patch = config.family == "clip", config.width, config.patch
    recipes = {
        # PyTorch's kernel (outputs, colours, height, width) → rows in the order of a flattened patch.
        "patches/kernel": mapped(
            tensor(f"{prefix}embeddings.patch_embedding.weight", width, 3, patch, patch),
            lambda kernel: kernel.transpose(2, 3, 1, 0).reshape(-1, width),
            lambda rows: rows.reshape(patch, patch, 3, width).transpose(3, 2, 0, 1),
        ),
        "position_table": tensor(f"{prefix}embeddings.position_embedding.weight", config.cells + clip, width),
    }
    if config.normed:
        recipes |= _norm("last_norm", f"{prefix}post_layernorm", width)
    if clip:
        recipes["class_embedding"] = tensor(f"{prefix}embeddings.class_embedding", width)
        # "layrnorm" is the name in the published files.
        recipes |= _norm("first_norm", f"{prefix}pre_layrnorm", width)
    else:
        recipes["patches/bias"] = tensor(f"{prefix}embeddings.patch_embedding.bias", width)
    layers = [_layer(config, f"{prefix}encoder.layers.{index}") for index in range(config.used)]
    return recipes | {f"layers/{name}": stacked([layer[name] for layer in layers]) for name in layers[0]}


def _layer(config: ViTConfig, name: str) -> dict[str, Recipe]:
    # Three published matrices are one kernel here, as in `ViTLayer`.
    width = config.width
    qkv = [f"{name}.self_attn.{which}_proj" for which in "qkv"]
    return {
        **_norm("attention_norm", f"{name}.layer_norm1", width),
        **_norm("feed_forward_norm", f"{name}.layer_norm2", width),
        "qkv/kernel": joined([transposed(f"{one}.weight", width, width) for one in qkv]),
        "qkv/bias": joined([tensor(f"{one}.bias", width) for one in qkv]),
        **_linear("out", f"{name}.self_attn.out_proj", width, width),
        **_linear("up", f"{name}.mlp.fc1", config.hidden, width),
        **_linear("down", f"{name}.mlp.fc2", width, config.hidden),
    }


def _linear(ours: str, theirs: str, outputs: int, inputs: int) -> dict[str, Recipe]:
    return {
        f"{ours}/kernel": transposed(f"{theirs}.weight", outputs, inputs),
        f"{ours}/bias": tensor(f"{theirs}.bias", outputs),
    }


def _norm(ours: str, theirs: str, width: int) -> dict[str, Recipe]:
    return {f"{ours}/scale": tensor(f"{theirs}.weight", width), f"{ours}/bias": tensor(f"{theirs}.bias", width)}


def save_vit(folder: Path, config: ViTConfig, params: Any) -> None:
    """Writes a SigLIP-like tower in HuggingFace's layout. `params`: nested, numpy."""
    ours = flat(params)
    # Names without the prefix "vision_model.", as of a tower alone; `_prefix` finds either.
    recipes = vit_recipes(config, "").items()
    arrays = dict(one for path, recipe in recipes for one in recipe.tensors(ours[path]))
    settings = {
        "architectures": ["SiglipVisionModel"],
        "model_type": "siglip_vision_model",
        "image_size": config.size,
        "patch_size": config.patch,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.hidden,
        "hidden_act": config.activation,
        "layer_norm_eps": config.epsilon,
        "vision_use_head": False,  # no pooling head: `load_vit` reads the grid
    }
    preparation = {
        "image_processor_type": "SiglipImageProcessor",
        "size": {"height": config.size, "width": config.size},
        "resample": int(Image.Resampling.BICUBIC),
        "image_mean": list(config.mean),
        "image_std": list(config.deviation),
    }
    # Weights last: a folder without them is recognised as incomplete.
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(settings, indent=1) + "\n")
    (folder / "preprocessor_config.json").write_text(json.dumps(preparation, indent=1) + "\n")
    save_tensors(arrays, folder / "model.safetensors")
