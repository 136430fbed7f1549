"""Sets of images with regions in a local folder, whichever layout they have."""

from collections.abc import Sequence

import numpy as np

from generalist.data.files import DocumentError
from generalist.data.formats import gqa, refcoco, visual_genome
from generalist.data.formats.documents import DocumentOpening, folders
from generalist.data.formats.places import Place
from generalist.data.grounded import GroundedSet


def open_grounded(place: Place, opening: DocumentOpening, division: str | None = None) -> list[GroundedSet]:
    """The sets in a folder: RefCOCO's, Visual Genome, GQA, or the folder itself as one of them. No image that an evaluation of
    one of them shows is trained on, whichever of them has it; between RefCOCO and GQA this needs Visual Genome's list of images,
    which may be there alone.

    Args:
        place: a set's folder, or one that holds several.
        opening: where indices are kept, and the folder of the images if it is not beside the sets.
        division: of RefCOCO's sets: `unc`, `google` or `umd`; None: the first that each set has.

    Raises:
        DocumentError: there is none, two have the same name, or a file is missing or damaged.
    """
    if not place.is_dir():
        raise DocumentError(f"there is no folder {place}: name one with sets as they are published (docs/pointing.md)")
    refs = refcoco.open_refs(place, opening, division)
    evaluated = np.concatenate([np.zeros(0, np.int64), *(one.evaluated for one in refs)])
    within = (place, *folders(place))
    # A folder with `questions1.2` in it is one set, not two.
    asking = [place] if gqa.matches(place) else [folder for folder in within if gqa.matches(folder)]
    asked = [gqa.QuestionSet(folder, opening) for folder in asking]
    # GQA's images are Visual Genome's, under the same numbers, and some that have other names.
    elsewhere = {int(name) for one in asked for name in one.evaluated if name.isdecimal()}
    genomes = [
        visual_genome.GenomeSet(folder, opening, evaluated, elsewhere)
        for folder in within
        if visual_genome.matches(folder)
    ]
    for questions in asked:
        questions.leave_out({str(number) for genome in genomes for number in genome.evaluated})
    for expressions in refs:
        expressions.leave_out({number for genome in genomes for number in genome.evaluated_coco})
    found: list[GroundedSet] = [*refs, *genomes, *asked]
    # Visual Genome's list of images alone is no set.
    if not (sets := [one for one in found if one.kinds]):
        raise DocumentError(
            f"{place} has no refs(unc).p, refs(umd).p or refs(google).p, no {visual_genome.IMAGES} with one of "
            f"{', '.join(visual_genome.READERS)}, no train_balanced_questions.json, and no folder with one: put the files there "
            "as they are published (docs/pointing.md)"
        )
    _check_names(sets)
    return found


def _check_names(sets: Sequence[GroundedSet]) -> None:
    """Checks that each set has a name of its own, by which its scores are kept.

    Raises:
        DocumentError: two have the same.
    """
    first: dict[str, GroundedSet] = {}
    for one in sets:
        if (other := first.setdefault(one.name, one)) is not one:
            raise DocumentError(
                f"{other.files[0]} and {one.files[0]} belong to two sets, and both are called {one.name} by their folder: move "
                "the files of one into a folder of another name"
            )
