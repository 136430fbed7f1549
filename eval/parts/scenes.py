"""The scenes part: pointing, matching and questions about composed scenes (docs/pointing.md)."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar
from xml.etree.ElementTree import Element

from rich.progress import Progress

from generalist.data.scenes import Split
from generalist.data.sources.scenes import SceneSource
from generalist.eval.held_out import scenes
from generalist.eval.parts.answers import ENTRY_TOKENS, answer_writer
from generalist.eval.parts.part import Beside, Job, Part, Results, Row
from generalist.eval.report.charts import element, short, table
from generalist.eval.results.checks import same
from generalist.eval.results.scores import Estimate, proportion
from generalist.eval.results.words import counted

if TYPE_CHECKING:
    from generalist.inference.generalist import Generalist

VERSION = 2  # of the questions: with 1 the words alone told of some texts that they were false
SPLITS: tuple[Split, ...] = ("pairs", "drawings")


class ComposedScenes(Part):
    """Composed scenes; one job per split: held-out pairs of a thing and a colour, and held-out drawings of known things."""

    name = "scenes"
    title = "Composed scenes"
    seeds: ClassVar[Mapping[str, int]] = {"scenes": scenes.SEED}
    of: ClassVar[str] = ""
    """What the splits are of, in labels that stand beside those of other parts."""

    def jobs(self, generalist: "Generalist") -> list[Job]:
        drawn = {name: one for name, one in self.sources(generalist.config).items() if isinstance(one, SceneSource)}
        first = next(iter(drawn), "")
        return [
            _job(generalist, self.name, split if name == first else f"{split} of {name}", one, split)
            for name, one in drawn.items()
            for split in SPLITS
            if any(one.drawings(split))
        ]

    def numbers(self, results: Results) -> dict[str, Estimate]:
        return {
            f"{label}, {split}{self.of}": number
            for split, found in results[self.name].items()
            for label, number, *_ in _numbers(found)
        }

    def check(self, results: Results) -> None:
        for split, found in results[self.name].items():
            for count, one in found["point"].items():
                for threshold in scenes.THRESHOLDS:
                    hits = sum(overlap >= threshold for overlap in one["overlaps"])
                    again = vars(proportion(hits, len(one["overlaps"])))
                    same(f"pointing {split} {count} at {threshold}", one[f"accuracy_{threshold}"], again, "overlaps")
            if one := found.get("detection"):  # not asked in earlier versions, nor where training does not
                for name, again in scenes.detection_scores(one["counts"]).items():
                    same(f"detection {name} {split}", one[name], again, "counts")

    def rows(self, results: Results) -> list[Row]:
        return [
            Row(
                label=f"{label}, {split}{self.of}",
                value=str(number),
                against=f"wrong image {wrong}, chance {chance}" if chance else f"wrong image {wrong}",
                source=_shown(found),
            )
            for split, found in results[self.name].items()
            for label, number, wrong, chance in _numbers(found)
        ]

    def page(self, results: Results, beside: Beside) -> list[Element]:
        rows = [
            [split, _shown(found), label, str(number), str(wrong), chance]
            for split, found in results[self.name].items()
            for label, number, wrong, chance in _numbers(found)
        ]
        return [element("h2", self.title), table(("held out", "", "", "right", "wrong image", "chance"), rows)]


class WholeGrids(ComposedScenes):
    """BabyAI's grids, of held-out pairs of a thing and a colour."""

    name = "grids"
    title = "Grids"
    seeds: ClassVar[Mapping[str, int]] = {"grids": scenes.SEED}
    of: ClassVar[str] = " of grids"


def _numbers(found: Mapping[str, Any]) -> list[tuple[str, Estimate, Estimate, str]]:
    """Label, score, score with a wrong image, and chance, where it is known, of every number of a split."""
    numbers = [
        (
            f"pointing, {_what(count)}, IoU {threshold}, %",
            Estimate(**one[f"accuracy_{threshold}"]),
            Estimate(**one[f"wrong_{threshold}"]),
            "",
        )
        for count, one in found["point"].items()
        for threshold in scenes.THRESHOLDS
    ]
    match = found["questions"]["match"]
    numbers.append(("matching, AUC", Estimate(**match["auc"]), Estimate(**match["blind_auc"]), "50"))
    for kind, one in found["questions"].items():
        if kind != "match":
            numbers.append((f"{kind}, %", Estimate(**one["accuracy"]), Estimate(**one["blind"]), short(one["chance"])))
    if one := found.get("detection"):
        for name in ("precision", "recall"):
            numbers.append((f"detection, {name}, %", Estimate(**one[name]), Estimate(**one[f"wrong_{name}"]), ""))
    return numbers


def _shown(found: Mapping[str, Any]) -> str:
    """Of how much a split's questions are: the interval of a score is about these drawings, not about all that there could be."""
    if "drawings" not in found:  # of earlier versions
        return ""
    return f"{counted(found['drawings'], 'drawing')} of {counted(found['things_shown'], 'thing')}"


def _what(key: str) -> str:
    if key == scenes.BY_SIDE:
        return "by a side"
    return "1 thing" if key == "1" else f"{key} things"


def _job(generalist: "Generalist", part: str, key: str, source: SceneSource, split: Split) -> Job:
    drawings, things = source.drawings(split)

    def compute(progress: Progress) -> dict[str, Any]:
        from generalist.inference.score import log_likelihood  # imports JAX, which reading a results file does not need

        found = scenes.evaluate_scenes(
            generalist.assembler.document,
            partial(log_likelihood, generalist),
            answer_writer(generalist),
            split,
            items=source.evaluation_scenes,
            objects=source.objects,
            things=source.number_of_things,
            draw=source.draw,
            is_asked_first=source.is_asked_first,
            # As in training, there is one entry more than things.
            detect=answer_writer(generalist, ENTRY_TOKENS * (source.objects + 1)) if source.detections else None,
            progress=progress,
        )
        return found | {"drawings": drawings, "things_shown": things}

    settings = {
        "items": source.evaluation_scenes,
        "objects": source.objects,
        "things": source.number_of_things,
        "asked_first": source.is_asked_first,
        "detected": source.detections > 0,
        "seed": scenes.SEED,
        "version": VERSION,
    }
    return Job(part=part, key=key, settings=settings, compute=compute)
