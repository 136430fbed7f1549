"""The regions part: referring expressions and questions of photographs, by the rules of RefCOCO and GQA (docs/pointing.md)."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar
from xml.etree.ElementTree import Element

from rich.progress import Progress

from generalist.config.run import Config
from generalist.data.document_examples import stretched
from generalist.data.formats.places import stamp
from generalist.data.grounded import GroundedSet, Kind, Photograph, Question
from generalist.data.sources.regions import Regions, check_images, check_places
from generalist.eval.held_out import regions
from generalist.eval.parts.answers import BOX_TOKENS, answer_tokens, answer_writer, has_room
from generalist.eval.parts.part import Beside, Job, Part, Results, Row
from generalist.eval.report.charts import element, table
from generalist.eval.results.checks import same
from generalist.eval.results.scores import Estimate
from generalist.eval.results.words import counted
from generalist.tokenizers.locations import BINS

if TYPE_CHECKING:
    from generalist.inference.generalist import Generalist

VERSION = 2  # of the scores: with 1 all answers were normalised, and intervals were of independent questions


class DescribedRegions(Part):
    """Regions and questions; one job per set, split and kind."""

    name = "regions"
    title = "Regions of photographs"
    seeds: ClassVar[Mapping[str, int]] = {"regions": regions.SEED}

    def jobs(self, generalist: "Generalist") -> list[Job]:
        return [
            # A source of another name adds it: two may have sets of the same names.
            _job(generalist, source, one, split, kind, "" if name == source.kind else f"{name} ")
            for name, source in _sources(generalist.config).items()
            for one in source.sets()
            for split in one.splits
            for kind in one.scored(split)
            if kind == "questions" or generalist.vocabulary.locations >= BINS
        ]

    def prepare(self, config: Config) -> None:
        for name, source in _sources(config).items():
            sets = source.sets()
            check_places(name, sets, config.tokens.locations)
            if any(one.has_regions for one in sets):
                _check_encoder(name, config)
            for one in sets:
                check_images(one, one.splits, whole=False)

    def numbers(self, results: Results) -> dict[str, Estimate]:
        return {label: number for label, number, _, _ in _numbers(results)}

    def check(self, results: Results) -> None:
        for key, found in results[self.name].items():
            if "answers" in found:
                _check_answers(key, found)
                continue
            for label, number in regions.accuracies("accuracy", found["overlaps"], found.get("images")).items():
                same(f"{key} {label}", found[label], number, "overlaps")

    def rows(self, results: Results) -> list[Row]:
        return [
            Row(label=label, value=str(number), against=f"wrong image {wrong}", source=counted(count, "question"))
            for label, number, wrong, count in _numbers(results)
        ]

    def page(self, results: Results, beside: Beside) -> list[Element]:
        rows = [[label, str(number), str(wrong), f"{count:,}"] for label, number, wrong, count in _numbers(results)]
        return [element("h2", self.title), table(("", "right", "wrong image", "questions"), rows)]


def _numbers(results: Results) -> Iterator[tuple[str, Estimate, Estimate, int]]:
    """Label, accuracy, accuracy with a wrong image, and number of questions."""
    for key, found in results[DescribedRegions.name].items():
        if "answers" in found:
            of_types = {f"{key}, {name}, %": one for name, one in found.get("types", {}).items()}
            for label, one in ({f"{key}, %": found} | of_types).items():
                yield label, Estimate(**one["exact"]), Estimate(**one["wrong"]), one["items"]
            continue
        for threshold in regions.THRESHOLDS:
            right, wrong = (Estimate(**found[f"{name}_{threshold}"]) for name in ("accuracy", "wrong"))
            yield f"{key}, IoU {threshold}, %", right, wrong, found["items"]


def _check_answers(key: str, found: Mapping[str, Any]) -> None:
    """Recomputes the shares of right answers.

    Raises:
        ValueError: see `same`.
    """
    # Files of earlier versions lack the images, and the rule, which was the same for all sets.
    answers, images, literal = found["answers"], found.get("images"), found.get("literal", False)
    same(f"{key} exact", found["exact"], regions.exact(answers, images, literal=literal), "answers")
    for name, items in regions.by_type(found.get("structures", [])).items():
        of_type = [answers[at] for at in items], [images[at] for at in items] if images else None
        same(f"{key} {name}", found["types"][name]["exact"], regions.exact(*of_type, literal=literal), "answers")


def _check_encoder(name: str, config: Config) -> None:
    """Checks that the frozen encoder sees whole images, which boxes are shares of.

    Args:
        name: of the source in the mixture.

    Raises:
        ValueError: it sees their centre.
    """
    from generalist.vision.load import crops_images  # imports JAX, which reading a results file does not need

    encoder = config.model.vision.encoder
    if {"encoder", "projected"} & {*config.tokens.documents.split("+")} and crops_images(encoder):
        raise ValueError(
            f"model.vision.encoder = {encoder} sees the centre of an image, and the boxes of data.{name} are of the whole one: "
            "choose an encoder that stretches images, such as SigLIP or efficientnet_lite0, or let images enter in another way "
            f"(tokens.documents, such as patches), or leave out data.{name}.path"
        )


def _sources(config: Config) -> dict[str, Regions]:
    """All sources with a folder, not only those that take part: weights can be scored on sets that they were not trained on."""
    return {name: one for name, one in config.data.sources.items() if isinstance(one, Regions) and one.path is not None}


def _job(generalist: "Generalist", source: Regions, grounded: GroundedSet, split: str, kind: Kind, prefix: str) -> Job:
    name = f"{grounded.name} {split}{' questions' if kind == 'questions' else ''}"

    def read(image: Photograph) -> Any:
        return stretched(image.read(), generalist.assembler, generalist.config.data.length)

    def tokens(one: regions.Asked) -> int:
        """Number of ids of its answer."""
        return answer_tokens(generalist, one.about.answer) if isinstance(one.about, Question) else BOX_TOKENS

    def compute(progress: Progress) -> dict[str, Any]:
        asked = regions.asked_of(grounded, split, kind, source.evaluation_expressions)
        room, generate = has_room(generalist), answer_writer(generalist, max(map(tokens, asked)))
        texts = regions.written(
            asked,
            read,
            lambda document, one: room(document, tokens(one)),
            generate,
            progress=progress,
            what=name,
        )
        if kind == "regions":
            return regions.score_regions(asked, texts)
        return regions.score_questions(asked, texts, literal=grounded.literal_answers)

    settings = {
        "files": _digest(grounded),
        "images": source.images_folder,
        "expressions": source.evaluation_expressions,
        "row": generalist.config.data.length,
        "seed": regions.SEED,
        "version": VERSION,
    }
    return Job(part=DescribedRegions.name, key=f"{prefix}{name}", settings=settings, compute=compute)


def _digest(grounded: GroundedSet) -> str:
    """SHA-256 of what changes when a file with annotations does."""
    return hashlib.sha256("\n".join(map(stamp, grounded.files)).encode()).hexdigest()
