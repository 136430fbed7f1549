"""The meaning of every token id: the only place that knows an id range."""

import dataclasses
from functools import cached_property

import numpy as np
from jaxtyping import Int64

KINDS = ("text", "continuous", "discrete", "image_codes", "locations")
# Ids follow this order, which stored weights depend on: append, never reorder.
SPECIALS = ("pad", "bos", "eos", "separator", "hidden", "image", "chunk_end")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Sizes of the id ranges, laid out in the order of the fields and followed by the special ids.

    Gato's continuous and text ranges are 1024 and 32000 ids (section 2.1). In Gato discrete numbers share ids with text;
    here they have their own range, so that no id means two things.
    """

    text: int = 32000
    """Text pieces."""
    continuous: int = 1024
    """Bins of a continuous number."""
    discrete: int = 1024
    """Values of a discrete number."""
    image_codes: int = 0
    """Entries of an image codebook."""
    locations: int = 0
    """Places in an image."""

    def __post_init__(self) -> None:
        for kind in KINDS:
            size = getattr(self, kind)
            if isinstance(size, bool) or not isinstance(size, int) or size < 0:
                raise ValueError(f"vocabulary.{kind} must be a whole number of ids, 0 or more, got {size!r}")
        # Ids travel as int32 to the device.
        if self.size >= 2**31:
            raise ValueError(f"the vocabulary has {self.size} ids, more than an int32 holds: make its ranges smaller")

    @cached_property
    def boundaries(self) -> Int64[np.ndarray, "6"]:
        """First id of each kind in `KINDS`, then of the specials."""
        return np.concatenate([[0], np.cumsum([getattr(self, kind) for kind in KINDS])])

    @property
    def size(self) -> int:
        """Number of ids, specials included."""
        return int(self.boundaries[-1]) + len(SPECIALS)

    def range(self, kind: str) -> range:
        """The ids of a kind, one of `KINDS` or "special".

        Raises:
            ValueError: there is no such kind.
        """
        if kind == "special":
            return range(int(self.boundaries[-1]), self.size)
        if kind not in KINDS:
            raise ValueError(f"unknown kind of token {kind!r}: there are {', '.join((*KINDS, 'special'))}")
        # A kind of size 0 gives an empty range, not an error: its tokens just never occur.
        index = KINDS.index(kind)
        return range(int(self.boundaries[index]), int(self.boundaries[index + 1]))

    def kind_of(self, token: int) -> str:
        """The kind of an id.

        Raises:
            ValueError: the id is outside the vocabulary.
        """
        if not 0 <= token < self.size:
            raise ValueError(f"token id {token} is outside the vocabulary of {self.size} ids")
        # side="right" steps over kinds of size 0, which share their boundary with the next kind.
        index = int(np.searchsorted(self.boundaries, token, side="right")) - 1
        return (*KINDS, "special")[index]

    def _special(self, name: str) -> int:
        return int(self.boundaries[-1]) + SPECIALS.index(name)

    @property
    def pad(self) -> int:
        """Fills positions without a token: padding, and positions that embed a payload."""
        return self._special("pad")

    @property
    def bos(self) -> int:
        """Begins a text."""
        return self._special("bos")

    @property
    def eos(self) -> int:
        """Ends a text."""
        return self._special("eos")

    @property
    def separator(self) -> int:
        """Stands between an observation and its action (Gato, section 2.2)."""
        return self._special("separator")

    @property
    def hidden(self) -> int:
        """Stands in for an action token that is not shown."""
        return self._special("hidden")

    @property
    def image(self) -> int:
        """Marks an image that is seen through cross-attention (Flamingo, section 2.4)."""
        return self._special("image")

    @property
    def chunk_end(self) -> int:
        """Ends the text of one image in a document of several (Flamingo, appendix A.3: `<EOC>`)."""
        return self._special("chunk_end")
