"""Documents as JSON objects, in the layouts that people publish.

own            {"content": ["A cat", {"image": "cat.png"}, "on a mat"]}; {"image": "cat.png", "text": "a cat"}; {"text": "a cat"}
conversations  {"image": "cat.png", "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, ...]}  (LLaVA, ShareGPT)
messages       {"messages": [{"role": "user", "content": [{"type": "image", "image": "cat.png"}, {"type": "text", ...}]}, ...]}
MMC4           {"text_list": ["A cat.", ...], "image_info": [{"image_name": "cat.png", "matched_text_index": 0}, ...]}
"""

import base64
import binascii
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from generalist.data.files import DocumentError, check_letters
from generalist.data.formats.documents import IMAGE_NAMES, Part
from generalist.data.images import Encoded, ImageRef, is_there

KEYS = {"content", "image", "text"}
"""Of our own layout."""
LISTED = ", ".join(sorted(KEYS))
PUBLISHED = ("conversations", "messages", "text_list")
"""Keys that say that an object has a published layout; what else it has describes it, and is not read."""
IMAGE = "<image>"
# LLaVA's names of the two sides; `user` and `assistant` of messages come to the same words.
ROLES = {"human": "User", "gpt": "Assistant"}
"""Who speaks in a conversation; other roles are written with a capital letter."""

Find = Callable[[str, str], ImageRef]
"""The image of a name, and where that stands, for messages."""


def record_parts(record: Mapping[str, Any], where: str, find: Find) -> list[Part]:
    """What an object is made of.

    Args:
        where: file and entry, for messages.
        find: gives the image of a name.

    Raises:
        DocumentError: it has none of the layouts, or not what its layout needs.
    """
    # Before our own layout: LLaVA's records have an `image` too.
    if "conversations" in record or "messages" in record:
        return conversation(turns_of(record, where, find), list(_named_images(record, where, find)), where)
    if "text_list" in record:
        return interleaved(record, where, find)[0]
    return own_parts(record, where, find)


def is_own(record: Mapping[str, Any]) -> bool:
    """Whether an object has our own layout, in which a key that is not read is worth a word."""
    return not any(key in record for key in PUBLISHED)


# ---- our own


def own_parts(document: Mapping[str, Any], where: str, find: Find) -> list[Part]:
    """See the top of this file."""
    content = document.get("content")
    # Nothing that a person has written is dropped in silence.
    if content is not None and (both := sorted(document.keys() & {"image", "text"})):
        raise DocumentError(f'{where} has "content" and {both[0]!r}, which would be lost: put it into the content')
    if content is None:
        content = [{"image": document["image"]}] if "image" in document else []
        content += [document["text"]] if "text" in document else []
        # An image alone is a document, but with `caption` beside it the text is under a name that is not known.
        if content and "text" not in document and (other := sorted(map(str, document.keys() - KEYS))):
            raise DocumentError(
                f"{where} has no text, but the key {other[0]!r}, which is not read: known keys are {LISTED}"
            )
    if not isinstance(content, list) or not content:
        raise DocumentError(f'{where} has neither "content" (a list) nor "text" nor "image"')
    return [_part(part, where, find) for part in content]


def _part(part: Any, where: str, find: Find) -> Part:
    if isinstance(part, str) and part:
        return checked_text(part, where)
    if isinstance(part, dict) and isinstance(name := part.get("image"), str) and name:
        if other := sorted(part.keys() - {"image"}):
            raise DocumentError(
                f'{where}: {other[0]!r} stands beside "image", where nothing else is read: put it after it'
            )
        return find(name, where)
    raise DocumentError(f'{where}: {part!r:.60} is neither a text nor {{"image": "its file"}}')


# ---- conversations


@dataclasses.dataclass(frozen=True)
class Turn:
    """What one side says."""

    role: str
    said: list[Part | None]
    """Texts and images in order; None stands for the next of the record's images."""


