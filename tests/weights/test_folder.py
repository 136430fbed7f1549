import json
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from generalist.weights.folder import INDEX, WHOLE, WeightsError, WeightsFolder, save_shards
from generalist.weights.recipe import joined, mapped, stacked, tensor, transposed, zeros

A = np.arange(6, dtype=np.float32).reshape(2, 3)
B = np.arange(6, 12, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Tiny"], "size": 3, "part": {"depth": 2}}))
    save_file({"a": A}, tmp_path / "model-1.safetensors")
    save_file({"b": B.astype(ml_dtypes.bfloat16)}, tmp_path / "model-2.safetensors")
    return tmp_path


def test_recipes(folder: Path):
    a, b = tensor("a", 2, 3), tensor("b", 2, 3)
    recipes = {
        "a": a,
        "flipped": transposed("a", 2, 3),
        "side": joined([transposed("a", 2, 3), transposed("b", 2, 3)]),
        "pile": stacked([joined([a, b], axis=0), joined([b, a], axis=0)]),
        "half": mapped(a, lambda x: x / 2, lambda x: x * 2),
    }
    read = WeightsFolder(folder).read(recipes)
    np.testing.assert_array_equal(read["a"], A)
    np.testing.assert_array_equal(read["flipped"], A.T)
    np.testing.assert_array_equal(read["side"].astype(np.float32), np.concatenate([A.T, B.T], axis=1))
    np.testing.assert_array_equal(read["pile"][1].astype(np.float32), np.concatenate([B, A]))
    np.testing.assert_array_equal(read["half"], A / 2)
    # The inverses give every tensor back, also where a recipe takes one twice.
    stored = {"a": A, "b": B.astype(ml_dtypes.bfloat16)}
    for path, recipe in recipes.items():
        for name, array in recipe.tensors(read[path]):
            np.testing.assert_array_equal(array, stored[name].astype(array.dtype))
            assert array.flags.c_contiguous


def test_what_files_have_no_place_for_is_refused():
    assert list(zeros(3).tensors(np.zeros(3, np.float32))) == []
    with pytest.raises(ValueError, match="training moved it away from zero"):
        list(zeros(3).tensors(A[0]))


@pytest.mark.parametrize(("limit", "files"), [(100, 1), (30, 2), (1, 3)])
def test_shards(tmp_path: Path, limit: int, files: int):
    tensors = {"a": A[0], "b": B[0], "c": A}  # 12, 12 and 24 bytes
    save_shards(tensors.items(), tmp_path, limit)
    (tmp_path / "config.json").write_text("{}")
    names = {path.name for path in tmp_path.glob("*.safetensors")}
    expected = {f"model-{one:05}-of-{files:05}.safetensors" for one in range(1, files + 1)}
    assert names == (expected if files > 1 else {WHOLE})
    assert (tmp_path / INDEX).exists() == (files > 1)
    for name, array in tensors.items():
        np.testing.assert_array_equal(WeightsFolder(tmp_path).tensor(name), array)


def test_types_are_kept(folder: Path):
    assert WeightsFolder(folder).read({"b": tensor("b", 2, 3)}, ["a"])["b"].dtype == ml_dtypes.bfloat16


def test_settings(folder: Path):
    opened = WeightsFolder(folder)
    assert opened.architecture == "Tiny"
    assert opened.setting("part.depth") == 2
    assert opened.setting("absent", default=7) == 7
    with pytest.raises(WeightsError, match="no 'part.width'"):
        opened.setting("part.width")
    with pytest.raises(WeightsError, match="not of the expected type"):
        opened.setting("size", str)


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), -0.5])
def test_sizes_are_above_zero(folder: Path, value: float):
    (folder / "config.json").write_text(json.dumps({"size": value}))
    with pytest.raises(WeightsError, match=r"config\.json has size = .*: it must be above 0"):
        WeightsFolder(folder).setting("size", int if isinstance(value, int) else (int, float))


@pytest.mark.parametrize(
    ("recipes", "ignored", "message"),
    [
        ({"a": tensor("a", 2, 3)}, [], "unknown tensors: b"),
        ({"a": tensor("a", 2, 3), "c": tensor("c", 1)}, ["b"], "missing tensors: c"),
        ({"a": tensor("a", 3, 2)}, ["b"], r"wrong shapes: a is \(2, 3\) instead of \(3, 2\)"),
        ({f"c{n}": tensor(f"c{n}", 1) for n in range(9)}, ["a", "b"], "c4 and 4 more"),
    ],
)
def test_what_does_not_fit_is_named(folder: Path, recipes, ignored, message):
    with pytest.raises(WeightsError, match=message):
        WeightsFolder(folder).read(recipes, ignored)


def test_a_truncated_shard(folder: Path):
    path = folder / "model-2.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(WeightsError, match=r"model-2\.safetensors is truncated"):
        WeightsFolder(folder)


