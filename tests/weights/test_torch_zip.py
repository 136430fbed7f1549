"""Checkpoints of PyTorch's zip format: tensors as they are, and nothing else of what a pickle or an archive can ask for."""

import io
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from generalist.weights.folder import WeightsError
from generalist.weights.language import LanguageModel
from generalist.weights.torch_zip import Stored, TorchFile, type_of

FIXTURES = Path(__file__).parent.parent / "fixtures" / "gated"
ONE = np.arange(6, dtype="<f4")


class _Storage:
    """Pickled as PyTorch pickles a storage."""

    def __init__(self, key: str = "0", count: int = 6, kind: str = "FloatStorage"):
        self.key, self.count, self.kind = key, count, kind


class _Global:
    """A name that a pickle refers to, without such a thing being there."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name


class _Call:
    """Pickled as a call."""

    def __init__(self, function: _Global, *arguments: Any):
        self.function, self.arguments = function, arguments


class _Pickler(pickle._Pickler):  # the one in Python, whose steps can be replaced
    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, _Storage):
            return "storage", _Global("torch", obj.kind), obj.key, "cpu", obj.count
        return None

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, _Global):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, _Call):
            self.save(obj.function)
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
        else:
            super().save(obj, save_persistent_id)


REBUILD = _Global("torch._utils", "_rebuild_tensor_v2")


def tensor(storage: Any = None, offset: Any = 0, shape: Any = (2, 3), strides: Any = (3, 1)) -> _Call:
    ordered = _Call(_Global("collections", "OrderedDict"))
    return _Call(REBUILD, storage or _Storage(), offset, shape, strides, False, ordered)


def pickled(content: Any) -> bytes:
    file = io.BytesIO()
    _Pickler(file, protocol=2).dump(content)
    return file.getvalue()


def archive(path: Path, content: Any = None, files: dict[str, bytes] | None = None, **given: Any) -> Path:
    """Writes a checkpoint."""
    content = {"one": tensor()} if content is None else content
    own = {
        "archive/data.pkl": content if isinstance(content, bytes) else pickled(content),
        "archive/data/0": ONE.tobytes(),
    }
    with zipfile.ZipFile(path, "w", **given) as file:
        for name, data in (own | (files or {})).items():
            file.writestr(name, data)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.pt"


def test_tensors_are_laid_out_by_their_strides(path: Path):
    content = {
        "rows": tensor(),
        "turned": tensor(shape=(3, 2), strides=(1, 3)),
        "later": tensor(offset=2, shape=(2,), strides=(2,)),
        "number": tensor(offset=5, shape=(), strides=()),
        "none": tensor(shape=(0, 4), strides=(4, 1)),
        "parameter": _Call(_Global("torch._utils", "_rebuild_parameter"), tensor(), True, {}),
        "epoch": 3,
        "names": ["a", ("b", None, True, 1.5, 2**40)],
    }
    opened = TorchFile(archive(path, content))
    found = {name: opened.tensor(one) for name, one in opened.content.items() if isinstance(one, Stored)}
    rows = ONE.reshape(2, 3)
    expected = {
        "rows": rows,
        "turned": rows.T,
        "later": [2, 4],
        "number": 5,
        "none": np.zeros((0, 4)),
        "parameter": rows,
    }
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], one) for name, one in expected.items())
    assert opened.content["epoch"] == 3 and opened.content["names"] == ["a", ("b", None, True, 1.5, 2**40)]


@pytest.mark.parametrize(
    ("name", "type_", "dtype"), [("flamingo_mpt", "F32", "float32"), ("flamingo_llama", "BF16", "bfloat16")]
)
def test_files_of_pytorch_s_own(name: str, type_: str, dtype: str):
    opened = TorchFile(FIXTURES / name / "checkpoint.pt")
    one = opened.content["perceiver.latents"]
    assert type_of(one) == type_ and opened.tensor(one).dtype == dtype and one.shape == (64, 16)


def code(*steps: bytes) -> bytes:
    return pickle.PROTO + b"\x02" + b"".join(steps) + pickle.STOP


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ({"one": _Call(_Global("os", "system"), "touch x")}, "asks for os.system"),
        ({"one": _Call(_Global("builtins", "eval"), "1")}, "asks for builtins.eval"),
        ({"one": _Call(_Global("collections", "OrderedDict"), [["a", 1]])}, "asks for collections.OrderedDict"),
        ({"one": _Call(_Global("torch._utils", "_rebuild_tensor_v3"))}, "asks for torch._utils._rebuild_tensor_v3"),
        (
            {"one": _Call(_Global("torch._utils", "_rebuild_parameter"), "x", True, {})},
            "asks for torch._utils._rebuild_par",
        ),
        ({"one": tensor(_Storage(kind="QInt8Storage"))}, "a 'storage' of an unknown type"),
        ({"one": tensor(_Storage(key="../x"))}, "a 'storage' of an unknown type"),
        ({"one": tensor(storage="0")}, "a tensor without a storage"),
        ({"one": tensor(shape=(2, -3))}, "are no sizes"),
        ({"one": tensor(strides=(True, 1))}, "are no sizes"),
        ({"one": tensor(offset=2**50)}, "are no sizes"),
        ({"one": tensor(shape=(2,))}, "other strides than axes"),
        (code(b"cos\nsystem\n", b"i"), "damaged"),
        (code(b"(ios\nsystem\n"), "the instruction INST"),
        (code(b"(cos\nsystem\no"), "the instruction OBJ"),
        (code(b"cos\nsystem\n)\x81"), "the instruction NEWOBJ"),
        (code(b"\x82\x01"), "the instruction EXT1"),
        (code(b"\x95" + struct.pack("<Q", 4), b"\x8a\x01\x05"), None),
        (code(b"P0\n"), "the instruction PERSID"),
        (code(b"h\x05"), "damaged"),
        (code(b"N", b"b"), "damaged"),
        (code(b"t"), "damaged"),
        (code(b"(N", b"\x85"), None),
        (code(b"((", b"\x85"), "damaged"),
        (b"\x80\x02N", "damaged"),
        (b"\x80\x02\xfe.", "damaged"),
        (b"", "damaged"),
    ],
)
def test_what_tensors_do_not_need_is_refused(path: Path, content: Any, fault: str | None, tmp_path: Path):
    archive(path, content)
    if fault is None:
        assert TorchFile(path).content in (5, (None,))
        return
    with pytest.raises(WeightsError, match=fault):
        TorchFile(path)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("one", "fault"),
    [
        (tensor(_Storage(count=7)), "is missing or has another size"),
        (tensor(_Storage(key="1")), "is missing or has another size"),
        (tensor(_Storage(kind="HalfStorage")), "is missing or has another size"),
        (tensor(offset=1), "lies outside its storage"),
        (tensor(strides=(4, 1)), "lies outside its storage"),
        (tensor(shape=(10**9, 6), strides=(0, 1)), "is larger than its storage"),
    ],
)
def test_tensors_outside_their_storage_are_refused(path: Path, one: _Call, fault: str):
    opened = TorchFile(archive(path, {"one": one}))
    with pytest.raises(WeightsError, match=fault):
        opened.tensor(opened.content["one"])


@pytest.mark.parametrize(
    ("files", "given", "fault"),
    [
        ({"other/data.pkl": b"N."}, {}, "one data.pkl in one folder"),
        ({"elsewhere": b""}, {}, "'elsewhere' outside its folder"),
        ({"archive/../x": b""}, {}, "outside its folder"),
        ({"archive/byteorder": b"big"}, {}, "not little-endian"),
        ({}, {"compression": zipfile.ZIP_DEFLATED}, "compressed or encrypted"),
    ],
)
def test_archives_that_pytorch_does_not_write_are_refused(
    path: Path, files: dict[str, bytes], given: dict[str, Any], fault: str
):
    with pytest.raises(WeightsError, match=fault):
        TorchFile(archive(path, files=files, **given))


def test_damaged_archives_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = archive(path).read_bytes()
    for data in (b"", b"PK", whole[:-30], b"\x80\x02}q\x00."):
        path.write_bytes(data)
        with pytest.raises(WeightsError, match="is truncated or not a file of PyTorch"):
            TorchFile(path)
    # A number that was changed is noticed by its checksum.
    at = whole.index(ONE.tobytes())
    path.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
    opened = TorchFile(path)
    with pytest.raises(WeightsError, match="truncated or damaged"):
        opened.tensor(opened.content["one"])
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as file:
        file.writestr("archive/data/0", ONE.tobytes())
    with pytest.raises(WeightsError, match="no name twice"):
        TorchFile(path)
    monkeypatch.setattr("generalist.weights.torch_zip.LARGEST_PICKLE", 8)
    with pytest.raises(WeightsError, match=r"data.pkl has more than 8 bytes"):
        TorchFile(archive(path))


@pytest.fixture
def flamingo(tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], Any]], Path]:
    """A copy of a fixture with other tensors in its checkpoint."""
    folder = Path(shutil.copytree(FIXTURES / "flamingo_mpt", tmp_path / "flamingo"))

    def changed(change: Callable[[dict[str, Any]], Any]) -> Path:
        opened = TorchFile(folder / "checkpoint.pt")
        arrays = {name: opened.tensor(one) for name, one in opened.content.items()}
        arrays = change(arrays) or arrays
        files = {f"archive/data/{number}": one.tobytes() for number, one in enumerate(arrays.values())}
        content = {
            name: tensor(
                _Storage(str(number), one.size),
                0,
                one.shape,
                tuple(stride // 4 for stride in np.zeros(one.shape, "f4").strides),
            )
            for number, (name, one) in enumerate(arrays.items())
        }
        archive(folder / "checkpoint.pt", content, files)
        return folder

    return changed


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda found: found.update(extra=ONE) or found, "unknown tensors: extra"),
        (
            lambda found: {k: v for k, v in found.items() if k != "perceiver.norm.bias"},
            "missing tensors: perceiver.norm.bias",
        ),
        (lambda found: found | {"perceiver.norm.bias": ONE}, r"perceiver.norm.bias is \(6,\) instead of \(16,\)"),
        (
            lambda found: {k: v for k, v in found.items() if "blocks.3" not in k},
            r"gated layers before the blocks \[1\] of 4",
        ),
        (
            lambda found: {k: v for k, v in found.items() if "gated" not in k},
            r"gated layers before the blocks \[\] of 4",
        ),
        (lambda found: {k: v for k, v in found.items() if "latents" not in k}, "has no matrix perceiver.latents"),
        (lambda found: {"a": ONE}, "gated layers before the blocks"),
        (
            lambda found: {"a": ONE} | {k: v * np.float32("nan") if "latents" in k else v for k, v in found.items()},
            "unknown",
        ),
    ],
)
def test_checkpoints_that_are_no_openflamingo_are_refused(
    flamingo: Callable[..., Path], change: Callable[[dict[str, Any]], Any], fault: str
):
    with pytest.raises(WeightsError, match=fault):
        LanguageModel(flamingo(change), images=True).check()


def test_a_checkpoint_that_is_a_list_is_named(flamingo: Callable[..., Path]):
    folder = flamingo(lambda found: found)
    with zipfile.ZipFile(folder / "checkpoint.pt", "w") as archive:
        archive.writestr("archive/data.pkl", code(pickle.EMPTY_LIST))
    with pytest.raises(WeightsError, match=r"checkpoint\.pt holds a list instead of tensors by their names"):
        LanguageModel(folder, images=True)


def test_two_names_of_one_tensor_must_agree(flamingo: Callable[..., Path]):
    name = "lang_encoder.transformer.blocks.1.gated_cross_attn_layer.ff_gate"

    def twice(found: dict[str, Any]) -> dict[str, Any]:
        return found | {"lang_encoder.gated_cross_attn_layers.1.ff_gate": found[name] + 1}

    with pytest.raises(WeightsError, match="twice, with different numbers"):
        LanguageModel(flamingo(twice), images=True)
    parallel = LanguageModel(
        flamingo(lambda found: {f"module.{one}": array for one, array in found.items() if "layers.1.ff_" not in one}),
        images=True,
    )
    parallel.check()
