"""The places part: tasks whose target is told by its place in the first view, `go to <loc...>`, beside the same episodes told by
name (docs/pointing.md).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar
from xml.etree.ElementTree import Element

from rich.progress import Progress

from generalist.data.sources.control import BabyAI
from generalist.envs.task import EVALUATION_SEED, Task
from generalist.eval.control.lanes import Begun, Episode
from generalist.eval.parts.part import Beside, Job, Part, Results, Row
from generalist.eval.report.charts import element, table
from generalist.eval.results.checks import same
from generalist.eval.results.scores import Estimate, proportion
from generalist.eval.results.words import counted
from generalist.system.processes import cores

if TYPE_CHECKING:
    from generalist.inference.generalist import Generalist

WORDINGS = ("place", "name")


class GoToPlaces(Part):
    """Going to places; one job per source."""

    name = "places"
    title = "Told by a place"
    seeds: ClassVar[Mapping[str, int]] = {"places": EVALUATION_SEED}

    def jobs(self, generalist: "Generalist") -> list[Job]:
        if not generalist.vocabulary.locations:
            return []
        found = []
        for name, source in self.sources(generalist.config).items():
            tasks = [task for task in source.task_list() if task.can_be_pointed]
            if isinstance(source, BabyAI) and tasks:
                found.append(_job(generalist, name, tasks, source.evaluation_episodes))
        return found

    def numbers(self, results: Results) -> dict[str, Estimate]:
        return {
            f"{name}, told by {wording}, %": Estimate(**found[wording])
            for name, found in results[self.name].items()
            for wording in WORDINGS
        }

    def check(self, results: Results) -> None:
        for name, found in results[self.name].items():
            for wording, number in successes(found["episodes"]).items():
                same(f"{name} told by {wording}", found[wording], number, "episodes")

    def rows(self, results: Results) -> list[Row]:
        return [
            Row(
                label=f"{name}, told by place, %",
                value=str(Estimate(**found["place"])),
                against=f"told by name {Estimate(**found['name'])}",
                source=counted(len(found["episodes"]), "episode"),
            )
            for name, found in results[self.name].items()
        ]

    def page(self, results: Results, beside: Beside) -> list[Element]:
        rows = [
            [name, *(str(Estimate(**found[wording])) for wording in WORDINGS), f"{len(found['episodes']):,}"]
            for name, found in results[self.name].items()
        ]
        return [element("h2", self.title), table(("", "by place", "by name", "episodes"), rows)]


def successes(episodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Share of the episodes that succeeded in each wording, in percent."""
    return {
        wording: dataclasses.asdict(proportion(sum(one[wording] > 0 for one in episodes), len(episodes)))
        for wording in WORDINGS
    }


def together(placed: Sequence[Episode], named: Sequence[Episode], told: set[tuple[str, int]]) -> list[dict[str, Any]]:
    """Scores of the episodes that were told by their place, in both wordings.

    Args:
        placed: all episodes, played where those of `told` got a place.
        named: the same, with their own instructions.
        told: task and seed of those.
    """
    scores = {(one.task, one.seed): one.score for one in named}
    return [
        {"task": one.task, "seed": one.seed, "place": one.score, "name": scores[one.task, one.seed]}
        for one in placed
        if (one.task, one.seed) in told
    ]


def _job(generalist: "Generalist", name: str, tasks: list[Task], episodes: int) -> Job:
    def compute(progress: Progress) -> dict[str, Any]:
        from generalist.eval.control import agents  # imports JAX, which reading a results file does not need

        told: set[tuple[str, int]] = set()

        def by_place(begun: Begun, observation: Any) -> str:
            if (pointed := begun.task.pointed(begun.instruction, observation)) is None:
                return begun.instruction
            told.add((begun.task.name, begun.seed))
            return pointed

        def play(**how: Any) -> list[Episode]:
            demonstrations, workers = agents.Demonstrations(generalist), generalist.config.data.workers or cores()
            agent = agents.parse_agent("model")
            return agents.play(
                generalist, agent, tasks, episodes, demonstrations, workers=workers, progress=progress, **how
            )[0]

        found = together(play(word=by_place), play(), told)
        if not found:
            raise ValueError(f"no episode of {name} has its target in view: raise data.{name}.evaluation_episodes")
        return {"episodes": found, **successes(found)}

    # As in the control part: with another temperature the episodes are played again.
    temperatures = {task.layout: generalist.layouts[task.layout].acting.temperature for task in tasks}
    settings = {
        "max_steps": {task.name: task.max_steps for task in tasks},
        "episodes": episodes,
        "first_seed": EVALUATION_SEED,
        "temperatures": temperatures,
    }
    return Job(part=GoToPlaces.name, key=name, settings=settings, compute=compute)
