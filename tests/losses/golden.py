"""Golden values of every loss: ``python -m tests.losses.golden`` writes ``tests/golden/losses.json`` anew.

Run it only when a loss is added or an equation is corrected, and read the diff: a changed number is a changed method.
"""

import inspect
import json
from pathlib import Path

import torch
from torch import Tensor

from sslmed_dist import randomness
from sslmed_dist.losses import LOSSES

FILE = Path(__file__).parent.parent / "golden" / "losses.json"
TEMPERATURES = (0.05, 0.2, 1.0)


def embeddings(samples: int, width: int, *parts: str | int) -> tuple[Tensor, Tensor]:
    """Two views (samples, width), float64, of keyed normal numbers; the second is the first plus as much noise."""
    cells = torch.arange(samples * width).reshape(samples, width)
    first = randomness.normal(*parts, "first", cells)
    return first, first + randomness.normal(*parts, "second", cells)


def compute() -> dict[str, dict[str, float]]:
    """Name -> temperature -> value on 6 samples of width 5; of losses without a temperature the one value on 12
    samples of width 4, with their own defaults."""
    values = {}
    for name in sorted(set(LOSSES) - {"sum"}):
        if "temperature" in inspect.signature(LOSSES[name]).parameters:
            pair = embeddings(6, 5, "golden losses")
            values[name] = {str(t): LOSSES[name](temperature=t)(*pair).item() for t in TEMPERATURES}
        else:
            values[name] = {"default": LOSSES[name]()(*embeddings(12, 4, "golden losses")).item()}
    return values


if __name__ == "__main__":
    FILE.write_text(json.dumps(compute(), indent=2) + "\n")
    print(f"wrote {FILE}")
