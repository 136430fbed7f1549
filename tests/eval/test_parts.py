"""A part of an evaluation is one file: this one adds a part, and a run of the smallest preset shows it everywhere."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from generalist.config.data import DataConfig, mixed, read_mixture
from generalist.config.presets import debug
from generalist.config.run import Config
from generalist.data.documents import DocumentError
from generalist.data.examples import TextExamples
from generalist.data.source import KINDS, Reading, Source, Stored, register
from generalist.data.sources.documents import OwnDocuments
from generalist.data.sources.prose import Prose
from generalist.eval.parts import registry
from generalist.eval.parts.part import Job, Part, Results
from generalist.eval.report import page
from generalist.eval.report.compare import compare
from generalist.eval.results import file as report
from generalist.eval.results.scores import Estimate
from generalist.experiment import pipeline
from generalist.inference.generalist import Generalist
from generalist.run.named_weights import run_settings


class LargestWeight(Part):
    """The largest of all parameters."""

    name = "largest"
    title = "Largest weight"
    seeds: ClassVar[Mapping[str, int]] = {"largest": 3}

    def jobs(self, generalist: Generalist) -> list[Job]:
        import jax

        def compute(progress: Any) -> float:
            return max(float(np.abs(np.asarray(leaf)).max()) for leaf in jax.tree.leaves(generalist.params))

        return [Job(part=self.name, key="all", settings={}, compute=compute)]

    def numbers(self, results: Results) -> dict[str, Estimate]:
        found = results["largest"]["all"]
        return {"largest weight": Estimate(value=found, low=found, high=found)}

    def check(self, results: Results) -> None:
        if results["largest"]["all"] < 0:
            raise ValueError("the largest weight is below 0")


def documents(folder: Path, count: int) -> Path:
    """Texts, and texts with an image."""
    folder.mkdir(parents=True)
    Image.fromarray(np.full((20, 20, 3), 90, np.uint8)).save(folder / "grey.png")
    texts = [f"The number {number} stands here, after a grey square." for number in range(count)]
    lines = [{"image": "grey.png", "text": text} if number % 2 else {"text": text} for number, text in enumerate(texts)]
    path = folder / "documents.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@register("counting")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Counting(Source):
    """A source in a file of its own: it counts."""

    weight: float = 0.5
    numbers: int = 40

    def texts(self, stored: Stored) -> list[str]:
        return [" ".join(map(str, range(self.numbers)))]

    def open(self, stored: Stored, reading: Reading) -> list[TextExamples]:
        ids = reading.assembler.text_tokenizer.encode(self.texts(stored)[0])
        return [TextExamples(ids=ids, length=reading.length - 1, assembler=reading.assembler)]


KINDS.pop("counting")  # only where a test gives it to a run by itself


def smallest(folder: Path, heldout: Path | None) -> Config:
    """Two steps on prose, and on a source of this file."""
    base = debug()
    data = dataclasses.replace(
        base.data,
        folder=folder / "data",
        sources=mixed(
            counting=Counting(),
            prose=Prose(megabytes=0.3, evaluation_windows=4),
            documents=OwnDocuments(heldout=None if heldout is None else str(heldout), evaluation_documents=6),
        ),
        only=("prose", "counting"),
    )
    training = dataclasses.replace(base.training, steps=2, warmup=1, checkpoint_every=2, log_every=1)
    return dataclasses.replace(base, runs=folder / "runs", data=data, training=training)


@pytest.fixture(scope="module")
def added() -> Any:
    """The part and the source are registered, and gone afterwards."""
    before = list(registry.PARTS)
    registry.register(LargestWeight())
    KINDS["counting"] = Counting
    yield registry.PARTS[-1]
    registry.PARTS[:] = before
    del KINDS["counting"]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, added: Part) -> tuple[Config, str]:
    """A run with the part and held-out documents, and what it printed."""
    folder, console = tmp_path_factory.mktemp("parts"), Console(record=True, width=120, quiet=False)
    config = smallest(folder, documents(folder / "own", 10))
    pipeline.run(config, ["train.py", "debug"], console)
    return config, console.export_text()


def test_a_part_in_a_file_of_its_own_is_computed_stored_and_shown(evaluated: tuple[Config, str], tmp_path: Path):
    config, printed = evaluated
    path = config.folder / "results.json"
    found = report.load(path)
    assert found["largest"]["all"] > 0 and found["seeds"]["largest"] == 3 and found["format"] == 2
    assert "evaluation 1/3: largest-all" in printed and "largest weight" in printed.split("documents, nats")[1]
    page.write(path, tmp_path / "report.html", Console(quiet=True))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<h2>Largest weight</h2>" in text and "loss by source" in text
    console = Console(record=True, width=120)
    compare(found, found, console)
    assert "Largest weight" in console.export_text()


def test_a_source_in_a_file_of_its_own_is_planned_trained_on_and_reported(
    evaluated: tuple[Config, str], tmp_path: Path
):
    config, _ = evaluated
    assert config.source_weights == {"prose": 1.0, "counting": 1.0}
    lines = [json.loads(line) for line in (config.folder / "metrics.jsonl").read_text().splitlines()]
    assert {"loss/prose", "loss/counting", "accuracy/counting"} <= lines[-1].keys()
    page.write(config.folder / "results.json", tmp_path / "report.html", Console(quiet=True))
    assert "counting" in (tmp_path / "report.html").read_text(encoding="utf-8")
    settings = json.loads((config.folder / "config.json").read_text())["data"]
    assert settings["counting"] == {"loss_weight": 1.0, "numbers": 40, "weight": 0.5}
    assert run_settings(config.folder).data.sources["counting"] == Counting()
    (tmp_path / "mixture.yaml").write_text("counting: {weight: 2.0}\nmore: {kind: counting, numbers: 9}\n")
    read = read_mixture(tmp_path / "mixture.yaml")
    assert read == {"counting": Counting(weight=2.0), "more": Counting(numbers=9)} and list(read) == [
        "counting",
        "more",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prose: [1]", "data.prose must be an object with a source's settings"),
        ("rows: {kind: prose}", "a source can't be named rows, which is a setting of data"),
        ("tale: {weight: 1.0}", "data.tale: there is no source of the kind 'tale', only metaworld"),
        ("prose: {wieght: 1.0}", "unknown setting data.prose.wieght"),
        ("prose: {weight: heavy}", "data.prose.weight must be of type float, got 'heavy'"),
        ("- prose", "must hold names of sources with their settings"),
        ("prose: {", "is not YAML"),
    ],
)
def test_a_mixture_that_is_none_is_refused(tmp_path: Path, text: str, message: str):
    (tmp_path / "mixture.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        DataConfig(sources=read_mixture(tmp_path / "mixture.yaml"))
    assert "\n" not in str(error.value)


def test_only_some_sources_take_part():
    data = DataConfig(only=("emoji", "classic"))
    assert list(data.taking_part) == ["classic", "emoji"]
    with pytest.raises(ValueError, match="data.only: there is no source 'emojis', only metaworld"):
        DataConfig(only=("emojis",))
    with pytest.raises(ValueError, match="data.only names documents, which takes no part"):
        DataConfig(only=("documents",))


def test_a_section_is_there_only_if_its_part_applies(evaluated: tuple[Config, str]):
    found = json.loads((evaluated[0].folder / "results.json").read_text(encoding="utf-8"))
    assert {"language", "documents", "largest"} <= found.keys() and not {"control", "naming"} & found.keys()
    assert "evaluation" not in found["seeds"]


def test_a_part_checks_what_it_reads_back_and_one_that_is_gone_is_noted(
    evaluated: tuple[Config, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    found = report.load(evaluated[0].folder / "results.json")
    edited = found | {"largest": {"all": -1.0}}
    report.save(tmp_path / "edited.json", edited)
    with pytest.raises(ValueError, match="the largest weight is below 0"):
        report.load(tmp_path / "edited.json")
    monkeypatch.setattr(registry, "PARTS", registry.PARTS[:-1])
    console = Console(record=True, width=120)
    report.show(report.load(tmp_path / "edited.json"), console)
    assert "no part of this version reads the section largest" in console.export_text()
    assert "no part of this version reads the section largest" in page.build(edited)


def test_the_loss_on_held_out_documents(evaluated: tuple[Config, str]):
    config, printed = evaluated
    found = report.load(config.folder / "results.json")["documents"]["heldout"]
    assert found["documents"] == 6 and 0 < found["with_images"] < 6
    # After two steps the model knows hardly more than that there are so many ids.
    assert 3.0 < found["loss"]["low"] <= found["loss"]["value"] <= found["loss"]["high"] < 9.0
    assert "documents, nats" in printed and "6 documents" in printed
    generalist = Generalist.from_run(config)
    part = next(part for part in registry.PARTS if part.name == "documents")
    (job,) = part.jobs(generalist)
    own = config.data.sources["documents"].heldout
    assert own is not None
    Path(own).write_text(Path(own).read_text().replace("number 3", "number 4"))
    assert part.jobs(generalist)[0].settings != job.settings, "edited documents are scored anew"


def test_held_out_documents_are_looked_at_before_training(tmp_path: Path):
    config = smallest(tmp_path, tmp_path / "none.jsonl")
    with pytest.raises(DocumentError, match=r"there is no .*none\.jsonl"):
        pipeline.run(config, ["train.py"], Console(quiet=True))
    assert not config.folder.exists()
    with pytest.raises(ValueError, match="heldout = own.jsonl is data.documents.path, which is trained on"):
        OwnDocuments(path="own.jsonl", heldout="own.jsonl")


def test_a_name_is_taken_once(added: Part):
    for name in ("largest", "control", "settings", "digest"):
        part = type("Other", (LargestWeight,), {"name": name})()
        with pytest.raises(ValueError, match=f"has a part or a manifest entry '{name}' already"):
            registry.register(part)