def turns_of(record: Mapping[str, Any], where: str, find: Find) -> list[Turn]:
    """The turns of `conversations` or `messages`.

    Raises:
        DocumentError: there is none, or one is not as it should be.
    """
    if "conversations" in record:
        return [_llava_turn(turn, where) for turn in _list(record, "conversations", where)]
    return [_message(turn, where, find) for turn in _list(record, "messages", where)]


def conversation(turns: list[Turn], images: list[ImageRef], where: str) -> list[Part]:
    """A conversation as a document: `User: ...`, a line feed, `Assistant: ...`; images before the text that they begin.

    Args:
        images: those that the record names apart from its turns, in the order of their places in these.

    Raises:
        DocumentError: there are more or fewer images than places for them, or no text.
    """
    places = sum(said is None for turn in turns for said in turn.said)
    if places == 0 and images:  # nothing says where: before all, as LLaVA's authors do with image sets of other people
        turns, places = [Turn(turns[0].role, [*([None] * len(images)), *turns[0].said]), *turns[1:]], len(images)
    # A place too many or too few means that a wrong image would stand beside a text.
    if places != len(images):
        raise DocumentError(
            f"{where} has {places} places for images, {IMAGE}, but {len(images)} images: make them match"
        )
    parts: list[Part] = []
    # A line feed goes before every turn but the first, and a turn's name before its first text only.
    following, spoken = iter(images), False
    for turn in turns:
        prefix = f"{ROLES.get(turn.role, turn.role.capitalize())}: "
        for said in turn.said:
            if isinstance(said, str):
                parts.append(("\n" if spoken and prefix else "") + prefix + said)
                prefix, spoken = "", True
            else:
                parts.append(next(following) if said is None else said)
    if not spoken:
        raise DocumentError(f"{where} has no text in its conversation")
    return merged(parts)


def merged(parts: list[Part]) -> list[Part]:
    """Parts with texts that follow each other joined."""
    found: list[Part] = []
    for part in parts:
        if isinstance(part, str) and found and isinstance(before := found[-1], str):
            found[-1] = before + part
        else:
            found.append(part)
    return found


def _llava_turn(turn: Any, where: str) -> Turn:
    if not isinstance(turn, dict) or not isinstance(turn.get("from"), str) or not isinstance(turn.get("value"), str):
        raise DocumentError(f'{where}: {turn!r:.60} is no turn {{"from": ..., "value": its text}}')
    return Turn(_role(turn["from"], where), list(split_places(checked_text(turn["value"], where))))


def _message(turn: Any, where: str, find: Find) -> Turn:
    if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
        raise DocumentError(f'{where}: {turn!r:.60} is no message {{"role": ..., "content": ...}}')
    content = turn.get("content")
    if isinstance(content, str):
        return Turn(_role(turn["role"], where), list(split_places(checked_text(content, where))))
    if not isinstance(content, list):
        raise DocumentError(f"{where}: the content {content!r:.60} of a message is neither a text nor a list of parts")
    return Turn(_role(turn["role"], where), [_typed(part, where, find) for part in content if part != ""])


def _typed(part: Any, where: str, find: Find) -> Part | None:
    """A part of a message: {"type": "text", "text": ...} or {"type": "image", "image": its file}, or only its type, if the record
    has its images apart."""
    # As OpenAI's and Qwen's interfaces have it: `image_url` may be a text or {"url": ...}.
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return checked_text(part["text"], where)
    if kind in ("image", "image_url"):
        given = next((part[key] for key in ("image", "image_url", "path", "url") if part.get(key) is not None), None)
        given = given.get("url") if isinstance(given, dict) else given
        if given is None:
            return None
        if isinstance(given, str) and given:
            return find(given, where)
    raise DocumentError(f"{where}: {part!r:.60} is neither a text nor an image of a message")


def split_places(text: str) -> Iterator[str | None]:
    """A text with `<image>` in it as texts and places of images, without the ends of lines that set these apart."""
    # LLaVA writes "<image>\nWhat is it?" or "What is it?\n<image>": the line feed only sets the place apart.
    for number, piece in enumerate(re.split(rf"\n?{IMAGE}\n?", text)):
        if number:
            yield None
        if piece:
            yield piece


