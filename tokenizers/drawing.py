"""Images as codes, drawn after a text: how a text, codes that are given and codes that are drawn follow each other.

    bos  a red heart  separator  c0 c1 c2 c3 ...       a whole image, row by row
    bos  a red heart  c0 c3  separator  c1 c2 ...      the rest of an image of which some codes are given

A code is predicted from the position before it, the first one from the separator. So that any set of cells can be given, the
local position of the separator and of each drawn code is that of the cell which is predicted *next*; that of a given code is its
own. Without a text the same order gives the distribution of all images, which guidance needs (Ho & Salimans, 2022).

Dimension key: L positions, n ids, T cells of an image (codes, row by row), M of them that are drawn.
"""

import dataclasses
import itertools

import numpy as np
from jaxtyping import Bool, Int, Int32

from generalist.tokenizers.pieces import ACTION_POSITION, Modality, Sequence
from generalist.tokenizers.sequence import Assembler

MOST_CELLS = ACTION_POSITION - 1
"""Codes that an image may have: the local positions from 1 on are those of cells; the last one belongs to actions."""
LARGEST_GUIDANCE = 1000.0
"""The program that draws computes in float32."""
CANT_DRAW = "the weights have no image tokenizer, so they can't draw: train new ones with tokens.image_tokenizer"


def drawing(
    assembler: Assembler, text: str, codes: Int[np.ndarray, "T"], drawn: Bool[np.ndarray, "T"] | None = None
) -> Sequence:
    """A text and the codes of an image, with the loss on the codes that are drawn.

    Args:
        text: what the image shows; may be empty.
        drawn: the cells that are drawn after the others, which are given; None: all.

    Raises:
        ValueError: the assembler has no image tokenizer, or an image has more cells than there are local positions.
    """
    cells = np.flatnonzero(np.ones((len(codes),), bool) if drawn is None else drawn)
    before = drawing_prefix(assembler, text, codes, cells)
    # The last code is a target only: nothing is read from its position.
    after = [drawn_code(assembler, int(codes[cell]), int(later)) for cell, later in itertools.pairwise(cells)]
    sequence = assembler.concatenate([before, *after])
    targets, weight = sequence.targets.copy(), sequence.loss_weight.copy()
    targets[len(sequence) - len(cells) :] = code_ids(assembler, codes[cells])
    weight[len(sequence) - len(cells) :] = 1.0
    return dataclasses.replace(sequence, targets=targets, loss_weight=weight)


def drawing_prefix(
    assembler: Assembler, text: str, codes: Int[np.ndarray, "T"], cells: Int[np.ndarray, "M"]
) -> Sequence:
    """What precedes the codes that are drawn: the text, the codes of all other cells, and the separator.

    Args:
        codes: those of cells that are drawn do not matter.
        cells: numbers of the cells that are drawn, increasing.

    Raises:
        ValueError: as `drawing`, or no cell is drawn.
    """
    if assembler.codes is None:
        raise ValueError(CANT_DRAW)
    if len(codes) > MOST_CELLS:
        raise ValueError(
            f"an image has {len(codes)} codes, but only {MOST_CELLS} have a local position: use an image tokenizer with "
            "larger patches or smaller images"
        )
    if not len(cells):
        raise ValueError("no cell is drawn: leave some of the image open")
    ids = np.append(np.int32(assembler.vocabulary.bos), assembler.text_tokenizer.encode(text)).astype(np.int32)
    given = np.setdiff1d(np.arange(len(codes)), cells)
    return assembler.concatenate(
        [
            _plain(assembler, ids),
            _placed(assembler, code_ids(assembler, codes[given]), Modality.DISCRETE, given + 1),
            _placed(assembler, np.array([assembler.vocabulary.separator]), Modality.SPECIAL, cells[:1] + 1),
        ]
    )


def drawn_code(assembler: Assembler, code: int, following: int) -> Sequence:
    """A drawn code as a position to append.

    Args:
        following: number of the cell that is drawn next.
    """
    return _placed(assembler, code_ids(assembler, np.array([code])), Modality.DISCRETE, np.array([following + 1]))


def code_ids(assembler: Assembler, codes: Int[np.ndarray, "n"]) -> Int32[np.ndarray, "n"]:
    """Codes as ids of the vocabulary."""
    return (codes + assembler.vocabulary.range("image_codes").start).astype(np.int32)


def _plain(assembler: Assembler, ids: Int32[np.ndarray, "n"]) -> Sequence:
    """Ids of which nothing is predicted."""
    sequence = assembler.text(ids, bos=False, eos=False)
    targets = np.full_like(sequence.targets, assembler.vocabulary.pad)
    return dataclasses.replace(sequence, targets=targets, loss_weight=np.zeros_like(sequence.loss_weight))


def _placed(
    assembler: Assembler, ids: Int[np.ndarray, "n"], modality: Modality, local: Int[np.ndarray, "n"]
) -> Sequence:
    """Ids of one modality at local positions, of which nothing is predicted."""
    return dataclasses.replace(
        _plain(assembler, ids.astype(np.int32)),
        modality=np.full((len(ids),), modality, np.int32),
        local_position=local.astype(np.int32),
    )
