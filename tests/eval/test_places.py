"""Going to places: the place is that of what the mission names, and whoever goes there succeeds."""

import dataclasses
import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from rich.console import Console

from generalist.config.data import DataConfig
from generalist.data.episodes import EpisodeCache
from generalist.data.source import Reading, Stored, Ways
from generalist.data.sources.control import BabyAI
from generalist.envs.recording import record
from generalist.envs.registry import get, tasks
from generalist.envs.task import EVALUATION_SEED, Task
from generalist.eval.control.lanes import Begun, Episode, evaluate_control
from generalist.eval.parts.part import Beside
from generalist.eval.parts.places import GoToPlaces, successes, together
from generalist.tokenizers.locations import read_objects
from generalist.tokenizers.sequence import Assembler
from generalist.tokenizers.spaces import SpaceTokenizer, TaskLayout
from generalist.tokenizers.text import TextTokenizer
from generalist.tokenizers.vocabulary import Vocabulary

pytest.importorskip("minigrid")
# While it is imported, other threads cannot import anything relatively, such as that of the recording's progress.
pytest.importorskip("tensorflow_datasets")

ALONE = "babyai/GoToObjS6"  # one thing in a room
LEFT, RIGHT, FORWARD, SIDE = 0, 1, 2, 7


def _cell(instruction: str) -> tuple[int, int]:
    """Row and column of the window that an instruction names."""
    box = read_objects(instruction.removeprefix("go to"))[0].box
    return int(SIDE * (box.top + box.bottom) / 2), int(SIDE * (box.left + box.right) / 2)


