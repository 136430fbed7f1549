"""A page that is one file: nothing is fetched, so that it opens offline, from anywhere."""

import base64
import io
import os
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
from PIL import Image

from generalist.eval.report.charts import element, written
from generalist.eval.report.style import STYLE

QUALITY = 75  # of WebP


def document(title: str, body: Element, style: str = "") -> str:
    """The whole page as HTML.

    Args:
        style: CSS beside that of all pages.
    """
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", STYLE + style),
    )
    return "<!DOCTYPE html>\n" + written(element("html", head, body, lang="en")) + "\n"


def write_page(path: Path, text: str) -> None:
    """Writes a page whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def data_uri(pixels: np.ndarray, side: int | None = None) -> str:
    """An image as a `data:` address.

    Args:
        pixels: uint8 (H, W, C) with 1, 3 or 4 channels.
        side: pixels per side at most; None: as many as there are.
    """
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    if side is not None:
        image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
