"""Batches with one sequence per row: the model's input for acting, scoring and writing.

Dimension key: B rows, L positions, I images per row.
"""

import dataclasses
from collections.abc import Sequence as Sequences
from typing import Any

import numpy as np
from jaxtyping import Int

from generalist.data.batch import Batch
from generalist.tokenizers import pieces
from generalist.tokenizers.pieces import PAYLOADS, Modality, Sequence, positions_per_row

# Fields of a batch with shape (rows, positions).
POSITIONAL = (
    "tokens",
    "targets",
    "modality",
    "local_position",
    "payload_index",
    "image",
    "block",
    "position",
    "segment",
    "source",
    "loss_weight",
)
FLAT = ("tensors", "frames", "patches", "intervals", "images", "actions", "action_weight", "action_from")


def stack_rows(sequences: Sequences[Sequence], length: int, *, pad: int, frame_tokens: int = 1) -> Batch:
    """One sequence per row, padded on the right to `length` positions.

    Args:
        pad: id of padding.
        frame_tokens: positions per frame.

    Raises:
        ValueError: a sequence is longer than `length`.
    """
    rows = len(sequences)
    # Padding: segment 0, which no position attends to and no loss counts.
    fields: dict[str, Any] = {
        name: np.full((rows, length), fill, np.int32)
        for name, fill in (
            ("tokens", pad),
            ("targets", pad),
            ("modality", Modality.SPECIAL),
            ("local_position", 0),
            ("payload_index", 0),
            ("image", 0),
            ("block", 0),
        )
    }
    segment, weight = np.zeros((rows, length), np.int32), np.zeros((rows, length), np.float32)
    # Payloads of all rows stand in one array per kind; `offsets` counts the positions that the rows before have used up.
    payloads: dict[str, list[np.ndarray]] = {name: [] for name in FLAT}
    offsets = dict.fromkeys(PAYLOADS, 0)
    for row, sequence in enumerate(sequences):
        size = len(sequence.tokens)
        if size > length:
            raise ValueError(
                f"sequence {row} has {size} positions but a row has {length}: raise data.length or shorten it"
            )
        for name, field in fields.items():
            field[row, :size] = getattr(sequence, name)
        fields["payload_index"][row, :size] = _following(sequence, offsets, frame_tokens)
        for name, arrays in payloads.items():
            arrays.append(getattr(sequence, name))
        # A sequence counts its positions, a batch those of all rows.
        payloads["action_from"][-1] = sequence.action_from + np.int32(row * length)
        segment[row, :size] = 1
        weight[row, :size] = sequence.loss_weight
    flat: dict[str, Any] = {name: np.concatenate(arrays) for name, arrays in payloads.items()}
    position = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length)).copy()  # (B, L)
    source = np.zeros((rows, length), np.int32)
    return Batch(
        **fields,
        position=position,
        segment=segment,
        source=source,
        loss_weight=weight,
        row_images=row_images(fields["modality"], fields["payload_index"]),
        **flat,
    )


