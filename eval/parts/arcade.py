"""The arcade part: pointing and questions on screens of Atari games (docs/pointing.md)."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar
from xml.etree.ElementTree import Element

from rich.progress import Progress

from generalist.data.sources.arcade import Arcade
from generalist.envs.suites.atari_objects import GAMES
from generalist.eval.held_out import arcade
from generalist.eval.held_out.scenes import THRESHOLDS
from generalist.eval.parts.answers import answer_writer
from generalist.eval.parts.part import Beside, Job, Part, Results, Row
from generalist.eval.report.charts import element, table
from generalist.eval.results.checks import same
from generalist.eval.results.scores import Estimate, proportion

if TYPE_CHECKING:
    from generalist.inference.generalist import Generalist


class ArcadeScreens(Part):
    """Screens of Atari games; one job per source and game."""

    name = "arcade"
    title = "Screens of Atari games"
    seeds: ClassVar[Mapping[str, int]] = {"arcade": arcade.SEED}

    def jobs(self, generalist: "Generalist") -> list[Job]:
        found = {name: one for name, one in self.sources(generalist.config).items() if isinstance(one, Arcade)}
        # Jobs of the first source have the keys that results had when only this one was evaluated.
        return [
            _job(generalist, one, game, f"{name} " if number else "")
            for number, (name, one) in enumerate(found.items())
            for game in GAMES
        ]

    def numbers(self, results: Results) -> dict[str, Estimate]:
        return {
            f"{label}, {game}": number
            for game, found in results["arcade"].items()
            for label, number, _, _ in _numbers(found)
        }

    def check(self, results: Results) -> None:
        for game, found in results["arcade"].items():
            for kind, one in found["point"].items():
                for threshold in THRESHOLDS:
                    hits = sum(overlap >= threshold for overlap in one["overlaps"])
                    again = vars(proportion(hits, len(one["overlaps"])))
                    same(f"arcade {game} {kind} at {threshold}", one[f"accuracy_{threshold}"], again, "overlaps")

    def rows(self, results: Results) -> list[Row]:
        return [
            Row(
                label=f"{label}, {game}",
                value=str(number),
                against=f"wrong screen {wrong}" + (f", chance {chance}" if chance else ""),
            )
            for game, found in results["arcade"].items()
            for label, number, wrong, chance in _numbers(found)
        ]

    def page(self, results: Results, beside: Beside) -> list[Element]:
        rows = [
            [game, label, str(number), str(wrong), chance]
            for game, found in results["arcade"].items()
            for label, number, wrong, chance in _numbers(found)
        ]
        return [element("h2", self.title), table(("game", "", "right", "another screen", "chance"), rows)]


def _numbers(found: Mapping[str, Any]) -> list[tuple[str, Estimate, Estimate, str]]:
    """Label, score, score with a wrong screen, and chance, where it is known, of every number of a game."""
    numbers = [
        (
            f"{kind}, IoU {threshold}, %",
            Estimate(**one[f"accuracy_{threshold}"]),
            Estimate(**one[f"wrong_{threshold}"]),
            "",
        )
        for kind, one in found["point"].items()
        for threshold in THRESHOLDS
    ]
    return numbers + [
        (f"{kind}, %", Estimate(**one["accuracy"]), Estimate(**one["blind"]), "50")
        for kind, one in found["questions"].items()
    ]


def _job(generalist: "Generalist", source: Arcade, game: str, prefix: str) -> Job:
    items, first = source.evaluation_screens, source.is_asked_first

    def compute(progress: Progress) -> dict[str, Any]:
        from generalist.inference.score import log_likelihood  # imports JAX, which reading a results file does not need

        return arcade.evaluate_arcade(
            generalist.assembler.document,
            partial(log_likelihood, generalist),
            answer_writer(generalist),
            game,
            items=items,
            is_asked_first=first,
            progress=progress,
        )

    settings = {"items": items, "asked_first": first, "seed": arcade.SEED}
    return Job(part="arcade", key=f"{prefix}{game}", settings=settings, compute=compute)
