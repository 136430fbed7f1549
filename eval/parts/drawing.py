"""The drawing part: images drawn from names, judged by towers and by a frozen encoder that took no part in drawing them.

Dimension key: S pixels per side of an image.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from xml.etree.ElementTree import Element

import numpy as np
from jaxtyping import UInt8
from rich.progress import Progress

from generalist.config.run import Config
from generalist.data.emoji import Drawing, Split, drawings
from generalist.data.sources.drawing import TextToImage
from generalist.eval.parts.part import Beside, Job, Part, Results, Row
from generalist.eval.report.charts import element, table
from generalist.eval.results.scores import Estimate

if TYPE_CHECKING:
    from generalist.inference.generalist import Generalist

SEED = 3
SPLITS: Mapping[str, Split] = {"known names": "train", "recombined names": "drawings"}
"""Held-out drawings of known things have names of known parts, such as another colour or skin tone."""
ENDS = {"floor": "the drawings of other names", "ceiling": "the real drawings, encoded and decoded"}
COLUMNS = {"named": "right of 100 names %", "thing": "nearest class right %", "discrepancy": "discrepancy × 1000"}


class Draws(Part):
    """Drawing; one job per split and guidance, and one with floor and ceiling per split."""

    name = "drawing"
    title = "Drawing names"
    seeds: ClassVar[Mapping[str, int]] = {"drawing": SEED}

    def prepare(self, config: Config) -> None:
        for name, source in self.sources(config).items():
            assert isinstance(source, TextToImage)
            judge, towers = source.evaluation_judge, source.evaluation_towers
            if not _are_towers(judge):
                raise ValueError(
                    f"data.{name}.evaluation_judge = {judge!r} is no run of `train.py contrastive`: name one that does not rank "
                    "the drawings"
                )
            if towers and not _are_towers(towers):
                raise ValueError(
                    f"data.{name}.evaluation_towers = {towers!r} is no run of `train.py contrastive`: name one, or leave it out, "
                    "and the weights rank the drawings"
                )
            if towers and Path(judge).resolve() == Path(towers).resolve():
                raise ValueError(
                    f"data.{name}.evaluation_judge and evaluation_towers must be different runs, both are {judge}: name another "
                    "judge"
                )

    def jobs(self, generalist: "Generalist") -> list[Job]:
        wanted = [one for one in self.sources(generalist.config).values() if isinstance(one, TextToImage)]
        found = []
        for label in SPLITS if wanted else ():
            found.append(_job(generalist, wanted[0], label, None))
            found += [_job(generalist, wanted[0], label, guidance) for guidance in wanted[0].evaluation_guidance]
        return found

    def numbers(self, results: Results) -> dict[str, Estimate]:
        return {
            f"{job}, {kept}, {COLUMNS[score]}": Estimate(**found[score])
            for job, by_kept in results["drawing"].items()
            for kept, found in by_kept.items()
            for score in COLUMNS
        }

    def rows(self, results: Results) -> list[Row]:
        return [
            Row(label=f"{job}, {kept}: {COLUMNS['named']}", value=str(Estimate(**found["named"])), against="chance 1")
            for job, by_kept in results["drawing"].items()
            for kept, found in by_kept.items()
        ]

    def page(self, results: Results, beside: Beside) -> list[Element]:
        rows = [
            [job, kept, *(str(Estimate(**found[score])) for score in COLUMNS), f"{found['nearest']:.3f}"]
            for job, by_kept in results["drawing"].items()
            for kept, found in by_kept.items()
        ]
        headers = ("names", "images", *COLUMNS.values(), "distance to a training image")
        return [element("h2", self.title), table(headers, rows)]


def _are_towers(folder: str) -> bool:
    return (Path(folder) / "towers.safetensors").is_file()


def _job(generalist: "Generalist", wanted: TextToImage, label: str, guidance: float | None) -> Job:
    """Draws at a guidance or, with None, computes floor and ceiling."""
    settings = {
        "items": wanted.evaluation_items,
        "best_of": list(wanted.evaluation_best_of),
        "judge": wanted.evaluation_judge,
        "towers": wanted.evaluation_towers,
        "seed": SEED,
    }
    key = f"{label}, bounds" if guidance is None else f"{label}, guidance {guidance:g}"
    compute = partial(_compute, generalist, wanted, SPLITS[label], guidance, key)
    return Job(part=Draws.name, key=key, settings=settings, compute=compute)


def _chosen(split: Split, items: int) -> list[Drawing]:
    """Drawings with different names, drawn at random."""
    listed = list({one.name: one for one in drawings(split)}.values())
    order = np.random.default_rng(SEED).permutation(len(listed))[:items]
    return [listed[index] for index in order]


def _compute(
    generalist: "Generalist", wanted: TextToImage, split: Split, guidance: float | None, title: str, progress: Progress
) -> dict[str, Any]:
    # They import JAX, which reading a results file does not need.
    from generalist.eval.held_out.drawing_judge import Judge

    asked = _chosen(split, wanted.evaluation_items)
    judge = Judge(wanted.evaluation_judge, asked, drawings("train"), drawings("drawings"), SEED)
    if guidance is not None:
        return {
            f"best of {count}": judge.scores(images)
            for count, images in _drawn(generalist, wanted, asked, guidance, title, progress).items()
        }
    codes = generalist.tokenizers.codes
    assert codes is not None, "the source that names this part needs an image tokenizer"
    rebuilt = list(codes.decode(codes.encode([one.image() for one in asked])))
    return {ENDS["floor"]: judge.scores(rebuilt[1:] + rebuilt[:1]), ENDS["ceiling"]: judge.scores(rebuilt)}


def _drawn(
    generalist: "Generalist",
    wanted: TextToImage,
    asked: list[Drawing],
    guidance: float,
    title: str,
    progress: Progress,
) -> dict[int, list[UInt8[np.ndarray, "S S 3"]]]:
    """For each number of drawings the best one of each name."""
    from generalist.contrastive.dual import DualEncoder
    from generalist.inference.best_of import similarity
    from generalist.inference.drawing import draw_images
    from generalist.inference.drawing_settings import DrawingSettings

    towers = DualEncoder.load(wanted.evaluation_towers) if wanted.evaluation_towers else None
    bar = progress.add_task(title, total=len(asked))
    kept: dict[int, list[UInt8[np.ndarray, "S S 3"]]] = {count: [] for count in wanted.evaluation_best_of}
    for number, one in enumerate(asked):
        settings = DrawingSettings(guidance=guidance, seed=SEED + number)
        drawn = draw_images(generalist, [f"a {one.name}"] * max(kept), settings)
        fit = drawn.fit if towers is None else similarity(towers, drawn.images, one.name)
        # The first drawings of the same draw: a best of more is never worse by the ranking.
        for count, images in kept.items():
            images.append(drawn.images[fit[:count].argmax()])
        progress.advance(bar)
    return kept
