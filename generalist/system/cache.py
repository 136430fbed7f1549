"""Where what can be computed again is kept between runs: indices and statistics of data sets, compiled programs."""

import os
from pathlib import Path

import platformdirs

VARIABLE = "GENERALIST_CACHE"


def cache_folder() -> Path:
    """The folder that the environment variable GENERALIST_CACHE names, or the platform's own for caches."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else Path(platformdirs.user_cache_dir("generalist", appauthor=False))


def index_folder() -> Path:
    """The folder of indices and statistics, made if it is not there.

    Raises:
        OSError: it can't be made.
    """
    folder = cache_folder() / "index"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"indices of data sets are kept in {folder}, which can't be made ({error.strerror}): name another folder with "
            f"{VARIABLE}"
        ) from error
    return folder
