"""The files of a federation's rounds: which stay, which are none, which are refused."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sslmed_dist.federation.local_round import initial_arrays, site_states
from sslmed_dist.federation.round_files import last_round, save_round
from tests.federation import tiny


def test_rounds_are_pruned_like_steps_and_the_first_weights_stay(tmp_path: Path) -> None:
    chosen = tiny.settings(tmp_path, plan={"keep_last": 2, "keep_every": 3})
    arrays = initial_arrays(chosen)
    for number in range(9):
        save_round(tmp_path / "run", number, arrays, chosen)
    kept = sorted(int(path.stem.rsplit("_", 1)[1]) for path in (tmp_path / "run" / "checkpoints").glob("round_*.pt"))
    assert kept == [0, 3, 6, 7, 8]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"round": None}, "contradicts its name: it holds no round"),
        ({"round": 7}, "contradicts its name: it holds round 7"),
        ({"round": "2"}, "contradicts its name: it holds round '2'"),
        ({"round": True}, "contradicts its name: it holds round True"),
        ({"kind": "site", "state": {}}, "kind: expected encoder, the shared tensors of a federation, got site"),
    ],
)
def test_a_round_that_is_not_what_its_file_is_called(tmp_path: Path, change: dict[str, Any], line: str) -> None:
    chosen = tiny.settings(tmp_path)
    path = save_round(tmp_path / "run", 2, initial_arrays(chosen), chosen)
    payload = torch.load(path, weights_only=True) | change
    torch.save({key: value for key, value in payload.items() if value is not None}, path)
    with pytest.raises(ValueError, match=f"^{re.escape(f'{path}: {line}')}$"):
        last_round(tmp_path / "run", chosen)


@pytest.mark.parametrize("name", ["round_00001 (copy).pt", "round_best.pt", "round_1.pt"])
def test_a_copy_that_somebody_made_is_no_round(tmp_path: Path, name: str) -> None:
    chosen = tiny.settings(tmp_path, plan={"keep_last": 1})
    arrays = initial_arrays(chosen)
    checkpoints, state = tmp_path / "run" / "checkpoints", tmp_path / "state"
    save_round(tmp_path / "run", 1, arrays, chosen)
    state.mkdir()
    for copy in (checkpoints / name, state / f"state_{name}"):
        shutil.copy(checkpoints / "round_00001.pt", copy)
    for number in (2, 3):
        save_round(tmp_path / "run", number, arrays, chosen)
    last = last_round(tmp_path / "run", chosen)
    assert last is not None and last[0] == 3
    assert {path.name for path in checkpoints.iterdir()} == {name, "round_00003.pt"}
    assert site_states(state) == {}
