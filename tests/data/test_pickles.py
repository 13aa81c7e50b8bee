"""Pickles from elsewhere: arrays come back as they are, and nothing else is ever called."""

import io
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sslmed_dist.data.pickles import as_array, read_pickle

ARRAYS = {
    "bytes": np.arange(12, dtype=np.uint8).reshape(3, 4),
    "columns first": np.asfortranarray(np.linspace(0, 1, 12).reshape(3, 4)),
    "big endian": np.arange(3, dtype=">i4"),
    "a number": np.float32(3.5),
    "empty": np.zeros((0, 3)),
    "booleans": np.array([True, False]),
    "half": np.array([1.5], dtype=np.float16),
}


def written(path: Path, content: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_come_back_bit_for_bit(tmp_path: Path, name: str, protocol: int) -> None:
    array = np.asarray(ARRAYS[name])
    path = written(tmp_path / "a", {"data": ARRAYS[name], b"labels": [3, 1], "both": [ARRAYS[name]] * 2}, protocol)
    content = read_pickle(path)
    for value in (content["data"], *content["both"]):
        read = as_array(value, path, "data")
        assert read.dtype == array.dtype and read.shape == array.shape and read.tobytes() == array.tobytes()
    labels = content[b"labels"] if b"labels" in content else content["labels"]
    assert as_array(labels, path, "labels").tolist() == [3, 1]


class Calls:
    """Pickled as a call of ``function`` with ``arguments``, and then a state."""

    def __init__(self, function: Any, arguments: tuple[Any, ...], state: Any = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.reduced


REFCOUNTED = 63  # flags of numpy that call every eight bytes a reference to an object
FORGED = Calls(np.dtype, ("V8", False, True), (3, "|", None, None, None, 8, 1, REFCOUNTED))
RECONSTRUCT = np.empty(0).__reduce__()[0]
HOSTILE: dict[str, tuple[Any, str]] = {
    "a program": (Calls(os.system, ("true",)), "it names posix.system, which is not allowed"),
    "a forged type": (FORGED, "an array of a type that is not plain numbers"),
    "a forged array": (
        Calls(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (1,), FORGED, False, b"AAAAAAAA")),
        "an array of a type that is not plain numbers",
    ),
    "objects": (np.array([{}], dtype=object), "an array of a type that is not plain numbers"),
    "fields": (np.zeros(1, dtype=[("a", "i4")]), "an array of a type that is not plain numbers"),
    "text": (np.array(["ab"]), "an array of a type that is not plain numbers"),
    "a name with a state": (Calls(RECONSTRUCT, (np.ndarray, (0,), b"b"), {"a": 1}), "whose state is not one of"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_plain_array_is_refused(tmp_path: Path, name: str) -> None:
    content, line = HOSTILE[name]
    with pytest.raises(ValueError, match=line):
        read_pickle(written(tmp_path / "a", {"data": content}))


def test_a_type_whose_flags_lie_is_read_as_numbers(tmp_path: Path) -> None:
    """numpy would take the bytes for references to objects, and release what they point to."""
    forged = Calls(np.dtype, ("u8", False, True), (3, "<", None, None, None, 8, 8, REFCOUNTED))
    array = Calls(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (2,), forged, False, b"A" * 16))
    path = written(tmp_path / "a", array)
    code = f"from pathlib import Path; from sslmed_dist.data.pickles import *; p = Path({str(path)!r}); "
    code += "print(as_array(read_pickle(p), p, 'x').tolist())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[4702111234474983745,", "4702111234474983745]"]


@pytest.mark.parametrize("shape", [(3,), (-1,), (2, 2**62), ("2",), 2, (True, 2)])
def test_shapes_that_do_not_fit_are_refused(tmp_path: Path, shape: Any) -> None:
    kind = Calls(np.dtype, ("u1", False, True), (3, "|", None, None, None, -1, -1, 0))
    path = written(tmp_path / "a", Calls(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, shape, kind, False, b"ab")))
    with pytest.raises(ValueError, match="a: data: an array"):
        as_array(read_pickle(path), path, "data")


def test_a_torn_file_and_one_of_something_else_are_one_line(tmp_path: Path) -> None:
    whole = pickle.dumps({"data": ARRAYS["bytes"]})
    for content in (b"", whole[: len(whole) // 2], b"no pickle", b"\x80\x05", io.BytesIO(whole).getvalue()[::-1]):
        path = tmp_path / "a"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a: not a readable pickle of plain arrays") as caught:
            read_pickle(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="gone: no such file"):
        read_pickle(tmp_path / "gone")
    with pytest.raises(ValueError, match="a: labels: expected an array or a list of numbers, got str"):
        as_array("text", tmp_path / "a", "labels")
