"""What README and docs show works: every command is parsed by its own parser, and run here or marked why not; every Python block
imports names that exist; every setting, file and link exists.

A page's commands are the lines of its shell blocks, indented `python ...` lines, and code spans in its text.
"""

import argparse
import ast
import dataclasses
import importlib
import importlib.util
import io
import json
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import tyro
from rich.console import Console

from generalist.cli.main import COMMANDS, main
from generalist.config.plain import plain
from generalist.config.presets import preset
from generalist.contrastive.config import ContrastiveConfig
from generalist.experiment import pipeline
from generalist.experiment.inherit import parse
from generalist.image_tokenizer.config import ImageTokenizerConfig
from generalist.run.folder import flatten
from generalist.run.named_weights import SHIPPED

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
SHELL = ("", "sh", "bash", "console")  # languages of blocks that hold commands; others are `text`, `json`, ...
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MIXTURE = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`((?:uv run|generalist|train\.py|python benchmarks/\w+\.py) [^`\n]+)`")
PATTERN = re.compile(r"\.\.\.|…|SUITE|PRESET")  # many commands in one

# What is run here, in an empty folder that has the run `pocket`: the command, and what it prints.
RUN = {
    "generalist tasks": "169 tasks",
    "generalist tasks 'atari/*'": "19 tasks",
    "generalist tasks 'babyai/GoTo*'": "babyai/GoToLocal",
    "generalist runs": "pocket",
    "generalist play babyai/GoTo --expert --video goto.webp": "video: goto.webp",
    "generalist plan gato_364m --devices h100": "training.micro_batches = auto: 16",
    "generalist plan smollm_agent --devices rtx4090": "it fits",
}
RUN_SLOWLY = {
    "generalist prompt --example": "snowboarder",
    "generalist play babyai/GoTo --video goto.webp": "video: goto.webp",
}
# Why the others are only parsed: the first pattern that matches.
ONLY_PARSED = {
    r"pip |uv sync|python -m venv": "changes the installation that the tests run in",
    r"^(uv run )?pytest\b": "is what runs this test",
    r"mkdocs serve": "serves until it is stopped; .ci/run builds the site",
    r"gcloud|srun|--cluster|^for |^done": "needs several machines; tests/training/test_hosts.py runs several processes",
    r"--topology|plan debug": "compiles for minutes; tests/plan/test_plan.py plans smaller ones",
    r"plan .*--inference": "tests/plan/test_inference.py plans the like and smaller ones",
    r"python benchmarks/": "measures for minutes or hours on an idle machine",
    r"train\.py .*--help": "tests/test_end_to_end.py runs it",
    r"train\.py contrastive": "trains for minutes; tests/contrastive/test_contrastive.py trains smaller towers",
    r"train\.py image_tokenizer": "trains for minutes; tests/vision/test_image_tokenizer.py trains a smaller one",
    r"train\.py": "trains for minutes or longer; tests/test_end_to_end.py trains, resumes and fine-tunes `debug`",
    r"record\.py": "is a file of the reader's; its lines are run by test_the_first_example_of_an_environment",
    r"shapes\.py": "is a file of the reader's; its lines are run by test_ten_minutes_with_images_and_texts",
    r"reach\.py": "is a file of the reader's; its lines are run by test_ten_minutes_with_robot_data",
    r"eval (control|again)": "plays for minutes; tests/eval/control/test_agents_command.py plays less",
    r"eval fewshot": "asks for minutes, or needs a benchmark; tests/eval/fewshot/test_fewshot.py asks less",
    r"eval (compare|report)": "needs evaluations; tests/eval/report has some",
    r"generalist serve": "serves until it is stopped; tests/serve serves smaller weights",
    r"eval served": "needs a server; tests/serve/test_served.py has one",
    r"generalist data convert": "needs a data set of the reader's; tests/data/convert converts some",
    r"generalist play": "needs a run of the reader's, a display or more minutes; tests/cli/test_play.py plays one",
    r"generalist draw": "needs a run that learned to draw; tests/inference/test_drawing.py has one",
    r"generalist prompt": "needs files of the reader's; tests/inference/test_shots.py has some",
    r"generalist data (inspect|view)": "needs files of the reader's; tests/cli/test_data_inspect.py has some",
    r"generalist dagger": "plays for minutes; tests/eval/control/test_dagger.py plays less",
    r"generalist (average|export)": "needs a trained run; tests/test_end_to_end.py has one",
}


@dataclasses.dataclass(frozen=True)
class Command:
    """One command as it is shown."""

    page: str
    line: str

    @property
    def words(self) -> list[str]:
        """As a shell splits it, without `uv run`, comments, variables, redirections and what follows."""
        words = shlex.split(re.sub(r"\$\w+", "0", self.line), comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words.pop(0)
        ends = [number for number, word in enumerate(words) if word in (">", "&", "&&", ";")]
        words = words[: ends[0]] if ends else words
        words = words[1:] if words[:1] == ["srun"] else words
        if words[:2] == ["uv", "run"]:
            words = words[2:]
            while words[0].startswith("--"):
                if words.pop(0) == "--extra":
                    assert words.pop(0) in EXTRAS, f"{self}: pyproject.toml has no such extra"
        return words[1:] if words[:2] == ["python", "train.py"] else words

    def __str__(self) -> str:
        return f"{self.page}: {self.line}"


def commands() -> Iterator[Command]:
    """Every command of every page."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = [body for language, body in FENCE.findall(text) if language in SHELL]
        prose = FENCE.sub("", text)
        lines = [line.strip() for body in blocks for line in re.sub(r"\\\n\s*", "", body).splitlines()]
        lines += re.findall(r"^    (python .*)$", prose, re.MULTILINE)
        lines += [span for span in SPAN.findall(prose) if not PATTERN.search(span)]
        name = page.relative_to(ROOT).as_posix()
        yield from (Command(name, line) for line in dict.fromkeys(lines) if line and not line.startswith("#"))


def is_name(words: list[str]) -> bool:
    """Whether this names a command in a sentence, without what it takes: `generalist eval fewshot`."""
    return words[0] == "generalist" and len(words) < 4 and all(re.fullmatch("[a-z]+", word) for word in words[1:])


class Parsed(Exception):
    """A script has parsed its arguments."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with what the commands name: the run `pocket`, with the settings of the shipped weights, a mixture, and
    published language models, all of them the same tiny one."""
    (tmp_path / "runs/pocket").mkdir(parents=True)
    for name in ("config.json", "tokenizers.json"):
        shutil.copy(SHIPPED / name, tmp_path / "runs/pocket" / name)
    (tmp_path / "mixture.yaml").write_text(MIXTURE.findall((ROOT / "docs/mixture.md").read_text(encoding="utf-8"))[0])
    for name in ("models/SmolLM2-360M", "tests/fixtures/language/llama"):
        shutil.copytree(ROOT / "tests/fixtures/language/llama", tmp_path / name)
    shutil.copytree(ROOT / "tests/fixtures/images/gemma3", tmp_path / "tests/fixtures/images/gemma3")
    monkeypatch.chdir(tmp_path)
    return tmp_path


ONCE = {shlex.join(command.words): command for command in commands() if command.words}


@pytest.mark.parametrize("command", ONCE.values(), ids=ONCE.keys())
def test_a_command_is_run_or_marked_and_its_arguments_exist(
    command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    words = command.words
    known = shlex.join(words) in {shlex.join(shlex.split(one)) for one in RUN | RUN_SLOWLY}
    assert known or is_name(words) or any(re.search(one, command.line) for one in ONLY_PARSED), "run it, or say why not"
    monkeypatch.setattr(sys, "argv", words)
    if words[0] == "train.py":
        parse_training(words[1:])
    elif words[0] == "generalist":
        parse_generalist(words[1:], monkeypatch)
    elif words[0] == "python" and words[1].startswith("benchmarks/"):
        parse_benchmark(ROOT / words[1], monkeypatch, words[1:])


def parse_training(words: list[str]) -> None:
    """By `train.py`'s own settings."""
    name, rest = (words[0], words[1:]) if words and not words[0].startswith("-") else ("pocket", words)
    if "--help" in rest:
        return
    if name == "contrastive":
        tyro.cli(ContrastiveConfig, args=rest)
    elif name == "image_tokenizer":
        tyro.cli(ImageTokenizerConfig, args=rest)
    else:
        parse(preset(name), rest, prog="train.py")


def parse_generalist(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command's own parser, without running it; what `plan` and `data` do not know are settings."""
    if is_name(["generalist", *words]):
        words = [*words, "--help"]
    seen: list[argparse.Namespace] = []
    rest: list[str] = []
    module = importlib.import_module(COMMANDS[words[0]][0])

    def instead(arguments: argparse.Namespace, unknown: list[str], console: object) -> int:
        seen.append(arguments)
        rest.extend(unknown)
        return 0

    monkeypatch.setattr(module, "run", instead)
    try:
        assert main(words) == 0
    except SystemExit as end:
        assert end.code == 0 and "--help" in words
    else:
        assert seen and (not rest or words[0] in ("plan", "data"))
        if rest:
            parse(preset(seen[0].preset), rest, prog="generalist")


def parse_benchmark(script: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    """By the script's own parser; it is stopped once it has parsed."""
    genuine = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, args: None = None, namespace: None = None) -> None:
        genuine(self, [word if word != "N" else "1" for word in words[1:]])
        raise Parsed

    specification = importlib.util.spec_from_file_location(f"benchmark_{script.stem}", script)
    assert specification is not None and specification.loader is not None, script
    module = importlib.util.module_from_spec(specification)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [str(script.parent), *sys.path])  # as Python does; scripts share functions
        specification.loader.exec_module(module)
    sys.modules.pop(
        "train", None
    )  # benchmarks/train.py, if another script has imported it: the root has a train.py too
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(module, "use_huge_pages", lambda: None, raising=False)  # it would replace this process
    with pytest.raises(Parsed):
        module.main()


@pytest.mark.parametrize(
    ("line", "printed"), [*RUN.items(), *(pytest.param(*one, marks=pytest.mark.slow) for one in RUN_SLOWLY.items())]
)
def test_a_command_does_what_is_shown(line: str, printed: str, folder: Path, capsys: pytest.CaptureFixture[str]):
    assert shlex.join(shlex.split(line)) in ONCE, "no page shows it any more"
    assert main(shlex.split(line)[1:]) == (2 if "NOT fit" in printed else 0)
    assert printed in capsys.readouterr().out


def blocks_of(page: str) -> list[str]:
    """The Python blocks of a page."""
    return [body for language, body in FENCE.findall((ROOT / page).read_text(encoding="utf-8")) if language == "python"]


def test_python_blocks_import_names_that_exist():
    found = [(page, body) for page in PAGES for body in blocks_of(str(page))]
    assert len(found) > 8
    for page, body in found:
        for node in ast.walk(ast.parse(body)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("generalist"):
                module = importlib.import_module(str(node.module))
                missing = [one.name for one in node.names if not has(module, one.name)]
                assert not missing, f"{page}: {node.module} has no {missing}"


def has(module: object, name: str) -> bool:
    """Whether `from module import name` works."""
    if hasattr(module, name):
        return True
    return importlib.util.find_spec(f"{module.__name__}.{name}") is not None  # type: ignore[attr-defined]


def test_the_first_example_of_an_environment(folder: Path, capsys: pytest.CaptureFixture[str]):
    exec(blocks_of("docs/environments.md")[0], {"__name__": "record"})
    assert "-1109.8 -13.0" in capsys.readouterr().out and (folder / "demos/cliff/task.json").is_file()


@pytest.mark.slow
def test_ten_minutes_with_robot_data(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """As the page says, but that `debug` is trained, for fewer steps."""
    monkeypatch.setenv("GENERALIST_CACHE", str(folder / "cache"))
    exec(blocks_of("docs/robot_data.md")[0], {"__name__": "reach"})
    assert main(["data", "inspect", "reach", "--preset", "debug"]) == 0
    assert "observation/state" in capsys.readouterr().out
    assert main(["data", "view", "reach", "--preset", "debug"]) == 0
    given = ["--name", "reach", "--data.recorded.path", "reach", "--data.only", "recorded", "--training.steps", "60"]
    console = Console(width=120, file=io.StringIO())
    pipeline.run(parse(preset("debug"), given, prog="train.py"), ["train.py"], console)
    found = json.loads((folder / "runs/reach/results.json").read_text(encoding="utf-8"))["recorded"]["recorded"]
    assert found["error"]["model"]["value"] < found["error"]["mean_action"]["value"]


@pytest.mark.slow
def test_ten_minutes_with_images_and_texts(folder: Path, capsys: pytest.CaptureFixture[str]):
    """As the page says, but that `debug` is trained, for fewer steps."""
    exec(blocks_of("docs/documents.md")[0], {"__name__": "shapes"})
    assert main(["data", "inspect", "shapes/pages.jsonl", "--preset", "debug"]) == 0
    assert "220" in capsys.readouterr().out
    assert main(["data", "view", "shapes/pages.jsonl", "--preset", "debug"]) == 0
    given = ["--name", "shapes", "--data.documents.path", "shapes/pages.jsonl", "--data.only", "documents"]
    given += ["--data.documents.heldout", "shapes/heldout.jsonl", "--training.steps", "60"]
    console = Console(width=120, file=io.StringIO())
    pipeline.run(parse(preset("debug"), given, prog="train.py"), ["train.py"], console)
    found = json.loads((folder / "runs/shapes/results.json").read_text(encoding="utf-8"))["documents"]["heldout"]
    assert found["documents"] == 20 and found["with_images"] == 20 and found["loss"]["value"] < 4.0
    assert main(["prompt", "--run", "shapes", "shapes/3.png"]) == 0


@pytest.mark.slow
def test_the_example_of_the_readme(capsys: pytest.CaptureFixture[str]):
    exec(blocks_of("README.md")[0], {"__name__": "example"})
    assert capsys.readouterr().out.strip() in ("True", "1.0")


def test_settings_in_the_text_exist():
    known = {name.replace("_", "-") for one in (preset("debug"), ContrastiveConfig()) for name in flatten(plain(one))}
    sections = "data|tokens|model|training|evaluation|cluster|towers"
    for page in PAGES:
        for name in re.findall(rf"--((?:{sections})\.[\w.-]*[\w])", page.read_text(encoding="utf-8")):
            meant = name.replace("SUITE", "babyai").replace(".no-", ".").replace("_", "-")
            assert meant in known, f"{page}: there is no setting --{name}"


def test_files_in_the_text_and_in_reasons_exist():
    folders = "generalist|envs|eval|tokenizers|tests|benchmarks|docs"
    texts = [(page.name, page.read_text(encoding="utf-8")) for page in PAGES]
    for name, text in [*texts, ("reasons", " ".join(ONLY_PARSED.values()))]:
        for path in re.findall(rf"(?<![\w/.-])((?:{folders})/[\w/-]+\.(?:py|md|json|webp))\b", text):
            assert (ROOT / path).exists(), f"{name} names {path}, which does not exist"


def test_links_of_pages_outside_the_site_exist():
    """Of the pages in docs/, `mkdocs build --strict` checks them."""
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", SHIPPED / "README.md"):
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]+)(#[^)]*)?\)", page.read_text(encoding="utf-8")):
            path = page.parent / target
            assert path.exists(), f"{page}: {target}"
            if anchor:
                heads = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor[1:] in {re.sub(r"[^\w -]", "", head).strip().lower().replace(" ", "-") for head in heads}


def test_every_reason_is_needed():
    lines = [command.line for command in commands()]
    assert not [one for one in ONLY_PARSED if not any(re.search(one, line) for line in lines)]
