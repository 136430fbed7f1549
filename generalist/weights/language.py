"""Published language models in HuggingFace's layout, as our trunk or as a whole model.

A family is a set of settings of our Transformer and a map of names. Settings that we do not support are refused, not guessed.

Dimension key: V rows of the text table, O rows of the vocabulary's other tokens, D width.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from generalist.model.params import nested
from generalist.tokenizers.text import TextTokenizer
from generalist.tokenizers.vocabulary import Vocabulary
from generalist.weights.folder import WeightsError, WeightsFolder
from generalist.weights.gated import GatedImages, gated_images
from generalist.weights.gated_recipes import with_additional_rows
from generalist.weights.gated_shape import additional_rows
from generalist.weights.language_images import PublishedImages, published_images
from generalist.weights.language_positions import context
from generalist.weights.language_recipes import IMAGE_PARTS, recipes
from generalist.weights.language_settings import LanguageSettings
from generalist.weights.language_shape import shape
from generalist.weights.open_flamingo import OpenFlamingoFolder, is_open_flamingo
from generalist.weights.recipe import Recipe, Tensor
from generalist.weights.stored import Stored

AT_ONCE = 4096  # rows of a table that are read at a time for its moments

GEMMA_BOS = 2
"""The mark of the beginning of the first two Gemmas, which their settings may omit."""


class LanguageModel:
    """An opened folder with a language model: our settings for it, and its weights when `load` is called."""

    def __init__(self, folder: Path | str, *, images: bool = False):
        """
        Args:
            images: of a model that sees images, take the parts for them too; otherwise it is its language model alone.

        Raises:
            WeightsError: the folder does not exist, holds another architecture, or has an unsupported setting.
        """
        flamingo = images and is_open_flamingo(Path(folder))
        self.folder = OpenFlamingoFolder(Path(folder)) if flamingo else WeightsFolder(Path(folder))
        self.named = Path(folder)
        """The folder by which it was named."""
        self._settings = LanguageSettings(self.folder)
        self.family = self._settings.family
        self.kind = self._settings.kind
        """The type of the whole model, of which the language model may be a part."""
        self._with_images = images

    @cached_property
    def images(self) -> PublishedImages | None:
        """How it sees images; None: it sees none, or was opened without its parts for them.

        Raises:
            WeightsError: a setting is missing, unsupported or inconsistent with another.
        """
        return published_images(self._settings) if self._with_images else None

    @cached_property
    def gated(self) -> GatedImages | None:
        """How it sees images through cross-attention; None: it does not, or was opened without its parts for them.

        Raises:
            WeightsError: a setting is missing, unsupported or inconsistent with another.
        """
        return gated_images(self._settings) if self._with_images else None

    @cached_property
    def vocabulary(self) -> int:
        """Rows of the text table."""
        return self._settings.get("vocab_size") + additional_rows(self._settings)

    @cached_property
    def shape(self) -> dict[str, Any]:
        """The fields of our `ModelConfig` that the checkpoint determines.

        Raises:
            WeightsError: a setting is missing, unsupported or inconsistent with another.
        """
        found = shape(self._settings) | (self.images.shape if self.images else {})
        return found if self.gated is None else found | {"vision": self.gated.vision}

    @cached_property
    def recipes(self) -> tuple[dict[str, Recipe], tuple[str, ...]]:
        """How our parameters are made from its tensors, by their paths, and patterns of tensors that are not used.

        Raises:
            WeightsError: a size is so large that no array can have it.
        """
        try:
            return self._recipes()
        except WeightsError:
            raise
        except ValueError as error:
            raise WeightsError(f"{self._settings.path} has sizes that no array can have ({error})") from error

    def _recipes(self) -> tuple[dict[str, Recipe], tuple[str, ...]]:
        found, unused = recipes(self._settings, self.shape)
        if self.gated is not None:
            return self.gated.recipes(self.shape, found, unused)
        if self.images is None:
            return with_additional_rows(self._settings, self.shape, found, unused)
        # The tower checks its own tensors when it is read.
        kept = tuple(one for one in unused if one != IMAGE_PARTS)
        return found | self.images.recipes, (*kept, rf"{re.escape(self.images.tower.prefix)}.*")

    @cached_property
    def context(self) -> tuple[int, bool]:
        """Positions that the model was made for, and whether it computes something else for longer rows than we do."""
        return context(self._settings)

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
                    if name == "tokenizer.model":
                        text = dataclasses.replace(text, added=self._added(text.size))
                except ValueError as error:
                    raise WeightsError(str(error)) from error
                # Fewer pieces than rows are common: tables are padded to a round number of rows.
                if text.size > self.vocabulary:
                    raise WeightsError(f"{path} has {text.size} pieces, but the model only {self.vocabulary} rows")
                return text
        raise WeightsError(f"{self.folder.folder} has neither tokenizer.json nor tokenizer.model: add one")

    def _added(self, pieces: int) -> tuple[tuple[str, int], ...]:
        """The control tokens that the files beside a `tokenizer.model` of so many pieces add to it."""
        listed = self.folder.beside("tokenizer_config.json").get("added_tokens_decoder")
        found: dict[str, Any] = self.folder.beside("added_tokens.json")
        for id, one in (listed if isinstance(listed, dict) else {}).items():
            token = one.get("content") if isinstance(one, dict) else None
            if not isinstance(token, str) or not (id.isdecimal() and len(id) < 10):
                continue
            # Others of its own pieces are text, which the model finds itself.
            if one.get("special") or int(id) >= pieces:
                found[token] = int(id)
        ids = {token: id for token, id in found.items() if token and type(id) is int and 0 <= id < self.vocabulary}
        return tuple(sorted(ids.items()))

    def begin(self, text: TextTokenizer) -> tuple[int, ...]:
        """The ids that its tokenizer puts before a text: none, or its marker of the beginning.

        Raises:
            WeightsError: the tokenizer puts control tokens behind a text too, which a prompt is not to be ended by.
        """
        if self.family == "idefics":  # its processor writes it before every text, whatever the tokenizer does
            return tuple(id for name, id in self.marks().items() if name == "bos")
        own = self.folder.beside("tokenizer_config.json").get("add_bos_token")
        around = text.around()
        if around is not None and around[1]:
            raise WeightsError(
                f"{self.folder.folder}: its tokenizer ends every text with ids {around[1]}: not supported"
            )
        bos = self.marks().get("bos")
        if self.images is not None and self._settings.kind == "paligemma":
            # Its processor writes the mark itself, whatever the tokenizer does.
            return (bos if bos is not None else GEMMA_BOS,)
        # Without either file, what the definitions of these families do with a SentencePiece model.
        wanted = own if isinstance(own, bool) else self.family in ("llama", "mistral", "phi3") or self._settings.gemma
        if around is None or isinstance(own, bool):
            return (bos,) if wanted and bos is not None else ()
        return tuple(around[0])

    def ends(self) -> tuple[int, ...]:
        """The ids that end a text, of `generation_config.json` or, where that has none, of the settings.

        Raises:
            WeightsError: one is no whole number.
        """
        own = self.folder.setting("text_config", dict, default={})
        known = (
            one.get("eos_token_id") for one in (self.folder.beside("generation_config.json"), own, self.folder.config)
        )
        found = next((one for one in known if one is not None), [])
        ends = found if isinstance(found, list) else [found]
        if not all(type(one) is int for one in ends):
            raise WeightsError(
                f"{self.folder.folder} has eos_token_id = {found!r:.80}, which is no id and no list of ids"
            )
        return tuple(one for one in ends if 0 <= one < self.vocabulary)  # others are never written

    def suppressed(self) -> tuple[int, ...]:
        """The ids that are never written, `suppress_tokens` of `generation_config.json`.

        Raises:
            WeightsError: they are no list of ids.
        """
        found = self.folder.beside("generation_config.json").get("suppress_tokens") or []
        if not isinstance(found, list) or not all(type(one) is int for one in found):
            raise WeightsError(
                f"{self.folder.folder}: suppress_tokens = {found!r:.80} in generation_config.json is no list of ids"
            )
        return tuple(sorted({one for one in found if 0 <= one < self.vocabulary}))

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
        return nested({path: keep(path, array) for path, array in self.arrays(vocabulary)})

    def arrays(self, vocabulary: Vocabulary) -> Iterator[tuple[str, Tensor]]:
        """The parameters of `load` one at a time, by their paths, in the files' dtypes."""
        # Contiguous: a transposed view would keep its source alive, and be copied anyway on its way to a device.
        return ((path, np.ascontiguousarray(stored.all())) for path, stored in self.stored(vocabulary))

    def stored(self, vocabulary: Vocabulary) -> Iterator[tuple[str, Stored]]:
        """The items of `arrays` unread."""
        # A fixed seed: every host of a run draws the same rows for tokens that the checkpoint lacks.
        rng = np.random.default_rng(0)
        for path, stored in self.folder.stored(*self.recipes):
            if path in ("tokens/text", "output/text"):
                yield path.replace("text", "other"), Stored.of(self._other_rows(stored, vocabulary, rng))
            yield path, stored

    def check(self) -> None:
        """Raises `WeightsError` unless its tensors match its settings; reads no number."""
        self.folder.check(*self.recipes)

    def _other_rows(self, text: Stored, vocabulary: Vocabulary, rng: np.random.Generator) -> Float32[np.ndarray, "O D"]:
        """Rows of the tokens that the text table (V, D) lacks."""
        count, mean, deviation = vocabulary.size - vocabulary.text, *_moments(text)
        other = mean + deviation * rng.standard_normal((count, text.shape[1]), np.float32)
        for mark, row in self.marks().items():
            other[getattr(vocabulary, mark) - vocabulary.text] = text.read(
                (slice(row, row + 1), slice(0, text.shape[1]))
            )[0]
        return other


def _moments(table: Stored) -> tuple[Float32[np.ndarray, "D"], Float32[np.ndarray, "D"]]:
    """Mean and deviation of each column of a table (V, D), some rows at a time: a table in 16 bits may be the largest tensor of
    its files, and would take three times its memory in float32."""
    rows, width = table.shape
    sums, squares = np.zeros(width), np.zeros(width)
    for first in range(0, rows, AT_ONCE):
        part = table.read((slice(first, min(first + AT_ONCE, rows)), slice(0, width))).astype(np.float64)
        sums, squares = sums + part.sum(axis=0), squares + np.square(part).sum(axis=0)
    mean = sums / rows
    return mean.astype(np.float32), np.sqrt(np.maximum(squares / rows - np.square(mean), 0)).astype(np.float32)
