"""Arrays read part by part are the parts of the arrays read whole, for every kind of recipe and of folder."""

import itertools
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from generalist.model.params import flat, layers_apart
from generalist.weights import folder
from generalist.weights.folder import WeightsError, WeightsFolder
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


def test_a_large_tensor_is_read_by_a_few_rows_and_taken_by_the_processor_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    table = np.arange(700, dtype=np.float32).reshape(100, 7)
    save_file({"table": table, "row": table[0], "number": np.array(3.0, np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    opened, really = [], folder.safe_open
    monkeypatch.setattr(folder, "PIECE", 40 * 7)  # bytes: ten rows
    monkeypatch.setattr(folder, "safe_open", lambda *one, **named: opened.append(one) or really(*one, **named))
    stored = WeightsFolder(tmp_path)
    opened.clear()
    for index in ((slice(0, 100), slice(0, 7)), (slice(13, 58), slice(2, 5)), (slice(99, 100), slice(0, 7))):
        np.testing.assert_array_equal(stored.part("table", index), table[index])
    assert len(opened) == 1 + 10 + 1 + 2 + 1  # the type, and the rows; the last part is small
    np.testing.assert_array_equal(stored.tensor("row"), table[0])
    assert stored.tensor("number") == 3.0
    held = stored.tensor("table")
    assert jax.device_put(held).unsafe_buffer_pointer() == held.ctypes.data
    table[57, 3] = np.nan
    save_file({"table": table}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="non-finite numbers in table"):
        WeightsFolder(tmp_path).tensor("table")
