"""The pictures of docs/playground.md: the playground in a browser, with the weights that ship.

    python benchmarks/playground.py [--out docs]
    python benchmarks/playground.py --draws runs/NAME

The second one takes that of drawing alone, with a run whose weights have an image tokenizer.

Starts `generalist serve --inspect` and drives the installed Chromium through it; needs the package `playwright`, which is in the
extra `dev`.
"""

import argparse
import contextlib
import io
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from generalist.data.emoji import SPLITS, drawings

LAYOUTS = ("classic/lunar-lander", "babyai")
TEXT = "a picture of"
SHOTS = (("red heart", "red heart"), ("cat face", "cat face"))
ASKED = "rocket"
QUALITY = 88  # of WebP
TASK = ("babyai", "babyai/GoToRedBall")
DRAWN = "a yellow smiling face"


@contextlib.contextmanager
def served(*arguments: str) -> Iterator[str]:
    """A server as a process, and its address."""
    command = [sys.executable, "-m", "generalist", "serve", "--port", "0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            print(line, end="")
            if line.startswith("ready"):
                break
        else:
            raise RuntimeError("the server ended before it was ready")
        yield line.split()[-1]
    finally:
        process.terminate()
        process.wait(60)


def saved(page: Any, path: Path, *, whole: bool = True) -> None:
    """A picture of the page, or of what a screen shows of it."""
    with Image.open(io.BytesIO(page.screenshot(full_page=whole))) as image:
        image.convert("RGB").save(path, quality=QUALITY, method=6)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def prompted(page: Any, folder: Path) -> None:
    """Two shots and a question with images, and their answer."""
    known = {one.name: one for split in SPLITS for one in drawings(split)}
    for number, (name, answer) in enumerate((*SHOTS, (ASKED, ""))):
        if answer:
            page.click("#add-shot")
        path = folder / f"{name}.png"
        Image.fromarray(known[name].image()).resize((144, 144)).save(path)
        page.locator("textarea").nth(number).fill(TEXT)
        page.locator("input[type=file]").nth(number).set_input_files(str(path))
        if answer:
            page.locator(".shot input[type=text]").nth(number).fill(answer)
    page.wait_for_selector("#question figure img")
    page.click("#send")
    page.wait_for_selector("#gates")


def asked_and_played(page: Any, out: Path) -> None:
    """A prompt with its answer, an agent that plays, and the answer on a phone."""
    with tempfile.TemporaryDirectory() as folder:
        prompted(page, Path(folder))
    saved(page, out / "playground_light.webp")
    page.click("#theme")
    page.click("#tab-agent")
    page.select_option("#suite", TASK[0])
    page.select_option("#task", TASK[1])
    page.click("#play")
    page.wait_for_selector("#actions:not([hidden])")
    page.wait_for_timeout(2000)  # milliseconds, in which it acts a few times
    saved(page, out / "playground_dark.webp")
    page.keyboard.press("Escape")
    page.click("#theme")
    page.click("#tab-ask")
    page.set_viewport_size({"width": 390, "height": 844})
    page.evaluate("document.querySelector('.answer').scrollIntoView()")
    saved(page, out / "playground_phone.webp", whole=False)


def drawn(page: Any, out: Path) -> None:
    """Four images of a text."""
    page.set_viewport_size({"width": 1180, "height": 610})
    page.click("#tab-draw")
    page.click("#draw summary")
    page.fill("#draw-text", DRAWN)
    page.fill("#draw-count", "4")
    page.click("#draw-start")
    page.wait_for_selector("#drawn img")
    saved(page, out / "playground_draw.webp", whole=False)


def main() -> None:
    """Takes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the pictures (default docs)")
    parser.add_argument("--address", help="of a server that runs already (default: one is started)")
    parser.add_argument(
        "--draws", type=Path, metavar="FOLDER", help="a run whose weights draw; its picture alone is taken"
    )
    arguments = parser.parse_args()
    options = ["--inspect", "--layouts", *LAYOUTS]
    if arguments.draws is not None:
        options = ["--weights", str(arguments.draws), "--sessions", "0"]
    with contextlib.ExitStack() as stack:
        address = arguments.address or stack.enter_context(served(*options))
        browser = stack.enter_context(sync_playwright()).chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1180, "height": 800})
        page.set_default_timeout(120_000)
        page.goto(address)
        page.wait_for_selector("#ask:not([hidden])")
        (asked_and_played if arguments.draws is None else drawn)(page, arguments.out)
        browser.close()


if __name__ == "__main__":
    main()
