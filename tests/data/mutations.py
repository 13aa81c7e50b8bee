"""Ways to damage a file, drawn by a seeded generator: those that any file has, and those of its kind."""

import json
import pickle
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def flip(data: bytes, draw: random.Random) -> bytes:
    """Some bits turned, most of them near the beginning, where headers are."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 2, 8, 64))):
        reach = len(changed) if draw.random() < 0.5 else min(len(changed), 400)
        changed[draw.randrange(reach)] ^= 1 << draw.randrange(8)
    return bytes(changed)


def cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))]


def splice(data: bytes, draw: random.Random) -> bytes:
    """A part replaced by another part, by extreme numbers, or left out."""
    start = draw.randrange(min(len(data), draw.choice((64, 400, len(data)))))
    end = min(len(data), start + draw.choice((1, 2, 4, 8, 32)))
    other = draw.choice((b"", b"\xff" * (end - start), b"\0" * (end - start), b"\x7f\xff\xff\xff", data[:32]))
    return data[:start] + other + data[end:]


def foreign(data: bytes, draw: random.Random) -> bytes:
    """The content of another kind of file."""
    return draw.choice(
        (
            b"",
            b"\x89PNG\r\n\x1a\n",
            b"\xff\xd8\xff\xe0",
            b"PK\x05\x06" + bytes(18),
            b"[]",
            b"\x80\x04N.",
            b"\xff\xfe,1\n",
        )
    )


def alter_text(data: bytes, draw: random.Random) -> bytes:
    """Lines doubled, left out, cells changed."""
    lines = data.decode("latin1").split("\n")
    at = draw.randrange(len(lines))
    cells = lines[at].split(",")
    cells[draw.randrange(len(cells))] = draw.choice(
        ("", "-1", "nan", "9" * 30, "../../x", "/etc/passwd", "a\0b", "²", '"', "0x1", "1e9", "[1]", "null", "\x1b[2J")
    )
    lines[at : at + 1] = draw.choice(([lines[at]] * 2, [], [",".join(cells)], ["", ",".join(cells)]))
    return "\n".join(lines).encode("latin1")


def alter_json(data: bytes, draw: random.Random) -> bytes:
    """One value of the document replaced by another, or left out."""
    content = json.loads(data)
    at = content
    for _ in range(draw.randrange(1, 4)):
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            break
        key = draw.choice(keys)
        if not isinstance(at[key], dict | list) or draw.random() < 0.3:
            at[key] = draw.choice((None, -1, 2**70, 1e400, "x", "../x", [], {}, True, [None], 3.5))
            break
        at = at[key]
    return json.dumps(content).encode()


def alter_array(array: Any, draw: random.Random) -> Any:
    """An array of another type, shape or content."""
    values = np.asarray(array)
    numbers = values.dtype.kind in "biuf"
    changes: list[Callable[[], Any]] = [
        lambda: values[:1] if values.ndim else values[None],
        lambda: values[:0] if values.ndim else np.zeros(0),
        lambda: values[None],
        lambda: np.array([None, "x"], dtype=object),
        lambda: np.array("text"),
        lambda: np.array(7),
        lambda: np.zeros(values.shape, [("a", "u1"), ("b", "f4")]),
        lambda: np.full(values.shape, 2**40),
        lambda: np.full(values.shape, -3),
        lambda: np.full(values.shape, np.nan),
        lambda: np.full(values.shape, 300, np.uint64),
        lambda: values.astype("f2") if numbers else values[..., None],
        lambda: values.astype("c8") if numbers else values,
        lambda: np.zeros(values.shape, "M8[s]"),
    ]
    return draw.choice(changes)()


def alter_arrays(path: Path, draw: random.Random) -> None:
    """One array of an archive altered, left out or added."""
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    name = draw.choice(list(arrays))
    if draw.random() < 0.15:
        del arrays[name]
    elif arrays[name].dtype.kind == "U" and arrays[name].ndim == 0 and draw.random() < 0.7:
        text = arrays[name].item()
        altered = alter_json(text.encode(), draw).decode() if text.startswith("{") else text[:-3]
        arrays[name] = np.array(altered)
    else:
        arrays[name] = alter_array(arrays[name], draw)
    np.savez(path, **arrays)


def alter_pickle(data: bytes, draw: random.Random) -> bytes:
    """One value of the pickled dictionary altered."""
    content = pickle.loads(data)  # written by this test's own templates
    key = draw.choice(list(content))
    content[key] = draw.choice((None, [], {}, alter_array(content[key], draw), "x", [None] * 3, [[1], [2, 3]]))
    return pickle.dumps(content, protocol=draw.choice((2, 4, 5)))


def alter_header(path: Path, draw: random.Random) -> None:
    """One value of a DICOM file changed."""
    import pydicom

    header: Any = pydicom.dcmread(path)
    name = draw.choice(
        ("Rows", "Columns", "InstanceNumber", "PixelSpacing", "ImagePositionPatient", "BitsAllocated", "BitsStored")
        + ("ImageOrientationPatient", "RescaleSlope", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = draw.choice((0, 65535, "MONOCHROME1", [1, 2], ["1", "2", "3"], "", None, "x", "1e400", "nan", "-1"))
        try:
            setattr(header, name, value)
            header.save_as(path)
        except Exception:  # pydicom itself does not write such a value: the bytes are changed instead
            path.write_bytes(flip(path.read_bytes(), draw))


def mutate(path: Path, draw: random.Random) -> None:
    """Change one file, in a way that its kind has or in one that any has."""
    data, own = path.read_bytes(), draw.random() < 0.6
    if own and path.suffix == ".npz":
        alter_arrays(path, draw)
    elif own and path.suffix == ".npy":
        np.save(path, alter_array(np.load(path), draw))
    elif own and path.suffix == ".dcm":
        alter_header(path, draw)
    elif own and path.suffix == ".json":
        path.write_bytes(alter_json(data, draw))
    elif own and path.suffix in (".csv", ".txt"):
        path.write_bytes(alter_text(data, draw))
    elif own and "cifar" in str(path) and path.suffix in ("", ".meta") and data[:1] == b"\x80":
        path.write_bytes(alter_pickle(data, draw))
    elif data:
        path.write_bytes(draw.choice((flip, flip, splice, cut, foreign))(data, draw))
