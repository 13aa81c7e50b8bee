"""JPEG files that lie in memory, decoded by torchvision on the CPU."""

from torch import Tensor

from sslmed_dist.data.images.decode import MOST_PIXELS

# bytes in which a file states its size, with the previews and colour profiles before it
MOST_HEADER = 2**20


def decode_jpeg(data: Tensor, channels: int, where: str) -> Tensor:
    """One JPEG file (uint8 (bytes,)) as uint8 (channels, H, W) on the CPU. ``ValueError`` beginning with ``where``."""
    from torchvision.io import ImageReadMode
    from torchvision.io import decode_jpeg as decode

    height, width = jpeg_size(data[:MOST_HEADER].numpy().tobytes())
    if height * width > MOST_PIXELS:
        raise ValueError(f"{where} is {width} x {height} pixels; allowed: at most {MOST_PIXELS:,}")
    try:
        image: Tensor = decode(data, ImageReadMode.RGB if channels == 3 else ImageReadMode.GRAY)
    except RuntimeError as error:
        raise ValueError(f"{where} is corrupt: {str(error).splitlines()[0].rsplit(', ', 1)[-1]}") from error
    return image


def jpeg_size(data: bytes) -> tuple[int, int]:
    """(height, width) that the header of a JPEG file states (ITU-T T.81, B.2.2); (0, 0) where it has none, which
    decoding says. The decoder takes memory for it before it looks at the pixels."""
    position = 2
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # a byte that only fills
            position += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # the start of a frame
            return int.from_bytes(data[position + 5 : position + 7]), int.from_bytes(data[position + 7 : position + 9])
        position += 2 + int.from_bytes(data[position + 2 : position + 4])
    return 0, 0
