"""Arrays read part by part are the parts of the arrays read whole, for every kind of recipe and of folder."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from generalist.model.params import flat, layers_apart
from generalist.weights.language import LanguageModel
from generalist.weights.recipe import joined, mapped, stacked, tensor, transposed, whole, zeros
from generalist.weights.stored import Stored

FIXTURES = Path(__file__).parent.parent / "fixtures" / "language"
TENSORS = {name: np.arange(12).reshape(4, 3) + 100 * number for number, name in enumerate("abcd")}


def halves(size: int) -> list[slice]:
    return [slice(0, size // 2), slice(size // 2, size), slice(0, size)]


@pytest.mark.parametrize(
    "recipe",
    [
        tensor("a", 4, 3),
        transposed("a", 4, 3),
        zeros(4, 3),
        joined([transposed(name, 4, 3) for name in "abc"]),
        joined([tensor("a", 4, 3), tensor("b", 4, 3)], axis=0),
        mapped(tensor("a", 4, 3), lambda array: array[::-1], lambda array: array[::-1]),
        stacked(
            [joined([transposed("a", 4, 3), transposed("b", 4, 3)]), joined([tensor("c", 3, 4), tensor("d", 3, 4)])]
        ),
    ],
)
def test_a_part_of_a_recipe_is_the_part_of_its_array(recipe):
    given = {name: TENSORS[name].reshape(shape) for name, shape in recipe.sources}
    built = recipe.build([given[name] for name, _ in recipe.sources])
    assert recipe.shape == built.shape
    for index in itertools.product(*map(halves, recipe.shape)):
        np.testing.assert_array_equal(recipe.read(lambda name, part: given[name][part], index), built[index])


def test_only_what_a_part_needs_is_read():
    read = []

    def recorded(name, index):
        read.append((name, index))
        return TENSORS[name][index]

    joined([transposed(name, 4, 3) for name in "abc"]).read(recorded, (slice(0, 3), slice(4, 6)))
    assert read == [("b", (slice(0, 2), slice(0, 3)))]


def test_layers_of_a_stack_are_read_apart():
    stack = Stored.of(np.arange(24).reshape(2, 3, 4))
    second = layers_apart("blocks/out/kernel", stack)["blocks/1/out/kernel"]
    np.testing.assert_array_equal(second.read((slice(1, 3), slice(0, 2))), [[16, 17], [20, 21]])
    assert [one.all().shape for one in Stored.of(np.arange(2.0))] == [(), ()]


@pytest.mark.parametrize("name", ["gpt_neox", "llama", "mistral", "phi3"])
def test_every_half_of_a_published_model(name: str):
    model = LanguageModel(FIXTURES / name)
    arrays, places = model.folder.read(*model.recipes), dict(model.folder.stored(*model.recipes))
    assert flat(arrays).keys() == places.keys()
    for path, array in arrays.items():
        assert places[path].shape == array.shape
        index = tuple(halves(size)[1] for size in array.shape)
        np.testing.assert_array_equal(places[path].read(index), array[index])
        np.testing.assert_array_equal(places[path].read(whole(array.shape)), array)
