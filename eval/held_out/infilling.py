"""Infilling: how much of the middle of a text does what follows it tell? And does its own order cost anything?

The middles of held-out windows are scored twice, after the prefix alone (left to right) and after prefix and suffix (fill in the
middle). Both predict the same tokens.

Dimension key: W windows.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.progress import Progress

from generalist.data.infilling import MARKS, draw_hole, filled, left_to_right
from generalist.eval.held_out.language import windows
from generalist.eval.held_out.likelihood import LogLikelihood
from generalist.eval.results.scores import ratio
from generalist.tokenizers.sequence import Assembler

SEED = 0
SCORED_AT_ONCE = 64


def evaluate_infilling(
    assembler: Assembler,
    log_likelihood: LogLikelihood,
    heldout: Sequence[str],
    *,
    length: int,
    count: int,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Perplexity of the middles with and without what follows, and their difference in nats per token, with intervals.

    Args:
        assembler: of the weights.
        log_likelihood: scores sequences.
        heldout: the texts to score.
        length: positions per row.
        count: maximum number of windows.
        progress: gets one bar.
    """
    rng = np.random.default_rng(SEED)
    texts = windows(heldout, assembler.text_tokenizer.encode, length - MARKS, count)
    holes = [draw_hole(assembler.text_tokenizer.encode(text), rng) for text in texts]
    bar = progress.add_task("filling in held-out text", total=len(holes)) if progress else None
    infilled, plain = np.zeros(len(holes)), np.zeros(len(holes))  # (W,) each
    for start in range(0, len(holes), SCORED_AT_ONCE):
        chunk = holes[start : start + SCORED_AT_ONCE]
        at = slice(start, start + len(chunk))
        infilled[at] = -log_likelihood([filled(one, assembler, middle_only=True) for one in chunk]).astype(np.float64)
        plain[at] = -log_likelihood([left_to_right(one, assembler) for one in chunk]).astype(np.float64)
        if progress and bar is not None:
            progress.advance(bar, len(chunk))
    tokens = np.array([len(one.middle) for one in holes], np.float64)
    found = {"infilling": ratio(infilled, tokens), "left_to_right": ratio(plain, tokens)}
    return {
        # The exponential keeps the order of an interval's ends.
        **{
            name: {key: math.exp(value) for key, value in dataclasses.asdict(one).items()}
            for name, one in found.items()
        },
        # Window by window, so that the interval is free of how hard the windows are.
        "gain": dataclasses.asdict(ratio(plain - infilled, tokens)),
        "windows": len(holes),
        "tokens": int(tokens.sum()),
    }
