"""The whole evaluation of a run's newest checkpoint: the parts of `generalist.eval.parts.registry`, one after the other."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
from rich.console import Console

from generalist.config.plain import plain
from generalist.config.run import Config
from generalist.eval.parts import registry
from generalist.eval.parts.part import Job
from generalist.eval.results import file as report
from generalist.eval.results.manifest import manifest
from generalist.inference.fingerprint import fingerprint
from generalist.inference.generalist import Generalist
from generalist.system.progress import counting


class EvaluationError(RuntimeError):
    """A job failed; the others are finished and kept."""


def evaluate(config: Config, command: list[str], console: Console) -> dict[str, Any]:
    """Scores the newest checkpoint, writes `results.json` into the run's folder and shows it.

    Jobs that an earlier, interrupted evaluation of the same checkpoint finished are not done again. One that fails does not
    keep the others from being done.

    Args:
        config: the run's settings.
        command: what the user typed.
        console: where progress and the results are shown.

    Raises:
        FileNotFoundError: there is no checkpoint.
        EvaluationError: a job failed; raised when all others are finished and written.
    """
    generalist = Generalist.from_run(config)
    kept = report.Parts(folder=config.folder / "evaluation" / f"step-{generalist.step}")
    # From the last part to the first: control, which is shown first, takes by far the longest.
    jobs = [job for part in reversed(registry.PARTS) for job in part.jobs(generalist)]
    done, failed, seconds = _compute(jobs, kept, console)
    sections = {}
    seeds: dict[str, int] = {}
    for part in registry.PARTS:
        own = {job.key: done[job.name] for job in jobs if job.part == part.name and job.name in done}
        if own:
            sections[part.name] = part.section(generalist, own)
            seeds |= part.seeds
    device, weights = str(jax.devices()[0]), fingerprint(generalist)
    results = manifest(command, plain(config), generalist.step, seeds, device, weights, seconds)
    results |= sections | {"failed": failed}
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


def _compute(jobs: Sequence[Job], kept: report.Parts, console: Console) -> tuple[dict[str, Any], dict[str, str], float]:
    """Results of the jobs by name, the reasons of those that failed, and the seconds that all results took."""
    done: dict[str, Any] = {}
    failed: dict[str, str] = {}
    total = 0.0
    for number, job in enumerate(jobs, 1):
        known = kept.path(job.name, job.settings).exists()
        console.print(f"evaluation {number}/{len(jobs)}: {job.name}{', kept' if known else ''}", highlight=False)
        with counting(console, transient=True, disable=not console.is_terminal) as progress:
            try:
                done[job.name], seconds = kept.timed(job.name, job.settings, partial(job.compute, progress))
                total += seconds
            except Exception as error:  # whatever it is, the other jobs are worth having
                failed[job.name] = f"{type(error).__name__}: {error}"
                console.print(f"evaluation of {job.name} failed: {failed[job.name]}", style="red", highlight=False)
    return done, failed, total
