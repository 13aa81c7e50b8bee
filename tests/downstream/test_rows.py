"""From an encoder to rows: per site, pooled over sites, compared between arms, written whole."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from sslmed_dist.downstream import (
    RawPixels,
    compared_rows,
    pooled_rows,
    predict,
    rows_of,
)
from sslmed_dist.downstream.metrics import Score
from sslmed_dist.downstream.predictions import Predictions
from sslmed_dist.downstream.rows import Row, write_rows
from tests import device_cases
from tests.device_cases import EVALUATORS, halves, site
from tests.differences import require_within
from tests.downstream.scale import Scale


def made(encoder: nn.Module, number: int) -> dict[str, Predictions]:
    return predict(
        encoder, halves(), site(number), evaluators=EVALUATORS, views=Scale(), device="cpu", seed=0
    )  # fmt: skip


def test_rows_are_written_as_they_are(tmp_path: Path) -> None:
    out = tmp_path / "evaluate" / "local.json"
    rows = rows_of(made(RawPixels(), 0), arm="local", site="north", seed=0)
    write_rows(out, rows, part="encoder")
    written = json.loads(out.read_text())
    assert written == {"part": "encoder", "rows": [row.to_tree() for row in rows]}
    assert [path.name for path in out.parent.iterdir()] == ["local.json"]
    assert {(row.arm, row.site, row.score.n, row.score.groups) for row in rows} == {("local", "north", 20, 20)}
    assert [row.score.evaluator for row in rows] == ["knn"] * 3 + ["linear"] * 3
    first = rows[0].score
    assert written["rows"][0] == {"arm": "local", "site": "north", **dataclasses.asdict(first)}
    assert (written["rows"][0]["metric"], written["rows"][0]["value"]) == (first.metric, first.value)


def test_pooled_rows_hold_the_samples_of_all_sites() -> None:
    north, south = made(RawPixels(), 0), made(RawPixels(), 1)
    pooled = pooled_rows([north, south], arm="local", seed=0)
    assert {(row.site, row.score.n) for row in pooled} == {("all", 40)}
    each = [rows_of(one, arm="local", site="x", seed=0)[0].score.value for one in (north, south)]
    assert pooled[0].score.value == pytest.approx(sum(each) / 2)


def test_compared_rows_are_paired_differences() -> None:
    torch.manual_seed(0)
    first, second = made(RawPixels(), 0), made(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), 0)
    rows = compared_rows(first, second, arms=("federated", "local"), site="north", seed=0)
    values = [rows_of(one, arm="x", site="north", seed=0)[0].score.value for one in (first, second)]
    assert rows[0].arm == "federated - local" and rows[0].difference is True
    assert rows[0].score.value == pytest.approx(values[0] - values[1])
    same = compared_rows(first, first, arms=("a", "b"), site="north", seed=0)[0]
    assert (same.score.value, same.score.low, same.score.high) == (0, 0, 0)
    with pytest.raises(ValueError, match="knn: only predictions of the same test samples can be compared"):
        compared_rows(first, made(RawPixels(), 1), arms=("a", "b"), site="north", seed=0)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_rows() -> None:
    require_within(device_cases.rows("cpu"), device_cases.rows("cuda"), device_cases.rows_tolerance)


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    write_rows(tmp_path / "knn.json", [])
    before = (tmp_path / "knn.json").read_text()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_rows(tmp_path / "knn.json", [Row("a", "all", Score("knn", "auc", float("nan"), None, None, 1, 1, ""))])
    assert (tmp_path / "knn.json").read_text() == before
    assert len(list(tmp_path.iterdir())) == 1
