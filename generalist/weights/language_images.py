"""How published models see images that stand in the sequence as positions: settings, names of tensors, ids around an image."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from generalist.model.config import VisionConfig
from generalist.tokenizers.marks import ImageMarks
from generalist.tokenizers.pieces import Images
from generalist.tokenizers.text import TextTokenizer
from generalist.weights.activation_names import PLAIN
from generalist.weights.folder import WeightsError, WeightsFolder
from generalist.weights.image_cuts import pan_and_scan, prepared, tiles_of
from generalist.weights.language_settings import LanguageSettings
from generalist.weights.recipe import Recipe, tensor, transposed
from generalist.weights.tower import Family, Tower

PROJECTOR = ("multi_modal_projector.", "model.multi_modal_projector.")
TOWER = ("vision_tower.vision_model.", "model.vision_tower.vision_model.", "vision_tower.", "model.vision_tower.")
TOWERS: dict[str, Family] = {"clip_vision_model": "clip", "siglip_vision_model": "siglip"}
PROCESSORS = (
    "CLIPImageProcessor",
    "CLIPFeatureExtractor",
    "SiglipImageProcessor",
    "Gemma3ImageProcessor",
    "LlavaImageProcessor",
)
TILING = "LlavaNextImageProcessor"
"""The processor of LLaVA 1.6."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedImages:
    """How a published model sees images."""

    tower: Tower
    """Its frozen encoder."""
    way: Images
    """How images enter."""
    shape: dict[str, Any]
    """Fields of our `ModelConfig` for images."""
    recipes: dict[str, Recipe]
    """Our parameters for images, by their paths."""
    marks: Callable[[TextTokenizer], ImageMarks | None]
    """What its tokenizer writes for an image; None if images take no positions."""


def published_images(settings: LanguageSettings) -> PublishedImages | None:
    """How the folder's model sees images; None: it sees none.

    Raises:
        WeightsError: a setting is missing, unsupported or inconsistent with another.
    """
    make = IMAGES.get(settings.kind)
    # The language model of a Gemma 3 alone may keep the type of the whole.
    if make is None or not (settings.folder.config.get("vision_config") or _stored(settings, "vision_tower")):
        return None
    try:
        return make(settings)
    except WeightsError:
        raise
    except ValueError as error:
        raise WeightsError(f"{settings.path}: {error}") from error


def own_tower(folder: WeightsFolder) -> Tower | None:
    """Where a published model that sees images has its vision tower; None: the folder holds no such model.

    Raises:
        WeightsError: as `published_images`.
    """
    if folder.config.get("model_type") not in IMAGES:
        return None
    found = published_images(LanguageSettings(folder))
    return None if found is None else found.tower


def _stored(settings: LanguageSettings, part: str) -> bool:
    return any(part in name for name in settings.folder.shapes)


def _check_processor(settings: LanguageSettings) -> None:
    """Raises `WeightsError` if the folder's images are prepared by another kind of processor."""
    stored = prepared(settings.folder)
    given = stored.get("image_processor_type", stored.get("feature_extractor_type"))
    known = (TILING,) if settings.kind == "llava_next" else PROCESSORS
    if given is not None and str(given).removesuffix("Fast").removesuffix("Pil") not in known:
        raise settings.refused(f"prepares images by {given!r:.60}; supported are {', '.join(known)}")


def _tower(settings: LanguageSettings, usual: str, **read: Any) -> Tower:
    _check_processor(settings)
    kind = settings.folder.setting("vision_config.model_type", str, default=usual)
    if kind not in TOWERS:
        raise settings.refused(f"has a vision tower of type {kind!r}; supported are {', '.join(TOWERS)}")
    stored = settings.folder.shapes
    prefix = next((one for one in TOWER if f"{one}embeddings.patch_embedding.weight" in stored), TOWER[0])
    return Tower(family=TOWERS[kind], section="vision_config.", prefix=prefix, part=True, **read)


