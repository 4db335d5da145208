"""Numbers out of a .npy file whose array holds objects, without running what is in it.

numpy stores such an array as a pickle, and a pickle is a program that imports and calls whatever it names. `pickletools`
only lists its instructions; this module carries out the few that build dictionaries, lists, texts and numeric arrays, with
code of its own. No name in the file is ever imported and nothing in it is ever called: the six names that numpy writes are
compared as texts and stand for functions of this file. Everything else is refused with Unreadable. It is the one place in
Freehold where such bytes are looked at.
"""

from __future__ import annotations

import io
import math
import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold.errors import Unreadable

Numbers = NDArray[Any]
"""An array of numbers."""

_MOST_INSTRUCTIONS = 1_000_000
_NUMERIC = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}
_MARK = object()


def read_object_array(content: bytes) -> object:
    """What a .npy file holds: an array of numbers, or (array of objects) numbers, texts, lists and dictionaries of them."""
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise _refused(f"version {version} of the format")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except (ValueError, EOFError) as error:
        raise _refused(f"no array header ({str(error).splitlines()[0][:80]})") from error
    rest = content[file.tell() :]
    if not dtype.hasobject:
        return _array(rest, dtype, shape, "F" if fortran else "C")
    try:
        found = _Machine().run(rest)
    except Unreadable:
        raise
    except Exception as error:  # a damaged or hostile stream may fail anywhere; nothing of it was run
        raise _refused("a damaged stream of objects") from error
    return found[0] if shape == () and isinstance(found, list) and len(found) == 1 else found


def _refused(what: str) -> Unreadable:
    return Unreadable(
        f"The file holds {what}; only numbers, texts, lists and dictionaries of them are read.",
        hint="Save the arrays themselves: numpy.savez(file, x=x, y=y).",
    )


@dataclass(kw_only=True)
class _Name:
    """A name that numpy writes; it stands for one of this module's functions."""

    name: str


@dataclass(kw_only=True)
class _Dtype:
    code: str
    order: str = "="

    def numeric(self) -> np.dtype[Any]:
        if self.code not in _NUMERIC:
            raise _refused(f"values of type {self.code[:20]!r}")
        return np.dtype(self.order + self.code if self.order in ("<", ">") else self.code)


@dataclass(kw_only=True)
class _Shell:
    """An array that is announced; `_Machine.BUILD` fills it."""

    value: object = None


