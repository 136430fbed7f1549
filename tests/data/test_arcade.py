"""Screens of Atari games: questions are true of them, answers are balanced, and an evaluation sees other episodes."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from generalist.config.data import DataConfig
from generalist.data import arcade
from generalist.data.arcade import ASKED, draw_screen, screen_of, training_texts
from generalist.data.episodes import EpisodeCache
from generalist.data.source import KINDS, Reading, Stored
from generalist.data.sources.arcade import Arcade
from generalist.envs.suites.atari_objects import GAMES
from generalist.eval.held_out.arcade import evaluate_arcade, questions
from generalist.eval.parts.arcade import ArcadeScreens
from generalist.eval.parts.part import Beside
from generalist.tokenizers.locations import Box
from generalist.tokenizers.sequence import Assembler, Modality
from generalist.tokenizers.text import TextTokenizer
from generalist.tokenizers.vocabulary import Vocabulary

pytest.importorskip("ale_py")


STORED = Stored(folder=Path("data"), corrections=(), cache=EpisodeCache(1))


def opened(source: Arcade) -> arcade.ScreenExamples:
    """Its training examples, with images as patches."""
    text = TextTokenizer.train(source.texts(STORED), 300)
    assembler = Assembler(vocabulary=Vocabulary(text=300, locations=1024), text_tokenizer=text, images="patches")
    (examples,) = source.open(STORED, Reading(assembler=assembler, layouts={}, length=256))
    assert isinstance(examples, arcade.ScreenExamples)
    return examples


@pytest.fixture(scope="module", autouse=True)
def few_episodes() -> Any:
    """Short episodes, so that the games are opened in a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arcade, "EPISODES", 2)
        patch.setattr(arcade, "STARTS", 8)
        arcade._opened.cache_clear()
        yield
    arcade._opened.cache_clear()


def test_a_screen_is_determined_by_its_generator_and_shows_what_it_lists():
    one, again, other = (draw_screen("train", 0, np.random.default_rng(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.image, again.image)
    assert one.placed == again.placed and one.image.shape == (160, 160, 3)
    assert not np.array_equal(one.image, other.image)
    held_out = draw_screen("held out", 0, np.random.default_rng(3))
    assert held_out.game == one.game and not np.array_equal(one.image, held_out.image)
    # The ball of Pong is the only white thing within the field.
    screen = screen_of("pong", "train", np.random.default_rng(0), has_ball=True)
    (box,) = (placed.box for placed in screen.placed if placed.name == "white ball")
    rows, columns = np.nonzero(screen.image[27:147, 20:140].min(axis=-1) > 90)
    found = Box.of_pixels(
        rows.min() + 27, columns.min() + 20, rows.max() + 28, columns.max() + 21, height=160, width=160
    )
    assert box.iou(found) > 0.5


def test_whether_there_is_a_ball_is_asked_as_often_with_it_as_without():
    examples = opened(Arcade(weight=1.0))
    for has_ball in (True, False):
        screen, rng = screen_of("pong", "train", np.random.default_rng(1), has_ball=has_ball), np.random.default_rng(0)
        asked = [one.kind for _ in range(1500) for one in examples.questions_about(screen, rng)]
        assert abs(asked.count("exists") / 1500 - arcade.EXISTS) < 0.045


def test_questions_are_true_and_their_answers_balanced():
    rng, answers, asked_of = np.random.default_rng(0), {kind: Counter[str]() for kind in ASKED}, Counter[str]()
    for _ in range(150):
        screen = draw_screen("train", 0, rng)
        for kind, ask in ASKED.items():
            if (asked := ask(screen, rng)) is None:
                continue
            asked_of[f"{kind} {screen.game}"] += 1
            answers[kind][asked.answer] += 1
            if kind == "relation":
                one, other = asked.about
                row, column = np.subtract(one.centre, other.centre)
                sides = {"left of": column < 0, "right of": column > 0, "above": row < 0, "below": row > 0}
                (side,) = (side for side in sides if side in asked.text)
                assert (asked.answer == " yes") == sides[side]
            elif kind == "alone":
                assert asked.target is not None
                assert sum(placed.thing == asked.target.thing for placed in screen.placed) == 1
    assert {f"exists {game}" in asked_of for game in ("freeway", "tennis")} == {False}
    for kind in ("exists", "relation"):
        assert 0.35 < answers[kind][" yes"] / answers[kind].total() < 0.65


def test_the_source_is_listed_and_its_examples_fit(monkeypatch: pytest.MonkeyPatch):
    source = Arcade(weight=1.0)
    source.check("arcade", STORED, False, lambda line: None)
    assert KINDS["arcade"] is Arcade and source.evaluation_parts == ("arcade",)
    examples = opened(source)
    for number in range(12):
        sequence = examples.example(number, np.random.default_rng(number))
        assert len(sequence) <= 256 and (sequence.modality == Modality.PATCH).sum() == 100
        assert sequence.loss_weight.sum() > 0
    for changed, message in (
        ({"questions": 0}, "data.arcade.questions must be at least 1"),
        ({"detections": 2.0}, "0 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Arcade(**changed)
    monkeypatch.setattr(arcade, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'generalist\[envs\]'"):
        source.check("arcade", STORED, False, lambda line: None)
    assert all(name.split()[0] in " ".join(training_texts()) for name in ("left chicken", "navy car"))


def test_every_source_has_its_jobs():
    sources = {"arcade": Arcade(weight=1.0), "other": Arcade(weight=1.0, asked_first=1.0), "unused": Arcade()}
    generalist = SimpleNamespace(config=SimpleNamespace(data=DataConfig(sources=sources)))
    jobs = ArcadeScreens().jobs(cast(Any, generalist))
    assert [job.key for job in jobs] == [*GAMES, *(f"other {game}" for game in GAMES)]
    assert [job.settings["asked_first"] for job in jobs] == [False] * len(GAMES) + [True] * len(GAMES)


def test_the_evaluation_scores_a_model_that_sees_and_one_that_does_not():
    known = {kind: questions(kind, "pong", 12) for kind in ASKED}
    answers = {(pair.image.tobytes(), pair.asked.text): pair.asked.answer for pairs in known.values() for pair in pairs}

    def generate(documents: list[list[Any]]) -> list[str]:
        return [answers.get((image.tobytes(), text), "") for image, text in documents]

    def log_likelihood(sequences: list[Any]) -> np.ndarray:
        return np.array([float(answers.get((one[0].tobytes(), one[1])) == one[2].text) for one in sequences])

    found = {"pong": evaluate_arcade(list, log_likelihood, generate, "pong", items=12)}
    assert found["pong"]["point"]["point"]["accuracy_0.8"]["value"] == 100
    assert found["pong"]["point"]["point"]["wrong_0.5"]["value"] == 0
    assert found["pong"]["questions"]["exists"]["accuracy"]["value"] == 100
    assert 20 < found["pong"]["questions"]["exists"]["blind"]["value"] < 80
    part, results = ArcadeScreens(), {"arcade": found}
    part.check(results)
    assert len(part.rows(results)) == len(part.numbers(results)) == 6
    assert len(part.page(results, Beside())[1].findall(".//tr")) == 7
    found["pong"]["point"]["point"]["accuracy_0.5"]["value"] = 12.0
    with pytest.raises(ValueError, match="arcade pong point at 0.5"):
        part.check(results)
    assert questions("exists", "freeway", 5) == [] and set(GAMES) == {"pong", "breakout", "freeway", "tennis"}
