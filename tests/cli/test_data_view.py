"""`generalist data view`: the page is whole, offline and safe, and its script works where there is a browser to run it."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from generalist.cli.main import main
from generalist.data.recorded import opened

ROBOT = Path(__file__).parents[1] / "fixtures" / "formats" / "rlds_tfrecord" / "small_bridge"
BROWSER = shutil.which("chromium")
LARGEST = 5_000_000  # bytes


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder of the test's own."""
    opened.cache_clear()
    monkeypatch.setenv("GENERALIST_CACHE", str(tmp_path / "cache"))


class Page(HTMLParser):
    """The data and the addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._script: dict[str, str | None] | None = None
        self.data: dict[str, Any] = {}
        self.scripts: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._script = dict(attrs) if tag == "script" else None
        self.addresses += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        if self._script is not None and self._script.get("id") == "data":
            self.data = json.loads(data)
        elif self._script is not None:
            self.scripts.append(data)
        self._script = None


def view(tmp_path: Path, *words: str) -> tuple[Page, str]:
    path = tmp_path / "rows.html"
    assert main(["data", "view", *words, "--preset", "debug", "--out", str(path)]) == 0
    text = path.read_text(encoding="utf-8")
    assert len(text.encode()) < LARGEST and "http://" not in text and "https://" not in text
    page = Page(text)
    assert page.addresses == [] and len(page.scripts) == 1
    return page, text


def test_rows_of_episodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, _ = view(tmp_path, str(ROBOT), "--rows", "2")
    assert "2 rows: " in capsys.readouterr().out
    first, second = page.data["rows"]
    assert first["length"] == second["length"] == 128 and len(first["segments"]) == 1
    cell = next(cell for cell in first["cells"] if cell["modality"] == "frame")
    assert page.data["images"][cell["picture"]].startswith("data:image/webp;base64,")
    predicted = [cell for cell in first["cells"] if cell["weight"]]
    assert {one["part"] for cell in predicted for one in cell["targets"]} == {
        f"action[{number}]" for number in range(7)
    }
    assert [first["cells"][5]["sees"]] == [[[0, 6]]]
    for name in ("modality", "token", "part", "weight", "segment", "position", "local", "image_index", "sees"):
        assert all(name in cell for row in page.data["rows"] for cell in row["cells"])


def test_packed_rows_of_texts_whatever_stands_in_them(tmp_path: Path) -> None:
    hostile = "</script><script>alert('x')</script><!-- \u2028 <img src=http://x onerror=alert(1)>"
    (tmp_path / "own.jsonl").write_text("\n".join([json.dumps({"text": hostile.replace("http://", "http:")})] * 30))
    page, text = view(tmp_path, str(tmp_path / "own.jsonl"), "--packed", "--rows", "3")
    assert len(page.data["rows"]) == 3
    told = "".join(cell.get("value", "") for cell in page.data["rows"][0]["cells"])
    assert "</script>" in told and "alert" in told
    assert len(re.findall("<script", text)) == 2 and "<img" not in text


def test_no_row_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "view", "emoji", "--rows", "0"]) == 1
    assert "--rows must be at least 1, got 0" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Debian's package chromium")
def test_a_touched_position_marks_what_it_sees(tmp_path: Path) -> None:
    _, text = view(tmp_path, str(ROBOT), "--rows", "1")
    touch = "<script>document.querySelectorAll('.cell')[7].click()</script></body>"
    (tmp_path / "touched.html").write_text(text.replace("</body>", touch), encoding="utf-8")
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    shown = subprocess.run(
        [*command, (tmp_path / "touched.html").as_uri()], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    cells = re.findall(r'<button class="(cell[^"]*)"', shown)
    assert len(cells) > 50
    assert [place for place, kind in enumerate(cells) if "seen" in kind.split()] == [*range(8)]
    assert [place for place, kind in enumerate(cells) if "self" in kind.split()] == [7]
    assert "<dt>attends to</dt><dd>0–7</dd>" in shown
