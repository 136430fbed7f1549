"""Where what can be computed again is kept between runs: indices and statistics of data sets."""

import os
from pathlib import Path

import platformdirs

VARIABLE = "GENERALIST_CACHE"


def cache_folder() -> Path:
    """The folder that the environment variable GENERALIST_CACHE names, or the platform's own for caches."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else Path(platformdirs.user_cache_dir("generalist", appauthor=False))
