"""Text as ids of SentencePiece (Kudo & Richardson, 2018) or a published model; every Unicode string round-trips exactly.

Dimension key: n ids of a text.
"""

import dataclasses
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import sentencepiece
from jaxtyping import Int, Int32

# SentencePiece writes a space as U+2581, so a U+2581 in the text itself needs another name, and so does the character that
# begins such a name. NUL ends a string inside SentencePiece. All three are rare: most strings pass unchanged.
_ESCAPE = "\ue000"
_NAMES = {"\ue000": _ESCAPE + "0", "\u2581": _ESCAPE + "1", "\0": _ESCAPE + "2"}
_CHARACTERS = {name: character for character, name in _NAMES.items()}
_ESCAPED = re.compile("[" + "".join(_NAMES) + "]")
_NAMED = re.compile(_ESCAPE + "[012]")
_BYTE = re.compile("<0x[0-9A-F]{2}>")

# A tokenizer that lowercases, folds or strips, or lacks bytes, does not return this unchanged; composed (NFC), as Qwen expects.
_SAMPLE = "A  \n \u00e9\U0001f642\u3000 "

# SentencePiece skips longer lines in training (its limit counts bytes: at most four per character).
_LONGEST_LINE = 1000
# The unknown, beginning and end markers and the 256 bytes, which every vocabulary includes.
_FIXED_PIECES = 259
# Fraction of the text whose characters get their own pieces (the default of SentencePiece).
_COVERAGE = 0.9995
# Cached encodings: the same instructions and missions occur again and again.
_REMEMBERED = 4096


