"""The parts of an evaluation in the order in which they are shown. An evaluation, its file, its table, its page and comparisons
walk this list; to add a part, call `register` with an object of a subclass of `Part`.
"""

from generalist.eval.parts.control import Control
from generalist.eval.parts.documents import HeldOutDocuments
from generalist.eval.parts.language import Language
from generalist.eval.parts.naming import Naming
from generalist.eval.parts.part import Part, Results
from generalist.eval.parts.recorded import RecordedActions

PARTS: list[Part] = [Control(), RecordedActions(), Naming(), Language(), HeldOutDocuments()]


def register(part: Part) -> None:
    """Adds a part: shown last, computed first (control, which is shown first, takes by far the longest).

    Raises:
        ValueError: its name is taken, by a part or by the manifest.
    """
    from generalist.eval.results.manifest import KEYS

    if part.name in KEYS or any(part.name == one.name for one in PARTS):
        raise ValueError(f"an evaluation has a part or a manifest entry {part.name!r} already: choose another name")
    PARTS.append(part)


def present(results: Results) -> list[Part]:
    """The parts that have a section in a results file."""
    return [part for part in PARTS if results.get(part.name)]
