"""Retrieval and zero-shot classification, against cases counted by hand."""

import numpy as np
import pytest

from generalist.eval.held_out.retrieval import class_embeddings, retrieval, zero_shot


def test_right_ones_first_and_a_tie_is_no_success():
    texts = np.eye(6)
    images = texts.copy()
    images[0] = [0.5, 0.9, 0, 0, 0, 0]  # finds text 1 before its own
    images[1] = [0.7, 0.7, 0, 0, 0, 0]  # cannot tell the two
    found = retrieval(images, texts, list("abcdef"))
    np.testing.assert_allclose(found["image_to_text_r1"]["value"], 100 * 4 / 6)
    assert found["image_to_text_r5"]["value"] == 100
    assert found["image_to_text_r1"]["low"] < 100 * 4 / 6 < found["image_to_text_r1"]["high"]
    # Text 0 finds image 1 (0.7) before its own (0.5), text 1 finds image 0 (0.9) before its own (0.7).
    np.testing.assert_allclose(found["text_to_image_r1"]["value"], 100 * 4 / 6)
    np.testing.assert_allclose([found["chance_r1"], found["chance_r5"]], [100 / 6, 500 / 6])


def test_equal_texts_are_equally_right():
    texts = np.array([[1.0, 0], [1.0, 0], [0, 1.0]])
    found = retrieval(texts, texts, ["heart", "heart", "star"], at=(1,))
    assert found["image_to_text_r1"]["value"] == found["text_to_image_r1"]["value"] == 100
    np.testing.assert_allclose(found["chance_r1"], 100 * (2 / 3 + 2 / 3 + 1 / 3) / 3)


def test_random_embeddings_are_at_chance():
    rng = np.random.default_rng(0)
    found = retrieval(rng.normal(size=(800, 16)), rng.normal(size=(800, 16)), [str(i) for i in range(800)])
    for direction in ("image_to_text", "text_to_image"):
        assert found[f"{direction}_r5"]["low"] <= found["chance_r5"] <= found[f"{direction}_r5"]["high"]


def test_classes_are_means_of_their_templates():
    said = {"a cat": [1.0, 0.0], "cat!": [0.0, 1.0], "a dog": [-1.0, 0.0], "dog!": [-1.0, 0.0]}
    classes = class_embeddings(lambda texts: np.array([said[text] for text in texts]), ["cat", "dog"], ["a {}", "{}!"])
    np.testing.assert_allclose(classes, [[0.5**0.5, 0.5**0.5], [-1, 0]])
    found = zero_shot(np.array([[0.6, 0.8], [-1.0, 0.1], [-0.9, 0.0]]), classes, [0, 1, 0])
    np.testing.assert_allclose(found["accuracy"]["value"], 200 / 3)
    assert (found["chance"], found["classes"], found["items"]) == (50, 2, 3)
    with pytest.raises(ValueError, match="every template needs"):
        class_embeddings(lambda texts: np.zeros((1, 2)), ["cat"], ["a cat"])


def test_no_pairs():
    with pytest.raises(ValueError, match="retrieval needs pairs"):
        retrieval(np.zeros((0, 2)), np.zeros((0, 2)), [])
    with pytest.raises(ValueError, match="needs images, a label for each, and classes, got 0, 0 and 1"):
        zero_shot(np.zeros((0, 2)), np.ones((1, 2)), [])


def test_embeddings_that_are_no_numbers_are_no_success():
    good, bad = np.eye(2), np.array([[np.nan, np.nan], [0, 1]])
    for images, texts in ((bad, good), (good, bad)):
        with pytest.raises(ValueError, match="not finite"):
            retrieval(images, texts, ["a", "b"])
        with pytest.raises(ValueError, match="not finite"):
            zero_shot(images, texts, [0, 1])
