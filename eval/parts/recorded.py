"""Recorded episodes: how close to a user's held-out actions the weights are, where there is no environment to play."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import Element

from rich.progress import Progress

from generalist.data.recorded import action_numbers, opened
from generalist.data.recorded_task import SUITE
from generalist.data.sources.recorded import Recorded
from generalist.data.statistics import fingerprint
from generalist.eval.held_out import actions
from generalist.eval.parts.part import Beside, Job, Part, Results, Row
from generalist.eval.report.charts import element, table
from generalist.eval.results.scores import Estimate
from generalist.eval.results.words import counted
from generalist.run.tasks import stored

if TYPE_CHECKING:
    from generalist.inference.generalist import Generalist

TITLES = {"model": "model", "last_action": "last action again", "mean_action": "mean action"}


class RecordedActions(Part):
    """A job per data set."""

    name = "recorded"
    title = "Recorded episodes"

    def jobs(self, generalist: "Generalist") -> list[Job]:
        found = self.sources(generalist.config)
        return [
            _job(generalist, name, one) for name, one in found.items() if isinstance(one, Recorded) and one.heldout > 0
        ]

    def numbers(self, results: Results) -> dict[str, Estimate]:
        found = {}
        for name, one in results["recorded"].items():
            found[f"{name}, error in deviations"] = Estimate(**one["error"]["model"])
            found[f"{name}, nats per action"] = Estimate(**one["nats_per_action"])
        return found

    def rows(self, results: Results) -> list[Row]:
        rows = []
        for name, one in results["recorded"].items():
            last, mean = (one["error"][which]["value"] for which in ("last_action", "mean_action"))
            rows.append(
                Row(
                    label=f"{name} action error",
                    value=_exact(one["error"]["model"]),
                    against=f"last {last:.2f}, mean {mean:.2f}",
                    source=f"{counted(one['episodes'], 'episode')} held out",
                )
            )
            nats = _exact(one["nats_per_action"])
            rows.append(Row(label=f"{name} nats per action", value=nats, source=f"{one['steps']:,} steps"))
        return rows

    def page(self, results: Results, beside: Beside) -> list[Element]:
        shown = [element("h2", self.title)]
        means = [
            [
                name,
                *(_exact(one["error"][which]) for which in TITLES),
                _exact(one["nats_per_action"]),
                f"{one['steps']:,}",
            ]
            for name, one in results["recorded"].items()
        ]
        headers = ("error in deviations", *TITLES.values(), "nats per action", "steps")
        shown.append(table(headers, means))
        for name, one in results["recorded"].items():
            rows = [
                [
                    each["name"],
                    *(f"{each[which]:.3f}" for which in TITLES),
                    "choice" if each["choice"] else f"{each['deviation']:.3g}",
                ]
                for each in one["dimensions"]
            ]
            shown += [element("h3", name), table(("number of the action", *TITLES.values(), "deviation"), rows)]
        return shown


def _exact(found: Mapping[str, float]) -> str:
    """With the digits that errors differ in."""
    return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def _job(generalist: "Generalist", name: str, source: Recorded) -> Job:
    layout = f"{SUITE}/{source.dataset.name}"

    def compute(progress: Progress) -> dict[str, Any]:
        from generalist.inference.policy import ControlPolicy

        return actions.evaluate_actions(
            source.open_heldout(stored(generalist.config)),
            lambda lanes: ControlPolicy(generalist, [layout] * lanes),
            action_numbers(source.dataset),
            count=source.evaluation_episodes,
            progress=progress,
        )

    settings = {
        "files": fingerprint(opened(source.dataset).episodes),
        "heldout": source.heldout,
        "episodes": source.evaluation_episodes,
        "temperature": generalist.layouts[layout].acting.temperature,
        **{key: value for key, value in dataclasses.asdict(source.dataset).items() if key != "path"},
    }
    return Job(part=RecordedActions.name, key=name, settings=settings, compute=compute)
