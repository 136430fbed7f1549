"""The settings of published models whose images enter through gated cross-attention: IDEFICS (Laurençon et al., 2023) and
OpenFlamingo (Awadalla et al., 2023)."""

from typing import Any

from generalist.model.config import VisionConfig
from generalist.weights.activation_names import GATED
from generalist.weights.language_settings import LanguageSettings
from generalist.weights.tower import Tower

# What files leave out; `use_resampler` and the norms of queries and keys are off unless a file says otherwise.
_TOWER: dict[str, Any] = {
    "image_size": 224,
    "patch_size": 14,
    "hidden_size": 768,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "intermediate_size": 5120,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
}
_RESAMPLER = {"resampler_n_latents": 64, "resampler_depth": 6, "resampler_n_heads": 16, "resampler_head_dim": 96}
OPEN_FLAMINGO_HEAD = 64  # size of a head of resampler and cross-attention; the files do not say it


def additional_rows(settings: LanguageSettings) -> int:
    """Rows that an IDEFICS adds to the text table of its language model, in matrices of their own."""
    # A tuple of types: 0 is meant here.
    return settings.get("additional_vocab_size", (int,), 0) if settings.family == "idefics" else 0


def prefix(settings: LanguageSettings) -> str:
    """What the names of an IDEFICS' tensors begin with: files without an output layer lack it."""
    return next((one for one in ("model.", "") if f"{one}embed_tokens.weight" in settings.folder.shapes), "model.")


def idefics_tower(settings: LanguageSettings) -> Tower:
    """Where an IDEFICS has its vision tower: all positions, the class's included, before the last norm."""
    return Tower(
        family="clip",
        prefix=f"{prefix(settings)}vision_model.",
        part=True,
        normed=False,
        skipped=0,
        stretched=True,
        settings=_tower_settings(settings),
    )


def _tower_settings(settings: LanguageSettings) -> dict[str, Any]:
    # Its width is called embed_dim, for which newer definitions also take hidden_size.
    given = settings.folder.setting("vision_config", dict, default={})
    renamed = {"hidden_size": "embed_dim"} if "embed_dim" in given else {}
    kinds: dict[str, Any] = {"hidden_act": str, "layer_norm_eps": (int, float)}
    found = {
        name: settings.folder.setting(f"vision_config.{renamed.get(name, name)}", kinds.get(name, int), default=default)
        for name, default in _TOWER.items()
    }
    if (colours := settings.folder.setting("vision_config.num_channels", int, default=3)) != 3:
        raise settings.refused(f"has vision_config.num_channels = {colours}; supported is 3")
    return found


def idefics_vision(settings: LanguageSettings) -> VisionConfig:
    """The settings of an IDEFICS' resampler and cross-attention.

    Raises:
        WeightsError: one is not supported.
        ValueError: they contradict each other.
    """
    layers, every = settings.get("num_hidden_layers"), settings.get("cross_layer_interval", default=1)
    # The definition builds layers // every of them, and fails where the last group is shorter.
    if layers % every:
        raise settings.refused(f"has {layers} layers, which cross_layer_interval = {every} does not divide")
    gate = settings.get("alpha_type", str, "float")
    if gate not in ("float", "vector"):
        raise settings.refused(f"has alpha_type = {gate!r}; supported is float, vector")
    width, heads, tower = settings.get("hidden_size"), settings.get("num_attention_heads"), _tower_settings(settings)
    shared: dict[str, Any] = {
        "width": tower["hidden_size"],
        "gated_heads": heads,
        "gated_head_size": width // heads,
        "gated_hidden": settings.get("intermediate_size"),
        "gated_activation": GATED[settings.get("hidden_act", str)],
        "gated_norm": "rms",
        "gated_epsilon": settings.number("rms_norm_eps", 1e-6),
        "gated_qk_norm": settings.get("qk_layer_norms", bool, False),
        "gate": "scalar" if gate == "float" else "vector",
        "every": every,
    }
    if not settings.get("use_resampler", bool, False):
        cells = (tower["image_size"] // tower["patch_size"]) ** 2 + 1
        return VisionConfig(**shared, resampled=False, latents=cells)
    latents, depth, resampler_heads, size = (
        settings.get(f"perceiver_config.{name}", default=default) for name, default in _RESAMPLER.items()
    )
    if depth > len(settings.folder.shapes):
        raise settings.refused(f"has resampler_depth = {depth}, but only {len(settings.folder.shapes)} tensors")
    return VisionConfig(
        **shared,
        latents=latents,
        layers=depth,
        heads=resampler_heads,
        head_size=size,
        resampler_hidden=4 * tower["hidden_size"],
        resampler_activation="relu",
        resampler_qk_norm=settings.get("perceiver_config.qk_layer_norms_perceiver", bool, False),
    )
