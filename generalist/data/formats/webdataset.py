"""WebDataset: tar files whose members `KEY.ext` with the same key are a sample. Members are read where they lie, in any order.

cat0.jpg  cat0.txt  cat1.jpg  cat1.txt      an image, then its text (.txt, else the text of .json, else the class of .cls)
page0.json                                  any layout of `generalist.data.formats.records`, with images in base64 or beside it

Dimension key: M members of a tar, P pairs.
"""

import re
import tarfile
from array import array
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from jaxtyping import Int

from generalist.data.files import DocumentError, decoded, named, parsed
from generalist.data.formats.documents import TEXT_NAMES, DocumentOpening, NumberedDocuments, Numbering, Part, listed
from generalist.data.formats.index import Arrays, indexed
from generalist.data.formats.places import Place, read_range, size
from generalist.data.formats.records import PUBLISHED, checked_text, found_or_decoded, record_parts
from generalist.data.formats.unpacked import is_packed, unpacked
from generalist.data.images import ENDINGS, Extract, ImageRef

TARS = (".tar", ".tar.gz", ".tar.zst", ".tgz")
KEY = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)
"""A member's key and the ending of its name: all behind the first point of its last part."""
LARGEST_HEADER = 2**20  # bytes of a long name, or of what else stands before a member
LARGEST_TEXT = 2**28  # bytes of a member with text
# Each is a text in memory; a tar of other things may have one per member.
MOST_ENDINGS = 1000
TEXTS = ("txt", "text", "caption")
"""Endings of texts, the first one that a sample has."""


class WebDataset(NumberedDocuments):
    """A tar file, or all of a folder."""

    format = "WebDataset"

    def __init__(self, place: Place, opening: DocumentOpening):
        super().__init__(place, opening)
        self._files = listed(place, TARS)
        # A compressed tar has no random access, so that it is unpacked once.
        kept = self.kept if any(map(is_packed, self._files)) else None
        scan = partial(scan_tar, kept=kept)
        self._indices = indexed(self._files, scan, kind="webdataset", opening=opening)
        # `first` has the first member of each sample, and the end: one more than samples.
        self._numbering = Numbering([len(one["first"]) - 1 for one in self._indices])
        if not len(self):
            raise DocumentError(f"{place} has no sample: members of a WebDataset are called KEY.jpg and KEY.txt")
        self.pairs = self._numbering.joined([_pairs(one, opening.text_column) for one in self._indices])

    @classmethod
    def matches(cls, place: Place) -> bool:
        return bool(listed(place, TARS)) if place.is_dir() else place.name.lower().endswith(TARS)

    def where(self, index: int) -> str:
        number, at = self._numbering.find(index)
        arrays = self._indices[number]
        begin = int(arrays["key_ends"][at - 1]) if at else 0
        key = arrays["keys"][begin : arrays["key_ends"][at]].tobytes().decode("utf-8", "replace")
        return f"{self._files[number]} sample {key}"

    def parts(self, index: int) -> list[Part]:
        members = self._members(index)
        where = self.where(index)
        if "json" in members:
            record = self._json(members["json"])
            # Other JSON describes the image beside it (img2dataset's, with its address and size).
            if any(key in record for key in (*PUBLISHED, "content")):
                return self._record(record, members, where)
        text = self._text(members, where)
        # Images before the text: a caption follows what it describes.
        found: list[Part] = [one for ending, one in members.items() if _is_image(ending)]
        found += [text] if text else []
        if not found:
            raise DocumentError(f"{where} has neither an image nor a text, but {', '.join(members)}")
        return found

    def texts(self, index: int) -> list[str]:
        members = {ending: one for ending, one in self._members(index).items() if not _is_image(ending)}
        if "json" in members:
            return super().texts(index)
        text = self._text(members, self.where(index))
        return [text] if text else []

    def notes(self) -> list[str]:
        unread: Counter[str] = Counter()
        for one in self._indices:
            # (endings,): how many members have each
            names, counts = one["endings"].tolist(), np.bincount(one["ending"], minlength=len(one["endings"])).tolist()
            unread.update({f".{name}": count for name, count in zip(names, counts, strict=True) if not _is_read(name)})
            unread.update(dict(zip(one["skipped"].tolist(), one["skipped_count"].tolist(), strict=True)))
        return [f"{self.place}: {count:,} members are not read: {what}" for what, count in unread.most_common()]

    def _members(self, index: int) -> dict[str, Extract]:
        """A sample's members, by the endings of their names."""
        number, at = self._numbering.find(index)
        arrays, where = self._indices[number], self.where(index)
        file = self.plain(self._files[number])
        first, stop = (int(one) for one in arrays["first"][at : at + 2])
        found = {}
        for row in range(first, stop):
            ending = str(arrays["endings"][arrays["ending"][row]])
            # Not read: an image is a range of the tar until it is decoded.
            found[ending] = Extract(file, int(arrays["offset"][row]), int(arrays["size"][row]), f"{where}.{ending}")
        return found

    def _text(self, members: dict[str, Extract], where: str) -> str:
        """A sample's text; empty if it has none."""
        for ending in (self.opening.text_column, *TEXTS):
            if ending in members:
                return checked_text(self._read(members[ending]), where)
        if "json" in members:
            record = self._json(members["json"])
            keys = [self.opening.text_column] if self.opening.text_column else TEXT_NAMES
            found = next((record[key] for key in keys if isinstance(record.get(key), str)), "")
            return checked_text(found, where)
        return self._read(members["cls"]).strip() if "cls" in members else ""

    def _record(self, record: dict[str, Any], members: dict[str, Extract], where: str) -> list[Part]:
        """A sample whose JSON says what it is made of. Its images are in it, members of its own, or in the folder of images."""

        def find(name: str, where: str) -> ImageRef:
            if name in members:
                return members[name]
            # A record may name its image by the ending alone, or by the whole name of the member.
            ending = name.rpartition("/")[2].partition(".")[2]
            return members.get(ending) or named(self.opening.images or self.place.parent, name, where)

        # A conversation without an image's name means the images beside it.
        if not any(key in record for key in ("content", "image", "images")):
            record = record | {"images": [ending for ending in members if _is_image(ending)]}
        return record_parts(record, where, found_or_decoded(find))

    def _json(self, member: Extract) -> dict[str, Any]:
        record = parsed(self._read(member).encode(), member.name)
        if not isinstance(record, dict):
            raise DocumentError(f"{member} holds {type(record).__name__} instead of an object")
        return record

    @staticmethod
    def _read(member: Extract) -> str:
        """The text of a member."""
        if member.size > LARGEST_TEXT:
            raise DocumentError(f"{member} has {member.size:,} bytes, more than a text may have")
        try:
            return decoded(read_range(member.file, member.offset, member.size), member.name)
        except DocumentError:
            raise
        except (OSError, ValueError) as error:
            raise DocumentError(f"{member} can't be read ({error})") from error


