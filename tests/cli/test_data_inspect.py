"""`generalist data inspect` on episodes, a suite, documents and drawings: the screen, the JSON file and the page."""

import json
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from generalist.cli.data_inspect import on_one_line
from generalist.cli.main import main
from generalist.data.formats.tfrecord import records
from generalist.data.recorded import opened

ROBOT = Path(__file__).parents[1] / "fixtures" / "formats" / "rlds_tfrecord" / "small_bridge"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder of the test's own."""
    opened.cache_clear()
    monkeypatch.setenv("GENERALIST_CACHE", str(tmp_path / "cache"))


class Addresses(HTMLParser):
    """What a page refers to, and whether its elements are closed in order."""

    VOID = ("meta", "img", "br")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def offline(path: Path) -> str:
    """The page, which refers to nothing outside of itself."""
    text = path.read_text(encoding="utf-8")
    parser = Addresses()
    parser.feed(text)
    assert parser.open == [] and all(one.startswith("data:image/") for one in parser.found)
    assert "http://" not in text and "https://" not in text and "@import" not in text
    return text


def run(tmp_path: Path, *words: str) -> tuple[dict[str, Any], str]:
    files = ["--json", str(tmp_path / "found.json"), "--html", str(tmp_path / "found.html")]
    assert main(["data", "inspect", *words, "--preset", "debug", *files]) == 0
    return json.loads((tmp_path / "found.json").read_text()), offline(tmp_path / "found.html")