def _cells(settings: LanguageSettings, tower: Tower) -> int:
    """Positions that the tower gives."""
    clip = tower.family == "clip"
    size = settings.folder.setting("vision_config.image_size", default=224)
    patch = settings.folder.setting("vision_config.patch_size", default=32 if clip else 16)
    return (size // patch) ** 2 + clip - (clip if tower.skipped is None else tower.skipped)


def _names(settings: LanguageSettings, last: str) -> str:
    """The prefix of the projector's tensors, of which one is named `last`."""
    return next((one for one in PROJECTOR if one + last in settings.folder.shapes), PROJECTOR[0])


def _channels(settings: LanguageSettings, tower: Tower) -> int:
    return settings.folder.setting("vision_config.hidden_size", default=768) * max(1, len(tower.taps))


def _vision(settings: LanguageSettings, positions: int, **projector: Any) -> dict[str, Any]:
    return {"vision": VisionConfig(encoder=str(settings.folder.folder), positions=positions, **projector)}


def _count(settings: LanguageSettings, positions: int) -> int:
    """The positions of an image, checked against what the folder's processor would write."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        given = settings.folder.beside(name).get("image_seq_length", positions)
        if given != positions:
            raise settings.refused(f"has image_seq_length = {given!r:.40} in {name}, but its tower gives {positions}")
    return positions


def _gemma3(settings: LanguageSettings) -> PublishedImages:
    tower, width = _tower(settings, "siglip_vision_model"), settings.get("hidden_size")
    positions = settings.folder.setting("mm_tokens_per_image", default=256)
    grid, side = math.isqrt(_cells(settings, tower)), math.isqrt(positions)
    if side * side != positions or side > grid or grid // (grid // side) != side:
        raise settings.refused(
            f"has mm_tokens_per_image = {positions}: a grid of {grid} × {grid} cells cannot be averaged to it"
        )
    channels, names = _channels(settings, tower), _names(settings, "mm_input_projection_weight")
    epsilon = float(settings.folder.setting("vision_config.layer_norm_eps", (int, float), default=1e-6))
    begin, end = (settings.folder.setting(f"{one}_token_index", default=usual) for one, usual in GEMMA3_MARKS.items())
    soft = settings.folder.setting("image_token_index", default=262_144)

    def marks(text: TextTokenizer) -> ImageMarks:
        opened = _control(settings, text, begin, "boi_token_index")
        return ImageMarks(
            before=f"\n\n{opened}",
            soft=_control(settings, text, soft, "image_token_index"),
            id=soft,
            count=_count(settings, positions),
            after=f"{_control(settings, text, end, 'eoi_token_index')}\n\n",
            marker=opened,
            blocks="image",
            cut=pan_and_scan(settings),
        )

    return PublishedImages(
        tower=tower,
        way="projected",
        shape=_vision(settings, positions, projector_norm=True, projector_epsilon=epsilon, projector_bias=False)
        | {"blocks": "windowed"},
        recipes={
            "projector/norm/scale": tensor(f"{names}mm_soft_emb_norm.weight", channels),
            "projector/out/kernel": tensor(f"{names}mm_input_projection_weight", channels, width),
        },
        marks=marks,
    )


def _paligemma(settings: LanguageSettings) -> PublishedImages:
    tower, width = _tower(settings, "siglip_vision_model"), settings.get("hidden_size")
    positions, channels = _cells(settings, tower), _channels(settings, tower)
    if settings.optional("use_bidirectional_attention", bool) is False:
        raise settings.refused("has text_config.use_bidirectional_attention = False, which is not supported")
    names, soft = _names(settings, "linear.weight"), settings.folder.setting("image_token_index", default=256_000)

    def marks(text: TextTokenizer) -> ImageMarks:
        written = _control(settings, text, soft, "image_token_index")
        return ImageMarks(
            soft=written,
            id=soft,
            count=_count(settings, positions),
            marker=written,
            closing="\n",
            begin_last=True,
            blocks="prompt",
        )

    return PublishedImages(
        tower=tower,
        way="projected",
        shape=_vision(settings, positions) | {"blocks": "whole"},
        recipes=_linear("projector/out", f"{names}linear", width, channels, biased=True),
        marks=marks,
    )


def _llava(settings: LanguageSettings) -> PublishedImages:
    layers = settings.folder.setting("vision_config.num_hidden_layers", default=12)
    strategy = settings.folder.setting("vision_feature_select_strategy", str, default="default")
    if strategy not in ("default", "full"):
        raise settings.refused(f"has vision_feature_select_strategy = {strategy!r:.40}; supported are default and full")
    tower = _tower(
        settings,
        "clip_vision_model",
        taps=_taps(settings, layers),
        normed=False,
        skipped=int(strategy == "default"),
    )
    width, channels, positions = settings.get("hidden_size"), _channels(settings, tower), _cells(settings, tower)
    names, soft = _names(settings, "linear_1.weight"), settings.folder.setting("image_token_index", default=32_000)
    given = settings.folder.setting("projector_hidden_act", str, default="gelu")
    if given not in PLAIN:
        raise settings.refused(f"has projector_hidden_act = {given!r:.40}; supported are {', '.join(PLAIN)}")
    biased = settings.folder.setting("multimodal_projector_bias", bool, default=True)
    _check_llava_processor(settings, tower, strategy)
    tiles = tiles_of(settings, positions) if settings.kind == "llava_next" else None
    end = next((one for one in ROW_ENDS if one in settings.folder.shapes), ROW_ENDS[0])

    def marks(text: TextTokenizer) -> ImageMarks:
        written = _control(settings, text, soft, "image_token_index")
        # The count of a file is that of an image without tiles, which the processor of LLaVA 1.6 does not use.
        count = positions if tiles else _count(settings, positions)
        return ImageMarks(soft=written, id=soft, count=count, marker=written, cut=tiles)

    return PublishedImages(
        tower=tower,
        way="projected",
        shape=_vision(
            settings,
            positions,
            projector_hidden=width,
            projector_activation=PLAIN[given],
            projector_bias=biased,
            row_ends=tiles is not None,
        ),
        recipes={
            **({"projector/row_end": tensor(end, width)} if tiles else {}),
            **_linear("projector/up", f"{names}linear_1", width, channels, biased=biased),
            **_linear("projector/out", f"{names}linear_2", width, width, biased=biased),
        },
        marks=marks,
    )


def _check_llava_processor(settings: LanguageSettings, tower: Tower, strategy: str) -> None:
    """Raises `WeightsError` if the folder's processor would write another number of positions per image than the tower gives."""
    stored = settings.folder.beside("processor_config.json")
    clip = tower.family == "clip"
    patch = settings.folder.setting("vision_config.patch_size", default=32 if clip else 16)
    wanted = {
        "patch_size": patch,
        "vision_feature_select_strategy": strategy,
        "num_additional_image_tokens": int(clip),
    }
    for name, value in wanted.items():
        # Older files have none of them, or null.
        given = stored.get(name)
        if given is not None and given != value:
            raise settings.refused(
                f"has {name} = {given!r:.40} in processor_config.json, but its tower needs {value!r}"
            )


def _taps(settings: LanguageSettings, layers: int) -> tuple[int, ...]:
    """The layers whose outputs are read, of `vision_feature_layer`: one or a list, from the end if negative."""
    given = settings.folder.config.get("vision_feature_layer", -2)
    listed = given if isinstance(given, list) else [given]
    # The states before the first layer have a place in the count too.
    found = tuple(one + layers + 1 if type(one) is int and one < 0 else one for one in listed)
    if not found or not all(type(one) is int and 0 <= one <= layers for one in found) or max(found) == 0:
        raise settings.refused(
            f"has vision_feature_layer = {given!r:.60}: it must be numbers of its {layers} layers, or a list of them"
        )
    return found


def _linear(ours: str, theirs: str, outputs: int, inputs: int, *, biased: bool) -> dict[str, Recipe]:
    kernel = {f"{ours}/kernel": transposed(f"{theirs}.weight", outputs, inputs)}
    return kernel | ({f"{ours}/bias": tensor(f"{theirs}.bias", outputs)} if biased else {})


def _control(settings: LanguageSettings, text: TextTokenizer, id: int, name: str) -> str:
    """A control token as it is written."""
    found = text.control(id)
    if found is None:
        raise settings.refused(
            f"has {name} = {id}, which is no control token of its tokenizer.json: images cannot be written without it"
        )
    return found


ROW_ENDS = ("image_newline", "model.image_newline")
GEMMA3_MARKS = {"boi": 255_999, "eoi": 256_000}
IMAGES: dict[str, Callable[[LanguageSettings], PublishedImages]] = {
    "gemma3": _gemma3,
    "paligemma": _paligemma,
    "llava": _llava,
    "llava_next": _llava,
}
