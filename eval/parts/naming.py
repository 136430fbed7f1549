"""The naming part: which of a few names do the weights find likeliest for a held-out drawing?"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar
from xml.etree.ElementTree import Element

from rich.progress import Progress

from generalist.data.emoji import Split
from generalist.data.sources.emoji import Emoji
from generalist.eval.held_out import naming
from generalist.eval.parts.part import Beside, Job, Part, Results, Row
from generalist.eval.report.charts import element, short, table
from generalist.eval.results.checks import same
from generalist.eval.results.scores import Estimate, proportion
from generalist.eval.results.words import counted

if TYPE_CHECKING:
    from generalist.inference.generalist import Generalist

NAME_TOKENS = 16  # maximum number of ids of a written name
SPLITS: tuple[Split, ...] = ("drawings", "names")
COLUMNS = {
    "accuracy": "named rightly %",
    "blind_accuracy": "wrong image %",
    "imageless_accuracy": "no image %",
    "caption_gain_over_wrong": "caption, nats over wrong",
    "caption_gain_over_none": "over none",
}
"""Columns of the page's table: key of the results → header."""


class Naming(Part):
    """Naming; one job per split: held-out drawings of known things, and things whose names were never seen."""

    name = "naming"
    title = "Naming drawings"
    seeds: ClassVar[Mapping[str, int]] = {"naming": naming.SEED}

    def jobs(self, generalist: "Generalist") -> list[Job]:
        drawn = [one for one in self.sources(generalist.config).values() if isinstance(one, Emoji)]
        # Of several such sources the first: their drawings are the same.
        return [_job(generalist, one, split) for one in drawn[:1] for split in SPLITS]

    def numbers(self, results: Results) -> dict[str, Estimate]:
        return {f"{split}, named rightly %": Estimate(**one["accuracy"]) for split, one in results["naming"].items()}

    def check(self, results: Results) -> None:
        # Only the accuracy: the file keeps the answers that were given with the right image, no others.
        for split, found in results["naming"].items():
            right = sum(one["answer"] == one["thing"] for one in found["answers"])
            accuracy = dataclasses.asdict(proportion(right, len(found["answers"])))
            same(f"accuracy of naming {split}", found["accuracy"], accuracy, "answers")

    def rows(self, results: Results) -> list[Row]:
        rows = []
        for split, found in results["naming"].items():
            drawn = counted(found["items"], "drawing")
            chance = f"chance {found['chance']:.0f}"
            # Without an image the names alone decide; a wrong one must not help. Both stand below the accuracy.
            for label, key, against in (
                (f"naming {split} %", "accuracy", chance),
                ("  wrong image", "blind_accuracy", chance),
                ("  no image", "imageless_accuracy", chance),
                ("  caption, nats", "caption_gain_over_wrong", "wrong image 0"),
                ("  caption, nats", "caption_gain_over_none", "no image 0"),
            ):
                rows.append(Row(label=label, value=str(Estimate(**found[key])), against=against, source=drawn))
        return rows

    def page(self, results: Results, beside: Beside) -> list[Element]:
        rows = [
            [split, *(str(Estimate(**found[key])) for key in COLUMNS), short(found["chance"]), str(found["items"])]
            for split, found in results["naming"].items()
        ]
        headers = ("held out", *COLUMNS.values(), "chance %", "drawings")
        return [element("h2", self.title), table(headers, rows)]


def _job(generalist: "Generalist", wanted: Emoji, split: Split) -> Job:

    def compute(progress: Progress) -> dict[str, Any]:
        # They import JAX, which reading a results file does not need.
        from generalist.inference.prompt import Decoding, prompt
        from generalist.inference.score import log_likelihood

        return naming.evaluate_naming(
            generalist.assembler.document,
            partial(log_likelihood, generalist),
            split,
            items=wanted.naming_items,
            choices=wanted.naming_choices,
            generate=partial(prompt, generalist, decoding=Decoding(tokens=NAME_TOKENS)),
            progress=progress,
        )

    settings = {"items": wanted.naming_items, "choices": wanted.naming_choices, "seed": naming.SEED}
    return Job(part=Naming.name, key=split, settings=settings, compute=compute)