def _named_images(record: Mapping[str, Any], where: str, find: Find) -> Iterator[ImageRef]:
    """The images that a record names beside its turns, one or a list."""
    # `image` and `images`, the two that are published.
    for key in IMAGE_NAMES[:2]:
        given = record.get(key)
        for name in given if isinstance(given, list) else [] if given is None else [given]:
            if not isinstance(name, str) or not name:
                raise DocumentError(f"{where}: its {key} is {name!r:.60} instead of the name of a file")
            yield find(name, where)


# ---- MMC4


def interleaved(record: Mapping[str, Any], where: str, find: Find) -> tuple[list[Part], int]:
    """MMC4's sentences, each image before the one that it matches (OpenFlamingo), and how many images are not there: they were
    addresses once, of which many are gone, and are left out.

    Raises:
        DocumentError: a sentence is no text, or an image matches none.
    """
    sentences = [checked_text(one, where) for one in _list(record, "text_list", where)]
    before: dict[int, list[ImageRef]] = {}
    absent = 0
    for image in record.get("image_info") or []:
        at = image.get("matched_text_index") if isinstance(image, dict) else None
        # Python would take -1 for the last sentence.
        if not isinstance(at, int) or not 0 <= at < len(sentences):
            raise DocumentError(f"{where}: the image {image!r:.60} has no matched_text_index of a sentence")
        given = image.get("image_base64")
        ref = (
            decoded_image(given, where)
            if isinstance(given, str)
            else find(_get_text(image, "image_name", where), where)
        )
        if is_there(ref):
            before.setdefault(at, []).append(ref)
        else:
            absent += 1
    parts: list[Part] = []
    for at, sentence in enumerate(sentences):
        parts += before.get(at, ())
        # A space joins two sentences, and none is needed behind an image.
        parts += [(" " if at and at not in before else "") + sentence] if sentence else []
    if not any(isinstance(part, str) for part in parts):
        raise DocumentError(f"{where} has no text in its text_list")
    return merged(parts), absent


# ---- what all have


def decoded_image(text: str, where: str) -> Encoded:
    """An image in base64.

    Raises:
        DocumentError: it is none.
    """
    try:
        # Without `validate`, characters that are no base64 are left out, and a file's name would be "decoded"
        # into noise.
        return Encoded(base64.b64decode(text, validate=True), f"{where}: its image")
    except (binascii.Error, ValueError) as error:
        raise DocumentError(f"{where}: an image is not base64 ({error}): get it again") from error


def found_or_decoded(find: Find) -> Find:
    """`find`, which also takes an image in the name itself (`data:image/png;base64,...`)."""

    def look(name: str, where: str) -> ImageRef:
        if name.startswith("data:"):
            return decoded_image(name.partition(",")[2], where)
        return find(name, where)

    return look


def checked_text(text: Any, where: str) -> str:
    """A text.

    Raises:
        DocumentError: it is none, or no file can hold it.
    """
    if not isinstance(text, str):
        raise DocumentError(f"{where}: {text!r:.60} is no text")
    check_letters(text, f"{where}:")
    return text


def _role(role: str, where: str) -> str:
    # A role is written into the document: a whole text under `from` means that the keys were swapped.
    if not role or len(role) > 40 or "\n" in role:
        raise DocumentError(f"{where}: {role!r:.60} is no one who speaks in a conversation")
    return role


def _list(record: Mapping[str, Any], key: str, where: str) -> list[Any]:
    if not isinstance(found := record[key], list) or not found:
        raise DocumentError(f"{where}: its {key} are {found!r:.60} instead of a list with at least one entry")
    return found


def _get_text(record: Mapping[str, Any], key: str, where: str) -> str:
    if not isinstance(found := record.get(key), str) or not found:
        raise DocumentError(f"{where}: its {key} is {found!r:.60} instead of a text")
    return found
