"""Reading pickles that someone else wrote: plain containers, text, numbers and arrays, and nothing that runs.

A pickle is a program: it may call whatever it names, and numpy's own functions for arrays and types trust the numbers
that they are called with (a crafted type makes the interpreter read and release memory at an address of the writer's
choice). So no function of numpy or of the standard library is ever reached from a file. What a pickle names is looked
up in a short table of stand-ins, which only write down what they were called with; the array is then made here, from
bytes, once its type is one of ``TYPES`` and its shape fits their number.
"""

import math
import pickle
import pickletools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sslmed_dist.data.damage import damage_named
from sslmed_dist.printable import excerpt

# Types by the names that pickles give them, without the byte order.
TYPES = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}
ORDERS = {"|", "<", ">", "="}
MOST_DIMENSIONS = 32


class StandIn:
    """What a name of the table stands for. It may be called, and nothing else may be done with it."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call

    def __call__(self, *arguments: Any) -> Any:
        return self.call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a name of the table was given a state")


class PickledType:
    """A numpy type as a pickle describes it: its name, and the byte order that its state says."""

    __slots__ = ("name", "order")

    def __init__(self, name: Any, *_: Any) -> None:
        if not isinstance(name, str) or name.lstrip("|<>=") not in TYPES:
            raise pickle.UnpicklingError("an array of a type that is not plain numbers")
        self.name, self.order = name.lstrip("|<>="), name[0] if name[0] in ORDERS else "="

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ORDERS or any(state[2:5]):
            raise pickle.UnpicklingError("an array of a type with fields, or of an unknown byte order")
        self.order = state[1]

    def made(self) -> np.dtype[Any]:
        """The type itself."""
        return np.dtype((self.order if self.order != "|" else "") + self.name)


class PickledArray:
    """An array as a pickle describes it: shape, type, order of the axes and bytes. ``made`` turns it into one."""

    __slots__ = ("data", "fortran", "kind", "shape")

    def __init__(self, *_: Any) -> None:
        self.shape: Any = None
        self.kind: Any = None
        self.fortran: Any = False
        self.data: Any = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise pickle.UnpicklingError("an array whose state is not one of numpy's")
        self.shape, self.kind, self.fortran, self.data = state[-4:]

    def made(self) -> NDArray[Any]:
        """The array. ``ValueError`` where shape, type and bytes do not fit one another."""
        data = self.data.encode("latin1") if isinstance(self.data, str) else self.data  # bytes of Python 2
        shape = self.shape
        if not isinstance(self.kind, PickledType) or not isinstance(data, (bytes, bytearray)):
            raise ValueError("an array without its type or its bytes")
        if not isinstance(shape, tuple) or len(shape) > MOST_DIMENSIONS:
            raise ValueError("an array whose shape is none")
        if not all(isinstance(side, int) and not isinstance(side, bool) and side >= 0 for side in shape):
            raise ValueError("an array whose shape is none")
        kind = self.kind.made()
        if math.prod(shape) * kind.itemsize != len(data):
            raise ValueError(f"an array of {shape} {kind} in {len(data)} bytes")
        flat = np.frombuffer(data, dtype=kind)
        return flat.reshape(shape, order="F" if self.fortran else "C")


def from_buffer(data: Any, kind: Any, shape: Any, order: Any = "C") -> PickledArray:
    """How protocol 5 describes an array."""
    array = PickledArray()
    array.shape, array.kind, array.fortran, array.data = shape, kind, order == "F", data
    return array


def scalar(kind: Any, data: Any) -> PickledArray:
    """A single number of numpy's, as an array without axes."""
    return from_buffer(data, kind, ())


def encoded(text: Any, encoding: Any) -> bytes:
    """What Python 3 writes for bytes in an old protocol; no other codec is let through."""
    if encoding != "latin1" or not isinstance(text, str):
        raise pickle.UnpicklingError("bytes of another codec than latin1")
    return text.encode("latin1")


def no_bytes() -> bytes:
    """What Python 3 writes for empty bytes in an old protocol."""
    return b""


TABLE: dict[tuple[str, str], Callable[..., Any]] = {
    ("_codecs", "encode"): encoded,
    ("__builtin__", "bytes"): no_bytes,
    ("numpy", "ndarray"): PickledArray,
    ("numpy", "dtype"): PickledType,
    ("numpy.core.multiarray", "_reconstruct"): PickledArray,
    ("numpy.core.multiarray", "scalar"): scalar,
    ("numpy.core.numeric", "_frombuffer"): from_buffer,
}


class Reader(pickle.Unpickler):
    """Looks names up in ``TABLE`` alone."""

    def find_class(self, module: str, name: str) -> StandIn:
        known = TABLE.get((module.replace("numpy._core", "numpy.core"), name))
        if known is None:
            raise pickle.UnpicklingError(f"it names {excerpt(module)}.{excerpt(name)}, which is not allowed")
        return StandIn(known)

    def persistent_load(self, identity: Any) -> Any:
        raise pickle.UnpicklingError("it refers to something outside the file")


def require_memo(file: IO[bytes], size: int) -> None:
    """``UnpicklingError`` for a place in the memo beyond the ``size`` of the file: Python makes room for all places
    below it, so eight bytes could ask for gigabytes."""
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument is not None and int(argument) > size:
            raise pickle.UnpicklingError(f"place {argument} of the memo in a file of {size} bytes")


def read_pickle(path: Path) -> Any:
    """What the file holds: containers, text, bytes, numbers, and ``PickledArray`` for arrays (see ``as_array``).

    Text and bytes of Python 2 are read as latin1. ``ValueError`` naming the file when it is missing, damaged, or names
    anything but arrays.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with damage_named(path, "not a readable pickle of plain arrays"), path.open("rb") as file:
        require_memo(file, path.stat().st_size)
        file.seek(0)
        return Reader(file, encoding="latin1").load()


def as_array(value: Any, path: Path, name: str) -> NDArray[Any]:
    """A value out of ``read_pickle`` as an array: a pickled array, or a list of numbers. ``ValueError`` naming file and
    ``name`` for anything else."""
    try:
        if isinstance(value, PickledArray):
            return value.made()
        if is_numbers(value):
            return np.array(value)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {name}: {error}") from None
    raise ValueError(f"{path}: {name}: expected an array or a list of numbers, got {type(value).__name__}")


def is_numbers(value: Any) -> bool:
    """Whether it is a list (or tuple) of plain numbers."""
    return isinstance(value, Sequence) and all(isinstance(item, (int, float)) for item in value)
