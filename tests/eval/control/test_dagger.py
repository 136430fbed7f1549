"""DAgger: who acts and who is recorded, what is whole, and that training reads it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from rich.console import Console

from generalist.cli.main import main
from generalist.config.presets import debug
from generalist.data.examples import ControlExamples
from generalist.data.sources.control import BabyAI
from generalist.envs.corrections import FIRST_SEED, CorrectedTask
from generalist.envs.registry import get
from generalist.envs.rlds import dataset_folder, read_metadata
from generalist.envs.suites.classic import ClassicTask
from generalist.envs.task import GaveUp, Task
from generalist.experiment.prepare import open_sources, prepare
from generalist.run.tasks import record_missing, stored

GO_TO, CARTPOLE = get("babyai/GoToObj"), get("classic/cartpole")


def play(task: Task, folder: Path, *, share: float, action: int = 0) -> int:
    """Makes a data set of one episode of always the same action; its steps."""
    corrected = CorrectedTask.of(task, share, folder)
    corrected.begin()
    env, over, steps = corrected.make(), False, 0
    env.reset(seed=FIRST_SEED)
    while not over:
        _, _, terminated, truncated, _ = env.step(action)
        over, steps = terminated or truncated, steps + 1
    return corrected.finish([(FIRST_SEED, 0.0, steps)], {})


def steps_of(folder: Path, task: Task) -> tuple[list, list]:
    """The recorded answers, and what was executed."""
    source = tfds.builder_from_directory(str(dataset_folder(folder, task))).as_data_source(split="train")
    steps = [step for example in source for step in example["steps"]]
    return [int(step["action"]) for step in steps], [int(step["executed_action"]) for step in steps]


def test_the_player_s_actions_are_executed_and_the_expert_s_answers_recorded(tmp_path: Path):
    steps = play(CARTPOLE, tmp_path, share=0.0)
    answers, executed = steps_of(tmp_path, CARTPOLE)
    assert executed == [0] * steps and steps < 20  # pushed to the left until the pole falls
    assert answers != executed
    env = CARTPOLE.make()
    observation, _ = env.reset(seed=FIRST_SEED)
    expert = CARTPOLE.expert(env, np.random.default_rng(FIRST_SEED))
    for answer, action in zip(answers, executed, strict=True):
        assert answer == expert(observation)
        observation, *_ = env.step(action)


def test_an_expert_that_takes_every_step_succeeds_and_one_in_part_is_a_mixture(tmp_path: Path):
    play(GO_TO, tmp_path / "all", share=1.0)
    answers, executed = steps_of(tmp_path / "all", GO_TO)
    assert answers == executed and len(answers) < GO_TO.max_steps
    play(CARTPOLE, tmp_path / "half", share=0.5)
    answers, executed = steps_of(tmp_path / "half", CARTPOLE)
    assert all(done in (0, answer) for answer, done in zip(answers, executed, strict=True))
    assert answers != executed and any(executed)


def test_an_episode_ends_where_the_expert_has_no_answer(tmp_path: Path):
    def answers(count: int) -> Task:
        """The task with an expert that answers so often."""
        left = [1] * count

        def rule(observation: np.ndarray) -> int:
            if not left:
                raise GaveUp
            return left.pop()

        assert isinstance(CARTPOLE, ClassicTask)
        return dataclasses.replace(CARTPOLE, rule=rule)

    assert play(answers(3), tmp_path, share=0.0) == 3
    assert steps_of(tmp_path, CARTPOLE)[0] == [1, 1, 1]
    with pytest.raises(ValueError, match="had no answer in any of 1 episodes"):
        play(answers(0), tmp_path, share=0.0)


@pytest.mark.slow
def test_the_weights_play_and_training_learns_from_the_answers(
    tmp_path: Path, weights: Callable, capsys: pytest.CaptureFixture[str]
):
    weights(0).save(tmp_path / "weights")
    folder = tmp_path / "corrections"
    command = ["dagger", str(folder), "--weights", str(tmp_path / "weights"), "--episodes", "3"]
    command += ["--tasks", GO_TO.name, "babyai/GoToLocal"]
    assert main(command) == 0, capsys.readouterr().out
    assert "babyai: 2 tasks" in capsys.readouterr().out
    metadata = read_metadata(dataset_folder(folder, GO_TO))
    assert metadata is not None and metadata["seeds"] == [FIRST_SEED + index for index in range(3)]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert not any(path.name.endswith(".recording") for path in before)
    assert main(command) == 0 and "2 of 2 tasks already have a data set in" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert main([*command, "--expert-share", "0.5"]) == 1
    assert "was made with expert_share 0.3, not 0.5" in " ".join(capsys.readouterr().out.split())

    base = debug()
    babyai = BabyAI(weight=1.0, tasks="GoToObj", episodes=2, steps=16, prompt_fraction=1.0)
    data = dataclasses.replace(
        base.data.with_sources(babyai=babyai), folder=tmp_path / "data", only=("babyai",), dagger=(folder,)
    )
    config = dataclasses.replace(base, runs=tmp_path / "runs", data=data)
    record_missing(config, Console(quiet=True))
    prepared = prepare(config, Console(quiet=True))
    prepared.iterator.close()
    data = stored(config)
    assert [task.name for task, _ in babyai.open_corrections(data)] == [GO_TO.name]
    (opened,) = open_sources(config, prepared.tokenizers, data)
    recorded, part = opened.parts
    assert isinstance(recorded, ControlExamples) and recorded.prompt_fraction == 1
    assert isinstance(part, ControlExamples) and part.prompt_fraction == 0
    assert len(part) == sum(-(-length // 16) for length in metadata["lengths"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--episodes", "0"], "--episodes must be at least 1, got 0"),
        (["--expert-share", "1.5"], "--expert-share must be from 0 to 1, got 1.5"),
        (["--seed", "999990"], "--seed + --episodes at most 1,000,000"),
        (["--tasks", "babyai/GoTooo"], "no task matches 'babyai/GoTooo'"),
    ],
)
def test_what_can_not_be_is_said_before_anything_is_played(
    tmp_path: Path, weights: Callable, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    weights(0).save(tmp_path / "weights")
    assert main(["dagger", str(tmp_path / "to"), "--weights", str(tmp_path / "weights"), *arguments]) == 1
    assert message in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "to").exists()


def test_a_folder_without_corrections_is_refused_before_anything_is_recorded(tmp_path: Path):
    base = debug()
    config = dataclasses.replace(
        base, data=dataclasses.replace(base.data, folder=tmp_path / "data", dagger=(tmp_path / "none",))
    )
    with pytest.raises(FileNotFoundError, match="holds no data set of a task that takes part"):
        record_missing(config, Console(quiet=True))
    assert not (tmp_path / "data").exists()
