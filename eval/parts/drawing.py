"""The drawing part: images drawn from names, judged by towers that took no part in drawing them and by a frozen encoder. That
took part in one way: image tokenizers of our own are trained on the distance of its early features (docs/drawing.md).

Dimension key: S pixels per side of an image.
"""

import dataclasses
import hashlib
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
from generalist.eval.results.checks import same
from generalist.eval.results.scores import Estimate, bootstrap, proportion

if TYPE_CHECKING:
    from generalist.inference.generalist import Generalist

SEED = 3
AT_ONCE = 32  # images that are drawn together, more if a name has more: wide passes cost hardly more than narrow ones
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
            _check_towers(f"data.{name}.evaluation_judge", judge, "name one that does not rank the drawings")
            if towers:
                remedy = "name one, or leave it out, and the weights rank the drawings"
                _check_towers(f"data.{name}.evaluation_towers", towers, remedy)
            # By their contents: a copy of the ranking towers would praise what they have chosen.
            if towers and _identity(judge) == _identity(towers):
                raise ValueError(
                    f"data.{name}.evaluation_judge = {judge} and evaluation_towers = {towers} are the same towers: name another "
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
        } | _gains(results["drawing"])

    def check(self, results: Results) -> None:
        for job, by_kept in results["drawing"].items():
            for kept, found in by_kept.items():
                if hits := found.get("hits"):  # files of earlier versions lack them
                    again = dataclasses.asdict(proportion(sum(hits), len(hits)))
                    same(f"{COLUMNS['named']}, {job}, {kept}", found["named"], again, "hits")

    def rows(self, results: Results) -> list[Row]:
        return [
            Row(label=f"{job}, {kept}: {COLUMNS['named']}", value=str(Estimate(**found["named"])), against="chance 1")
            for job, by_kept in results["drawing"].items()
            for kept, found in by_kept.items()
        ] + [Row(label=label, value=str(gain), against="0") for label, gain in _gains(results["drawing"]).items()]

    def page(self, results: Results, beside: Beside) -> list[Element]:
        rows = [
            [
                job,
                kept,
                str(len(found.get("hits", ())) or ""),
                *(str(Estimate(**found[score])) for score in COLUMNS),
                f"{found['nearest']:.3f}",
            ]
            for job, by_kept in results["drawing"].items()
            for kept, found in by_kept.items()
        ]
        headers = ("names", "images", "number", *COLUMNS.values(), "distance to a training image")
        gains = [[label, str(gain)] for label, gain in _gains(results["drawing"]).items()]
        return [element("h2", self.title), table(headers, rows), *([table(("", "points"), gains)] if gains else [])]


def _gains(jobs: Mapping[str, Any]) -> dict[str, Estimate]:
    """By how many percentage points more names are right at each guidance than at the weakest one.

    The same names are drawn at both, so the interval is that of the differences name by name.
    """
    found = {}
    for label in SPLITS:
        strengths = sorted(
            float(job.removeprefix(start)) for job in jobs if job.startswith(start := f"{label}, guidance ")
        )
        for strength in strengths[1:]:
            weak, strong = (jobs[f"{label}, guidance {one:g}"] for one in (strengths[0], strength))
            for kept in weak:
                if "hits" in weak[kept] and "hits" in strong.get(kept, ()):  # files of earlier versions lack them
                    gained = np.subtract(strong[kept]["hits"], weak[kept]["hits"], dtype=np.float64)
                    what = f"{label}, {kept}: gain of guidance {strength:g} over {strengths[0]:g}, points"
                    found[what] = bootstrap([100 * gained])
    return found


def _check_towers(setting: str, folder: str, remedy: str) -> None:
    from generalist.contrastive.dual import DualEncoder  # imports JAX, which reading a results file does not need

    problem = f"{setting} = {folder!r} is no run of `train.py contrastive`"
    if not _weights(folder).is_file():
        raise ValueError(f"{problem}: {remedy}")
    try:
        DualEncoder.load(folder)
    except (ValueError, OSError) as error:
        raise ValueError(f"{problem} that can be loaded ({error}): {remedy}") from error


def _weights(folder: str) -> Path:
    return Path(folder) / "towers.safetensors"


def _identity(folder: str) -> str:
    """Hash of the towers in a folder, which may be trained on; empty if there are none."""
    if not (file := _weights(folder)).is_file():
        return ""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def _job(generalist: "Generalist", wanted: TextToImage, label: str, guidance: float | None) -> Job:
    """Draws at a guidance or, with None, computes floor and ceiling."""
    settings = {
        "items": wanted.evaluation_items,
        "best_of": list(wanted.evaluation_best_of),
        "judge": _identity(wanted.evaluation_judge),
        "towers": _identity(wanted.evaluation_towers) if wanted.evaluation_towers else "",
        "at_once": AT_ONCE,
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
    ceiling = judge.scores(rebuilt)
    # Drawings of other names are the same set of images. Its discrepancy leaves out each image and its own reconstruction, which
    # in another order would be compared, and the discrepancy too small.
    of_the_set = {score: ceiling[score] for score in ("discrepancy", "nearest")}
    return {ENDS["floor"]: judge.scores(rebuilt[1:] + rebuilt[:1]) | of_the_set, ENDS["ceiling"]: ceiling}


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
    most = max(kept)
    together = max(1, AT_ONCE // most)  # names
    for start in range(0, len(asked), together):
        some = asked[start : start + together]
        settings = DrawingSettings(guidance=guidance, seed=SEED + start)
        drawn = draw_images(generalist, [f"a {one.name}" for one in some for _ in range(most)], settings)
        for number, one in enumerate(some):
            own = slice(number * most, (number + 1) * most)
            images = drawn.images[own]
            fit = drawn.fit[own] if towers is None else similarity(towers, images, one.name)
            # The first drawings of the same draw: a best of more is never worse by the ranking.
            for count, best in kept.items():
                best.append(images[fit[:count].argmax()])
            progress.advance(bar)
    return kept
