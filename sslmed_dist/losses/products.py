"""Matrix products of large float32 tiles by the library that knows the processor best.

``torch.mm`` on a CPU is oneMKL's, which gives AVX-512 to Intel's processors alone. oneDNN, the library of torch's
convolutions, gives it to all: twice the products per second on an AMD EPYC of family 26, for one copy more of a tile.
Both add up in float32. A machine always takes the same one, so its runs stay the same to the bit.
"""

import platform
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

# Fewest multiplications for which oneDNN is the faster one: a batch of 128 pairs of width 64 is just large enough.
WORTHWHILE = 2**22


def processor() -> str:
    """What the system says about the processor, its maker among it."""
    described = Path("/proc/cpuinfo")  # Linux
    return described.read_text(encoding="utf-8", errors="replace") if described.is_file() else platform.processor()


@cache
def onednn_is_faster() -> bool:
    """Whether this is an AMD processor with AVX-512 and torch was built with oneDNN."""
    vectors = torch.backends.cpu.get_cpu_capability() == "AVX512"
    built = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    return vectors and built and "AuthenticAMD" in processor()


def by_onednn(rows: Tensor, columns: Tensor) -> bool:
    """Whether the tiles of ``rows`` (R, D) against ``columns`` (C, D) are multiplied by oneDNN."""
    if rows.is_cuda or rows.dtype != torch.float32 or len(rows) * columns.numel() < WORTHWHILE:
        return False
    return onednn_is_faster()


def onednn_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, (R, K) x (K, C) -> (R, C), float32 on a CPU, in new memory and without autograd."""
    product: Tensor = F.linear(a.to_mkldnn(), b.T).to_dense()
    return product
