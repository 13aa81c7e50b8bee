"""Runs made to fail on purpose are named for what ails them, healthy ones are named healthy."""

import dataclasses
import html
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from sslmed_dist import checkpoint, config
from sslmed_dist.cli import main
from sslmed_dist.json_files import read_object
from sslmed_dist.report import write_report
from sslmed_dist.run_folder import Metrics
from sslmed_dist.verbs.verdict import measures, reading, tool
from tests.federation import tiny as small
from tests.verbs.verdict import runs

HEALTHY = reading.Facts(
    method="contrastive",
    steps=100,
    images=100,
    now={"embedding_std": 0.5, "alignment": 0.2, "uniformity": -1.0, "told_apart": 0.9},
    first={"embedding_std": 0.5, "alignment": 0.4, "uniformity": -1.0, "told_apart": 0.8},
    views={"view_distance": 0.3},
    embedding={"embedding_std": 0.9, "effective_rank": 12.0},
    losses=(3.0, 2.0),
    copies=0.0,
    grown=1.2,
    pushes=True,
)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.images(tmp_path_factory.mktemp("shapes"))


def parameters() -> list[Any]:
    """Every case; another method and the rarest fault are slow."""
    more = {"SimCLR", "BYOL", "jigsaw", "views that are the image itself"}
    return [
        pytest.param(*key, id="-".join(key), marks=[pytest.mark.slow] if key[1] in more else []) for key in runs.CASES
    ]


@pytest.mark.parametrize(("wanted", "case"), parameters())
def test_a_run_is_named_for_what_it_is(
    archive: Path, tmp_path: Path, wanted: str, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = runs.repeated(archive) if wanted == "copies" else archive
    folder = runs.train(source, tmp_path, "run", runs.CASES[wanted, case])
    capsys.readouterr()
    assert main(["verdict", str(folder)]) == (0 if wanted == "healthy" else 1)
    said = capsys.readouterr().out
    written = read_object(folder / "verdict" / "last.json")
    assert written["verdict"] == wanted, said
    assert said.startswith("verdict: run") and written["words"] in said
    assert ("what usually helps" in said) == (wanted != "healthy")
    picture = folder / "verdict" / "last.png"
    assert picture.is_file() == (case != "jigsaw")  # its views are no two views of one image


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({}, "healthy"),
        ({"copies": 0.3}, "copies"),
        ({"grown": 20.0}, "learning rate"),
        ({"losses": (3.0, math.inf)}, "learning rate"),
        ({"pushes": False}, "no negatives"),
        ({"pushes": None}, "healthy"),
        ({"embedding": {"embedding_std": 0.01}}, "collapsed"),
        ({"embedding": {}, "now": {**HEALTHY.now, "embedding_std": 0.01}}, "collapsed"),
        ({"views": {"view_distance": 0.8}, "now": {**HEALTHY.now, "told_apart": 0.55}}, "views too strong"),
        ({"views": {"view_distance": 0.8}}, "healthy"),
        ({"views": {"view_distance": 0.001}}, "views too weak"),
        ({"now": HEALTHY.first}, "not learning"),
        ({"now": HEALTHY.first, "steps": 3}, "too early"),
        ({"now": HEALTHY.first, "steps": None}, "not learning"),
        ({"embedding": {"embedding_std": 0.01}, "steps": 3}, "too early"),
        ({"now": {"embedding_std": 0.5}, "views": {}}, "healthy"),
        ({"now": {"embedding_std": 0.5}, "views": {}, "losses": (3.0, 3.0)}, "not learning"),
    ],
)
def test_numbers_become_words(changed: dict[str, Any], wanted: str) -> None:
    found = reading.read(dataclasses.replace(HEALTHY, **changed))
    assert found.name == wanted
    assert bool(found.mends) == (wanted not in ("healthy", "too early"))


def test_told_apart_is_the_area_under_the_curve_of_cosines() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (functional.normalize(torch.randn(7, 3, generator=generator).double(), dim=1) for _ in range(2))
    pairs = [
        1.0 if own > other else 0.5 if own == other else 0.0
        for i in range(7)
        for own in [float(first[i] @ second[i])]
        for j in range(7)
        for k in range(7)
        if j != k
        for other in [float(first[j] @ second[k])]
    ]
    assert measures.told_apart(first, second) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    one = first[:1].expand(7, -1)
    assert measures.told_apart(one, one) == 0.5 and measures.found_again(one, one) == pytest.approx(1 / 7)
    assert measures.told_apart(first, first) > 0.99 and measures.found_again(first, first) == 1.0


def test_a_run_too_young_is_not_judged_and_one_without_metrics_is(archive: Path, tmp_path: Path) -> None:
    folder = runs.train(archive, tmp_path, "young", {"optim": {"lr": 1.0e-9}}, epochs=1)
    (folder / "metrics.jsonl").unlink()
    found = tool.verdict(folder)
    assert found.name == "too early" and found.healthy


def test_what_cannot_be_judged_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verdict", str(tmp_path)]) == 2
    assert re.fullmatch(r"sslmed.*: no run folder with checkpoints.*\n", capsys.readouterr().err)


def test_the_run_is_left_as_it_was_and_its_report_says_the_verdict(archive: Path, tmp_path: Path) -> None:
    folder = runs.train(archive, tmp_path, "kept", {}, epochs=1)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    tool.verdict(folder)
    assert {file: file.read_bytes() for file in before} == before
    new = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert new - {file.relative_to(folder).as_posix() for file in before} == {"verdict/last.json", "verdict/last.png"}
    page, _ = write_report([folder])
    assert f"verdict after 4 steps: {read_object(folder / 'verdict' / 'last.json')['words']}" in html.unescape(
        page.read_text()
    )
    assert checkpoint.load(next((folder / "checkpoints").glob("*.pt")))["kind"] == "training"


def test_an_earlier_checkpoint_is_judged_by_what_was_logged_until_then(archive: Path, tmp_path: Path) -> None:
    folder = runs.train(archive, tmp_path, "two", {"plan": {"keep_every": 4}}, epochs=2)
    tool.verdict(folder, "step_4")
    early = read_object(folder / "verdict" / "step_4.json")
    losses = {row["step"]: row["value"] for row in Metrics(folder / "metrics.jsonl").read() if row["name"] == "loss"}
    assert max(losses) == 8 and early["done"] == "4 steps"
    assert early["facts"]["losses"] == [losses[4]]


@pytest.mark.slow
def test_a_round_of_a_federation_is_judged_by_its_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = small.settings(tmp_path)
    folder = small.federate(chosen, monkeypatch)
    tool.verdict(folder)  # the run folder's own file says where the data is
    written = read_object(folder / "verdict" / "last.json")
    assert written["done"] == "round 2" and written["facts"]["steps"] is None
    assert written["facts"]["pushes"] is None  # heads stay at the sites
    (folder / "config.yaml").write_text(config.dump(config.replace(chosen, data={"root": None})))
    with pytest.raises(ValueError, match="a round of a federation names no data; allowed: .* data.root=PATH"):
        tool.verdict(folder)
    assert tool.verdict(folder, overrides=[f"data.root={chosen.data['root']}"]).name == written["verdict"]
