"""Documents as the tokenizer of a published model writes them, whose images stand in the text as positions.

    Gemma 3      bos text \n\n <start> <soft> … <soft> <end> \n\n text
    LLaVA        bos text <image> … <image> text
    PaliGemma    <image> … <image> bos text \n

Dimension key: n ids.
"""

from collections.abc import Iterator
from collections.abc import Sequence as Sequences

import numpy as np
from jaxtyping import Int32

from generalist.tokenizers.documents import ChunkEnd, Controlled, Part, Predicted, is_image
from generalist.tokenizers.marks import ImageMarks, Marks
from generalist.tokenizers.pieces import Modality
from generalist.tokenizers.shown import Shown
from generalist.tokenizers.text import TextTokenizer


def written_document(
    text: TextTokenizer, marks: Marks, parts: Sequences[Part], shown: Sequences[Shown], *, is_open: bool
) -> Int32[np.ndarray, "n"]:
    """The ids of a document to be continued, images included.

    Texts and images between ids are one text to the tokenizer, as they are where it was trained: line ends around an image may
    join those of the text.

    Args:
        shown: the images among the parts, in order.

    Raises:
        ValueError: a text has a control token in it, or the document is not open.
    """
    if not is_open:
        raise ValueError("a document of a published model with images can be continued only, not learnt from")
    image = marks.image
    assert image is not None
    begin, found = np.array(marks.begin, np.int32), []
    last = max((place for place, part in enumerate(parts) if is_image(part)), default=-1)
    if not image.begin_last or last < 0:
        found.append(begin)
    for section in _sections(text, marks, parts, shown, last, image):
        found.append(section if isinstance(section, np.ndarray) else text.with_controls(section))
    return np.concatenate(found).astype(np.int32)


def _sections(
    text: TextTokenizer,
    marks: Marks,
    parts: Sequences[Part],
    shown: Sequences[Shown],
    last: int,
    image: ImageMarks,
) -> Iterator[str | Int32[np.ndarray, "_"]]:
    """Texts with images and control tokens written out, and the ids between them.

    Args:
        last: place of the last image.
    """
    written, images = "", iter(shown)
    for place, part in enumerate(parts):
        if isinstance(part, ChunkEnd) or (isinstance(part, np.ndarray) and not is_image(part)):
            yield written
            yield np.array([marks.chunk_end], np.int32) if isinstance(part, ChunkEnd) else part
            written = ""
        elif is_image(part):
            written += image.written(next(images))
            if place == last and image.begin_last:
                yield written
                yield np.array(marks.begin, np.int32)
                written = ""
        elif isinstance(part, Controlled):
            written += part.text
        else:
            written += _plain(text, part.text if isinstance(part, Predicted) else str(part))
    yield written + image.closing


def _plain(tokenizer: TextTokenizer, text: str) -> str:
    """A text, checked to have no control token in it, which would be read as one.

    Raises:
        ValueError: it has.
    """
    if found := [one for one in tokenizer.controls() if one in text]:
        raise ValueError(f"a text has the control token {found[0]} in it: leave it out")
    return text


def image_positions(
    ids: Int32[np.ndarray, "n"], marks: ImageMarks, shown: Sequences[Shown]
) -> tuple[Int32[np.ndarray, "n"], Int32[np.ndarray, "n"]]:
    """The `Modality` of each id (the first position of each image, its others, and text) and the `payload_index`.

    Raises:
        ValueError: the ids have positions for another number of images.
    """
    at, wanted = np.flatnonzero(ids == marks.id), sum(len(one.modality) for one in shown)
    if len(at) != wanted:
        raise ValueError(
            f"the prompt has {len(at)} ids of the token {marks.soft}, but {len(shown)} images, which take {wanted}"
        )
    modality, index, before = np.full(ids.shape, Modality.TEXT, np.int32), np.zeros(ids.shape, np.int32), 0
    for one in shown:
        places, at = np.split(at, [len(one.modality)])
        modality[places] = one.modality
        index[places] = one.payload_index + before * (one.modality == Modality.IMAGE)
        before += len(one.images)
    return modality, index
