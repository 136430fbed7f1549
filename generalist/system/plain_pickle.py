"""Pickles of plain values, read without running them: lists, tuples, dictionaries, texts and numbers.

A pickle is a program. Here it is not given to Python's unpickler: `PlainPickle` knows those of its instructions that build plain
values, in all protocols, and refuses every other one. No name is looked up and nothing is called, and a declared size reserves no
memory: what is built is never larger than the file.
"""

import pickletools
import warnings
from collections.abc import Callable
from typing import Any

_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_GIVEN = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
)
"""Instructions whose argument is the value."""
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUT = ("PUT", "BINPUT", "LONG_BINPUT")
_GET = ("GET", "BINGET", "LONG_BINGET")


class PickleError(ValueError):
    """A pickle is damaged, or has an instruction that its values do not need; the message says what it is or has."""


class PlainPickle:
    """The instructions of a pickle (`pickletools` describes each) for plain values."""

    values = "lists, dictionaries, texts and numbers"
    """What it holds, for messages."""

    def __init__(self, content: bytes):
        self._content = content
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The value of the pickle.

        Raises:
            PickleError: see there.
        """
        try:
            with warnings.catch_warnings():
                # A text with an escape that there is not: no writer of pickles makes one.
                warnings.simplefilter("error", DeprecationWarning)
                for instruction, argument, _ in pickletools.genops(self._content):
                    if instruction.name == "STOP":
                        return self._pop()
                    self._step(instruction.name, argument)
        except PickleError:
            raise
        # What a damaged pickle can make of the steps below: all mean the same.
        except (
            ValueError,
            IndexError,
            KeyError,
            TypeError,
            AttributeError,
            OverflowError,
            DeprecationWarning,
        ) as error:
            raise PickleError(f"is damaged, or is no pickle ({type(error).__name__}: {error})") from error
        raise PickleError("has no end")

    def _step(self, name: str, argument: Any) -> None:
        # The most frequent first: annotations have millions of them.
        if name in _GIVEN:
            self._stack.append(argument)
        elif name in _PUT:
            self._memo[argument] = self._stack[-1]
        elif name in _GET:
            self._stack.append(self._memo[argument])
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._stack[-1]
        elif name == "MARK":
            self._stack.append(_MARK)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self._stack.append(_EMPTY[name]())
        elif name not in ("PROTO", "FRAME"):
            self._fill(name, argument)

    def _fill(self, name: str, argument: Any) -> None:
        """Instructions that build containers, or fill them."""
        if name in ("SETITEM", "SETITEMS"):
            items = [self._pop(), self._pop()][::-1] if name == "SETITEM" else self._above_mark()
            self._last(dict).update(_entries(items))
        elif name in ("APPEND", "APPENDS"):
            items = [self._pop()] if name == "APPEND" else self._above_mark()
            self._last(list).extend(items)
        elif name == "LIST":
            self._stack.append(self._above_mark())
        elif name == "DICT":
            self._stack.append(_entries(self._above_mark()))
        elif name == "TUPLE":
            self._stack.append(tuple(self._above_mark()))
        elif name in _TUPLES:
            self._stack.append(tuple([self._pop() for _ in range(_TUPLES[name])][::-1]))
        else:
            self._other(name, argument)

    def _other(self, name: str, argument: Any) -> None:
        """Instructions that plain values do not need: one could run a program."""
        raise PickleError(f"has the instruction {name}, which {self.values} do not need, so it is refused")

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise ValueError("a mark in place of a value")
        return value

    def _last(self, kind: type) -> Any:
        if type(self._stack[-1]) is not kind:
            raise ValueError(f"a {type(self._stack[-1]).__name__} in place of a {kind.__name__}")
        return self._stack[-1]

    def _above_mark(self) -> list[Any]:
        items: list[Any] = []
        while (value := self._stack.pop()) is not _MARK:
            items.append(value)
        return items[::-1]


def _entries(items: list[Any]) -> dict[Any, Any]:
    """A dictionary of keys and values that take turns."""
    # Only these: the hash of deeply nested tuples would exhaust the stack of the interpreter.
    if strange := [key for key in items[::2] if type(key) not in (str, int, float)]:
        raise ValueError(f"a key that is a {type(strange[0]).__name__}")
    return dict(zip(items[::2], items[1::2], strict=True))
