"""Scores of an image tokenizer on held-out images.

Dimension key: N images, S pixels per side, T codes per image.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from rich.console import Console
from rich.table import Table

from generalist.image_tokenizer.data import Images
from generalist.system.progress import counting
from generalist.vision.image_tokenizer import ImageTokenizer

CHUNK = 256  # images in memory


def evaluate(tokenizer: ImageTokenizer, train: Images, heldout: Images, console: Console) -> dict[str, Any]:
    """Reconstruction and stability on held-out images, and how much of the codebook all images use.

    Returns:
        psnr: mean over the held-out images of their peak signal-to-noise ratio, in dB, of 8-bit pixels.
        stable: share of the held-out images' codes that come back when the decoded image is encoded again.
        used: share of the codebook that the images use as they are, training and held-out ones together.
        items: held-out images.
    """
    used, psnr, stable = np.zeros((tokenizer.config.codebook,), bool), [], []
    with counting(console) as progress:
        bar = progress.add_task("encoding held-out and training images", total=len(train) + len(heldout))
        for images, is_heldout in ((heldout, True), (train, False)):
            for pixels in _chunks(tokenizer, images):
                codes = tokenizer.encode(list(pixels))  # (N, T)
                used[codes] = True
                if is_heldout:
                    decoded = tokenizer.decode(codes)
                    psnr += signal_to_noise(pixels, decoded).tolist()
                    stable.append(np.mean(tokenizer.encode(list(decoded)) == codes, axis=1))
                progress.advance(bar, len(pixels))
    return {
        "psnr": float(np.mean(psnr)),
        "stable": float(np.mean(np.concatenate(stable))),
        "used": float(used.mean()),
        "codebook": tokenizer.config.codebook,
        "items": len(heldout),
    }


def signal_to_noise(one: UInt8[np.ndarray, "N S S 3"], other: UInt8[np.ndarray, "N S S 3"]) -> Float[np.ndarray, "N"]:
    """Peak signal-to-noise ratio in dB of each image: 10 log10(255² / mean squared error)."""
    error = np.square(one.astype(np.float64) - other).mean(axis=(1, 2, 3))
    # An exact copy would be infinite; half a step in a single number is as good as exact.
    return 10 * np.log10(255**2 / np.maximum(error, 0.25 / one[0].size))


def _chunks(tokenizer: ImageTokenizer, images: Images) -> Iterator[UInt8[np.ndarray, "N S S 3"]]:
    for start in range(0, len(images), CHUNK):
        chunk = range(start, min(start + CHUNK, len(images)))
        yield np.stack([tokenizer.prepare(images.shown(index)) for index in chunk])


def show(results: dict[str, Any], console: Console) -> None:
    """Prints the scores as a table."""
    table = Table("held-out images", str(results["items"]))
    table.add_row("peak signal-to-noise ratio", f"{results['psnr']:.1f} dB")
    table.add_row("codes that encoding again gives", f"{results['stable']:.2%}")
    table.add_row(f"codebook in use, of {results['codebook']:,} codes", f"{results['used']:.1%}")
    console.print(table)
