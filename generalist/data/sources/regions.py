"""Images whose regions are described, from local folders in their published layouts (docs/pointing.md)."""

import dataclasses
from collections.abc import Iterator, Sequence

from generalist.data.documents import UNREADABLE
from generalist.data.examples import Examples
from generalist.data.files import DocumentError
from generalist.data.formats.documents import DocumentOpening
from generalist.data.formats.places import place
from generalist.data.formats.refcoco import DIVISIONS
from generalist.data.grounded import GroundedSet
from generalist.data.grounded_examples import GroundedExamples, question_text
from generalist.data.grounded_sets import open_grounded
from generalist.data.images import is_there
from generalist.data.source import Reading, Say, Source, Stored, Ways, check_locations, register
from generalist.system.cache import index_folder
from generalist.system.processes import cores

LOOKS = 200  # images whose beginnings and ends are looked at before a run
TEXTS = 4000  # images whose texts the text tokenizer is trained on


@register("regions")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Regions(Source):
    """Regions and questions of RefCOCO, RefCOCO+, RefCOCOg, Visual Genome and GQA; takes no part without a path."""

    weight: float = 0.0
    """Share of the tokens, relative to the other sources; 0 leaves the source out, but not its evaluation."""
    path: str | None = None
    """Folder of a set, such as `refcoco`, or one that holds several; docs/pointing.md shows the layout."""
    division: str | None = None
    """Which division of RefCOCO's sets: `unc`, `umd` or `google`. None: the first of these that a set has."""
    images_folder: str | None = None
    """Folder of the images, or of the folders `train2014`, `VG_100K` and `VG_100K_2`, `images` with them. None: these are beside
    the files or the sets."""
    questions: int = 4
    """Maximum number of regions and questions per image and example, as far as they fit into a row."""
    describe: float = 0.2
    """Share of the regions that are described from their box instead of pointed to."""
    unreadable: float = UNREADABLE
    """Share of a set's training images that may be unreadable: these are left out of a training, counted and named. More than
    that fail the run."""
    evaluation_expressions: int = 1000
    """Maximum number of expressions, and of questions, per split that an evaluation asks; 0: all, as published scores do."""

    def __post_init__(self) -> None:
        if self.division is not None and self.division not in DIVISIONS:
            raise ValueError(f"data.regions.division must be one of {', '.join(DIVISIONS)}, got {self.division!r}")
        if self.questions < 1:
            raise ValueError(f"data.regions.questions must be at least 1, got {self.questions}")
        if not 0 <= self.describe <= 1:
            raise ValueError(f"data.regions.describe is a share from 0 to 1, got {self.describe}")
        if not 0 <= self.unreadable < 1:
            raise ValueError(f"data.regions.unreadable must be at least 0 and below 1, got {self.unreadable}")
        if self.evaluation_expressions < 0:
            raise ValueError(
                f"data.regions.evaluation_expressions must be at least 0 (all), got {self.evaluation_expressions}"
            )

    @property
    def takes_part(self) -> bool:
        """See `Source.takes_part`."""
        return self.weight > 0 and self.path is not None

    @property
    def evaluation_parts(self) -> tuple[str, ...]:
        """See `Source.evaluation_parts`."""
        return ("regions",)

    @property
    def has_own_files(self) -> bool:
        """See `Source.has_own_files`."""
        return self.path is not None

    def check_settings(self, name: str, ways: Ways) -> None:
        """See `Source.check_settings`."""
        if ways.features == "stored" and {"encoder", "projected"} & {*ways.documents}:
            raise ValueError(
                f"data.features = stored needs a fixed set of images, which data.{name} has not: use computed"
            )

    def sets(self) -> list[GroundedSet]:
        """The sets in its folder.

        Raises:
            DocumentError: there is none, or a file is missing or damaged.
        """
        assert self.path is not None
        images = None if self.images_folder is None else place(self.images_folder)
        opening = DocumentOpening(index=index_folder(), workers=cores(), images=images)
        return open_grounded(place(self.path), opening, self.division)

    def check(self, name: str, stored: Stored, whole: bool, say: Say) -> None:
        """Checks that the files can be read and that the images are there: the beginnings and ends of some or, with `whole`, all
        of each one."""
        if self.path is None:
            if self.weight:
                raise ValueError(
                    f"data.{name}.weight is {self.weight}, but data.{name}.path names no folder: set it, or leave the weight out"
                )
            return
        sets = self.sets()
        if self.weight and not any(one.count("train") for one in sets):
            raise DocumentError(
                f"data.{name}.path = {self.path} has no image to train on: add the training files of a set, or leave out "
                f"data.{name}.weight, so that it is only evaluated"
            )
        for one in sets:
            for note in one.notes():
                say(f"note: {note}")
            check_images(one, ("train",) if self.weight else (), whole)
            check_images(one, one.splits, whole)
            for split in one.splits:
                scored = one.scored(split)
                for kind in (kind for kind in one.kinds if kind not in scored):
                    say(
                        f"note: {kind} of {one.name} {split} are not evaluated: it has {one.count(split):,} images, and an "
                        f"evaluation needs two, with {kind} of one of them"
                    )
        if not self.weight:
            say(f"note: {self.path} is evaluated but not trained on: data.{name}.weight is 0")

    def texts(self, stored: Stored) -> Iterator[str]:
        """See `Source.texts`."""
        for one in self.sets():
            for index in range(min(one.count("train"), TEXTS)):
                shown = one.image("train", index)
                yield from (region.phrase for region in shown.regions)
                yield from (f"{question_text(asked.text)} {asked.answer}" for asked in shown.questions)
        yield "point to the : what is at ? answer:"

    def open(self, stored: Stored, reading: Reading) -> Sequence[Examples]:
        """See `Source.open`.

        Raises:
            ValueError: a set has regions, and there are no ids for places.
            DocumentError: a set can't be read.
        """
        sets = self.sets()
        check_places(self.kind, sets, reading.assembler.vocabulary.locations)
        return [
            GroundedExamples(
                grounded=one,
                assembler=reading.assembler,
                length=reading.length,
                questions=self.questions,
                describe=self.describe,
                unreadable=self.unreadable,
            )
            for one in sets
            if one.count("train")
        ]


def check_places(name: str, sets: Sequence[GroundedSet], locations: int) -> None:
    """Checks that there are ids for places if a set has regions; questions alone need none.

    Args:
        name: of the source in the mixture.
        locations: number of ids.

    Raises:
        ValueError: there are none, or fewer than places have bins.
    """
    if any(one.has_regions for one in sets):
        check_locations(name, locations)


def check_images(grounded: GroundedSet, splits: Sequence[str], whole: bool) -> None:
    """Checks the images of some splits: that all are there, and that some can be read or, with `whole`, every one.

    Raises:
        DocumentError: some are missing, in a line that names the first one; or one is damaged, or not the annotated one.
    """
    images = [grounded.photograph(split, index) for split in splits for index in range(grounded.count(split))]
    if absent := [image.file for image in images if not is_there(image.file)]:
        raise DocumentError(
            f"{len(absent):,} of {len(images):,} images of {grounded.name} ({', '.join(splits)}) are missing, the first is "
            f"{absent[0]}: copy the whole folder, or name another one with data.regions.images_folder"
        )
    for image in images if whole else images[:: max(1, len(images) // LOOKS)]:
        if whole:
            image.read()
        else:
            image.check()
