"""A published language model as the start of an agent: trained, resumed, exported, and acting; and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from generalist.cli.main import main
from generalist.config.presets import debug, smollm_agent
from generalist.config.run import Config
from generalist.experiment.beforehand import check
from generalist.experiment.inherit import parse
from generalist.experiment.prepare import prepare
from generalist.inference.generalist import Generalist
from generalist.run.tasks import record_missing
from generalist.run.trunk import with_trunk
from generalist.training.tokens import train
from generalist.weights.language import LanguageModel

FIXTURES = Path(__file__).parents[1] / "fixtures"
LLAMA = FIXTURES / "language" / "llama"
SILENT = Console(quiet=True)
WAYS = {"lora": ("--training.lora.rank", "4"), "upper": ("--training.trained-layers", "1"), "all": ()}


def command(folder: Path, *arguments: str) -> Config:
    """`train.py debug` with arguments, as it is parsed."""
    places = ("--runs", str(folder / "runs"), "--data.folder", str(folder / "data"))
    return with_trunk(parse(debug(), [*places, *arguments], prog="train.py debug"))


def run(config: Config) -> Generalist:
    """Trains, without an evaluation; returns the weights."""
    start = check(config, SILENT)
    record_missing(config, SILENT)
    ready = prepare(config, SILENT, start)
    spec = ready.tokenizers.model_spec()
    train(config, spec, ready.batch_spec, ready.iterator, ready.sources, SILENT, ready.encoder, ready.start)
    return Generalist.from_run(config)


def agent(folder: Path, *arguments: str) -> Config:
    """A run that begins with a published model, on two control tasks and captions."""
    few = ("--data.only", "babyai", "classic", "emoji", "--training.steps", "20", "--training.checkpoint-every", "10")
    return command(folder, "--training.start", str(LLAMA), "--training.learning-rate", "1e-2", *few, *arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs are, and their recordings."""
    return tmp_path_factory.mktemp("agent")


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_published_model_learns_control_and_captions(folder: Path, way: str):
    config = agent(folder, "--name", way, *WAYS[way])
    assert (config.training.start, config.model.trunk, config.model.trunk_frozen) == ("", str(LLAMA), way != "all")
    weights = run(config)
    assert set(weights.layouts) == {"babyai", "classic/cartpole"}
    lines = [json.loads(line) for line in (config.folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.85 * lines[0]["loss"]
    assert {"loss/babyai", "loss/classic", "loss/emoji"} <= set().union(*lines)
    after, before = dict(weights.arrays()), dict(LanguageModel(LLAMA).arrays(weights.vocabulary))
    same = {path for path in before if np.array_equal(after[path], before[path].astype(np.float32))}
    norms = {path for path in before if path.endswith("scale")}
    if way == "all":
        assert "tokens/text" not in same and not [path for path in same if path.startswith("blocks/")]
    elif way == "lora":
        assert same == norms | {"tokens/text", "output/text"}
    else:
        lower = [path for path in before if path.startswith("blocks/")]
        assert same == {"tokens/text", "output/text"} and lower
        for path in lower:
            np.testing.assert_array_equal(after[path][:-1], before[path][:-1].astype(np.float32))
            assert np.any(after[path][-1] != before[path][-1])


@pytest.mark.slow
def test_a_resumed_run_is_an_uninterrupted_one(folder: Path):
    whole, again = (agent(folder, "--name", name, *WAYS["lora"]) for name in ("whole", "broken"))
    expected = dict(run(whole).arrays())
    shutil.copytree(whole.folder, again.folder)
    shutil.rmtree(again.folder / "checkpoints" / "20")
    resumed = run(again)
    assert resumed.step == 20
    for path, array in resumed.arrays():
        np.testing.assert_array_equal(array, expected[path])


@pytest.mark.slow
def test_exports_hold_the_same_weights_and_act(folder: Path, capsys: pytest.CaptureFixture[str]):
    config = agent(folder, "--name", "exported", "--training.lora.rank", "2", "--training.lora.places", "qkv", "down")
    weights = dict(run(config).arrays())
    named = ["--run", "exported", "--runs", str(folder / "runs")]
    assert main(["export", str(folder / "own"), *named]) == 0
    assert main(["export", str(folder / "hf"), *named, "--layout", "huggingface", "--dtype", "float32"]) == 0
    assert main(["export", str(folder / "adapter"), *named, "--layout", "peft"]) == 0
    assert f"--weights {LLAMA} --adapter {folder / 'adapter'}" in " ".join(capsys.readouterr().out.split())
    own, published = (dict(Generalist.load(folder / name).arrays()) for name in ("own", "hf"))
    merged = dict(Generalist.load(LLAMA).with_adapter(folder / "adapter").arrays())
    of_trunk = [
        path for path, _ in LanguageModel(LLAMA).arrays(Generalist.load(LLAMA).vocabulary) if "other" not in path
    ]
    assert own.keys() == weights.keys()
    for path in weights:
        np.testing.assert_array_equal(own[path], weights[path])
    for path in of_trunk:
        np.testing.assert_allclose(published[path], weights[path], atol=1e-6)
        np.testing.assert_allclose(merged[path], weights[path], atol=1e-6)
    control = ["eval", "control", "--weights", str(folder / "own"), "--tasks", "classic/cartpole", "--episodes", "1"]
    assert main([*control, "--out", str(folder / "control.json")]) == 0
    # Training goes on from the adapter alone, with the same model beneath it.
    again = agent(
        *(
            folder,
            "--name",
            "again",
            "--training.steps",
            "1",
            "--training.learning-rate",
            "1e-9",
            "--training.lora.rank",
            "2",
        ),
        *("--training.lora.places", "qkv", "down", "--training.lora.adapter", str(folder / "adapter")),
    )
    for path, array in dict(run(again).arrays()).items():
        if path in of_trunk:
            np.testing.assert_allclose(array, weights[path], atol=1e-6)
    capsys.readouterr()
    for wrong, message in (
        (["--weights", str(folder / "own")], "own is no run, and only a run has its adapters apart"),
        ([*named, "--dtype", "bfloat16"], "leave out --dtype and --adapter"),
    ):
        assert main(["export", str(folder / "other"), *wrong, "--layout", "peft"]) == 1
        assert message in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_adapters_are_trained_beside_weights_of_ours(folder: Path):
    first = run(agent(folder, "--name", "first", "--training.steps", "2"))
    first.save(folder / "first")
    begun = ("--training.start", str(folder / "first"), "--data.only", "classic", "--training.steps", "3")
    config = command(folder, "--name", "second", *begun, "--training.lora.rank", "2", "--data.classic.tasks", "acrobot")
    second = run(config)
    before, after = dict(first.arrays()), dict(second.arrays())
    assert second.layouts.keys() == first.layouts.keys() | {"classic/acrobot"}
    np.testing.assert_array_equal(after["tokens/text"], before["tokens/text"])
    moved = np.abs(after["blocks/attention/out/kernel"] - before["blocks/attention/out/kernel"])
    assert 0 < moved.max() < 0.1
    # Merged: what it exports neither has adapters nor asks for the weights beneath them.
    assert main(["export", str(folder / "merged"), "--run", "second", "--runs", str(folder / "runs")]) == 0
    exported = Generalist.load(folder / "merged")
    assert exported.config.training.lora.rank is None
    np.testing.assert_array_equal(
        dict(exported.arrays())["blocks/attention/out/kernel"], after["blocks/attention/out/kernel"]
    )


def test_presets_of_agents_begin_with_a_published_model_or_with_weights_of_ours():
    config = parse(smollm_agent(), ["--training.start", str(LLAMA)], prog="train.py smollm_agent")
    assert (config.model.trunk, config.training.lora.rank) == (str(LLAMA), 32)
    assert with_trunk(config).tokens.text_pieces == LanguageModel(LLAMA).vocabulary
    config = parse(smollm_agent(), ["--training.start", "shipped"], prog="train.py smollm_agent")
    assert (config.model.trunk, config.training.start, config.training.lora.rank) == ("none", "shipped", 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--training.lora.rank", "0"], "training.lora.rank must be at least 1, got 0: leave it out"),
        (["--training.lora.rank", "-3"], "training.lora.rank must be at least 1, got -3"),
        (["--training.lora.rank", "2", "--training.lora.alpha", "0"], "training.lora.alpha must be above 0, got 0"),
        (["--training.lora.adapter", "x"], "training.lora.adapter needs training.lora.rank"),
        (
            ["--training.lora.rank", "2"],
            "training.lora.rank = 2 keeps .* name weights with training.start or model.trunk",
        ),
        (["--training.trained-layers", "1"], "training.trained_layers = 1 keeps a part of the weights frozen"),
        (["--training.trained-layers", "0"], "training.trained_layers must be at least 1, got 0: leave it out"),
        (["--training.trained-layers", "1", "--training.lora.rank", "2"], "exclude each other: leave one of them out"),
        (
            ["--model.trunk", str(LLAMA), "--model.no-trunk-frozen", "--training.lora.rank", "2"],
            "training.lora.rank = 2 and model.trunk_frozen = False contradict each other",
        ),
        (
            ["--training.start", str(FIXTURES / "vision" / "clip")],
            "training.start: .* holds a CLIP.*; the language models that can be loaded are gpt2",
        ),
        (
            ["--training.start", str(LLAMA), "--training.trained-layers", "9"],
            "trained_layers = 9, but the model has only",
        ),
        (
            ["--training.start", str(LLAMA), "--training.lora.rank", "2", "--training.lora.adapter", str(LLAMA)],
            "has no adapter_config.json",
        ),
        (
            ["--training.start", "shipped", "--training.lora.rank", "2", "--training.lora.adapter", "x"],
            "adapter is of a published",
        ),
    ],
)
def test_settings_that_contradict_are_refused_by_name(arguments: list[str], message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        try:
            check(command(tmp_path, *arguments), SILENT)
        except SystemExit as error:  # of a setting that a dataclass refuses, tyro makes a page
            raise ValueError(str(error.__context__)) from error
    assert not (tmp_path / "runs").exists()


def test_an_unknown_place_is_refused_with_those_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        command(tmp_path, "--training.lora.rank", "2", "--training.lora.places", "middle")
    printed = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "--training.lora.places" in printed and "qkv" in printed
