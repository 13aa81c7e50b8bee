"""The full-width SKID v3 on whole slices: a chunk at a time is the same function and stays below 8 GB."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch
from sslmed_dist import registry
from sslmed_dist.methods import METHODS
leaf = {"name": "diagnose", "encoder": {"name": "skid"}, "head": "max", "classes": 3}
with torch.device("meta"):
    method = registry.build(METHODS, leaf, "method")
method = method.to_empty(device="cpu").eval()
with torch.no_grad():
    for name, value in method.state_dict().items():
        if value.is_floating_point():
            value.fill_(1.0) if value.ndim == 1 else value.uniform_(-1, 1).mul_((6 / value[0].numel()) ** 0.5)
slices = torch.rand(1, 3, 1, 256, 256)
chunked = method.maps(slices, torch.tensor([3]))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
method.chunk = 1
alone = method.maps(slices, torch.tensor([3]))
gap = float((chunked - alone).norm() / alone.norm())
print(chunked.shape == (1, 3, 4096, 16, 16), peak, gap)
"""


@pytest.mark.slow
def test_chunks_of_the_full_width_stay_below_8_gb() -> None:
    """In a process of its own, whose peak is that of the default chunk."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    shape, peak, gap = done.stdout.split()
    print(f"peak {int(peak) / 1e9:.2f} GB, gap {float(gap):.1e}")
    assert shape == "True" and 2e9 < int(peak) < 8e9 and float(gap) < 1e-5
