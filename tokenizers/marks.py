"""How the texts of a model begin and end, in ids."""

import dataclasses

from generalist.tokenizers.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class Marks:
    """The ids around texts: our own special ids, or those of a published language model."""

    begin: tuple[int, ...]
    """Ids before a document."""
    ends: tuple[int, ...]
    """Ids that end a text which is written."""
    chunk_end: int
    """Id behind each shot; a choice that is ranked includes it."""
    pieces: int
    """Number of ids that a text is made of, from 0 on."""
    stops: tuple[str, ...] = ()
    """Texts that also end what is written after shots."""

    @classmethod
    def of(cls, vocabulary: Vocabulary, pieces: int) -> "Marks":
        """Our special ids.

        Args:
            pieces: size of the text tokenizer.
        """
        ends = (vocabulary.eos, vocabulary.chunk_end)
        return cls(begin=(vocabulary.bos,), ends=ends, chunk_end=vocabulary.chunk_end, pieces=pieces)
