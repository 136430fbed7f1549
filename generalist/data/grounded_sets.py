"""Sets of images with regions in a local folder, whichever layout they have."""

import numpy as np

from generalist.data.files import DocumentError
from generalist.data.formats import gqa, refcoco, visual_genome
from generalist.data.formats.documents import DocumentOpening, folders
from generalist.data.formats.places import Place
from generalist.data.grounded import GroundedSet


def open_grounded(place: Place, opening: DocumentOpening, division: str | None = None) -> list[GroundedSet]:
    """The sets in a folder: RefCOCO's, Visual Genome, GQA, or the folder itself as one of them. No image that an evaluation of
    one of them shows is trained on, whichever of them has it; between RefCOCO and GQA this needs Visual Genome's list of images.

    Args:
        place: a set's folder, or one that holds several.
        opening: where indices are kept, and the folder of the images if it is not beside the sets.
        division: of RefCOCO's sets: `unc`, `google` or `umd`; None: the first that each set has.

    Raises:
        DocumentError: there is none, or a file is missing or damaged.
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
    for one in asked:
        one.leave_out({str(number) for genome in genomes for number in genome.evaluated})
    if not (refs or genomes or asked):
        raise DocumentError(
            f"{place} has no refs(unc).p, refs(umd).p or refs(google).p, no {visual_genome.IMAGES} and no "
            "train_balanced_questions.json, and no folder with one: put the files there as they are published (docs/pointing.md)"
        )
    return [*refs, *genomes, *asked]
