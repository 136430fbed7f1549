"""Scores of contrastive pretraining on held-out pairs.

Dimension key: N pairs, E embedding width.
"""

from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from generalist.contrastive.data import TEMPLATES, EmojiPairs, Pairs
from generalist.contrastive.dual import EMBEDDED_AT_ONCE, DualEncoder
from generalist.data.emoji import SPLITS, drawings
from generalist.eval.held_out.retrieval import class_embeddings, retrieval, zero_shot
from generalist.system.progress import counting


def evaluate(dual: DualEncoder, heldout: Pairs | None, console: Console) -> dict[str, Any]:
    """Retrieval among held-out pairs; for the emoji also zero-shot naming, with one template and with several.

    Args:
        dual: the two encoders.
        heldout: the user's held-out pairs, if training used the user's pairs; else the emoji's held-out splits are used.
        console: shows the progress.
    """
    results: dict[str, Any] = {"retrieval": {}, "zero_shot": {}}
    own = dual.config.pairs is not None
    sets: dict[str, Pairs] = {}
    if own and heldout is not None:
        sets["heldout"] = heldout
    # Weights trained on the user's pairs are not scored on emoji, which they have never seen.
    if not own:
        sets = {split: EmojiPairs(drawings(split)) for split in SPLITS if split != "train"}
    with counting(console) as progress:
        bar = progress.add_task("embedding held-out pairs", total=sum(map(len, sets.values())))
        for name, pairs in sets.items():
            embedded, texts = [], []
            for start in range(0, len(pairs), EMBEDDED_AT_ONCE):
                chunk = range(start, min(start + EMBEDDED_AT_ONCE, len(pairs)))
                # A pair whose image can't be read is left out with its text.
                some = [shown for index in chunk if (shown := pairs.readable(index)) is not None]
                if some:
                    embedded.append(dual.embed_images([image for image, _ in some]))
                texts += [text for _, text in some]
                progress.advance(bar, len(chunk))
            images = np.concatenate(embedded)  # (N, E)
            results["retrieval"][name] = retrieval(images, dual.embed_texts(texts), texts)
            # Only the emoji's pairs have classes: things that several drawings show.
            if isinstance(pairs, EmojiPairs):
                classes = sorted({drawing.thing for drawing in pairs.drawings})
                labels = [classes.index(drawing.thing) for drawing in pairs.drawings]
                for kind, templates in (("one template", TEMPLATES[:1]), ("ensemble", TEMPLATES)):
                    embeddings = class_embeddings(dual.embed_texts, classes, templates)
                    results["zero_shot"][f"{name}, {kind}"] = zero_shot(images, embeddings, labels)
    return results


def show(results: dict[str, Any], console: Console) -> None:
    """Prints the scores as a table."""

    def text(estimate: dict[str, float]) -> str:
        return f"{estimate['value']:z.1f} [{estimate['low']:z.1f}, {estimate['high']:z.1f}]"

    table = Table(
        "held-out pairs", "image → text", "text → image", "chance", "items", title="percent, with 95% intervals"
    )
    for name, found in results["retrieval"].items():
        for k in (1, 5):
            both = [text(found[f"{direction}_r{k}"]) for direction in ("image_to_text", "text_to_image")]
            table.add_row(f"{name} R@{k}", *both, f"{found[f'chance_r{k}']:.2f}", str(found["items"]))
    for name, found in results["zero_shot"].items():
        table.add_row(f"zero-shot {name}", text(found["accuracy"]), "", f"{found['chance']:.2f}", str(found["items"]))
    if table.row_count:
        console.print(table)
