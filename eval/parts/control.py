"""The control part: the weights play every task of their suites, on seeds that no recording used."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar
from xml.etree.ElementTree import Element

import numpy as np
from rich.columns import Columns
from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from generalist.envs.task import EVALUATION_SEED, Task
from generalist.eval.control import differences, page
from generalist.eval.control.checks import check_suite, percents
from generalist.eval.control.lanes import Episode, summarize
from generalist.eval.parts.part import Beside, Job, Part, Results, Row
from generalist.eval.report import history
from generalist.eval.report.charts import FAIR, GOOD
from generalist.eval.results.scores import HALF, Estimate, bootstrap, share_above
from generalist.eval.results.words import counted
from generalist.run.tasks import source_tasks
from generalist.system.console import READABLE
from generalist.system.processes import cores

if TYPE_CHECKING:
    from generalist.inference.generalist import Generalist


class Control(Part):
    """Control; one job per suite."""

    name = "control"
    title = "Control"
    seeds: ClassVar[Mapping[str, int]] = {"evaluation": EVALUATION_SEED}

    def jobs(self, generalist: "Generalist") -> list[Job]:
        return [_job(generalist, suite, tasks) for suite, tasks in self._tasks(generalist).items()]

    def section(self, generalist: "Generalist", done: Mapping[str, Any]) -> dict[str, Any]:
        tasks = self._tasks(generalist)
        return {suite: _summary(tasks[suite], done[suite]) for suite in tasks if suite in done}

    def _tasks(self, generalist: "Generalist") -> dict[str, list[Task]]:
        played = self.sources(generalist.config)
        return {name: tasks for name, tasks in source_tasks(generalist.config).items() if name in played}

    def numbers(self, results: Results) -> dict[str, Estimate]:
        return {f"{suite} %": Estimate(**one["percent"]) for suite, one in results["control"].items()}

    def check(self, results: Results) -> None:
        for suite, summary in results["control"].items():
            check_suite(suite, summary)
        for policy, suites in results.get("policies", {}).items():
            for suite, summary in suites.items():
                check_suite(f"{policy} in {suite}", summary)

    def headline(self, results: Results) -> str:
        # Gato's headline: how many tasks are above half of the expert's score (Reed et al. 2022, section 4.1).
        tasks = [percents(task) for one in results["control"].values() for task in one["tasks"].values()]
        above = sum(float(np.mean(scores)) > HALF for scores in tasks)
        share = bootstrap(tasks, share_above)
        return f"{above} of {counted(len(tasks), 'task')} above half of the expert: {share}%"

    def rows(self, results: Results) -> list[Row]:
        rows = []
        for suite, summary in results["control"].items():
            mean, middle = (str(Estimate(**summary[name])) for name in ("percent", "interquartile_mean"))
            played = counted(summary["episodes"], "episode")
            rows.append(Row(label=f"{suite} %", value=mean, middle=middle, against="random 0", source=played))
        return rows

    def show(self, results: Results, console: Console) -> None:
        suites = results["control"]
        # Scores of episodes that were cut off may be low because they were cut off: worth knowing beside them.
        limited = [f"{suite} {one['cut_off']}/{one['episodes']}" for suite, one in suites.items()]
        console.print(f"episodes that ended at the limit of steps: {', '.join(limited)}", highlight=False)
        for name, played in {results.get("agent", "model"): suites, **results.get("policies", {})}.items():
            if clipped := _clipped(played):
                line = f"{name}: observed numbers clipped to the range that the tokenizers know: {clipped}"
                console.print(line, highlight=False, markup=False, soft_wrap=True)
        for suite, summary in suites.items():
            cells = [_task_cell(name.partition("/")[2], task) for name, task in summary["tasks"].items()]
            console.print(Text(f"{suite}, percent of expert by task:", style="bold"))
            console.print(Columns(cells, padding=(0, 3), equal=True), width=min(console.width, READABLE))

    def page(self, results: Results, beside: Beside) -> list[Element]:
        folder = beside.folder
        # A results file that was copied somewhere else comes without the run's earlier evaluations.
        evaluations = {} if folder is None else history.evaluations(folder / "evaluation", results)
        names = [name for summary in results["control"].values() for name in summary["tasks"]]
        return page.sections(results, evaluations, beside.clips(names))

    def compare(self, before: Results, after: Results, console: Console) -> None:
        differences.show(differences.compare(before, after), console)


def _clipped(suites: Mapping[str, Any]) -> str:
    """The shares of observed numbers that were clipped to the range of their layout's statistics, beyond which the model cannot
    distinguish them, as text. Empty if there are none, and for results of earlier versions, which did not count them."""
    shares = {layout: share for one in suites.values() for layout, share in one.get("clipped", {}).items()}
    return ", ".join(f"{layout} {100 * share:.2g}%" for layout, share in sorted(shares.items()))


def _job(generalist: "Generalist", suite: str, tasks: list[Task]) -> Job:
    config = generalist.config
    episodes = config.data.control()[suite].evaluation_episodes

    def compute(progress: Progress) -> dict[str, Any]:
        from generalist.eval.control import agents  # imports JAX, which reading a results file does not need

        played, notes = agents.play(
            generalist,
            agents.parse_agent("model"),
            tasks,
            episodes,
            agents.Demonstrations(generalist),
            workers=config.data.workers or cores(),
            progress=progress,
        )
        return {"episodes": [dataclasses.asdict(episode) for episode in played], "clipped": notes["clipped"]}

    limits = {task.name: task.max_steps for task in tasks}
    # The only setting of acting that a later command may change; with another one the episodes are played again.
    temperatures = {task.layout: generalist.layouts[task.layout].acting.temperature for task in tasks}
    settings = {
        "max_steps": limits,
        "episodes": episodes,
        "first_seed": EVALUATION_SEED,
        "temperatures": temperatures,
    }
    return Job(part=Control.name, key=suite, settings=settings, compute=compute)


def _summary(tasks: Sequence[Task], result: Any) -> dict[str, Any]:
    """A suite's summary from the result of its job."""
    # Earlier versions kept only the list of episodes.
    episodes, clipped = (result, None) if isinstance(result, list) else (result["episodes"], result["clipped"])
    return summarize(tasks, [Episode(**episode) for episode in episodes], clipped)


def _task_cell(name: str, task: Mapping[str, Any]) -> Text:
    """A task's percent, coloured from red to green, and its name."""
    value = task["percent"]["value"]
    style = "green" if value >= GOOD else "yellow" if value >= FAIR else "red"
    return Text.assemble((f"{value:z4.0f}", style), f" {name}")
