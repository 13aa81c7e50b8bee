"""Files that claim or hold far more than their bytes: refused by the header, in one line that states the limit."""

import io
import resource
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from PIL import Image

from sslmed_dist.data import DATASETS
from sslmed_dist.data.images.decode import MOST_PIXELS, open_picture
from sslmed_dist.data.images.flowers import read_matlab, write_matlab
from sslmed_dist.data.images.jpeg import decode_jpeg, jpeg_size
from sslmed_dist.data.npz import archive_names, map_array, read_archive
from sslmed_dist.data.phantom.chaos import write_series
from sslmed_dist.data.scans.dicom import ENDS_UNKNOWN, read_series
from sslmed_dist.data.scans.nifti import load_nifti

MOST_GROWTH = 2**27  # bytes: what a refusal may take


@pytest.fixture(autouse=True)
def bounded() -> Any:
    """No test of this file takes much memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_GROWTH


def npy_header(kind: str, shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": kind, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def add_zeros(archive: zipfile.ZipFile, name: str, size: int) -> None:
    """A member of ``size`` zero bytes, packed a thousandfold."""
    with archive.open(name + ".npy", "w", force_zip64=True) as member:
        member.write(npy_header("|u1", (size,)))
        for _ in range(size // 2**20):
            member.write(bytes(2**20))


def small_set() -> dict[str, np.ndarray[Any, Any]]:
    return {"train_images": np.arange(32, dtype=np.uint8).reshape(2, 4, 4), "train_labels": np.array([[0], [1]])}


def test_a_member_that_nobody_asked_for_is_not_read_and_one_that_is_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    np.savez(path, **small_set())
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        add_zeros(archive, "bomb", 300 * 2**20)
    assert len(DATASETS["medmnist"](str(path))) == 2
    message = r"bomb.npz: bomb: 314,572,800 bytes packed into .*; allowed: 268,435,456, or 64 times the bytes"
    with pytest.raises(ValueError, match=message):
        read_archive(path, ("bomb",))


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        ("|u1", (2**40,), "bad: uint8 .* are 1,099,511,627,776 bytes, the file holds"),
        ("<f8", (3, 5), "bad: float64"),
        ("|O", (1,), "bad: an array of Python objects"),
        ("|u1", (-1, -4), "impossible shape"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, kind: str, shape: tuple[int, ...], message: str) -> None:
    content = npy_header(kind, shape) + b"abcd"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("bad.npy", content)
    assert archive_names(tmp_path / "a.npz") == ["bad"]
    with pytest.raises(ValueError, match=f"a.npz: .*{message}"):
        read_archive(tmp_path / "a.npz", ("bad",))
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ValueError, match="a.npy: "):
        map_array(tmp_path / "a.npy")


def test_a_long_header_is_not_read(tmp_path: Path) -> None:
    """It is inflated before numpy looks at its length."""
    content = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**20) + bytes(2**20)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bad.npy", content)
    (tmp_path / "a.npy").write_bytes(content)
    for read in (lambda: read_archive(tmp_path / "a.npz", ("bad",)), lambda: map_array(tmp_path / "a.npy")):
        with pytest.raises(ValueError, match=r"a.np[yz]: (bad|array): a header of 1,048,576 bytes; allowed: 10,000"):
            read()


def test_a_name_that_stands_in_an_archive_twice_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **small_set())
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("train_labels.npy", npy_header("|u1", (2, 1)) + b"\0\0")
    with pytest.raises(ValueError, match="a.npz: the array 'train_labels' stands in it twice"):
        DATASETS["medmnist"](str(tmp_path / "a.npz"))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"train_labels": np.array([[0], [2**33]])},
            "train_labels names 8,589,934,593 classes; allowed: at most 65,536",
        ),
        ({"train_labels": np.array([[0], [2**63]], np.uint64)}, "train_labels names 9,223,372,036,854,775,809 classes"),
        ({"train_labels": np.array([[0], [-1]])}, "train_labels runs from -1 to 0"),
        ({"train_labels": np.array(3)}, r"train_labels is int64 \(\), expected integers for 2 images"),
        ({"train_labels": np.zeros((2, 0), np.uint8)}, r"train_labels is uint8 \(2, 0\)"),
        ({"train_images": np.zeros((0, 4, 4), np.uint8), "train_labels": np.zeros((0, 1), int)}, "holds no image"),
        ({"val_images": np.zeros((1, 5, 5), np.uint8), "val_labels": np.zeros((1, 1), int)}, "splits differ in shape"),
        ({"train_sites": np.array([0, np.nan])}, "train_sites is missing or .*: whole numbers are expected"),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "a.npz", **(small_set() | arrays))
    with pytest.raises(ValueError, match=f"a.npz: .*{message}"):
        DATASETS["medmnist"](str(tmp_path / "a.npz"))


def element(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def matrix(flags: int, sides: tuple[int, int] = (1, 1), values: bytes = struct.pack("<d", 1.0)) -> bytes:
    parts = element(6, struct.pack("<II", flags, 0)) + element(5, struct.pack("<ii", *sides)) + element(1, b"trn1")
    return element(14, parts + element(9, values))


def packed_zeros() -> bytes:
    data = zlib.compress(bytes(2**25))
    return struct.pack("<II", 15, len(data)) + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (matrix(5), "'trn1' is a matrix of sparse numbers; allowed: real numbers"),
        (matrix(6 | 0x800), "'trn1' is a matrix of complex numbers"),
        (matrix(1), "a matrix of cells"),
        (matrix(6, (2, 3)), r"a matrix of \[2, 3\] has 1 values"),
        (matrix(6) * 2, "'trn1' stands in it twice"),
        (packed_zeros(), "a compressed element is cut off, or has more than 16,777,216 bytes"),
        (element(14, b"abc"), "damaged"),
    ],
)
def test_matlab_files_of_another_kind_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "datasplits.mat"
    write_matlab(path, {"val1": np.arange(3)})
    path.write_bytes(path.read_bytes()[:128] + content)
    with pytest.raises(ValueError, match=f"datasplits.mat: .*{message}"):
        read_matlab(path)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((30000, 30000, 30), r"27,000,000,000 voxels in shape \(30000, 30000, 30\) are .* at most 536,870,912 voxels"),
        ((800, 800, 800), r"truncated: 1,024,000,000 bytes of voxels in shape .*, the file can hold at most"),
    ],
)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_nifti_header_that_claims_too_much_is_refused(
    tmp_path: Path, shape: tuple[int, ...], message: str, suffix: str
) -> None:
    image = nibabel.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.eye(4))
    nibabel.save(image, tmp_path / "small.nii")
    data = bytearray((tmp_path / "small.nii").read_bytes())
    struct.pack_into("<3h", data, 42, *shape)
    path = tmp_path / f"large{suffix}"
    path.write_bytes(zlib.compress(bytes(data), wbits=31) if suffix.endswith("gz") else bytes(data))
    with pytest.raises(ValueError, match=f"large{suffix}: .*{message}"):
        load_nifti(path)


def test_slices_that_would_be_padded_to_many_times_their_size_are_refused(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((4000, 2, 3), np.int16), np.eye(4)), tmp_path / "image_01.nii")
    for name in ("abdominal", "episodes"):
        message = "image_01.nii: slices of 4000 x 2 pixels; allowed: at most 16 times as long as wide"
        with pytest.raises(ValueError, match=message):
            DATASETS[name](str(tmp_path), size=16)


def test_voxels_that_are_no_real_numbers_are_refused(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 4, 5), np.complex64), np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(ValueError, match="a.nii: voxels of type complex64; allowed: whole or real numbers"):
        load_nifti(tmp_path / "a.nii")


@pytest.fixture
def series(tmp_path: Path) -> Path:
    write_series(tmp_path / "s", np.arange(140, dtype=np.uint16).reshape(7, 5, 4), np.diag([1.0, 1.0, 2.0, 1.0]))
    return tmp_path / "s"


def edit(folder: Path, change: Callable[[Any], object]) -> None:
    for path in folder.iterdir():
        header = pydicom.dcmread(path)
        change(header)
        header.save_as(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Rows": 60000, "Columns": 60000}, "60000 rows x 60000 columns; allowed: 1 to 67,108,864 pixels"),
        ({"Rows": 0}, "0 rows x"),
        ({"Rows": 8000, "Columns": 8000}, "cannot be decoded"),
        ({"InstanceNumber": [1, 2]}, r"InstanceNumber must be one whole number, got \[1, 2\]"),
        ({"PhotometricInterpretation": "MONOCHROME3"}, "pixels are MONOCHROME3"),
    ],
)
def test_dicom_headers_that_are_wrong_are_one_line(series: Path, change: dict[str, Any], message: str) -> None:
    edit(series, lambda header: [setattr(header, name, value) for name, value in change.items()])
    with pytest.raises(ValueError, match=message) as caught:
        read_series(series)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(series))


@pytest.mark.parametrize(("modality", "mirrored"), [("MR", True), ("DX", True), ("CT", False)])
def test_low_values_that_are_meant_bright_are_mirrored(series: Path, modality: str, mirrored: bool) -> None:
    plain = read_series(series)
    assert plain.notices == (ENDS_UNKNOWN,)

    def change(header: Any) -> None:
        header.PhotometricInterpretation, header.Modality = "MONOCHROME1", modality
        header.BitsStored, header.HighBit, header.PixelRepresentation = 12, 11, 0

    edit(series, change)
    read = read_series(series)
    assert np.array_equal(read.voxels, 4095 - plain.voxels if mirrored else plain.voxels)
    assert len(read.notices) == 2 and ("mirrored" in read.notices[0]) is mirrored


def test_images_of_too_many_pixels_are_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("L", (8, 8)).save(stream, "PNG")
    data = bytearray(stream.getvalue())
    struct.pack_into(">II", data, 16, 60000, 60000)
    struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(
        ValueError, match=f"a.png: an image of more pixels than are read; allowed: at most {MOST_PIXELS:,}"
    ):
        open_picture(tmp_path / "a.png")
    stream = io.BytesIO()
    Image.new("RGB", (9, 7)).save(stream, "JPEG")
    data = bytearray(stream.getvalue())
    assert jpeg_size(bytes(data)) == (7, 9) and jpeg_size(b"") == jpeg_size(bytes(300)) == (0, 0)
    at = data.index(b"\xff\xc0") + 5
    struct.pack_into(">HH", data, at, 60000, 60000)
    with pytest.raises(ValueError, match="image 3 is 60000 x 60000 pixels; allowed: at most 178,956,970"):
        decode_jpeg(torch.frombuffer(data, dtype=torch.uint8), 3, "image 3")
