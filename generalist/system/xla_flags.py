"""The options that the user gave XLA, which ours are added to."""

import os
from pathlib import Path


def given_flags() -> str:
    """The options in XLA_FLAGS. If it names a file, which is what XLA takes any value for that begins without "-", the options in
    that file: behind its name, options of ours would be taken for a part of the name.

    Raises:
        OSError: the file can't be read.
    """
    given = os.environ.get("XLA_FLAGS", "").strip()
    if not given or given.startswith("-"):
        return given
    try:
        return Path(given).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise OSError(
            f"XLA_FLAGS={given} names a file of options, which can't be read ({error.strerror}): correct the name, or begin "
            "with '-' to give the options themselves"
        ) from error
