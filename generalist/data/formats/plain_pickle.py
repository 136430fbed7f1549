"""Pickles of annotations, such as those that Python 2 wrote."""

from typing import Any

from generalist.data.files import DocumentError
from generalist.system.plain_pickle import PickleError, PlainPickle

LARGEST = 2**28
"""Bytes; the largest published annotations of this kind have about a tenth of that."""


def plain_pickle(content: bytes, where: str) -> Any:
    """The value of a pickle, of which nothing is run.

    Args:
        content: its bytes.
        where: its place, for messages.

    Raises:
        DocumentError: it is damaged, too large, or has an instruction that plain values do not need.
    """
    if len(content) > LARGEST:
        raise DocumentError(f"{where} has {len(content):,} bytes, more than {LARGEST:,}: it is not the published file")
    try:
        return PlainPickle(content).run()
    except PickleError as error:
        raise DocumentError(f"{where} {error}: get the published file") from error
