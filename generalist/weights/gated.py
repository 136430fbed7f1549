"""Published models whose images enter through gated cross-attention: their settings, their vision tower, and the ids around an
image."""

import dataclasses
from typing import Any

from generalist.model.config import VisionConfig
from generalist.tokenizers.marks import CrossMarks, Marks
from generalist.tokenizers.text import TextTokenizer
from generalist.weights.folder import WeightsError, WeightsFolder
from generalist.weights.gated_recipes import idefics_recipes
from generalist.weights.gated_shape import idefics_tower, idefics_vision
from generalist.weights.language_recipes import Recipes
from generalist.weights.language_settings import LAYERS, LanguageSettings
from generalist.weights.open_flamingo import (
    END,
    IMAGE,
    VISION,
    OpenFlamingoFolder,
    open_flamingo_vision,
    untrained_rows,
    with_open_flamingo,
)
from generalist.weights.tower import Tower

AROUND, UTTERANCE = "<fake_token_around_image>", "<end_of_utterance>"
"""Tokens of IDEFICS: on both sides of an image, and, of its instructed versions, the end of what someone says."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatedImages:
    """How a published model sees images through cross-attention."""

    settings: LanguageSettings
    folder: WeightsFolder
    """That of the vision tower."""
    tower: Tower
    vision: VisionConfig

    def recipes(
        self, shape: dict[str, Any], language: Recipes, unused: tuple[str, ...]
    ) -> tuple[Recipes, tuple[str, ...]]:
        """The recipes of the language model with those of the parts for images, and patterns of unused tensors."""
        folder = self.settings.folder
        if isinstance(folder, OpenFlamingoFolder):
            return with_open_flamingo(folder, shape, language, unused)
        return idefics_recipes(self.settings, shape, language, unused)

    def marked(self, marks: Marks, text: TextTokenizer, shape: dict[str, Any]) -> Marks:
        """The marks of the language model, with those of images.

        Raises:
            WeightsError: the tokenizer lacks one, or the model has no row for it.
        """
        if isinstance(self.settings.folder, OpenFlamingoFolder):
            return self._open_flamingo(marks, text, self.settings.folder, shape)
        image, around = self._control(text, IMAGE, marks.pieces), self._control(text, AROUND, marks.pieces)
        marks = dataclasses.replace(
            marks,
            silent=tuple(sorted({*marks.silent, image, around})),
            cross=CrossMarks(image=image, around=(around,), stripped=True, implied=False),
        )
        end = self._known(text, UTTERANCE)
        if end is None or end >= marks.pieces:
            return marks
        return dataclasses.replace(marks, ends=(*marks.ends, end), chunk_end=end, stops=())

    def _open_flamingo(
        self, marks: Marks, text: TextTokenizer, folder: OpenFlamingoFolder, shape: dict[str, Any]
    ) -> Marks:
        # Its tokens have the next free ids unless its tokenizer was saved with them.
        end = known if (known := text.control_id(END)) is not None else text.count
        image = known if (known := text.control_id(IMAGE)) is not None else text.count + (end == text.count)
        if max(end, image) >= marks.pieces:
            raise WeightsError(
                f"{folder.whole}: its text table has {marks.pieces} rows, none for {END} and {IMAGE}, which have the ids {end} "
                f"and {image} behind those of the tokenizer: put the tokenizer of its training into {folder.folder}"
            )
        unwritten = range(marks.pieces - untrained_rows(folder, shape), marks.pieces)
        # Padding, which has the last row of some, is never written either.
        silent = {*marks.silent, image, *unwritten, *(id for id in range(text.count, marks.pieces) if id != end)}
        return dataclasses.replace(
            marks,
            ends=marks.ends if end in silent else (end,),
            chunk_end=end,
            stops=(),
            silent=tuple(sorted(silent)),
            cross=CrossMarks(image=image),
        )

    def _control(self, text: TextTokenizer, token: str, rows: int) -> int:
        found = self._known(text, token)
        if found is None or found >= rows:
            what = (
                "has no control token"
                if found is None
                else f"has {rows} rows, too few for id {found} of the control token"
            )
            raise WeightsError(f"{self.folder.folder} {what} {token}, which an IDEFICS needs: add its tokenizer.json")
        return found

    def _known(self, text: TextTokenizer, token: str) -> int | None:
        """The id of a control token; with a SentencePiece model, by the files beside it."""
        found = text.control_id(token)
        if found is not None:
            return found
        listed = self.folder.beside("tokenizer_config.json").get("added_tokens_decoder")
        ids = (
            {one.get("content"): id for id, one in listed.items() if isinstance(one, dict)}
            if isinstance(listed, dict)
            else {}
        )
        id = str(self.folder.beside("added_tokens.json").get(token, ids.get(token)))
        return int(id) if id.isdecimal() else None


def gated_images(settings: LanguageSettings) -> GatedImages | None:
    """How the folder's model sees images through cross-attention; None: it does not.

    Raises:
        WeightsError: a setting is missing, unsupported or inconsistent with another.
    """
    folder = settings.folder
    if isinstance(folder, OpenFlamingoFolder):
        seen = WeightsFolder(folder.whole / VISION)
        name = LAYERS.get(settings.family, "num_hidden_layers")
        return GatedImages(
            settings=settings,
            folder=seen,
            tower=_clip(seen),
            vision=dataclasses.replace(open_flamingo_vision(folder, settings.get(name)), encoder=str(seen.folder)),
        )
    if settings.family != "idefics":
        return None
    try:
        vision = dataclasses.replace(idefics_vision(settings), encoder=str(folder.folder))
        return GatedImages(settings=settings, folder=folder, tower=idefics_tower(settings), vision=vision)
    except WeightsError:
        raise
    except (ValueError, ZeroDivisionError) as error:
        raise WeightsError(f"{settings.path} has inconsistent settings: {error}") from error


def _clip(vision: WeightsFolder) -> Tower:
    """CLIP's patches before the last norm, which is how open_clip gave them when OpenFlamingo was trained."""
    kind = vision.setting("model_type", str)
    if kind not in ("clip", "clip_vision_model"):
        raise WeightsError(
            f"{vision.folder} holds a {vision.architecture} ({kind}), but an OpenFlamingo sees with a CLIP"
        )
    return Tower(
        family="clip",
        section="vision_config." if kind == "clip" else "",
        prefix="vision_model." if any(name.startswith("vision_model.") for name in vision.shapes) else "",
        part=True,
        normed=False,
        even=True,
    )
