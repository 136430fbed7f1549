"""Naming, with models whose accuracy is known."""

from typing import Any

import numpy as np
import pytest

from generalist.data.emoji import drawings
from generalist.eval.held_out.naming import evaluate_naming, questions


def keep(parts: list[Any]) -> Any:
    """A document as it is: these models read parts, not tokens."""
    return parts


@pytest.mark.parametrize("split", ["drawings", "names"])
def test_questions(split: Any) -> None:
    asked = questions(split, items=50, choices=10)
    assert asked == questions(split, items=50, choices=10), "the same on every machine and in every run"
    assert len({question.drawing.thing for question in asked}) == 50, "things take turns"
    for question in asked:
        assert len(set(question.candidates)) == 10
        assert question.candidates[question.right] == question.drawing.thing
        assert question.blind.thing not in question.candidates
    assert {question.right for question in asked} == set(range(10)), "the right one stands anywhere"


def test_more_items_than_drawings_gives_all_of_them() -> None:
    assert len(questions("drawings", items=10_000, choices=10)) == len(drawings("drawings"))


@pytest.mark.parametrize("choices", [1, 10_000])
def test_wrong_number_of_choices(choices: int) -> None:
    with pytest.raises(ValueError, match=r"naming_choices must be from 2 to \d+, got"):
        questions("names", items=5, choices=choices)


def test_a_model_that_knows_every_image_is_always_right_and_blind_only_by_chance() -> None:
    known = {drawing.image().tobytes(): drawing.thing for drawing in drawings("drawings")}

    def log_likelihood(documents: list[Any]) -> np.ndarray:
        """Of documents that may have no image, and may be captions."""
        things = [known[parts[0].tobytes()] if len(parts) == 3 else None for parts in documents]
        return np.array([float(parts[-1].text == f" {thing}") for parts, thing in zip(documents, things, strict=True)])

    result = evaluate_naming(keep, log_likelihood, "drawings", items=200, choices=10)
    assert result["accuracy"]["value"] == 100.0
    assert result["chance"] == 10.0 and result["items"] == 200
    # Blind it finds none of the names in the image, and takes the first candidate.
    assert 3.0 < result["blind_accuracy"]["value"] < 20.0
    assert 3.0 < result["imageless_accuracy"]["value"] < 20.0
    # It knows captions where the full name is the thing's: by chance with a wrong image, never without one.
    same = np.mean([question.drawing.name == question.drawing.thing for question in questions("drawings", 200, 10)])
    assert result["caption_gain_over_none"]["value"] == pytest.approx(same)


def test_a_model_that_looks_at_names_alone_gains_nothing_by_the_image() -> None:
    def log_likelihood(documents: list[Any]) -> np.ndarray:
        return np.array([-float(len(answer.text)) for *_, answer in documents])

    result = evaluate_naming(keep, log_likelihood, "names", items=60, choices=4)
    assert result["accuracy"] == result["blind_accuracy"] == result["imageless_accuracy"]
    assert result["caption_gain_over_wrong"] == result["caption_gain_over_none"] == {"value": 0, "low": 0, "high": 0}
    assert [row["answer"] for row in result["answers"]] == [
        min(question.candidates, key=len) for question in questions("names", items=60, choices=4)
    ]


def test_written_answers_count_where_they_are_exact() -> None:
    def generate(documents: list[list[Any]]) -> list[str]:
        return [f" {question.drawing.thing}" for question in questions("drawings", 10, 4)][:5] + ["something"] * 5

    result = evaluate_naming(
        keep, lambda documents: np.zeros(len(documents)), "drawings", items=10, choices=4, generate=generate
    )
    assert result["written_exactly"]["value"] == 50.0
