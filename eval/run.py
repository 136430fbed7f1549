"""The whole evaluation of a run's newest checkpoint: text, naming, then control, a suite at a time."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from rich.console import Console

from generalist.config.plain import plain
from generalist.config.run import Config
from generalist.data.emoji import Split
from generalist.data.prose import prose
from generalist.envs.task import EVALUATION_SEED, Task
from generalist.eval.control import agents
from generalist.eval.control import lanes as control
from generalist.eval.held_out import language, naming
from generalist.eval.results import file as report
from generalist.inference.fingerprint import fingerprint
from generalist.inference.generalist import Generalist
from generalist.inference.prompt import prompt
from generalist.inference.sampling import Decoding
from generalist.inference.score import log_likelihood
from generalist.run.tasks import suite_tasks
from generalist.system.processes import cores
from generalist.system.progress import Progress, counting

NAME_TOKENS = 16  # of a written name at most
NAMING_SPLITS: tuple[Split, ...] = ("drawings", "names")


class EvaluationError(RuntimeError):
    """A part failed; the others are finished and kept."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One part of the evaluation."""

    name: str
    settings: dict[str, Any]
    """What the result depends on besides the weights: with other settings it is computed anew."""
    compute: Callable[[Progress], Any]
    """Shows its progress; returns JSON values."""


def evaluate(config: Config, command: list[str], console: Console) -> dict[str, Any]:
    """Scores the newest checkpoint, writes `results.json` into the run's folder and shows it.

    Parts that an earlier, interrupted evaluation of the same checkpoint finished are not done again. A part that fails
    does not keep the others from being done.

    Args:
        config: the run's settings.
        command: what the user typed.
        console: where progress and the results are shown.

    Raises:
        FileNotFoundError: there is no checkpoint.
        EvaluationError: a part failed; raised when all others are finished and written.
    """
    generalist = Generalist.from_run(config)
    kept = report.Parts(folder=config.folder / "evaluation" / f"step-{generalist.step}")
    done, failed = _compute(parts(generalist), kept, console)
    seeds = {"evaluation": EVALUATION_SEED, "naming": naming.SEED, "text": language.SEED}
    results: dict[str, Any] = report.manifest(
        command, plain(config), generalist.step, seeds, str(jax.devices()[0]), fingerprint(generalist)
    )
    tasks = suite_tasks(config)
    results["control"] = {
        suite: control.summarize(tasks[suite], [control.Episode(**episode) for episode in done[f"control-{suite}"]])
        for suite in tasks
        if f"control-{suite}" in done
    }
    results["naming"] = {split: done[f"naming-{split}"] for split in NAMING_SPLITS if f"naming-{split}" in done}
    results["language"] = {"prose": done["language-prose"]} if "language-prose" in done else {}
    results["failed"] = failed
    path = config.folder / "results.json"
    report.save(path, results)
    report.show(results, console)
    console.print(f"every number, with seeds and versions: {path}", highlight=False)
    if failed:
        raise EvaluationError(
            f"{', '.join(failed)} could not be evaluated ({next(iter(failed.values()))}); "
            "the same command tries again and keeps the rest"
        )
    return results


def _compute(parts: list[Part], kept: report.Parts, console: Console) -> tuple[dict[str, Any], dict[str, str]]:
    """Results of the parts by name, and the reasons of those that failed."""
    done: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        known = kept.path(part.name, part.settings).exists()
        console.print(f"evaluation {number}/{len(parts)}: {part.name}{', kept' if known else ''}", highlight=False)
        with counting(console, transient=True, disable=not console.is_terminal) as progress:
            try:
                done[part.name] = kept.get(part.name, part.settings, partial(part.compute, progress))
            except Exception as error:  # whatever it is, the other parts are worth having
                failed[part.name] = f"{type(error).__name__}: {error}"
                console.print(f"evaluation of {part.name} failed: {failed[part.name]}", style="red", highlight=False)
    return done, failed


def parts(generalist: Generalist) -> list[Part]:
    """What the settings ask to be evaluated, the quick parts first."""
    data = generalist.config.data
    text = [_language_part(generalist)] if data.prose.weight > 0 else []
    images = [_naming_part(generalist, split) for split in NAMING_SPLITS] if data.emoji.weight > 0 else []
    suites = suite_tasks(generalist.config)
    return [*text, *images, *(_control_part(generalist, suite, tasks) for suite, tasks in suites.items())]


def _control_part(generalist: Generalist, suite: str, tasks: list[Task]) -> Part:
    """The episodes of one suite."""
    config = generalist.config
    episodes = getattr(config.evaluation, f"{suite}_episodes")

    def compute(progress: Progress) -> list[dict[str, Any]]:
        played, _ = agents.play(
            generalist,
            agents.parse_agent("model"),
            tasks,
            episodes,
            agents.Demonstrations(generalist),
            workers=config.data.workers or cores(),
            progress=progress,
        )
        return [dataclasses.asdict(episode) for episode in played]

    limits = {task.name: task.max_steps for task in tasks}
    settings = {"max_steps": limits, "episodes": episodes, "first_seed": EVALUATION_SEED}
    return Part(name=f"control-{suite}", settings=settings, compute=compute)


def _naming_part(generalist: Generalist, split: Split) -> Part:
    """Naming drawings of one split."""
    wanted = generalist.config.evaluation
    settings = {"items": wanted.naming_items, "choices": wanted.naming_choices, "seed": naming.SEED}

    def compute(progress: Progress) -> dict[str, Any]:
        return naming.evaluate_naming(
            generalist.assembler.document,
            partial(log_likelihood, generalist),
            split,
            items=wanted.naming_items,
            choices=wanted.naming_choices,
            generate=partial(prompt, generalist, decoding=Decoding(tokens=NAME_TOKENS)),
            progress=progress,
        )

    return Part(name=f"naming-{split}", settings=settings, compute=compute)


def _language_part(generalist: Generalist) -> Part:
    """Held-out prose."""
    config = generalist.config
    tokens = config.data.length - 1  # the beginning marker takes one position
    megabytes, count = config.data.prose.megabytes, config.evaluation.prose_windows

    def compute(progress: Progress) -> dict[str, Any]:
        training, heldout = (
            [document.text for document in prose(config.data.folder / "prose", split, megabytes)]
            for split in ("train", "heldout")
        )
        return language.evaluate_language(
            partial(generalist.assembler.text, eos=False),
            partial(log_likelihood, generalist),
            generalist.tokenizers.text.encode,
            generalist.vocabulary.text,
            training,
            heldout,
            tokens=tokens,
            count=count,
            progress=progress,
        )

    settings = {"megabytes": megabytes, "windows": count, "tokens": tokens, "seed": language.SEED}
    return Part(name="language-prose", settings=settings, compute=compute)
