"""The complete evaluation of a run's newest checkpoint: all parts of `generalist.eval.parts.registry`, one after the other."""

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
    """A job failed; the results of the others are kept."""


def evaluate(config: Config, command: list[str], console: Console) -> dict[str, Any]:
    """Evaluates the newest checkpoint, writes `results.json` into the run's folder and shows it.

    Jobs that an earlier, interrupted evaluation of the same checkpoint finished are not computed again. A failed job does not
    prevent the others.

    Args:
        config: the run's settings.
        command: the command line.
        console: shows progress and results.

    Raises:
        FileNotFoundError: there is no checkpoint.
        EvaluationError: a job failed; raised after all others are finished and the results are written.
    """
    generalist = Generalist.from_run(config)
    # By step: the jobs of another checkpoint have other results, and stay for the history in the report.
    kept = report.Parts(folder=config.folder / "evaluation" / f"step-{generalist.step}")
    # From the last part to the first: control, which is shown first, takes by far the longest.
    jobs = [job for part in reversed(registry.PARTS) for job in part.jobs(generalist)]
    done, failed, seconds = _compute(jobs, kept, console)
    sections = {}
    seeds: dict[str, int] = {}
    # In the order in which parts are shown, which is that of the file's sections.
    for part in registry.PARTS:
        own = {job.key: done[job.name] for job in jobs if job.part == part.name and job.name in done}
        # A part whose jobs all failed has no section: no number is better than an empty one.
        if own:
            sections[part.name] = part.section(generalist, own)
            seeds |= part.seeds
    device, weights = str(jax.devices()[0]), fingerprint(generalist)
    results = manifest(command, plain(config), generalist.step, seeds, device, weights, seconds)
    results |= sections | {"failed": failed}
    path = config.folder / "results.json"
    report.save(path, results)
    report.show(results, console)
    console.print(f"all numbers, with seeds and versions: {path}", highlight=False)
    # Raised last, so that a script sees the failure in the exit status.
    if failed:
        raise EvaluationError(
            f"{', '.join(failed)} could not be evaluated ({next(iter(failed.values()))}); "
            "the same command tries again and keeps the other results"
        )
    return results


def _compute(jobs: Sequence[Job], kept: report.Parts, console: Console) -> tuple[dict[str, Any], dict[str, str], float]:
    """Results of the jobs by name, the errors of those that failed, and the seconds that computing all results took."""
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
            # Not BaseException: Ctrl-C ends the evaluation, whose finished jobs are kept.
            except Exception as error:
                failed[job.name] = f"{type(error).__name__}: {error}"
                console.print(f"evaluation of {job.name} failed: {failed[job.name]}", style="red", highlight=False)
    return done, failed, total
