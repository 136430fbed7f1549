"""The episodes of two results files: is one better, in which domains and tasks, and do these episodes suffice to show it?

Where a task was played with the same seeds in both files, episodes of the same seed are a pair: their difference does not depend
on how hard the seed's start is. Otherwise the episodes of the two files are resampled independently.

Dimension key: R resamples, N episodes (or pairs) of a task in A, M in B.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from rich.console import Console
from rich.table import Table
from scipy import stats

from generalist.eval.results.scores import CONFIDENCE, RESAMPLES, Estimate, between, percent
from generalist.eval.results.words import listed

PERMUTATIONS = 9999  # per test; all of them if there are fewer
SAME_SCALE = "both are measured on B's scale"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskDifference:
    """One task in both files."""

    name: str
    before: float
    """Mean percent in A."""
    after: float
    """Mean percent in B."""
    difference: Estimate
    """B's mean minus A's, in percents of the expert."""
    improvement: Estimate
    """Probability in percent that an episode of B scores higher than one of A, a tie counting half."""
    paired: bool
    """The same seeds were played in both."""
    p: float
    """P-value of a permutation test of no difference."""
    differs: bool
    """Whether the test rejects that, after Holm's correction over all tasks of all domains."""
    resampled: Float[np.ndarray, "R"]
    """Resampled differences, for the domain's interval."""
    resampled_improvement: Float[np.ndarray, "R"]
    """The same of the probability of improvement, in percent."""
    pairs: int
    """Episodes, or pairs of them, that can be resampled: the smaller number of the two files."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DomainDifference:
    """All tasks of a domain that are in both files, every task counting the same."""

    name: str
    before: float
    after: float
    difference: Estimate
    improvement: Estimate
    tasks: list[TaskDifference]

    @property
    def verdict(self) -> str:
        """The conclusion that these episodes allow, as a sentence."""
        # Resampled, one episode always gives itself: an interval without width would look like certainty.
        if min(task.pairs for task in self.tasks) < 2:
            return "one episode per task shows nothing: play at least two"
        interval = f"{self.difference.value:+z.1f} [{self.difference.low:z.1f}, {self.difference.high:z.1f}]"
        # Significant if the 95% interval excludes zero.
        if self.difference.low > 0:
            return f"B is better: {interval}"
        if self.difference.high < 0:
            return f"A is better: {interval}"
        return f"these episodes show no difference: {interval}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything about two files."""

    domains: list[DomainDifference]
    warnings: list[str]
    """Differences between the episodes of the two files other than their scores."""


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> Comparison:
    """Compares the contents of two results files, A and B, as `generalist.eval.results.file.load` returns them.

    Raises:
        ValueError: they have no task in common.
    """
    # Only tasks of both files: a mean over other tasks would compare the tasks, not the weights.
    both = {
        suite: [name for name in summary["tasks"] if name in after["control"].get(suite, {}).get("tasks", {})]
        for suite, summary in before["control"].items()
    }
    found = {
        name: _task(name, before["control"][suite]["tasks"][name], after["control"][suite]["tasks"][name])
        for suite, names in both.items()
        for name in names
    }
    if not found:
        raise ValueError("the two files have no task in common: evaluate the same suites")
    # One correction over the tasks of all domains: they are all read from one table.
    rejected = holm({name: task.p for name, task in found.items()})
    marked = {name: dataclasses.replace(task, differs=name in rejected) for name, task in found.items()}
    domains = [_domain(suite, [marked[name] for name in names]) for suite, names in both.items() if names]
    return Comparison(domains=domains, warnings=warnings(before, after))


def holm(p_values: Mapping[str, float]) -> set[str]:
    """The hypotheses that Holm's step-down procedure rejects (Holm 1979): the probability of rejecting any of them wrongly is at
    most 5%, however many there are."""
    rejected: set[str] = set()
    # The smallest p-value meets the strictest threshold, that of Bonferroni; the first failure ends the procedure.
    for step, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        if p > (1 - CONFIDENCE) / (len(p_values) - step):
            break
        rejected.add(name)
    return rejected


