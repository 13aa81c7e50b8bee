"""Compressed DICOM: decoded where a decoder is installed, else the line says what to install; nothing on stderr."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEGLosslessSV1

from sslmed_dist.data.exams.one_series import read_one
from sslmed_dist.data.phantom.chaos import write_series
from sslmed_dist.data.scans import dicom_pixels
from sslmed_dist.data.scans.dicom import read_series

VOXELS = np.random.default_rng(0).integers(0, 900, (33, 21, 3)).astype(np.int16)
AFFINE = np.diag([-1.5, -1.5, 4.0, 1.0])


def lossless(path: Path) -> None:
    """The file's pixels as JPEG Lossless, by gdcm."""
    gdcm = pytest.importorskip("gdcm", reason="python-gdcm is not installed")
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


def test_jpeg_lossless_gives_every_value_and_damage_is_named(tmp_path: Path, capfd: Any) -> None:
    files = write_series(tmp_path, VOXELS, AFFINE)
    for path in files:
        lossless(path)
    assert pydicom.dcmread(files[0]).file_meta.TransferSyntaxUID == JPEGLosslessSV1
    assert np.array_equal(read_series(tmp_path).voxels, VOXELS)
    content = files[1].read_bytes()
    start = content.rindex(b"\xff\xd8") + 60
    files[1].write_bytes(content[:start] + bytes(200) + content[start + 200 :])  # libjpeg goes on, and says so
    with pytest.raises(ValueError, match=f"^{files[1]}: pixels .*cannot be decoded: Corrupt JPEG data"):
        read_series(tmp_path)
    assert capfd.readouterr().err == ""


def test_without_a_decoder_the_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_series(tmp_path, VOXELS, AFFINE)
    header = pydicom.dcmread(files[1])
    header.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8 nonsense"])
    header["PixelData"].is_undefined_length = True
    header.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    header.save_as(files[1])
    monkeypatch.setattr(dicom_pixels, "find_spec", lambda name: None)
    line = r"JPEG Lossless.* cannot be decoded: no decoder for them is installed; pip install 'sslmed-dist\[medical\]'"
    with pytest.raises(ValueError, match=f"^{files[1]}: .*{line} brings one .python-gdcm."):
        read_series(tmp_path)


@pytest.mark.parametrize("tag", ["InstanceNumber", "Rows", "PixelSpacing", "SeriesNumber", "ImagesInAcquisition"])
def test_numbers_that_are_none_are_one_line(tag: str, tmp_path: Path, capfd: Any) -> None:
    """The bytes of a tag replaced by ``1A``, which pydicom parses only when asked."""
    path = write_series(tmp_path, VOXELS, AFFINE, tags={"ImagesInAcquisition": 3, "SeriesDescription": "t2"})[1]
    header = pydicom.dcmread(path)
    kind = header[tag].VR
    header.save_as(path)
    content, number = path.read_bytes(), pydicom.datadict.tag_for_keyword(tag)
    mark = (number >> 16).to_bytes(2, "little") + (number & 0xFFFF).to_bytes(2, "little") + kind.encode()
    at = content.index(mark) + 6
    length = int.from_bytes(content[at : at + 2], "little")
    wrong = b"1A" if kind != "US" else b"\x00\x00"
    path.write_bytes(content[: at + 2] + wrong.ljust(length)[:length] + content[at + 2 + length :])
    try:
        voxels = read_one(tmp_path)[0].voxels
    except ValueError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
    else:  # a number that no voxel depends on
        assert tag in ("SeriesNumber",) and np.array_equal(voxels, VOXELS)
    assert capfd.readouterr().err == ""
