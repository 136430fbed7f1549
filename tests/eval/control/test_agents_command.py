"""`generalist eval control` and `again`: real weights, real tasks, the command line."""

import dataclasses
import json
from pathlib import Path

import pytest
from flax import nnx
from rich.console import Console

from generalist.cli.main import main
from generalist.config.data import mixed
from generalist.config.presets import debug
from generalist.data.sources.control import Classic
from generalist.data.sources.prose import Prose
from generalist.eval.control.agents import parse_agent
from generalist.eval.control.policies import Prompt
from generalist.eval.results import file as report
from generalist.experiment.prepare import prepare
from generalist.inference.generalist import Generalist
from generalist.model.transformer import create
from generalist.run.tasks import record_missing

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fresh weights that know the inverted pendulums, with the recordings beside them."""
    folder, base = tmp_path_factory.mktemp("agents"), debug()
    data = dataclasses.replace(
        base.data,
        folder=folder / "data",
        sources=mixed(classic=Classic(tasks="inverted*", episodes=2), prose=Prose(weight=0.1, megabytes=0.3)),
        only=("classic", "prose"),
    )
    config = dataclasses.replace(base, runs=folder / "runs", data=data)
    record_missing(config, QUIET)
    tokenizers = prepare(config, QUIET).tokenizers
    graph, params = nnx.split(create(tokenizers.model_spec(), 0), nnx.Param)
    Generalist(tokenizers, graph, nnx.to_pure_dict(params), 0).save(folder / "model")
    return folder / "model"


@pytest.mark.slow
def test_all_agents_play_and_the_file_proves_itself(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "scores.json"
    command = [
        "eval",
        "control",
        "--weights",
        str(weights),
        "--tasks",
        "classic/*",
        "--episodes",
        "3",
        "--out",
        str(out),
    ]
    assert main([*command, "--agents", "model", "goal", "2", "nearest", "--workers", "1"]) == 0
    results = report.load(out)
    assert set(results["policies"]) == {"model, goal prompt", "model, 2 demonstrations", "nearest neighbour"}
    tasks = results["control"]["classic"]["tasks"]
    assert set(tasks) == {"classic/inverted-pendulum", "classic/inverted-double-pendulum"}
    assert all(len(task["episodes"]) == 3 for task in tasks.values())
    # Fresh weights can't balance; copied actions do for a while.
    model, nearest = (of["classic"]["percent"] for of in (results["control"], results["policies"]["nearest neighbour"]))
    assert nearest["low"] > model["high"]
    assert results["notes"]["model, 2 demonstrations"]["cut_demonstrations"] > 0

    assert main([*command]) == 1 and "exists already" in capsys.readouterr().out
    assert main(["eval", "again", str(out), "--workers", "2"]) == 0
    assert "identical: all 24 episodes" in capsys.readouterr().out

    edited = json.loads(out.read_text())
    edited["policies"]["nearest neighbour"]["classic"]["percent"]["value"] = 99.0
    out.write_text(json.dumps(edited))
    assert main(["eval", "again", str(out)]) == 1
    assert "the mean of nearest neighbour in classic is 99" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_agents_read_demonstrations_of_a_suite_that_the_run_itself_leaves_out(weights: Path, tmp_path: Path):
    """A run that begins with other weights knows their layouts, also those of suites to which it gives the weight 0."""
    known = Generalist.load(weights)
    without = dataclasses.replace(known.config.data.sources["classic"], weight=0.0)
    data = dataclasses.replace(known.config.data, only=("prose",)).with_sources(classic=without)
    config = dataclasses.replace(known.config, data=data)
    assert "classic" not in config.data.control()
    known.with_config(config).save(tmp_path / "begun")
    out = tmp_path / "scores.json"
    command = ["eval", "control", "--weights", str(tmp_path / "begun"), "--tasks", "classic/inverted-pendulum"]
    assert main([*command, "--episodes", "1", "--workers", "1", "--agents", "goal", "nearest", "--out", str(out)]) == 0
    results = report.load(out)
    assert results["control"].keys() == {"classic"} and results["policies"].keys() == {"nearest neighbour"}
    # What the model observed is measured; the nearest neighbour has no tokenizer that could cut anything off.
    assert "clipped" in results["control"]["classic"]
    assert "clipped" not in results["policies"]["nearest neighbour"]["classic"]
    assert not {"naming", "language"} & results.keys() and results["seconds"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "atari/*"], "the weights know none of atari/"),
        (["--tasks", "classic/cartpool"], "did you mean 'classic/cartpole'"),
        (["--agents", "best"], "an agent is model, goal, whole"),
        (["--episodes", "0"], "--episodes must be at least 1"),
        (["--weights", "nowhere"], "nowhere"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_played(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture, arguments: list[str], message: str
):
    out = tmp_path / "scores.json"
    assert main(["eval", "control", "--weights", str(weights), "--out", str(out), *arguments]) == 1
    assert message in " ".join(capsys.readouterr().out.split()) and not out.exists()


def test_agents_by_name():
    assert (
        parse_agent("3").prompt == Prompt(3)
        and parse_agent("nearest").prompt is None
        and parse_agent("whole") == parse_agent("1")
    )
    assert [parse_agent(name).name for name in ("model", "goal", "1")] == [
        "model",
        "model, goal prompt",
        "model, whole demonstration",
    ]
