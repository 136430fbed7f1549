"""Broken records: counted, named by file and record, and left out as long as they are few."""

import contextlib
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator

# A log of a hundred thousand broken records helps nobody: the first ones show what is wrong, powers of two how it
# grows.
TOLD = 10  # by name; then the 16th, the 32nd, ...
# Enough to see whether they have a file in common.
NAMED = 20  # of them in the error that ends a run


class BrokenRecord(ValueError):
    """A record, a file or a part of one that can't be read; the message names file, record and reason."""


class Unread(BrokenRecord):
    """A part of a record is of a kind that is never read; the rest of it may be."""


# What libraries raise for damaged files; which of them depends on the place of the damage.
ERRORS = (
    *(
        OSError,
        EOFError,
        LookupError,
        ValueError,
        RuntimeError,
        TypeError,
        AttributeError,
        ArithmeticError,
        MemoryError,
    ),
    # The header of an .npy file is a Python literal, which NumPy parses: hence SyntaxError and TokenError.
    *(SyntaxError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)


@contextlib.contextmanager
def naming(where: object) -> Iterator[None]:
    """Whatever a library raises for a damaged file within a block names `where`.

    Raises:
        BrokenRecord: it did raise.
    """
    try:
        yield
    # It has a better message already, from closer to the damage.
    except BrokenRecord:
        raise
    except ERRORS as error:
        raise BrokenRecord(f"{where} can't be read ({error}): copy it again, or take it out") from error


class TooManyBroken(ValueError):
    """More records are broken than may be left out; the message names the first ones."""


class Faults:
    """Which records of a data set can't be read.

    Args:
        what: the data set, for messages.
        total: its records.
        share: of them that may be left out, from 0 to below 1.
        say: prints a line for the user.
    """

    def __init__(self, what: object, total: int, share: float, say: Callable[[str], None]):
        self.what, self.total, self.share = what, total, share
        self._say = say
        # By number, since training meets the same record in every epoch.
        self.reasons: dict[int, str] = {}
        """Number of a record → why it can't be read, as far as is known."""

    def add(self, number: int, reason: object) -> None:
        """Counts a broken record, once.

        Raises:
            TooManyBroken: it is one too many.
        """
        if number not in self.reasons:
            self.note(number, reason)
            self.check()

    def note(self, number: int, reason: object, *, always: bool = False) -> None:
        """Counts a broken record, once, however many there are: for those who look at all before they `check`.

        Args:
            always: prints each one, not only the first and some.
        """
        if number in self.reasons:
            return
        self.reasons[number] = str(reason)
        count = len(self.reasons)
        # `count & (count - 1)` is 0 for powers of two.
        if always or count <= TOLD or count & (count - 1) == 0:
            self._say(f"note: record left out, number {count} of {self.total:,}: {reason}")

    def check(self) -> None:
        """
        Raises:
            TooManyBroken: more are broken than may be left out.
        """
        count = len(self.reasons)
        # Rounded down: a share of 0.01 of 50 records allows none, which is what people expect of "at most 1%".
        if count <= math.floor(self.share * self.total):
            return
        named = "; ".join(self.reasons[number] for number in sorted(self.reasons)[:NAMED])
        more = f"; and {count - NAMED:,} more" if count > NAMED else ""
        raise TooManyBroken(
            f"{count:,} of {self.total:,} records of {self.what} can't be read, where a share of {self.share:g} may be left out "
            f"(the setting `unreadable`): mend them, take them out, or raise it; {named}{more}"
        )
