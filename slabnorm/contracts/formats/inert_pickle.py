"""Pickles taken apart without being run: nothing is imported, nothing is called, no class is instantiated.

A pickle is a program for a small machine with a stack, and may call any function there is. `take_apart` goes
through its instructions as `pickletools` of the standard library lists them, and writes down what each of
them would have made: numbers, texts and lists as they are, and a call as a `Made`, which says what would have
been called, with what, and which state it would have been given. A name that the caller does not expect is an
error, wherever it occurs.

The format is documented in CPython's `pickletools.py` and PEP 574, arrays in NumPy's `ndarray.__reduce__`.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from slabnorm.errors import DataError
from slabnorm.text import printable

MOST = 1_000_000  # instructions, which take 1.5 s at most; a VecNormalize of 100 keys has 27,000
NEWEST = 5  # protocol
MOST_BITS = 4096  # of a whole number; states of random generators have 128 of them
CODE = re.compile(r"[fiu][1248]")  # dtypes of numbers, as pickles write them
CONSTANTS = {
    *("INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_SET": list,
}  # fmt: skip


class Name:
    """What a pickle would import: a class or a function, by the name that it has in Python 3."""

    def __init__(self, name: str) -> None:
        self.name = name


class Made:
    """What a call would have returned.

    Attributes:
        name: of the class or the function that would have been called.
        arguments: that it would have been given.
        state: what it would have been updated with; None if nothing.
        entries: what would have been stored in it, as in an OrderedDict.
    """

    def __init__(self, name: str, arguments: tuple[Any, ...]) -> None:
        self.name, self.arguments = name, arguments
        self.state: Any = None
        self.entries: dict[Any, Any] = {}


def take_apart(content: bytes, expected: Callable[[str], bool], where: str) -> Any:
    """Return what a pickle would have made, of Made, Name and Python's own types; a set is a list.

    Args:
        content: the pickle, of any protocol.
        expected: whether the name of a class or a function, such as "collections.OrderedDict", may occur.
        where: for errors, the file.

    Raises:
        DataError: the pickle is damaged, is unusually long, or has a name that is not expected.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of escapes in names that no program writes
            return _Machine(expected, len(content)).run(content)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, Warning) as error:
        why = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else error
        raise DataError(
            f"Not a pickle that can be read safely: {where}", printable(why, 300),
            "nothing in it was executed; use the file of a program that you trust",
        ) from error  # fmt: skip


