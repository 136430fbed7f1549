"""Interleaves the pieces of T steps, step after step, without a loop over the steps.

Positions follow from cumulative lengths, which may differ between steps (texts).

Dimension key: T steps, Q pieces, L positions of a sequence, n positions of a stream, R payload rows, S columns of a tensor,
F columns of the projection.
"""

import dataclasses

import numpy as np
from jaxtyping import Float32, Int, Int32, Shaped

from generalist.tokenizers.pieces import ACTION_POSITION, PAYLOADS, Modality, Piece, Visual


@dataclasses.dataclass(frozen=True)
class Placed:
    """Pieces in step-major order."""

    tokens: Int32[np.ndarray, "L"]
    modality: Int32[np.ndarray, "L"]
    local_position: Int32[np.ndarray, "L"]
    payload_index: Int32[np.ndarray, "L"]
    starts: Int[np.ndarray, "T Q"]
    """First position of each piece in each step."""


def place(pieces: list[Piece], *, last_is_action: bool = False) -> Placed:
    """Places every piece. Local positions restart at 0 in each step, but those of an action are all `ACTION_POSITION`."""
    lengths = np.stack([piece.lengths for piece in pieces], axis=1)  # (T, Q)
    # Row-major cumulative lengths of (step, piece): exactly the order in which they stand in the sequence.
    ends = np.cumsum(lengths.ravel()).reshape(lengths.shape)
    starts, total = ends - lengths, int(ends[-1, -1])
    tokens, modality = np.empty((2, total), np.int32)
    index = np.zeros((total,), np.int32)
    # A position's local index is its distance from the first position of its step.
    local = (np.arange(total) - np.repeat(starts[:, 0], lengths.sum(axis=1))).astype(np.int32)
    rows = dict.fromkeys(PAYLOADS, 0)
    for number, piece in enumerate(pieces):
        at = positions(starts[:, number], piece.lengths)
        tokens[at], modality[at] = piece.tokens, piece.modality
        # Payload rows are numbered per modality across pieces, in the order in which `payloads` joins them.
        if piece.payload is not None:
            index[at] = np.arange(rows[piece.modality], rows[piece.modality] + len(at))
            rows[piece.modality] += len(at)
        if last_is_action and number == len(pieces) - 1:
            local[at] = ACTION_POSITION
    return Placed(tokens, modality, local, index, starts)


def positions(starts: Int[np.ndarray, "T"], lengths: Int[np.ndarray, "T"]) -> Int[np.ndarray, "n"]:
    """Positions of runs that begin at `starts` and have `lengths`, run after run."""
    total = int(lengths.sum())
    # The common case, equal lengths, is a broadcast: this runs for every piece of every training example.
    if total == lengths[0] * len(lengths) and (lengths == lengths[0]).all():
        return (starts[:, None] + np.arange(lengths[0])).ravel()
    # arange counts through all runs; adding each run's start minus its place in that count moves it to its start.
    return np.repeat(starts - (np.cumsum(lengths) - lengths), lengths) + np.arange(total)


def interleave(
    pieces: list[Piece],
) -> tuple[Int32[np.ndarray, "n"], Int32[np.ndarray, "n"], Int32[np.ndarray, "T"]]:
    """Pieces as one step-major stream: tokens, modality, and lengths per step."""
    # The common case: an action of one part is in order already.
    if len(pieces) == 1:
        piece = pieces[0]
        return piece.tokens, np.full_like(piece.tokens, piece.modality), piece.lengths
    placed = place(pieces)
    lengths = np.stack([piece.lengths for piece in pieces], axis=1).sum(axis=1, dtype=np.int32)
    return placed.tokens, placed.modality, lengths


def payloads(
    pieces: list[Piece], projection_width: int, visual: Visual | None = None
) -> dict[str, Shaped[np.ndarray, "_R ..."]]:
    """The pieces' payloads as fields of a sequence, joined per modality in the order of the pieces; absent ones are left out.

    Raises:
        ValueError: a tensor's columns exceed the projection width, or an image needs an encoder and none is set.
    """
    # In the order of the pieces, which is that of `payload_index` (see `place`).
    found: dict[str, list[np.ndarray]] = {}
    for piece in pieces:
        if piece.payload is None:
            continue
        payload = piece.payload
        if piece.modality == Modality.TENSOR:
            payload = _columns(payload, piece.offset, projection_width)
        elif piece.modality == Modality.IMAGE:
            if visual is None:
                raise ValueError("an image enters through the frozen encoder but none is set: set model.vision.encoder")
            payload = visual(payload)
        found.setdefault(PAYLOADS[piece.modality], []).append(payload)
        if piece.intervals is not None:
            found.setdefault("intervals", []).append(piece.intervals)
    return {name: joined(arrays) for name, arrays in found.items()}


def joined(arrays: list[Shaped[np.ndarray, "_R ..."]]) -> Shaped[np.ndarray, "R ..."]:
    """Arrays concatenated, without a copy if at most one has rows: frames are large."""
    filled = [array for array in arrays if len(array)]
    # With no rows at all the first array is returned for its trailing shape and dtype.
    return np.concatenate(filled) if len(filled) > 1 else filled[0] if filled else arrays[0]


def _columns(payload: Float32[np.ndarray, "R S"], offset: int, width: int) -> Float32[np.ndarray, "R F"]:
    """A tensor's numbers in its own columns of the projection, zeros elsewhere."""
    end = offset + payload.shape[1]
    if end > width:
        raise ValueError(
            f"a tensor's columns {offset} to {end} exceed projection_width = {width}: "
            "pass the assembler the width that assign_offsets returned"
        )
    # Every layout has its own columns of one shared projection, so all tensors have its full width.
    wide = np.zeros((len(payload), width), np.float32)
    wide[:, offset:end] = payload
    return wide
