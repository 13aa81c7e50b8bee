"""Writing NIfTI files: in voxels of our own, or in those of another volume, whose header is copied."""

import gzip
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sslmed_dist.data.scans.nifti import INTENT_ESTIMATE, INTENT_LABEL, MADE_BY
from sslmed_dist.data.scans.regrid import Affine

# Fields of a NIfTI header that hold geometry: nothing else is copied from a volume's header to that of its mask.
GEOMETRY = (
    "pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip


def nifti_bytes(voxels: NDArray[Any], affine: Affine, *, level: int = 6) -> bytes:
    """A gzipped NIfTI-1 file of ``voxels`` (I, J, K) in mm, without time stamp or description. sform and qform are both
    ``affine``, of code 1 (scanner). ``level`` is gzip's."""
    import nibabel

    image = nibabel.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    return gzip.compress(image.to_bytes(), compresslevel=level, mtime=0)


def nifti_like(values: NDArray[Any], affine: Affine, header: Any = None) -> bytes:
    """A gzipped NIfTI file of ``values`` (I, J, K) or (I, J, K, C) in the voxels of another volume, units mm.

    ``header`` is that of the other volume's NIfTI file: its geometry is copied bit for bit. Nothing else is: no text,
    no extension, no time stamp. Without a header (the other volume is DICOM) ``affine`` is written. The header says
    that the voxels are labels (whole numbers) or estimates, and names what made them (``read_intent``).
    """
    stream = io.BytesIO()
    with nifti_stream(stream, values.shape, values.dtype, affine, header) as write:
        write(values)
    return stream.getvalue()


@contextmanager
def nifti_stream(
    stream: IO[bytes], shape: tuple[int, ...], kind: np.dtype[Any], affine: Affine, header: Any = None
) -> Iterator[Callable[[NDArray[Any]], None]]:
    """A function that appends voxels to the file of ``nifti_like``, in ``stream``: first those of the first channel
    (I, J, K), then those of the second, ... So channels need not be in memory together."""
    with gzip.GzipFile(filename="", mode="wb", fileobj=stream, compresslevel=4, mtime=0) as packed:
        packed.write(header_like(shape, kind, affine, header))

        def write(values: NDArray[Any]) -> None:
            for channel in np.moveaxis(values, 3, 0) if values.ndim == 4 else (values,):
                for part in np.moveaxis(channel, 2, 0):  # a slice at a time
                    packed.write(part.astype(kind, copy=False).tobytes(order="F"))

        yield write


def header_like(shape: tuple[int, ...], kind: np.dtype[Any], affine: Affine, header: Any) -> bytes:
    """What stands before the voxels in the file of ``nifti_like``."""
    import nibabel

    one = np.zeros((1,) * len(shape), kind)  # nibabel writes a header together with voxels: here one of them
    new_header = nibabel.Nifti1Header()
    image: Any
    if header is None:
        new_header.set_data_dtype(kind)  # a header that is given keeps its own type, float32
        image = nibabel.Nifti1Image(one, affine, new_header)
        image.set_qform(affine, 1)
        image.set_sform(affine, 1)
        image.header.set_xyzt_units("mm")
    else:
        version = nibabel.Nifti2Image if "unused_str" in header else nibabel.Nifti1Image
        new_header = version.header_class()
        new_header.set_data_shape(one.shape)
        for field in GEOMETRY:
            new_header[field] = header[field]
        new_header["pixdim"][4:] = 1.0  # of time and channels: no geometry of the other volume
        new_header.set_data_dtype(kind)
        image = version(one, None, new_header)
    code = INTENT_LABEL if kind.kind in "iu" else INTENT_ESTIMATE
    image.header["intent_code"], image.header["intent_name"] = code, MADE_BY.encode()
    content: bytes = image.to_bytes()
    written = type(image.header).from_fileobj(io.BytesIO(content))
    written.set_data_shape(shape)
    return bytes(written.binaryblock) + content[len(written.binaryblock) : -one.nbytes]