def _task(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> TaskDifference:
    """One task; both files' scores as percents between the references of B."""
    random, expert = after["random_score"], after["expert_score"]
    old, new = (
        {one["seed"]: percent(one["score"], random, expert) for one in task["episodes"]} for task in (before, after)
    )
    seeds = sorted(old.keys() & new.keys())
    # All seeds must agree: pairing a part of them would leave out episodes.
    paired = len(seeds) == max(len(old), len(new))
    a = np.array([old[seed] for seed in (seeds if paired else sorted(old))])  # (N,)
    b = np.array([new[seed] for seed in (seeds if paired else sorted(new))])  # (M,)
    rng = np.random.default_rng(0)
    first = rng.integers(len(a), size=(RESAMPLES, len(a)))  # (R, N)
    # Pairs are resampled as pairs, so that the difficulty of a seed cancels.
    second = first if paired else rng.integers(len(b), size=(RESAMPLES, len(b)))  # (R, M)
    resampled = b[second].mean(axis=1) - a[first].mean(axis=1)  # (R,)
    # Every episode of A with every one of B: 1 where B's is better, 0.5 for a tie (N, M). Probability of improvement (Agarwal
    # et al. 2021).
    better = np.sign(b[None, :] - a[:, None]) / 2 + 0.5
    # By how often each episode was drawn: R tables of (N, M) would take too much memory.
    improved = np.einsum("rn,nm,rm->r", _weights(first, len(a)), better, _weights(second, len(b)))
    return TaskDifference(
        name=name,
        before=float(a.mean()),
        after=float(b.mean()),
        difference=_estimate(b.mean() - a.mean(), resampled),
        improvement=_estimate(100 * better.mean(), 100 * improved),
        paired=paired,
        p=_p(a, b, paired),
        differs=False,
        resampled=resampled,
        resampled_improvement=100 * improved,
        pairs=min(len(a), len(b)),
    )


def _weights(drawn: Int[np.ndarray, "R N"], count: int) -> Float[np.ndarray, "R N"]:
    """The share of each resample that each episode makes up."""
    return np.stack([np.mean(drawn == index, axis=1) for index in range(count)], axis=1)


def _p(a: Float[np.ndarray, "N"], b: Float[np.ndarray, "M"], paired: bool) -> float:
    """Two-sided p-value of a permutation test of equal means, which exchanges the files within pairs or among all episodes."""
    # One episode shows nothing; of equal pairs every permutation gives the same, which the test need not compute.
    if min(len(a), len(b)) < 2 or (paired and np.array_equal(a, b)):
        return 1.0
    # SciPy calls the exchange within pairs "samples".
    kind = "samples" if paired else "independent"
    found = stats.permutation_test(
        (b, a),
        lambda x, y, axis: np.mean(x, axis=axis) - np.mean(y, axis=axis),
        permutation_type=kind,
        n_resamples=PERMUTATIONS,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def _estimate(value: float, resampled: Float[np.ndarray, "R"]) -> Estimate:
    low, high = between(resampled)
    return Estimate(value=float(value), low=float(low), high=float(high))


def _domain(name: str, tasks: list[TaskDifference]) -> DomainDifference:
    """Means over tasks; resampling stays within each task, as in every other score."""

    def mean(of: Callable[[TaskDifference], Any]) -> Any:
        return np.mean([of(task) for task in tasks], axis=0)

    return DomainDifference(
        name=name,
        before=float(mean(lambda task: task.before)),
        after=float(mean(lambda task: task.after)),
        difference=_estimate(mean(lambda task: task.difference.value), mean(lambda task: task.resampled)),
        improvement=_estimate(mean(lambda task: task.improvement.value), mean(lambda task: task.resampled_improvement)),
        tasks=tasks,
    )


def warnings(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Differences between the episodes of two files other than their scores, one line each."""
    found = []
    for suite in sorted(before["control"].keys() | after["control"].keys()):
        old, new = (one["control"].get(suite, {}).get("tasks", {}) for one in (before, after))
        found += _tasks_differ(suite, old, new)
    return found


def _tasks_differ(suite: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Tasks of a suite that only one file has, and differences in how the shared ones were played."""
    found = []
    for where, names in (("A", old.keys() - new.keys()), ("B", new.keys() - old.keys())):
        if names:
            found.append(f"only in {where}: {listed(sorted(names))}")
    shared = sorted(old.keys() & new.keys())
    for what, of in (
        ("episodes per task", lambda task: len(task["episodes"])),
        ("max_steps", lambda task: task["max_steps"]),
        ("seeds", lambda task: sorted(one["seed"] for one in task["episodes"])),
        ("reference scores", lambda task: (task["random_score"], task["expert_score"])),
    ):
        other = [name for name in shared if of(old[name]) != of(new[name])]
        # Another number of episodes implies other seeds: one line says enough.
        if other and not (what == "seeds" and any(line.startswith("episodes") for line in found)):
            example = "" if what == "seeds" else f", such as {of(old[other[0]])} → {of(new[other[0]])} in {other[0]}"
            note = f"; {SAME_SCALE}" if what == "reference scores" else ""
            found.append(f"{what} differ in {len(other)} of {len(shared)} tasks of {suite}{example}{note}")
    return found


def show(comparison: Comparison, console: Console) -> None:
    """Prints the comparison: warnings, a row per domain, the verdicts, and the tasks that differ."""
    for line in comparison.warnings:
        console.print(f"note: {line}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    table = Table("", "A %", "B %", "B - A", "P(B > A) %", "pairs", title="percent of expert, with 95% intervals")
    for domain in comparison.domains:
        paired = sum(task.paired for task in domain.tasks)
        shown = [f"{value:z.1f}" for value in (domain.before, domain.after)]
        table.add_row(
            domain.name, *shown, str(domain.difference), str(domain.improvement), f"{paired}/{len(domain.tasks)}"
        )
    console.print(table)
    for domain in comparison.domains:
        console.print(f"{domain.name}: {domain.verdict}", highlight=False, markup=False, soft_wrap=True)
    tasks = [task for domain in comparison.domains for task in domain.tasks]
    different = [task for task in tasks if task.differs]
    console.print(f"{len(different)} of {len(tasks)} tasks differ (5%, after Holm's correction)", highlight=False)
    for task in sorted(different, key=lambda one: one.difference.value):
        line = f"  {task.name}: {task.before:z.0f} → {task.after:z.0f}, {task.difference.value:+z.1f} "
        console.print(
            f"{line}[{task.difference.low:z.0f}, {task.difference.high:z.0f}], p = {task.p:.4f}",
            highlight=False,
            markup=False,
        )
