"""Texts of models with windows, of which layers keep rings: those that whole caches give."""

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from generalist.inference import cached_rows, decode
from generalist.inference.generalist import Generalist
from generalist.inference.prompt import rank

FIXTURES = Path(__file__).parent.parent / "fixtures" / "language"
NAME = "gemma3"  # a window of 5 in six layers of seven: rings of 16 slots


def answers(model: Generalist) -> Iterator[Any]:
    """What is written and at last ranked after long texts, of different lengths, alone, after shared shots and by beams."""
    drawn = np.random.default_rng(0).integers(5, 290, (4, 700), np.int32)
    prompts = [[drawn[0]], [drawn[1, :30]], [drawn[2, :3]]]  # the first is read in parts, of more positions than slots
    shots = model.read([drawn[3, :90], " red\n"])
    beyond = [[drawn[2, :40]], [drawn[1, :7]]]
    yield model.prompt(prompts, tokens=24)
    yield model.prompt(beyond, after=shots, tokens=24)
    yield "".join(model.stream(beyond[0], after=shots, tokens=24))
    yield model.prompt(beyond, after=shots, tokens=6, beams=2)
    yield rank(model, beyond, [" a red dog", " cat"], shots)


@functools.cache
def of_whole_caches() -> list[Any]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (decode, cached_rows):
            patch.setattr(module, "cache_slots", lambda config, slots: [slots] * config.layers)
        return list(answers(Generalist.load(FIXTURES / NAME)))


@pytest.mark.parametrize(("places", "count"), [({}, 5), pytest.param({"mesh": "tensor=8"}, 2, marks=pytest.mark.slow)])
def test_rings_give_what_whole_caches_give(places: dict[str, str], count: int):
    """On a mesh what is written in batches, alone and after shots."""
    rings = list(itertools.islice(answers(Generalist.load(FIXTURES / NAME, **places)), count))
    whole = of_whole_caches()[:count]
    assert rings[:4] == whole[:4]
    np.testing.assert_allclose(rings[4:], whole[4:], atol=1e-4)