def keys(value: Any, path: str = "") -> Iterator[str]:
    """The names of all that a JSON file has, of lists by their first entry."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield f"{path}.{name}".lstrip(".")
            yield from keys(one, f"{path}.{name}")
    elif isinstance(value, list) and value:
        yield from keys(value[0], f"{path}[]")


# What programs may rely on: raise the format's number when one goes.
KEYS = """
bytes cameras cameras[].frames cameras[].key cameras[].mean cameras[].shapes episodes every fields fields[].dtype fields[].key
fields[].kind fields[].level fields[].numbers fields[].shape fields[].used_as files format instructions instructions.different
instructions.empty instructions.field instructions.most lengths lengths.counts lengths.edges lengths.max lengths.mean
lengths.median lengths.min lengths.total name place rate returns returns.counts returns.edges returns.max returns.mean
returns.median returns.min returns.total steps timestamps unread broken broken_count
"""
NUMBER = "constant deviation high low mean name near_constant not_finite outlier quantiles saturated"
RUN = """
batch batch.budgets batch.budgets.frames batch.budgets.frames.room batch.budgets.frames.used batch.budgets.tensors
batch.budgets.tensors.room batch.budgets.tensors.used batch.epochs_per_1000_steps batch.examples batch.filled batch.length
batch.others batch.rows batch.share batch.tokens examples learnt_from parts parts[].by_modality parts[].by_modality.frame
parts[].by_modality.special parts[].by_modality.tensor parts[].episodes parts[].example_by_modality
parts[].example_by_modality.frame parts[].example_by_modality.special parts[].example_by_modality.tensor
parts[].example_by_modality.text parts[].example_predicted parts[].example_tokens parts[].examples parts[].layout
parts[].layout[].codec parts[].layout[].columns parts[].layout[].key parts[].layout[].kind parts[].layout[].role
parts[].layout[].shape parts[].layout[].tokens_per_step parts[].lost parts[].name parts[].steps parts[].tokens
parts[].tokens_of_instruction parts[].tokens_per_episode parts[].tokens_per_episode.max parts[].tokens_per_episode.median
parts[].tokens_per_episode.min parts[].tokens_per_step parts[].window_seconds parts[].window_steps preset text_pieces tokens
"""


@pytest.mark.slow
def test_episodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, page = run(tmp_path, str(ROBOT), "--data.frames", "256", "--data.length", "160")
    assert {name: found[name] for name in ("format", "source", "kind")} == {
        "format": 1,
        "source": "recorded",
        "kind": "episodes",
    }
    (about,) = found["data_sets"]
    assert sorted(keys(about)) == sorted(KEYS.split())
    state = next(field for field in about["fields"] if field["key"] == "observation/state")
    assert sorted(state["numbers"][0]) == NUMBER.split()
    assert sorted(keys(found["run"])) == sorted(RUN.split())
    assert sorted(found) == ["data_sets", "documents", "format", "kind", "notes", "problems", "run", "source"]
    assert [(one["kind"], one["where"]) for one in found["problems"]] == [
        ("constant", "observation/state"),
        ("constant", "action"),
    ]
    run_ = found["run"]["parts"][0]
    # Two frames, all numbers, six hidden numbers of an action of seven.
    assert run_["tokens_per_step"] == 9 and run_["by_modality"] == {"frame": 2, "special": 6, "tensor": 1}
    assert found["run"]["tokens"] == pytest.approx(9 * run_["steps"] + 6 * run_["tokens_of_instruction"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("constant: small_bridge, observation/state: 4 numbers of 7")
    assert any(line.split()[:3] == ["observation/state", "observation", "'state'"] for line in lines)
    assert page.count("<img") == 36 and "put the pot on the stove" in page and "2 problems" in page


def test_what_a_run_refuses_is_shown_all_the_same(tmp_path: Path) -> None:
    folder = shutil.copytree(ROBOT, tmp_path / "robot<b>") / "0.1.0"
    file = sorted(folder.glob("*.tfrecord-*"))[0]
    content = bytearray(file.read_bytes())
    content[[*records(file)][1].offset + 200] ^= 1
    file.write_bytes(bytes(content))
    found, page = run(tmp_path, str(folder))
    assert [one["kind"] for one in found["problems"]] == ["broken", "constant", "constant", "refused"]
    assert str(file) in found["problems"][0]["where"] and found["run"] is None
    assert "1 of 7 records" in found["problems"][-1]["what"]
    assert "robot<b>" not in page and "robot&lt;b&gt;" in page


def test_numbers_that_a_run_refuses_are_no_matter_of_sizes(tmp_path: Path) -> None:
    folder = tmp_path / "robot"
    folder.mkdir()
    for number in range(4):
        state, action = np.full((5, 2), number, np.float32), np.arange(5, dtype=np.float32)[:, None]
        state[3] = np.nan if number == 2 else 0
        np.savez(folder / f"{number}.npz", **{"observation/state": state, "action": action})
    found, _ = run(tmp_path, str(folder))
    assert [one["kind"] for one in found["problems"] if one["kind"] in ("refused", "does_not_fit")] == ["refused"]
    assert "1 of 4 records" in found["problems"][-1]["what"]


def test_texts_of_files_do_not_command_the_terminal() -> None:
    assert on_one_line("pick \x1b[31m杯\n\x00 up") == "pick �[31m杯�� up"
    assert on_one_line("a" * 201) == "a" * 200 + "... (201 characters)"


@pytest.mark.slow
def test_a_suite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data.folder", str(tmp_path / "data")]
    assert main(["data", "inspect", "classic", "--preset", "debug", *data]) == 1
    assert "classic/cartpole is not recorded in" in capsys.readouterr().out
    found, _ = run(tmp_path, "classic", "--record", *data)
    assert found["problems"] == [] and "no problem found" in capsys.readouterr().out
    (about,) = found["data_sets"]
    assert about["name"] == "classic/cartpole" and about["episodes"] == 2
    assert about["steps"] == found["run"]["parts"][0]["steps"]
    assert about["instructions"]["most"] == [["balance the pole on the cart", 2]]


def test_documents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [{"text": f"a sentence <script>number {number}</script>"} for number in range(40)]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found, page = run(tmp_path, str(tmp_path / "own.jsonl"))
    assert found["kind"] == "documents" and found["documents"]["kinds"] == {"text": 40}
    assert found["run"]["examples"] == 40 and found["run"]["parts"][0]["layout"] is None
    assert found["run"]["parts"][0]["text_tokens_per_document"]["max"] * 40 >= found["run"]["tokens"] > 40 * 8
    assert "40 documents" in capsys.readouterr().out and "<script" not in page


def test_drawings(tmp_path: Path) -> None:
    found, _ = run(tmp_path, "emoji")
    assert found["kind"] == "examples" and found["run"]["parts"][0]["example_by_modality"]["frame"] == 1


def test_photographs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(ROBOT.parents[1] / "referring", tmp_path / "referring"))
    words = ["regions", "--data.regions.path", str(folder), "--tokens.locations", "1024"]
    found, page = run(tmp_path, *words)
    note = "note: 2 of 3 training images of refcocog are left out"
    assert found["problems"] == [] and found["run"] is not None and note in page
    assert "no problem found" in (screen := capsys.readouterr().out) and note in screen
    next(iter((folder / "train2014").glob("*34.jpg"))).unlink()
    found, _ = run(tmp_path, *words)
    (problem,) = found["problems"]
    assert problem["kind"] == "refused" and "000000000034.jpg: copy the whole folder" in problem["what"]
    assert found["run"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "there is no folder or file nowhere, and no source of that name; the mixture has metaworld,"),
        (["emoji", "--preset", "none"], "unknown preset 'none'"),
        (["emoji", "--json", "."], "--json . is a folder: name a file"),
        (
            ["emoji", "--run", "shipped", "--tokens.documents", "frame"],
            "--run has its own tokenizers, which --tokens.documents",
        ),
        (["emoji", "--run", "nowhere"], "no weights in nowhere"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "inspect", *words]) == 1
    assert capsys.readouterr().out.startswith(f"error: {message}")


def test_drawings_need_an_image_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["drawing", "--preset", "pocket_all", "--runs", str(tmp_path), "--data.folder", str(tmp_path / "data")]
    assert main(["data", "inspect", *words]) == 1
    assert "train it with `train.py image_tokenizer`" in " ".join(capsys.readouterr().out.split())