class _Machine:
    """The machine that a pickle is a program for, in which calls are only written down."""

    def __init__(self, expected: Callable[[str], bool], size: int) -> None:
        self.expected = expected
        self.left = size  # how many characters may still become bytes: no text of a real file does so twice
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each mark
        self.memo: dict[int, Any] = {}

    def run(self, content: bytes) -> Any:
        for number, (code, argument, place) in enumerate(pickletools.genops(io.BytesIO(content))):
            if number >= MOST:
                raise ValueError(f"it has more than {MOST:,} instructions")
            if code.name == "STOP":
                if place is None or place + 1 != len(content):
                    raise ValueError("something follows its end")
                return self.stack.pop()
            self.step(code.name, argument)
        raise ValueError("it does not end")

    def step(self, code: str, argument: Any) -> None:
        """Do one instruction."""
        stack = self.stack
        if code in CONSTANTS:
            if isinstance(argument, int) and argument.bit_length() > MOST_BITS:
                # To multiply such numbers, or to store by them again and again, can take hours.
                raise ValueError(f"it has a number of more than {MOST_BITS:,} bits")
            stack.append(argument)
        elif code in VALUES:
            stack.append(VALUES[code])
        elif code in EMPTY:
            stack.append(EMPTY[code]())
        elif code in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif code == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif code in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif code == "MARK":
            self.below.append(stack)
            self.stack = []
        elif code == "POP":
            stack.pop()
        elif code == "DUP":
            stack.append(stack[-1])
        elif code == "PROTO":
            if argument > NEWEST:
                raise ValueError(f"it is of protocol {argument}, and the newest known is {NEWEST}")
        elif code != "FRAME" and not self.collect(code):
            self.call(code, argument)

    def collect(self, code: str) -> bool:
        """Do an instruction that puts values into a collection; return whether it is one."""
        if code in ("TUPLE1", "TUPLE2", "TUPLE3"):
            found = [self.stack.pop() for _ in range(int(code[-1]))]
            self.stack.append(tuple(reversed(found)))
        elif code in ("LIST", "FROZENSET", "TUPLE", "DICT"):
            items = self.marked()
            made = _paired(items) if code == "DICT" else tuple(items) if code == "TUPLE" else items
            self.stack.append(made)
        elif code == "POP_MARK":
            self.marked()
        elif code in ("APPEND", "APPENDS", "ADDITEMS"):
            items = [self.stack.pop()] if code == "APPEND" else self.marked()
            if not isinstance(self.stack[-1], list):
                raise ValueError("it appends to what is no list")
            self.stack[-1].extend(items)
        elif code in ("SETITEM", "SETITEMS"):
            items = [self.stack.pop(), self.stack.pop()][::-1] if code == "SETITEM" else self.marked()
            target = self.stack[-1].entries if isinstance(self.stack[-1], Made) else self.stack[-1]
            if not isinstance(target, dict):
                raise ValueError("it stores by key in what is no dict")
            target.update(_paired(items))
        else:
            return False
        return True

    def marked(self) -> list[Any]:
        """Return what lies above the last mark, and take both away."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def call(self, code: str, argument: Any) -> None:
        """Write down an instruction that would import or call something."""
        stack = self.stack
        if code == "GLOBAL":
            stack.append(self.named(*argument.split(" ", 1)))
        elif code == "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            stack.append(self.named(module, name))
        elif code in ("REDUCE", "NEWOBJ", "NEWOBJ_EX"):
            if code == "NEWOBJ_EX" and stack.pop():
                raise ValueError("it calls a class with arguments by name")
            arguments, called = stack.pop(), stack.pop()
            if not isinstance(called, Name) or not isinstance(arguments, tuple):
                raise ValueError("it calls what is neither a class nor a function with a name")
            stack.append(self.made(called.name, arguments))
        elif code == "BUILD":
            state = stack.pop()
            if not isinstance(stack[-1], Made) or stack[-1].state is not None:
                raise ValueError("it gives a state to what has none, or has one")
            stack[-1].state = state
        else:
            raise ValueError(f"it has the instruction {code}, which no file of this kind needs")

    def named(self, module: Any, name: Any) -> Name:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("it imports what has no name")
        module = {"copy_reg": "copyreg", "__builtin__": "builtins"}.get(module, module)
        if not self.expected(f"{module}.{name}"):
            raise ValueError(f"it would import {module}.{name}, for which there is no reason")
        return Name(f"{module}.{name}")

    def made(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """Return what a call would return; of those by which old protocols write bytes and objects, these."""
        text = arguments[0] if arguments else None
        if name == "_codecs.encode" and arguments[1:] == ("latin1",) and isinstance(text, str):
            self.left -= len(text)
            if self.left < 0:
                raise ValueError("it makes more bytes than it has")
            return text.encode("latin1")
        if name == "builtins.bytes" and not arguments:
            return b""
        if name == "copyreg._reconstructor" and arguments and isinstance(arguments[0], Name):
            return Made(arguments[0].name, ())
        return Made(name, arguments)


def _paired(items: list[Any]) -> dict[Any, Any]:
    """Return a dict of keys and values that follow each other."""
    keys = items[::2]
    if len(items) % 2 or not all(key is None or isinstance(key, str | int | float | bytes) for key in keys):
        # The hash of tuples in tuples can take longer than the universe has.
        raise ValueError("it has a dict with a key that is no text and no number")
    return dict(zip(keys, items[1::2], strict=True))


def array(found: Any) -> np.ndarray:
    """Return the array, or the number, that a part of a pickle stands for.

    Raises:
        ValueError: it stands for something else, or for an array whose bytes do not fit its shape.
    """
    if type(found) in (int, float):
        return np.asarray(found, dtype=np.float64)
    if not isinstance(found, Made):
        raise ValueError(f"a {type(found).__name__}, where an array belongs")
    name, order = found.name.rpartition(".")[2], "C"
    if name == "scalar":
        dtype, data = found.arguments
        shape: Any = ()
    elif name == "_frombuffer":
        data, dtype, shape, order = found.arguments
    elif name == "_reconstruct" and isinstance(found.state, tuple):
        _, shape, dtype, fortran, data = found.state
        order = "F" if fortran is True else "C"
    else:
        raise ValueError(f"a {found.name}, where an array belongs")
    kind = _dtype(dtype)
    if not isinstance(data, bytes | bytearray) or not isinstance(shape, tuple) or order not in ("C", "F"):
        raise ValueError("an array without bytes or without a shape")
    if len(shape) > 32 or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("an array whose shape is no shape")
    if math.prod(shape) * kind.itemsize != len(data):
        raise ValueError(f"an array of {len(data):,} bytes, which do not fit its shape")
    return np.frombuffer(data, kind).reshape(shape, order=order)  # type: ignore[call-overload]


def _dtype(found: Any) -> np.dtype:
    """Return the dtype of numbers that a part of a pickle stands for."""
    if isinstance(found, Made) and found.name == "numpy.dtype" and isinstance(found.state, tuple):
        code = found.arguments[0] if found.arguments else None
        order = found.state[1] if len(found.state) > 1 else None
        if isinstance(code, str) and CODE.fullmatch(code) and order in ("<", ">", "|", "="):
            return np.dtype(f"{order}{code}")
    raise ValueError("an array of something else than numbers")
