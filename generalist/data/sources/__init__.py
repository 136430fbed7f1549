"""The sources that come with the package; each is one file. Importing it registers its source."""

from importlib.metadata import entry_points

from generalist.data.source import KINDS
from generalist.data.sources import control, custom, documents, emoji, new_words, prose, recorded

COMING = (control, custom, emoji, new_words, prose, documents, recorded)
"""In the order that a mixture has them in by default, which decides the ids of sources and what is drawn from each."""

_ours = [module.__name__ for module in COMING]
for _kind in sorted(KINDS, key=lambda kind: _ours.index(KINDS[kind].__module__)):
    KINDS[_kind] = KINDS.pop(_kind)

# Packages of others register theirs by an entry point of this group.
for _found in entry_points(group="generalist.sources"):
    _found.load()
