"""The parts of an evaluation in the order in which they are shown. Evaluations, results files, tables, pages and comparisons walk
this list; to add a part, call `register` with an object of a subclass of `Part`.
"""

from generalist.eval.parts.arcade import ArcadeScreens
from generalist.eval.parts.control import Control
from generalist.eval.parts.documents import HeldOutDocuments
from generalist.eval.parts.drawing import Draws
from generalist.eval.parts.infilling import FillInTheMiddle
from generalist.eval.parts.language import Language
from generalist.eval.parts.naming import Naming
from generalist.eval.parts.part import Part, Results
from generalist.eval.parts.places import GoToPlaces
from generalist.eval.parts.recorded import RecordedActions
from generalist.eval.parts.regions import DescribedRegions
from generalist.eval.parts.scenes import ComposedScenes, WholeGrids

PARTS: list[Part] = [
    Control(),
    GoToPlaces(),
    RecordedActions(),
    Naming(),
    ComposedScenes(),
    WholeGrids(),
    ArcadeScreens(),
    DescribedRegions(),
    Language(),
    FillInTheMiddle(),
    HeldOutDocuments(),
    Draws(),
]


def register(part: Part) -> None:
    """Adds a part. It is shown last and computed first, since control, which is shown first, takes by far the longest.

    Raises:
        ValueError: a part or an entry of the manifest has that name.
    """
    from generalist.eval.results.manifest import KEYS

    # Sections and the manifest's entries are keys of one object in the file.

    if part.name in KEYS or any(part.name == one.name for one in PARTS):
        raise ValueError(f"an evaluation has a part or a manifest entry {part.name!r} already: choose another name")
    PARTS.append(part)


def present(results: Results) -> list[Part]:
    """The parts that have a section in a results file."""
    return [part for part in PARTS if results.get(part.name)]
