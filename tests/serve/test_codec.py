"""The robot's messages: what is written is read again, and what is damaged is refused before it costs anything."""

import contextlib
import math
import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generalist.client.codec import CodecError, from_json, pack, to_json, unpack

MESSAGE = {
    "image": np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
    "state": np.linspace(-1, 1, 5, dtype=np.float32),
    "flags": np.array([True, False]),
    "scalar": np.float32(0.5),
    "prompt": "go to the red ball",
    "list": [1, 2.5, None, {"deep": [True]}],
}


@pytest.mark.parametrize(("write", "read"), [(pack, unpack), (to_json, from_json)], ids=["msgpack", "json"])
def test_what_is_written_is_read_again(write: Any, read: Any) -> None:
    found = read(write(MESSAGE))
    for name, value in MESSAGE.items():
        if isinstance(value, np.ndarray | np.generic):
            assert found[name].dtype == value.dtype and np.array_equal(found[name], value)
        else:
            assert found[name] == value


def array(**changed: Any) -> dict[bytes, Any]:
    fields = {"__ndarray__": True, "data": b"\0" * 8, "dtype": "<f4", "shape": [2]}
    return {name.encode(): value for name, value in (fields | changed).items()}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xc1",
        b"\x93\x01",
        b"\x91" * 5000,
        b"\xdd\xff\xff\xff\xff",
        b"\xc7\x04\x01abcd",
        *(
            msgpack.packb(array(**changed))
            for changed in (
                {"dtype": "O"},
                {"dtype": "|O"},
                {"dtype": "V8"},
                {"dtype": "<c8"},
                {"dtype": "f4,f4"},
                {"dtype": "|S8"},
                {"dtype": ["f4"]},
                {"dtype": "<f9"},
                {"shape": [3]},
                {"shape": [-1, -2]},
                {"shape": [2**62, 4]},
                {"shape": [1] * 40},
                {"shape": "2"},
                {"shape": [2.0]},
                {"data": "text"},
                {"data": None},
            )
        ),
        msgpack.packb({b"__npgeneric__": True, b"data": [1], b"dtype": "<f4"}),
        msgpack.packb({b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}),
        msgpack.packb({1: 2}),
    ],
)
def test_damaged_messages_are_refused(content: bytes) -> None:
    with pytest.raises(CodecError):
        unpack(content)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[" * 100_000,
        "[[]" + ",[]" * 100_000 + "]",
        '{"a": NaN}',
        "1" * 5000,
        '{"__ndarray__": true, "data": "%", "dtype": "<f4", "shape": [1]}',
        '{"__ndarray__": true, "data": 3, "dtype": "<f4", "shape": [1]}',
        "[" * 20 + "]" * 20,
    ],
)
def test_damaged_json_is_refused(content: str) -> None:
    with pytest.raises(CodecError):
        from_json(content)


def test_small_messages_do_not_become_large() -> None:
    many = b"\xdd\x00\x0f\x42\x40" + b"\x90" * 1_000_000  # a million empty lists
    nested = b"\x9f" + (b"\xdc\xff\xff" + b"\x90" * 65_535) * 15
    tracemalloc.start()
    for content in (many, nested):
        with pytest.raises(CodecError):
            unpack(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    with contextlib.suppress(CodecError):
        unpack(content)


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=9), st.lists, max_leaves=9)
)
def test_plain_values_survive(value: Any) -> None:
    assert unpack(pack(value)) == value and from_json(to_json(value)) == value


def test_json_has_no_infinities() -> None:
    with pytest.raises(ValueError, match="JSON"):
        to_json({"a": math.inf})