class Walker:
    """Walks to the row and then to the column that it is told, and knows nothing else; stands still without a place."""

    def __init__(self, layouts: list[str]):
        self.plans: dict[int, list[int]] = {}

    def start(self, begun: Mapping[int, Begun]) -> None:
        for lane, one in begun.items():
            row, column = _cell(one.instruction) if "<loc" in one.instruction else (SIDE - 1, SIDE // 2)
            # The agent stands in the middle of the last row, and looks up.
            ahead, aside = SIDE - 1 - row, column - SIDE // 2
            self.plans[lane] = [FORWARD] * ahead + [RIGHT if aside > 0 else LEFT] * bool(aside) + [FORWARD] * abs(aside)

    def act(self, observations: list[Any]) -> list[Any]:
        # Turning around for ever does no harm.
        return [None if one is None else (self.plans[lane] or [LEFT]).pop(0) for lane, one in enumerate(observations)]

    def close(self) -> None:
        self.plans = {}


def test_whoever_goes_where_the_place_is_succeeds():
    task, told = get(ALONE), set()

    def by_place(begun: Begun, observation: Any) -> str:
        pointed = begun.task.pointed(begun.instruction, observation)
        if pointed is not None:
            told.add((begun.task.name, begun.seed))
        return pointed or begun.instruction

    placed = evaluate_control(Walker, [task], 12, workers=1, word=by_place)
    named = evaluate_control(Walker, [task], 12, workers=1)
    found = together(placed, named, told)
    assert 3 <= len(found) == len(told) < 12, "what is behind the agent has no place in its view"
    assert successes(found)["place"]["value"] == 100.0 and successes(found)["name"]["value"] < 50.0


def test_only_one_thing_in_view_has_a_place():
    task, window = get(ALONE), np.zeros((SIDE, SIDE, 3), np.uint8)
    window[2, 5] = (6, 2, 0)  # a blue ball
    window[3, 1] = (6, 0, 0)  # a red one

    def pointed(instruction: str) -> str | None:
        return task.pointed(instruction, np.append(window.reshape(-1), np.uint8(0)))

    assert pointed("go to the blue ball") == "go to <loc0292><loc0731><loc0438><loc0877>"
    assert _cell(pointed("go to the blue ball") or "") == (2, 5) and _cell(pointed("go to the red ball") or "") == (
        3,
        1,
    )
    several = "go to the ball"
    for instruction in (
        several,
        "go to a blue ball",
        "go to the green ball",
        "pick up the blue ball",
        "go to the blue key",
    ):
        assert pointed(instruction) is None, instruction
    window[3, 1] = 0
    assert _cell(pointed("go to the ball") or "") == (2, 5)
    assert not get("babyai/GoTo").can_be_pointed and get("babyai/GoTo").pointed("go to the ball", None) is None
    pointable = [one for one in tasks("babyai/*") if one.can_be_pointed]
    assert len(pointable) == 20 and not any(one.can_be_pointed for one in tasks("classic/*"))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    folder = tmp_path_factory.mktemp("data")
    task = get(ALONE)
    record([task], folder / "episodes", episodes={task.name: 8}, workers=1, console=Console(quiet=True))
    return Stored(folder=folder, corrections=(), cache=EpisodeCache(1))


def _reading(task: Task, *, locations: int = 1024) -> Reading:
    text = TextTokenizer.train(["go to the red ball", "go to the blue key"] * 9, 300)
    vocabulary = Vocabulary(text=300, discrete=32, locations=locations)
    environment = task.build()
    settings = {"vocabulary": vocabulary, "text": text}
    observation = SpaceTokenizer.from_space(environment.observation_space, tensors="projected", **settings)
    action = SpaceTokenizer.from_space(environment.action_space, **settings)
    assembler = Assembler(vocabulary=vocabulary, text_tokenizer=text, projection_width=49 * (11 + 6 + 3) + 4)
    return Reading(assembler=assembler, layouts={"babyai": TaskLayout("babyai", observation, action)}, length=256)


def test_windows_at_the_beginning_are_told_the_place(stored: Stored):
    source = BabyAI(tasks=ALONE.partition("/")[2], episodes=8, steps=4, places=1.0)
    reading = _reading(get(ALONE))
    (windows,) = source.open(stored, reading)
    places = reading.assembler.vocabulary.range("locations")
    told = [
        bool(np.isin(windows.example(index, np.random.default_rng(seed)).tokens, places).any())
        for index in range(len(windows))
        for seed in range(4)
    ]
    assert 0 < sum(told) < len(told), (
        "of some episodes the target is not in view, and later windows do not show the view"
    )
    (plain,) = dataclasses.replace(source, places=0.0).open(stored, reading)
    assert not any(
        np.isin(plain.example(index, np.random.default_rng(0)).tokens, places).any() for index in range(len(plain))
    )


def test_settings():
    with pytest.raises(ValueError, match="data.babyai.places must be a share from 0 to 1, got 2"):
        BabyAI(places=2.0)
    ways = Ways(images=("projected",), documents=(), row_images=0, features="computed", locations=1024)
    with pytest.raises(
        ValueError, match=r"data\.a\.places = 0\.5 has no effect, since data\.a\.tasks = Pickup\* .* GoTo\*"
    ):
        BabyAI(tasks="Pickup*", places=0.5).check_settings("a", ways)
    BabyAI(tasks="Pickup*").check_settings("a", ways)
    BabyAI(tasks="GoTo*", places=0.5).check_settings("a", ways)
    source = BabyAI(tasks=ALONE.partition("/")[2], episodes=8, places=0.5)
    assert source.evaluation_parts == ("control", "places") and BabyAI().evaluation_parts == ("control",)


def test_another_temperature_is_another_job():
    data = DataConfig(sources={"babyai": BabyAI(tasks=ALONE.partition("/")[2], places=0.5)})

    def settings(temperature: float) -> Mapping[str, Any]:
        layout = SimpleNamespace(acting=SimpleNamespace(temperature=temperature))
        generalist = SimpleNamespace(
            vocabulary=Vocabulary(text=300, locations=1024),
            config=SimpleNamespace(data=data),
            layouts={get(ALONE).layout: layout},
        )
        (job,) = GoToPlaces().jobs(cast(Any, generalist))
        return job.settings

    assert settings(0.0) == settings(0.0) != settings(0.5)


def test_the_part_is_checked_and_shown():
    part = GoToPlaces()
    episodes = [
        {"task": ALONE, "seed": EVALUATION_SEED + index, "place": float(index < 3), "name": float(index < 2)}
        for index in range(4)
    ]
    results = {"places": {"babyai": {"episodes": episodes, **successes(episodes)}}}
    part.check(results)
    (row,) = part.rows(results)
    assert row.label == "babyai, told by place, %" and re.match(r"75\.0 .*", row.value) and row.source == "4 episodes"
    assert [*part.numbers(results)] == ["babyai, told by place, %", "babyai, told by name, %"]
    assert len(part.page(results, Beside())[1].findall(".//tr")) == 2
    episodes[0]["place"] = 0.0
    with pytest.raises(ValueError, match="babyai told by place"):
        part.check(results)


def test_scores_of_both_wordings_are_put_together():
    def episode(seed: int, score: float) -> Episode:
        return Episode(task=ALONE, seed=seed, score=score, steps=3, cut_off=False)

    placed, named = [episode(1, 1.0), episode(2, 0.0)], [episode(1, 0.0), episode(2, 1.0)]
    assert together(placed, named, {(ALONE, 1)}) == [{"task": ALONE, "seed": 1, "place": 1.0, "name": 0.0}]