@dataclasses.dataclass(frozen=True)
class TextTokenizer:
    """A SentencePiece model, or a `tokenizer.json` of HuggingFace's `tokenizers`; its piece numbers are the text ids.

    Nothing is normalised, stripped or prepended, and characters without a piece are spelled in UTF-8 bytes:
    `decode(encode(s))` is `s` for every string; a `tokenizer.json` may write U+2581 as a space. Control pieces have ids that text
    never takes.
    """

    model: bytes = dataclasses.field(repr=False)
    """The serialised SentencePiece model, or the bytes of a `tokenizer.json`."""
    added: tuple[tuple[str, int], ...] = ()
    """Control tokens that the files beside a SentencePiece model add to its own, with their ids; a `tokenizer.json` has them."""

    def __post_init__(self) -> None:
        try:
            processor = self._processor
            changed = processor.decode(processor.encode(_SAMPLE)) != _SAMPLE
        except ImportError:
            raise
        # SentencePiece and tokenizers raise whatever their C++ or Rust code does; for the user all of it means a damaged file.
        except Exception as error:
            raise ValueError("the text model is damaged: train it again or restore the file") from error
        if changed:
            raise ValueError(
                "the text model changes text (it normalises, or has no bytes): train it with TextTokenizer.train"
            )

    @classmethod
    def train(cls, texts: Iterable[str], size: int) -> "TextTokenizer":
        """Learns at most `size` pieces from texts by byte-pair encoding. The same texts give the same pieces.

        A small corpus gives fewer pieces: `size` of the result is the actual number.

        Raises:
            ValueError: there is no text, `size` leaves no room beyond the bytes, or a text has lone surrogates.
        """
        if size < _FIXED_PIECES + 2:
            raise ValueError(f"size must be at least {_FIXED_PIECES + 2} (the bytes and two pieces), got {size}")
        lines = list(_lines(texts))
        characters = Counter(character for line in lines for character in line)
        if not characters:
            raise ValueError("there is no text to train the text tokenizer on: provide at least one character")
        # Half of the pieces are for characters, the other half for merges of them; rare characters are spelled in bytes.
        frequent = _frequent(characters, (size - _FIXED_PIECES) // 2)
        # Rare characters become line breaks in training only, so that no piece is learned that contains them.
        rare = {ord(character): "\n" for character in characters.keys() - frequent}
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=(part for line in lines for part in line.translate(rare).split("\n") if part),
                model_writer=model,
                model_type="bpe",
                vocab_size=size,
                character_coverage=1.0,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                add_dummy_prefix=False,
                byte_fallback=True,
                allow_whitespace_only_pieces=True,
                shuffle_input_sentence=False,
                hard_vocab_limit=False,
                required_chars="\u2581",  # the space, also where the texts have none
                num_threads=1,  # with several, ties are broken in an order that varies between runs
                minloglevel=2,
            )
        except RuntimeError as error:
            raise ValueError(f"SentencePiece cannot learn {size} pieces from this text ({_brief(error)})") from error
        return cls(model.getvalue())

    @classmethod
    def load(cls, path: Path) -> "TextTokenizer":
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not a text model.
        """
        try:
            return cls(Path(path).read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def save(self, path: Path) -> None:
        """Writes the model in the format of SentencePiece's own tools."""
        Path(path).write_bytes(self.model)

    @cached_property
    def _processor(self) -> "sentencepiece.SentencePieceProcessor | JsonProcessor":
        if self.model[:1] == b"{":  # no SentencePiece model (a protobuf) begins with a brace
            return JsonProcessor(self.model)
        return sentencepiece.SentencePieceProcessor(model_proto=self.model)

    @cached_property
    def _known(self) -> dict[str, Int32[np.ndarray, "_n"]]:
        # Per instance and mutable on a frozen dataclass: a cache, not a part of its value.
        return {}

    @property
    def size(self) -> int:
        """Number of pieces; every id is below it."""
        return self._processor.get_piece_size()

    def encode(self, text: str) -> Int32[np.ndarray, "n"]:
        """Ids of a text, read-only since they are cached.

        Raises:
            ValueError: the text has a lone surrogate, which is not a character.
        """
        known = self._known.get(text)
        if known is not None:
            return known
        ids = np.array(self._processor.encode(self._escaped(text)), np.int32)
        ids.flags.writeable = False
        # Emptied rather than evicted one by one: simpler, and refilled within one epoch of instructions.
        if len(text) < _LONGEST_LINE:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[text] = ids
        return ids

    def decode(self, ids: Int[np.ndarray, "n"]) -> str:
        """The text of ids. Bytes that are not UTF-8, which only a model produces, become U+FFFD.

        Raises:
            ValueError: an id is not a piece.
        """
        # The ids of other kinds begin where the text's end; SentencePiece would fail on them without naming the id.
        ids = np.asarray(ids)
        if len(ids) and not (ids.min() >= 0 and ids.max() < self.size):
            raise ValueError(f"text ids must be in 0..{self.size - 1}, got {ids.min()}..{ids.max()}")
        return self._unescaped(self._processor.decode([int(token) for token in ids]))

    def written(self, ids: Int[np.ndarray, "n"]) -> str:
        """The text of ids that a model wrote: control tokens, and ids without a piece, are left out."""
        ids = np.asarray(ids)
        if isinstance(self._processor, JsonProcessor):
            return self._processor.decode(ids.tolist(), skip_special_tokens=True)
        return self.decode(ids[ids < self.size])

    @cached_property
    def longest(self) -> int:
        """Characters of the longest piece: a text has at least its length divided by this as ids."""
        return max(len(self._processor.id_to_piece(id)) for id in range(self.size))

    def is_byte(self, id: int) -> bool:
        """Whether an id is a byte that a `tokenizer.json` decodes together with those around it: one that fits nowhere makes all
        of them unreadable."""
        return isinstance(self._processor, JsonProcessor) and bool(_BYTE.fullmatch(self._processor.id_to_piece(id)))

    def with_controls(self, text: str) -> Int32[np.ndarray, "n"]:
        """Ids of a text in which control tokens are written out, as the chat template of a published model gives it.
        What stands behind one gets no space of its own, as by HuggingFace's definitions.
        """
        if isinstance(self._processor, JsonProcessor):
            return np.array(self._processor.with_controls(self._escaped(text)), np.int32)
        if not self._controls:
            return self.encode(text)
        # Longest first: one may begin as another.
        listed = sorted(self._controls, key=len, reverse=True)
        first, *later = re.split(f"({'|'.join(map(re.escape, listed))})", text)  # texts and control tokens in turns
        ids = list(self.encode(first)) if first else []
        for control, part in zip(later[::2], later[1::2], strict=True):
            ids += [self._controls[control], *self._unspaced.encode(self._escaped(part))]
        return np.array(ids, np.int32)

    @cached_property
    def _controls(self) -> dict[str, int]:
        """The control tokens of a SentencePiece model, and those that were added to it."""
        processor = self._unspaced
        own = (id for id in range(self.size) if processor.is_control(id))
        return {processor.id_to_piece(id): id for id in own} | dict(self.added)

    @cached_property
    def _unspaced(self) -> sentencepiece.SentencePieceProcessor:
        """The SentencePiece model without the space that it may put before a text."""
        # The model is a protobuf, where a later value of a field replaces an earlier one: add_dummy_prefix of normalizer_spec.
        return sentencepiece.SentencePieceProcessor(model_proto=self.model + b"\x1a\x02\x18\x00")

    def _escaped(self, text: str) -> str:
        # A published model's ids are those of its own tokenizer, whatever that makes of a character.
        escaped = _escaped(text)
        return text if isinstance(self._processor, JsonProcessor) else escaped

    def _unescaped(self, text: str) -> str:
        return text if isinstance(self._processor, JsonProcessor) else _unescaped(text)

    def controls(self) -> list[str]:
        """The control tokens, written out."""
        return self._processor.controls() if isinstance(self._processor, JsonProcessor) else list(self._controls)

    def control_id(self, token: str) -> int | None:
        """The id of a token that was added to the vocabulary, such as a control token; None: it has none."""
        if isinstance(self._processor, JsonProcessor):
            return self._processor.control_id(token)
        return self._controls.get(token)

    @property
    def count(self) -> int:
        """Number of ids, control tokens included."""
        if isinstance(self._processor, JsonProcessor):
            return self._processor.count
        return max(self.size, *(id + 1 for _, id in self.added)) if self.added else self.size

    @property
    def spaced(self) -> bool:
        """Whether every text begins with a space of its own, as Llama's do: one that is written there is a second one."""
        first = self._processor.id_to_piece(int(self.encode("a")[0]))
        return first.startswith("\u2581")

    def control(self, id: int) -> str | None:
        """The added token of an id, such as a control token, written out; None: it is none, or a SentencePiece model."""
        return self._processor.control(id) if isinstance(self._processor, JsonProcessor) else None

    def around(self) -> tuple[list[int], list[int]] | None:
        """The control tokens that a `tokenizer.json` puts before and behind a text; None: a SentencePiece model, which does not
        say."""
        return self._processor.around() if isinstance(self._processor, JsonProcessor) else None

    def __reduce__(self) -> tuple:
        # The processor is a C++ object: workers get the bytes and rebuild it.
        return TextTokenizer, (self.model, self.added)