def scan_tar(file: Place, kept: Path | None) -> Arrays:
    """Which members each sample of a tar has, and where they lie, by reading their headers alone.

    Raises:
        DocumentError: the tar is damaged, cut off, or has a member twice.
    """
    keys: dict[str, int] = {}
    endings: dict[str, int] = {}
    found, skipped = array("q"), Counter[str]()
    for member in _headers(file if kept is None else unpacked(file, kept), file):
        # tar adds `./` where it was given a folder.
        match = KEY.fullmatch(member.name.removeprefix("./"))
        if reason := _not_read(member, match):
            skipped[reason] += 1
        elif match is not None:
            key, ending = match[1], match[2].lower()
            if len(endings) == MOST_ENDINGS and ending not in endings:
                raise DocumentError(f"{file} has members with more than {MOST_ENDINGS} endings: it is no WebDataset")
            at = (keys.setdefault(key, len(keys)), endings.setdefault(ending, len(endings)))
            found.extend((*at, member.offset_data, member.size))
    # (members, 4)
    rows = np.array(found, np.int64).reshape(-1, 4)
    rows = rows[np.argsort(rows[:, 0], kind="stable")]  # of tars that are not sorted, members of a key come together
    sample, ending, offset, count = rows.T
    _check_once(file, sample, ending, list(keys), list(endings))
    # As tarfile decodes names that are no UTF-8, so that the same bytes come back.
    names = [key.encode("utf-8", "surrogateescape") for key in keys]
    return {
        "first": np.searchsorted(sample, np.arange(len(keys) + 1)),
        "ending": ending,
        "offset": offset,
        "size": count,
        "endings": np.array(list(endings), np.str_),
        "keys": np.frombuffer(b"".join(names), np.uint8),
        "key_ends": np.cumsum([len(name) for name in names], dtype=np.int64),
        "skipped": np.array(list(skipped), np.str_),
        "skipped_count": np.array(list(skipped.values()), np.int64),
    }


