"""Files of weights that hold a program, or nothing: one line each."""

from pathlib import Path

import pytest
import torch

from sslmed_dist import weights
from tests.test_weights import OURS


def test_a_program_is_told_from_weights(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.jit.save(torch.jit.script(torch.nn.Sequential(torch.nn.Linear(3, 2))), str(path))
    with pytest.raises(
        ValueError, match=r"^model: TorchScript, a program; allowed: .*load\(FILE\)\.state_dict\(\), OUT"
    ):
        weights.read(path, "model")
    torch.save({"state_dict": OURS}, path)
    assert weights.read(path, "model").keys() == {f"state_dict.{name}" for name in OURS}


def test_an_encoder_of_zeros_is_refused() -> None:
    zeros = {name: torch.zeros_like(value) for name, value in OURS.items()}
    with pytest.raises(ValueError, match="^zeros: all weights of this encoder are 0 in it"):
        weights.find(zeros, OURS, "zeros")
    # Scales and offsets do not make it less so; one kernel does.
    scaled = {name: value + 1 if value.ndim == 1 else value for name, value in zeros.items()}
    with pytest.raises(ValueError, match="are 0 in it"):
        weights.find(scaled, OURS, "scaled")
    kernel = next(name for name, value in OURS.items() if value.ndim == 4)
    assert weights.find(scaled | {kernel: OURS[kernel]}, OURS, "one").state[kernel].any()
