"""Which files of a folder are a set of tables: those that `save_to_disk` of the `datasets` library lists, or all of a split."""

import re

from generalist.data.files import DocumentError, json_file
from generalist.data.formats.documents import folders, listed
from generalist.data.formats.places import Place, inside

# The words that the `datasets` library looks for in names of files.
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLITS |= dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), "validation")
# `train-00000-of-00002.parquet` and `data/test/0.parquet`, but not `constraint.parquet`: the name stands alone.
SPLIT = re.compile(rf"(?:^|[-_./])({'|'.join(SPLITS)})(?=[-_./\d]|$)")
"""What a file's name, or that of its folder, says of its split."""


def table_files(place: Place, ending: str) -> list[Place]:
    """The files of a folder: those that `save_to_disk` lists, else all that end so in it and in the folders right below. Tables
    beside tars of the same names only describe these.

    Raises:
        DocumentError: a list of files is damaged, or names one outside of the folder.
    """
    if not place.is_dir():
        return [place]
    # A folder of `save_to_disk` may hold cached files besides, which are no part of the set.
    if (place / "state.json").exists():
        return [file for file in _saved(place) if file.name.endswith(ending)]
    found = [
        file
        # One level down: `data/` of a downloaded repository, or a folder per split.
        for folder in (place, *folders(place))
        for file in (_saved(folder) if (folder / "state.json").exists() else listed(folder, (ending,)))
        if file.name.endswith(ending)
    ]
    # img2dataset writes 00000.parquet, a table of addresses, beside 00000.tar.
    return [file for file in found if not file.with_suffix(".tar").exists()]


def _saved(folder: Place) -> list[Place]:
    """The files of a data set that `save_to_disk` wrote."""
    state = folder / "state.json"
    described = json_file(state)
    listed_files = described.get("_data_files") if isinstance(described, dict) else None
    if not isinstance(listed_files, list):
        raise DocumentError(f"{state} has no list of files, _data_files: save the data set again")
    found = []
    for one in listed_files:
        name = one.get("filename") if isinstance(one, dict) else None
        if not isinstance(name, str):
            raise DocumentError(f"{state} has {one!r:.60} instead of a file: save the data set again")
        try:
            # The list of files is data from outside too.
            found.append(inside(folder, name, state))
        except ValueError as error:
            raise DocumentError(str(error)) from error
    return found


def of_split(place: Place, files: list[Place], wanted: str) -> list[Place]:
    """Those of a split, where names say which; all, if no name does or all say the same.

    Raises:
        DocumentError: they are of several other splits.
    """
    splits, wanted = [_split_of(file, place) for file in files], SPLITS.get(wanted, wanted)
    # None is named at all, or all are the same: whoever names a folder of test files wants these.
    if len(set(splits)) <= 1:
        return files
    if wanted not in splits:
        names = ", ".join(sorted({split or "no name" for split in splits}))
        raise DocumentError(
            f"{place} has files of several splits ({names}), none of them {wanted}: name one file or folder"
        )
    return [file for file, split in zip(files, splits, strict=True) if split == wanted]


def _split_of(file: Place, place: Place) -> str | None:
    """What the name of a file, or else of its folder within the place, says of its split."""
    # The file's own name says more than its folder's: `train/validation-0.parquet`.
    for name in [file.name] + ([file.parent.name] if file.parent != place else []):
        if found := SPLIT.search(name.lower()):
            return SPLITS[found[1]]
    return None