def _not_read(member: tarfile.TarInfo, match: re.Match[str] | None) -> str:
    """Why a member is left aside; empty if it is not."""
    if member.isdir():
        return "folders"
    # A link's bytes are elsewhere; those of a file with holes are not one range of the tar.
    if not member.isreg() or member.issparse():
        return "links, devices and files with holes"
    # Nothing is ever written to such a name; it is left aside all the same, as no data set needs one.
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "names outside of the tar"
    return "" if match else "names without a key and an ending"


def _check_once(
    file: Place, sample: Int[np.ndarray, "M"], ending: Int[np.ndarray, "M"], keys: list[str], endings: list[str]
) -> None:
    # (members,): a number per sample and ending
    both = sample * (len(endings) + 1) + ending
    values, counts = np.unique(both, return_counts=True)
    if (counts > 1).any():
        key, name = divmod(int(values[counts > 1][0]), len(endings) + 1)
        raise DocumentError(f"{file} has the member {keys[key]}.{endings[name]} twice, of which one would be lost")


def _headers(file: Place, told: Place) -> Iterator[tarfile.TarInfo]:
    """The headers of a tar's members; nothing that is in them is read.

    Args:
        told: the file as the user has it, for messages.
    """
    try:
        with file.open("rb") as opened, tarfile.open(fileobj=cast(IO[bytes], _Bounded(opened)), mode="r:") as tar:
            end, offset = size(file), 0
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined] # which else keep all headers in memory
                # A size that leads backwards would make the walk endless, one beyond the end would hide what was
                # cut off.
                if member.size < 0 or member.offset_data + member.size > end or member.offset < offset:
                    raise DocumentError(f"{told} ends within the member {member.name!r:.80}: get it again")
                offset = member.offset_data
                yield member
            # tarfile takes a damaged header for the end.
            opened.seek(tar.offset)
            _check_end(opened, told)
    except DocumentError:
        raise
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, LookupError, AttributeError) as error:
        raise DocumentError(f"{told} can't be read as a tar ({error}): get it again") from error


def _check_end(opened: Any, told: Place) -> None:
    """Whether nothing but zeros stands where a tar ends.

    Raises:
        DocumentError: something else does, or nothing at all, so that the rest is lost.
    """
    rest = opened.read(2**20)
    if not rest:
        raise DocumentError(f"{told} has no mark at its end: it was cut off, get it again")
    while rest:
        if rest.strip(b"\0"):
            raise DocumentError(
                f"{told} goes on behind its end, or a header is damaged: get it again, and join no tars"
            )
        rest = opened.read(2**20)


class _Bounded:
    """A file of which only little is read at once: tarfile would read a long name, however long it claims to be."""

    def __init__(self, opened: Any):
        self._opened = opened
        self.seek, self.tell = opened.seek, opened.tell

    def read(self, count: int) -> bytes:
        """The next bytes."""
        if not 0 <= count <= LARGEST_HEADER:
            raise ValueError(f"a header of {count:,} bytes")
        return self._opened.read(count)


def _is_image(ending: str) -> bool:
    return f".{ending.rpartition('.')[2]}" in ENDINGS


def _is_read(ending: str) -> bool:
    return _is_image(ending) or ending in (*TEXTS, "json", "cls")


def _pairs(arrays: Arrays, text: str | None) -> Int[np.ndarray, "P"]:
    """Numbers of the samples of one image and a text."""
    endings = arrays["endings"].tolist()
    images = np.array([_is_image(ending) for ending in endings], bool)
    texts = np.array([not _is_image(one) and (_is_read(one) or one == text) for one in endings], bool)
    # (members,): the sample of each
    sample = np.repeat(np.arange(len(arrays["first"]) - 1), np.diff(arrays["first"]))
    counts = [
        np.bincount(sample[kind[arrays["ending"]]], minlength=len(arrays["first"]) - 1) for kind in (images, texts)
    ]
    return np.flatnonzero((counts[0] == 1) & (counts[1] > 0))