def test_a_shard_the_index_names_is_missing(folder: Path):
    index = {"weight_map": {"a": "model-1.safetensors", "c": "model-3.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match="lacks shards that its index names: model-3"):
        WeightsFolder(folder)


def test_a_tensor_twice(folder: Path):
    save_file({"a": A}, folder / "model-3.safetensors")
    with pytest.raises(WeightsError, match="has a twice"):
        WeightsFolder(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (
            {"a": "../model-1.safetensors"},
            r"names '\.\./model-1\.safetensors', which is not a \*\.safetensors file of its own",
        ),
        ({"a": "/model-1.safetensors"}, "of its own folder"),
        ({"a": "pytorch_model.bin"}, "names 'pytorch_model.bin'"),
        ({"a": ["model-1.safetensors"]}, "of its own folder"),
        ({"a": "model-2.safetensors", "b": "model-2.safetensors"}, r"index says they are: a in model-2\.safetensors"),
        ({"a": "model-1.safetensors", "c": "model-1.safetensors"}, r"index says they are: c in model-1\.safetensors"),
        ([], "has no weight_map"),
    ],
)
def test_an_index_that_leads_elsewhere(folder: Path, index, message: str):
    (folder.parent / "model-1.safetensors").write_bytes((folder / "model-1.safetensors").read_bytes())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with pytest.raises(WeightsError, match=message):
        WeightsFolder(folder)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, ml_dtypes.float8_e4m3fn])
def test_quantised_weights_are_not_taken_for_numbers(folder: Path, kind):
    save_file({"a": np.ones((2, 3), kind)}, folder / "model-1.safetensors")
    with pytest.raises(WeightsError, match="types other than F64, F32, F16, BF16: a is [IUF]8"):
        WeightsFolder(folder).read({"a": tensor("a", 2, 3)}, ["b"])


@pytest.mark.parametrize("kind", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_numbers_that_are_not_finite(folder: Path, kind):
    save_file({"a": np.array([[1, 2, np.nan]], kind)}, folder / "model-1.safetensors")
    with pytest.raises(WeightsError, match=r"model-1\.safetensors has non-finite numbers in a"):
        WeightsFolder(folder).read({"a": tensor("a", 1, 3)}, ["b"])


def test_a_header_that_says_it_is_huge(folder: Path):
    path = folder / "model-1.safetensors"
    path.write_bytes((2**62).to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(WeightsError, match=r"model-1\.safetensors is truncated or not a safetensors file"):
        WeightsFolder(folder)


def test_links_as_in_a_download_cache_are_followed(folder: Path):
    real = (folder / "model-1.safetensors").rename(folder / "blob")
    (folder / "model-1.safetensors").symlink_to(real)
    np.testing.assert_array_equal(WeightsFolder(folder).read({"a": tensor("a", 2, 3)}, ["b"])["a"], A)


class Bomb:
    """Its pickle would write a file when loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_pickle_is_never_opened(tmp_path: Path):
    import pickle

    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin, which is refused because it could run code"):
        WeightsFolder(tmp_path)
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="not a safetensors file"):
        WeightsFolder(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("text", "message"), [("{", "not JSON"), ("[" * 100_000, "not JSON"), ("[]", "list instead of an object")]
)
def test_a_broken_config(tmp_path: Path, text: str, message: str):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=message):
        WeightsFolder(tmp_path)


def test_no_folder_or_nothing_in_it(tmp_path: Path):
    with pytest.raises(WeightsError, match="no folder"):
        WeightsFolder(tmp_path / "absent")
    with pytest.raises(WeightsError, match=r"no config\.json"):
        WeightsFolder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match="no \\*\\.safetensors"):
        WeightsFolder(tmp_path)


def test_weights_saved_anew_beside_an_older_index(folder: Path):
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    save_file({"a": 2 * A, "b": B}, folder / "model.safetensors")
    with pytest.raises(
        WeightsError, match=r"two sets of weights.*: delete model.safetensors, or the index with its shards"
    ):
        WeightsFolder(folder)
    index.unlink()
    for shard in folder.glob("model-*"):
        shard.unlink()
    np.testing.assert_array_equal(WeightsFolder(folder).read({"a": tensor("a", 2, 3)}, ["b"])["a"], 2 * A)
    index.write_text(json.dumps({"weight_map": dict.fromkeys("ab", "model.safetensors")}))
    assert WeightsFolder(folder).shapes == {"a": (2, 3), "b": (2, 3)}, "an index may name the whole"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_pipes_are_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(WeightsError, match=r"has no config\.json"):
        WeightsFolder(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text("{}")
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"no \*\.safetensors file"):
        WeightsFolder(tmp_path)


def test_settings_too_large_to_be_any(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("generalist.weights.folder.LARGEST_JSON", 10)
    with pytest.raises(WeightsError, match="more than 10 are not read"):
        WeightsFolder(folder)