_NAMES = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",
    **{(f"numpy.{core}.multiarray", "_reconstruct"): "reconstruct" for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): "scalar" for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): "frombuffer" for core in ("core", "_core")},
}
_SKIPPED = {"PROTO", "FRAME"}
_VALUES = {
    "BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "BINFLOAT", "FLOAT", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
    "UNICODE", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_CONSTANTS: dict[str, Callable[[], object]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_TUPLE": tuple, "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}  # fmt: skip


class _Machine:
    """A stack, a memo, and the few instructions that data needs."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.values = 0
        self.left = 0
        """Bytes that the arrays and decoded texts may still take: honest ones are in the stream once as text, once as bytes."""

    def run(self, stream: bytes) -> object:
        self.left = 2 * len(stream)
        for instruction, argument in _instructions(stream):
            if instruction == "STOP":
                return self.plain(self.stack.pop(), depth=0)
            self.step(instruction, argument)
        raise _refused("a stream that does not end")

    def step(self, instruction: str, argument: Any) -> None:
        stack = self.stack
        if instruction in _SKIPPED:
            return
        if instruction in _VALUES:
            stack.append(argument)
        elif instruction in _CONSTANTS:
            stack.append(_CONSTANTS[instruction]())
        elif instruction == "MARK":
            stack.append(_MARK)
        elif instruction == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif instruction in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[argument] = stack[-1]
        elif instruction in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self.memo[argument])
        elif instruction in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(self.pop(int(instruction[-1]))))
        elif instruction in ("TUPLE", "LIST"):
            stack.append((tuple if instruction == "TUPLE" else list)(self.to_mark()))
        elif instruction == "DICT":
            stack.append(_pairs(self.to_mark()))
        elif instruction in ("SETITEM", "SETITEMS"):
            items = self.pop(2) if instruction == "SETITEM" else self.to_mark()
            _of(dict, stack[-1]).update(_pairs(items))
        elif instruction in ("APPEND", "APPENDS"):
            items = self.pop(1) if instruction == "APPEND" else self.to_mark()
            _of(list, stack[-1]).extend(items)
        elif instruction == "GLOBAL":
            stack.append(_name(*argument.split(" ", 1)))
        elif instruction == "STACK_GLOBAL":
            stack.append(_name(*self.pop(2)))
        elif instruction == "REDUCE":
            function, arguments = self.pop(2)
            self.take(_of(tuple, arguments))
            stack.append(_call(_of(_Name, function).name, arguments))
        elif instruction == "BUILD":
            (state,) = self.pop(1)
            self.take(_of(tuple, state)[-1:])
            _build(stack[-1], state)
        else:
            raise _refused(f"the instruction {instruction}")

    def take(self, copied: tuple[Any, ...]) -> None:
        """Account for what is about to be copied, each time anew: a stream can name the same bytes a million times."""
        self.left -= sum(len(each) for each in copied if isinstance(each, str | bytes | bytearray | list))
        if self.left < 0:
            raise _refused("arrays that are larger than the file")

    def pop(self, count: int) -> list[Any]:
        taken = self.stack[-count:]
        if len(taken) < count or any(each is _MARK for each in taken):
            raise _refused("a damaged stream of objects")
        del self.stack[-count:]
        return taken

    def to_mark(self) -> list[Any]:
        at = len(self.stack) - 1 - next(index for index, each in enumerate(reversed(self.stack)) if each is _MARK)
        taken = self.stack[at + 1 :]
        del self.stack[at:]
        return taken

    def plain(self, value: Any, *, depth: int) -> Any:
        """The value with arrays in the place of shells; nothing that was only announced is let through."""
        self.values += 1
        if depth > 8 or self.values > _MOST_INSTRUCTIONS:
            raise _refused("lists that are nested too deep or repeated too often")
        if isinstance(value, _Shell):
            return self.plain(value.value, depth=depth + 1)
        if isinstance(value, dict):
            return {key: self.plain(each, depth=depth + 1) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.plain(each, depth=depth + 1) for each in value]
        if value is None or isinstance(value, int | float | str | bytes | np.ndarray):
            return value
        raise _refused("something that is no data")


def _instructions(stream: bytes) -> Iterator[tuple[str, Any]]:
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if count > _MOST_INSTRUCTIONS:
            raise _refused(f"more than {_MOST_INSTRUCTIONS} instructions")
        yield opcode.name, argument


def _name(module: object, name: object) -> _Name:
    known = _NAMES.get((str(module), str(name)))
    if known is None:
        raise _refused(f"a call of {str(module)[:40]}.{str(name)[:40]}, which was not run")
    return _Name(name=known)


def _call(function: str, arguments: tuple[Any, ...]) -> object:
    if function == "reconstruct":
        return _Shell()
    if function == "dtype":
        return _Dtype(code=_of(str, arguments[0]))
    if function == "encode":
        text, encoding = arguments
        if encoding != "latin1":
            raise _refused("bytes in another encoding")
        return _of(str, text).encode("latin1")
    if function == "scalar":
        dtype, content = arguments
        return _array(content, _of(_Dtype, dtype).numeric(), (1,), "C")[0].item()
    if function == "frombuffer":
        content, dtype, shape, order = arguments
        return _array(content, _of(_Dtype, dtype).numeric(), shape, order)
    raise _refused(f"a call of {function}")


def _build(target: object, state: tuple[Any, ...]) -> None:
    if isinstance(target, _Dtype):
        target.order = _of(str, state[1])
        if state[2:5] != (None, None, None):
            raise _refused("a compound type")
        return
    _, shape, dtype, fortran, content = state
    shell = _of(_Shell, target)
    if _of(_Dtype, dtype).code.startswith("O"):
        shell.value = list(_of(list, content))
        if shape == ():
            shell.value = shell.value[0]
    else:
        shell.value = _array(content, dtype.numeric(), shape, "F" if fortran else "C")


def _array(content: object, dtype: np.dtype[Any], shape: object, order: str) -> Numbers:
    """A copy of the bytes as an array; the shape must account for every byte."""
    if dtype.kind not in "biuf" or not isinstance(content, bytes | bytearray) or order not in ("C", "F"):
        raise _refused("an array that is not of numbers")
    sides = _of(tuple, shape)
    if not all(isinstance(side, int) and side >= 0 for side in sides) or math.prod(sides) * dtype.itemsize != len(content):
        raise _refused("an array whose shape does not fit its bytes")
    flat: Numbers = np.frombuffer(content, dtype=dtype).astype(dtype.newbyteorder("="))
    return flat.reshape(sides, order="F" if order == "F" else "C")


def _of(kind: type[Any], value: Any) -> Any:
    if type(value) is not kind:
        raise _refused("a damaged stream of objects")
    return value


def _pairs(items: list[Any]) -> dict[str, Any]:
    return {_of(str, key): value for key, value in zip(items[::2], items[1::2], strict=True)}
