"""The output of an evaluation: one file per finished job, one results file, and a table on the screen."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from generalist.eval.parts import registry
from generalist.eval.results import checks
from generalist.eval.results.manifest import FORMAT, KEYS
from generalist.system.files import write_json

if TYPE_CHECKING:
    from generalist.inference.generalist import Generalist


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """The finished jobs of the evaluation of one checkpoint, each in its own file.

    A job is computed again only if its settings change, so that a killed evaluation loses only its unfinished job.
    """

    folder: Path
    """`runs/<name>/evaluation/step-<n>`."""

    def path(self, name: str, settings: Mapping[str, Any]) -> Path:
        """The file of the job with these settings."""
        # Other settings are another file, so that results for both stay.
        text = json.dumps(settings, sort_keys=True)
        return self.folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"

    def get(self, name: str, settings: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """The job's result: from its file, or computed and stored. Results are JSON values.

        Raises:
            ValueError: the file is damaged.
        """
        return self.timed(name, settings, compute)[0]

    def timed(self, name: str, settings: Mapping[str, Any], compute: Callable[[], Any]) -> tuple[Any, float]:
        """The job's result and the seconds that computing it took, now or earlier (0 if they were not measured).

        Raises:
            ValueError: the file is damaged.
        """
        path = self.path(name, settings)
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            # Files of earlier versions have no time.
            return kept["result"], float(kept.get("seconds", 0.0))
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged ({error}): delete it, and that part is evaluated again") from error
        started = time.monotonic()
        result = compute()
        seconds = round(time.monotonic() - started, 1)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {"settings": settings, "result": result, "seconds": seconds})
        return result, seconds


def save(path: Path, results: Mapping[str, Any]) -> None:
    """Writes a results file with its digest, completely or not at all. No other function writes one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # As it will be read (keys are strings, tuples are lists), or the digest would differ after reading.
    stored = json.loads(json.dumps(results))
    write_json(path, stored | {"digest": checks.digest(stored)})


def load(path: Path) -> dict[str, Any]:
    """Reads a results file and checks that it is consistent: every part checks its section, then the digest is checked.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, has no digest, or was edited; the message names the first inconsistency.
    """
    return _checked_control(path, _read(path))


def load_fewshot(path: Path) -> dict[str, Any]:
    """The same for a file of `generalist eval fewshot`."""
    return _checked_fewshot(path, _read(path))


def load_any(path: Path) -> dict[str, Any]:
    """Reads a file of either kind; raises as `load` does."""
    results = _read(path)
    return _checked_fewshot(path, results) if is_fewshot(results) else _checked_control(path, results)


def is_fewshot(results: Mapping[str, Any]) -> bool:
    """Whether these are results of `generalist eval fewshot`."""
    return "new_words" in results or "fewshot" in results


def _read(path: Path) -> dict[str, Any]:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(
            f"there is no results file {path}: train.py writes one into a run's folder, `generalist eval` where --out says"
        ) from error
    except IsADirectoryError as error:
        raise IsADirectoryError(f"{path} is a folder: name the results file in it") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged, or no results file ({error}): evaluate again, or name another file"
        ) from error
    if not isinstance(results, dict):
        raise ValueError(f"{path} is no results file of an evaluation: name another one")
    # Before anything else is read: a newer format may mean something else by the same keys.
    written = results.get("format", 1)
    if type(written) is not int or not 1 <= written <= FORMAT:  # `type`, since True is an int too
        raise ValueError(f"{path} has the format {written!r}, but this version reads 1 to {FORMAT}: update generalist")
    return results


def _checked_control(path: Path, results: dict[str, Any]) -> dict[str, Any]:
    if is_fewshot(results):
        raise ValueError(
            f"{path} has results of generalist eval fewshot, where those of agents are needed: name another file"
        )
    if not {"settings", "versions", "step"} <= results.keys():
        raise ValueError(f"{path} is no results file of an evaluation: name another one")
    _check(path, results, _check_sections)
    return results


def _check_sections(results: Mapping[str, Any]) -> None:
    for part in registry.present(results):
        part.check(results)
    checks.check_digest(results)


def _checked_fewshot(path: Path, results: dict[str, Any]) -> dict[str, Any]:
    if not is_fewshot(results):
        raise ValueError(f"{path} is no results file of generalist eval fewshot: name another one")
    _check(path, results, checks.check_fewshot)
    return results


def _check(path: Path, results: Mapping[str, Any], check: Callable[[Mapping[str, Any]], None]) -> None:
    if "digest" not in results:
        raise ValueError(
            f"{path} has no digest: an earlier version wrote it, so nobody can tell whether it was edited; evaluate again "
            "(the episodes that were played are kept)"
        )
    try:
        check(results)
    except ValueError as error:
        raise ValueError(f"{path} is not as it was written: {error}") from error
    # A section without a key or with a value of another type was edited too, whatever the code that reads it raises.
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not as it was written: {type(error).__name__} {error}") from error


def check_weights(results: Mapping[str, Any], generalist: "Generalist") -> None:
    """Checks that results come from these weights.

    Raises:
        ValueError: they do not, or do not name their weights.
    """
    from generalist.inference.fingerprint import fingerprint  # imports JAX, which reading a file does not need

    stored, own = results.get("weights"), fingerprint(generalist)
    if stored is None:
        raise ValueError("the results do not say which weights they are of: evaluate again")
    if stored != own:
        raise ValueError(
            f"the results are of other weights: of {stored[:12]}… at step {results['step']:,}, but these are {own[:12]}… "
            f"at step {generalist.step:,}"
        )


def show(results: Mapping[str, Any], console: Console) -> None:
    """Prints the results: the table, what each part adds to it, and failures."""
    parts = registry.present(results)
    console.print(overview(results))
    for part in parts:
        part.show(results, console)
        if headline := part.headline(results):
            console.print(headline, style="bold", highlight=False)
    for name in unread(results):
        console.print(f"note: no part of this version reads the section {name}", style="yellow", highlight=False)
    for name, reason in results["failed"].items():
        console.print(f"{name} failed: {reason}", style="red", highlight=False, markup=False)


def overview(results: Mapping[str, Any]) -> Table:
    """The table with the rows of every part, at most 80 columns wide."""
    title = f"one set of weights, step {results['step']:,}, with 95% intervals"
    table = Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False, padding=0, collapse_padding=True)
    for header in ("", "mean", "middle half", "against", "from"):
        table.add_column(header, no_wrap=True)
    for part in registry.present(results):
        for row in part.rows(results):
            table.add_row(row.label, row.value, row.middle, row.against, row.source)
    return table


def unread(results: Mapping[str, Any]) -> list[str]:
    """Sections that no registered part reads: only the digest covers their numbers."""
    known = KEYS | {part.name for part in registry.PARTS}
    return [name for name, section in results.items() if name not in known and section]