class JsonProcessor:
    """A `tokenizer.json` behind the three methods of a SentencePiece processor that are used here."""

    def __init__(self, model: bytes):
        try:
            import tokenizers  # HuggingFace's package, an extra; ours is generalist.tokenizers
        except ImportError as error:
            raise ImportError(
                'a tokenizer.json needs the package "tokenizers": install generalist[hf], or put the tokenizer.model beside it'
            ) from error
        self._tokenizer = tokenizers.Tokenizer.from_buffer(model)
        # Text is only text: control tokens written into a prompt must not become control tokens.
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # Control tokens, which text never takes, may have ids beyond the rows of a model that has no use for them (Gemma 3).
        pieces = set(self._tokenizer.get_vocab(with_added_tokens=False).values())
        written = {number for number, token in self._tokenizer.get_added_tokens_decoder().items() if not token.special}
        self._size = 1 + max(pieces | written, default=-1)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def with_controls(self, text: str) -> list[int]:
        self._tokenizer.encode_special_tokens = False
        try:
            return self.encode(text)
        finally:
            self._tokenizer.encode_special_tokens = True

    def controls(self) -> list[str]:
        return [token.content for token in self._tokenizer.get_added_tokens_decoder().values() if token.special]

    def control_id(self, token: str) -> int | None:
        added = self._tokenizer.get_added_tokens_decoder().items()
        return next((id for id, one in added if one.content == token), None)

    @property
    def count(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def id_to_piece(self, id: int) -> str:
        return self._tokenizer.id_to_token(id) or ""

    def control(self, id: int) -> str | None:
        token = self._tokenizer.get_added_tokens_decoder().get(id)
        return None if token is None else token.content

    def around(self) -> tuple[list[int], list[int]]:
        """The control tokens that the file puts before and behind a text."""
        # A text of one piece or several: the same ids stand alone in the middle.
        whole, alone = self._tokenizer.encode("a", add_special_tokens=True).ids, self.encode("a")
        start = next(at for at in range(len(whole)) if whole[at : at + len(alone)] == alone)
        return whole[:start], whole[start + len(alone) :]

    def get_piece_size(self) -> int:
        return self._size


def _escaped(text: str) -> str:
    """The text with the three characters escaped that SentencePiece cannot represent."""
    # SentencePiece would silently replace a surrogate, and the text would not round-trip.
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text has a lone surrogate U+{ord(text[error.start]):04X} at character {error.start}, which is not a character: "
            'replace it first, as text.encode("utf-8", "replace").decode() does'
        ) from error
    return _ESCAPED.sub(lambda found: _NAMES[found.group()], text)


def _unescaped(text: str) -> str:
    """The text that `_escaped` was given."""
    return _NAMED.sub(lambda name: _CHARACTERS[name.group()], text) if _ESCAPE in text else text


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """Lines short enough for training, without line ends: those are spelled in bytes."""
    for text in texts:
        for line in re.split("[\r\n]", _escaped(text)):
            yield from (line[start : start + _LONGEST_LINE] for start in range(0, len(line), _LONGEST_LINE))


def _frequent(characters: Counter[str], room: int) -> set[str]:
    """The characters that get their own pieces: the most frequent ones, up to `_COVERAGE` of the text."""
    # At least one character, however small the vocabulary: SentencePiece fails without any.
    frequent, covered, enough = set(), 0, _COVERAGE * characters.total()
    for character, count in characters.most_common(max(1, room)):
        if covered >= enough:
            break
        frequent.add(character)
        covered += count
    return frequent


def _brief(error: Exception) -> str:
    """The end of an error on one line: SentencePiece puts the reason after a path in its own sources."""
    return " ".join(str(error).split())[-200:]
