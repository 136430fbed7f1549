"""The playground: its files are offline and safe, and in a real browser it does what it says."""

import http.client
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving import TOKEN, asked, picture, running
from watched import with_task

from generalist.serve.playground.pages import files
from generalist.tokenizers.sequence import CHUNK_END

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def model(make_model: Callable[..., Any]) -> Any:
    return with_task(make_model("frame+encoder"))


@pytest.fixture(scope="module")
def port(model: Any) -> Iterator[int]:
    with running(model, inspect=True, prefix=96) as (_, port):
        yield port


def test_its_files_are_of_this_server_alone() -> None:
    found = files()
    assert {"/", "/playground/main.js", "/playground/style.css", "/playground/rows.js"} <= found.keys()
    for path, (content, kind) in found.items():
        assert not re.search(r"(?:https?:)?//\w+\.", content), f"{path} names another host"
        assert "innerHTML" not in content and "outerHTML" not in content and "insertAdjacentHTML" not in content
        assert kind != "text/html" or not re.search(r"<script(?![^>]*src=)|style=|\son\w+=", content)


def test_they_come_with_a_strict_policy(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for path, (content, kind) in files().items():
        connection.request("GET", path)
        response = connection.getresponse()
        assert (response.status, response.read().decode()) == (200, content)
        assert (
            response.headers["content-type"].startswith(kind)
            and response.headers["x-content-type-options"] == "nosniff"
        )
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy
    connection.close()
    assert asked(port, "/playground/other.js")[0] == asked(port, "/playground/../app.py")[0] == 404
    assert asked(port, "/", {})[0] == 405


def test_without_the_token_there_are_only_its_files(server_with_token: int) -> None:
    port = server_with_token
    assert all(asked(port, path)[0] == 200 for path in files())
    for path in ("/v1/playground", "/v1/models", "/metrics", "/healthz", "/playground/", "/playground/other.js"):
        assert asked(port, path)[0] == 401
    assert asked(port, "/", {})[0] == 401  # another method is no file
    assert asked(port, "/", headers={"Host": "example.org"})[0] == 403
    status, found = asked(port, "/v1/playground", headers={"Authorization": f"Bearer {TOKEN}"})
    assert status == 200 and found["model"] == "debug" and found["images"] == 8


@pytest.fixture(scope="module")
def server_with_token(model: Any) -> Iterator[int]:
    with running(model, token=TOKEN, sessions=0) as (_, port):
        yield port


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if BROWSER is None:
        pytest.skip("needs a browser: Debian's package chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1180, "height": 800})
    page.set_default_timeout(20_000)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    # Refusals are the browser's messages too: only what the policy forbids is wrong.
    page.on("console", lambda message: wrong.append(message.text) if "Content Security" in message.text else None)
    yield page
    page.close()
    assert not wrong


def opened(page: Any, port: int) -> None:
    page.goto(f"http://127.0.0.1:{port}/")
    page.wait_for_selector("#ask:not([hidden])")


def png(folder: Path, seed: int) -> str:
    """A file with an image."""
    Image.fromarray(picture(seed)).save(folder / f"{seed}.png")
    return str(folder / f"{seed}.png")


def answered(page: Any) -> str:
    """Sends the prompt, and waits for the end of the answer."""
    page.click("#send")
    page.wait_for_selector("#tokens:not([hidden])")
    return str(page.text_content("#text"))


@pytest.mark.slow
def test_shots_with_images_are_prompted_and_streamed(page: Any, port: int, model: Any, tmp_path: Path) -> None:
    opened(page, port)
    for number, answer in enumerate(("red", "blue")):
        page.click("#add-shot")
        page.locator("input[type=file]").nth(number).set_input_files(png(tmp_path, number + 1))
        page.locator(".shot input[type=text]").nth(number).fill(answer)
    page.locator("input[type=file]").nth(2).set_input_files(png(tmp_path, 3))
    page.wait_for_selector("#question figure img")
    page.fill("#question textarea", "push")
    page.click("summary")
    page.fill("#max_tokens", "9")
    shots = [picture(1), " red", CHUNK_END, picture(2), " blue", CHUNK_END]
    assert answered(page) == model.prompt([*shots, picture(3), "push"], tokens=9)
    chips = page.locator("#tokens .token")
    assert chips.count() == 9 and page.locator("#alternatives .name").count() >= 8
    # The arrow goes to the next token, whose alternatives are shown.
    before = page.text_content("#alternatives")
    chips.nth(0).focus()
    page.keyboard.press("ArrowRight")
    assert chips.nth(1).get_attribute("aria-selected") == "true" and page.text_content("#alternatives") != before


@pytest.mark.slow
def test_a_broken_image_is_told_and_nothing_is_sent(page: Any, port: int, tmp_path: Path) -> None:
    opened(page, port)
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    page.locator("input[type=file]").set_input_files(str(tmp_path / "broken.png"))
    page.wait_for_selector("#refused:not([hidden])")
    assert "broken.png is no image that can be read" in page.text_content("#refused")
    page.click("#send")
    assert "Give the model an image or a text" in page.text_content("#refused")
    assert not [url for url in sent if "/v1/" in url]


@pytest.mark.slow
def test_an_image_is_dropped_and_a_text_is_stopped(page: Any, port: int) -> None:
    opened(page, port)
    dropped = """async () => {
        const canvas = document.createElement("canvas"), files = new DataTransfer();
        const blob = await new Promise((resolve) => canvas.toBlob(resolve));
        files.items.add(new File([blob], "dropped.png", { type: "image/png" }));
        document.getElementById("question").dispatchEvent(new DragEvent("drop", { dataTransfer: files, bubbles: true }));
    }"""
    page.evaluate(dropped)
    page.wait_for_selector("#question figure img[alt='dropped.png']")
    # The answer is held back, so that it surely is still being written when it is stopped.
    page.route("**/v1/chat/completions", lambda route: None)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#stop:not([hidden])")
    page.keyboard.press("Escape")
    page.wait_for_selector("#stop", state="hidden")
    assert page.text_content("#state") == "Stopped after 0 tokens."


@pytest.mark.slow
def test_the_token_is_asked_for_and_kept_in_memory(page: Any, server_with_token: int) -> None:
    page.goto(f"http://127.0.0.1:{server_with_token}/")
    page.wait_for_selector("#door:not([hidden])")
    page.fill("#token", "another token that is wrong")
    page.keyboard.press("Enter")
    page.wait_for_selector("#failed:not([hidden])")
    page.fill("#token", TOKEN)
    page.keyboard.press("Enter")
    page.wait_for_selector("#ask:not([hidden])")
    page.fill("#question textarea", "push the")
    assert answered(page)
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
    assert TOKEN not in page.content() and page.input_value("#token") == ""


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone(page: Any, port: int, dark: bool) -> None:
    page.emulate_media(color_scheme="dark" if dark else "light")
    page.set_viewport_size({"width": 360, "height": 720})
    opened(page, port)
    page.click("#add-shot")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (np.mean([int(one) for one in re.findall(r"\d+", ground)]) < 128) == dark


@pytest.mark.slow
def test_it_shows_what_each_token_looked_at(page: Any, port: int, tmp_path: Path) -> None:
    opened(page, port)
    page.click("#add-shot")
    page.locator("input[type=file]").nth(0).set_input_files([png(tmp_path, 4), png(tmp_path, 1)])
    page.locator("input[type=file]").nth(1).set_input_files(png(tmp_path, 2))
    page.fill(".shot input[type=text]", "red")
    page.wait_for_selector("#question figure img")
    page.locator(".shot figure").nth(1).wait_for()
    page.locator(".shot figure button").nth(0).click()
    page.click("summary")
    page.fill("#max_tokens", "4")
    assert answered(page)
    page.wait_for_selector("#gates")
    # It sees the last image alone, all of whose cells are drawn over it.
    shares = page.locator("#seen figcaption").all_text_contents()
    assert [one.startswith("100% of the cross-attention") for one in shares] == [False, True]
    assert page.locator("#seen canvas").count() == 1
    assert page.locator("#gates .number").all_text_contents()[:2] == ["76%", "0.0%"]  # tanh 1, and a closed one
    places = page.locator("#positions .place")
    strength = "element => Number(element.style.getPropertyValue('--a'))"
    shown = [place.evaluate(strength) for place in places.all()]
    assert max(shown) == 1 and places.last.get_attribute("class").endswith("self")
    page.locator("#positions .layers button").nth(1).click()
    assert [place.evaluate(strength) for place in places.all()] != shown
    # The next token has one more position to look at.
    page.locator("#tokens .token").nth(1).click()
    assert page.locator("#positions .place").count() == len(shown) + 1
    page.click("#sequence summary")
    cells = page.locator("#rows .cell")
    cells.first.wait_for()
    assert cells.count() == len(shown) + page.locator("#tokens .token").count()
    cells.nth(3).click()
    assert page.locator("#rows .seen").count() == 4 and "position" in page.text_content("#details")


@pytest.mark.slow
def test_an_agent_plays_live_and_is_stopped(page: Any, port: int) -> None:
    opened(page, port)
    page.click("#tab-agent")
    assert page.locator("#task option").all_text_contents() == ["cartpole"]
    page.fill("#instruction", "push the red block")
    page.click("#play")
    page.wait_for_selector("#actions:not([hidden])")
    assert "“push the red block”" in page.text_content("#playing")
    assert page.evaluate("document.getElementById('screen').naturalWidth") > 100
    assert page.locator("#actions .name").all_text_contents() == ["push left", "push right"]
    page.wait_for_selector("#halt", state="hidden")  # random actions fall soon
    assert "over" in page.text_content("#playing")
    assert float(page.locator("#numbers b").first.text_content()) >= 1
    page.click("#play")
    page.wait_for_selector("#halt:not([hidden])")
    page.keyboard.press("Escape")
    page.wait_for_selector("#halt", state="hidden")


@pytest.mark.slow
def test_a_demonstration_is_watched_before_the_agent_plays(page: Any, port: int) -> None:
    opened(page, port)
    page.click("#tab-agent")
    page.select_option("#demonstration", "goal")
    page.click("#play")
    page.locator("#playing", has_text="Demonstration of classic/cartpole, by its expert").wait_for()
    page.wait_for_selector("#actions:not([hidden])")
    assert "of a demonstration" in page.text_content("#playing")
    page.wait_for_selector("#halt", state="hidden")


@pytest.mark.slow
def test_a_sample_is_tried(page: Any, port: int) -> None:
    opened(page, port)
    page.click("#try")
    assert page.locator("#question figure img[alt='sample image']").count() == 1
    assert page.input_value("#question textarea") == "a picture of"
    page.click("#try")
    assert page.locator("#question figure").count() == 1, "the next one takes its place"
    assert answered(page)


@pytest.mark.slow
def test_weights_that_cannot_draw_say_so(page: Any, port: int) -> None:
    opened(page, port)
    page.click("#tab-draw")
    assert "These weights have no image tokenizer, so they cannot draw" in page.text_content("#draw-state")
    assert page.is_disabled("#draw-start")
