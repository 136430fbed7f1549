"""The sources that come with the package, one file each. Importing a file registers its source."""

from importlib.metadata import entry_points

from generalist.data.source import KINDS
from generalist.data.sources import (
    arcade,
    control,
    custom,
    documents,
    drawing,
    emoji,
    grids,
    infilling,
    new_words,
    prose,
    recorded,
    regions,
    scenes,
)

COMING = (
    control,
    custom,
    emoji,
    new_words,
    prose,
    documents,
    recorded,
    drawing,
    scenes,
    infilling,
    regions,
    grids,
    arcade,
)
"""The default order of a mixture. It decides the ids of sources and the seeds of their shuffles: append, never reorder."""

# They were registered in the order in which they import each other. Putting a key back in moves it to the end of a dictionary,
# and the sort keeps the order of several sources in one file.
_ours = [module.__name__ for module in COMING]
for _kind in sorted(KINDS, key=lambda kind: _ours.index(KINDS[kind].__module__)):
    KINDS[_kind] = KINDS.pop(_kind)

# Other packages register their sources by an entry point of this group. After the loop, since their modules are not listed.
for _found in entry_points(group="generalist.sources"):
    _found.load()