def tail(sequence: Sequence, start: int, frame_tokens: int = 1) -> Sequence:
    """The sequence without its first `start` positions. Images are counted anew; 0 replaces the number of an earlier one."""
    fields: dict[str, Any] = {name: getattr(sequence, name)[start:] for name in pieces.POSITIONAL}
    # Payloads of the cut positions are dropped and the indices of the others moved down accordingly.
    before = sequence.modality[:start]
    index = fields["payload_index"].copy()
    for modality, payload in PAYLOADS.items():
        used = int((before == modality).sum())
        if (
            modality == Modality.IMAGE
        ):  # an image that was cut into tiles is several, of which the first alone has a marker
            kept_images = index[fields["modality"] == modality]
            used = int(kept_images[0]) if len(kept_images) else len(sequence.images)
        index[fields["modality"] == modality] -= used
        fields[payload] = getattr(sequence, payload)[used // positions_per_row(modality, frame_tokens) :]
    fields["intervals"] = sequence.intervals[int((before == Modality.PATCH).sum()) :]  # one per patch
    fields["payload_index"] = index
    seen = int((before == Modality.IMAGE).sum())
    fields["image"] = np.maximum(fields["image"] - seen, 0).astype(np.int32)
    kept = sequence.action_from >= start
    fields |= {name: getattr(sequence, name)[kept] for name in ("actions", "action_weight")}
    fields["action_from"] = sequence.action_from[kept] - np.int32(start)
    return dataclasses.replace(sequence, **fields)


def row_images(modality: Int[np.ndarray, "B L"], payload_index: Int[np.ndarray, "B L"]) -> Int[np.ndarray, "B I"]:
    """Each row's images by their markers, int32, zero-padded to the row with the most images."""
    # An image has one marker, whose payload index is its place in the batch.
    marked = modality == Modality.IMAGE
    table = np.zeros((len(marked), int(marked.sum(axis=1).max(initial=0))), np.int32)  # (B, I)
    at = np.nonzero(marked)
    table[at[0], np.cumsum(marked, axis=1)[at] - 1] = payload_index[at]
    return table


def side_by_side(batches: list[Batch], frame_tokens: int) -> Batch:
    """Batches of equally long rows, one below the other; payloads are concatenated and their indices shifted."""
    if len(batches) == 1:
        return batches[0]
    offsets, rows = dict.fromkeys(PAYLOADS, 0), {name: [] for name in POSITIONAL}
    # Rows of different batches may hold different numbers of images.
    widest = max(batch.row_images.shape[1] for batch in batches)
    tables: list[np.ndarray] = []
    for batch in batches:
        table = batch.row_images + np.int32(offsets[Modality.IMAGE])
        tables.append(np.pad(table, ((0, 0), (0, widest - table.shape[1]))))
        index = _following(batch, offsets, frame_tokens)
        for name in POSITIONAL:
            rows[name].append(index if name == "payload_index" else getattr(batch, name))
    fields: dict[str, Any] = {name: np.concatenate(arrays) for name, arrays in rows.items()}
    flat: dict[str, Any] = {name: np.concatenate([getattr(batch, name) for batch in batches]) for name in FLAT}
    before = np.cumsum([0] + [batch.tokens.size for batch in batches])
    flat["action_from"] = np.concatenate(
        [batch.action_from + np.int32(first) for batch, first in zip(batches, before[:-1], strict=True)]
    )
    return Batch(**fields, **flat, row_images=np.concatenate(tables))


def positions_in_parts(batch: Batch, size: int) -> list[Batch]:
    """A batch without payloads as batches of `size` positions each, one behind the other."""
    parts = {name: np.split(getattr(batch, name), batch.tokens.shape[1] // size, axis=1) for name in POSITIONAL}
    return [
        dataclasses.replace(batch, **dict(zip(parts, part, strict=True))) for part in zip(*parts.values(), strict=True)
    ]


def in_front(first: Batch, second: Batch) -> Batch:
    """The rows of two batches joined, those of the first, which has no payloads, in front."""
    both: dict[str, Any] = {
        name: np.concatenate([getattr(first, name), getattr(second, name)], axis=1) for name in POSITIONAL
    }
    return dataclasses.replace(second, **both)


def pad_payloads(batch: Batch, images: int = 0, least: int = 1) -> Batch:
    """The batch with its payloads padded by zeros to a few sizes, and room for `images` per row: few shapes, few compilations.

    Args:
        least: rows to which a kind of payload is padded, if there is any of it.
    """

    def padded(array: np.ndarray) -> np.ndarray:
        size = bucket(max(len(array), least)) if len(array) else 0
        return np.pad(array, [(0, size - len(array)), *[(0, 0)] * (array.ndim - 1)])

    flat: dict[str, Any] = {name: padded(getattr(batch, name)) for name in FLAT}
    # Padding points at the first image, to which no position of the row attends.
    more = max(0, images - batch.row_images.shape[1]) if len(batch.images) else 0
    return dataclasses.replace(batch, **flat, row_images=np.pad(batch.row_images, ((0, 0), (0, more))))


def shift_right(batch: Batch) -> Batch:
    """The same rows with their padding on the left, so that all end at the last position. They predict no parallel actions."""
    assert not len(batch.actions), "the positions that parallel actions are predicted from would move"
    # A stable sort keeps the order of the positions of a row. Positions need not be next to each other: the mask hides padding
    # by its segment, and `position` moves along with the rest.
    order = np.argsort(batch.segment > 0, axis=1, kind="stable")
    moved: dict[str, Any] = {name: np.take_along_axis(getattr(batch, name), order, axis=1) for name in POSITIONAL}
    return dataclasses.replace(batch, **moved)


def bucket(length: int, step: int = 16) -> int:
    """`length` rounded up to a multiple of `step`: few shapes, few compilations."""
    return -(-length // step) * step


def length_bucket(length: int, smallest: int = 8) -> int:
    """`length` rounded up to one of four sizes per doubling, multiples of `smallest`: 8, 16, ..., 64, 80, 96, 112, 128, 160, ...
    Prompts of all lengths up to 2048 then need 28 programs, at the cost of at most a fifth of a long row."""
    return bucket(length, max(smallest, 2 ** ((length - 1).bit_length() - 3)) if length > 8 else smallest)


def filled(items: list[Any], size: int) -> list[Any]:
    """`items`, filled up to `size` with the first one: one shape, one compilation. Cut off the results of the copies."""
    return items + [items[0]] * (size - len(items))


def _following(part: Sequence | Batch, offsets: dict[Modality, int], frame_tokens: int) -> Int[np.ndarray, "..."]:
    """The payload indices of a part whose payloads are put behind those of earlier parts.

    Args:
        offsets: number of positions that earlier payloads of each kind take; raised by those of this part.
    """
    index = part.payload_index.copy()
    for modality, payload in PAYLOADS.items():
        index[part.modality == modality] += offsets[modality]
        offsets[modality] += len(getattr(part, payload)) * positions_per_row(modality, frame_tokens)
    return index
