"""Knee phantoms: small findings, labels that go together as in MRNet, DICOM examinations, both sides."""

from pathlib import Path

import pytest
import torch

from sslmed_dist.data.exams.exams import Exams
from sslmed_dist.data.phantom import write_knee_exams
from sslmed_dist.data.phantom.knee import unequal_sites
from sslmed_dist.data.phantom.knee_anatomy import Knee, draw_knee
from sslmed_dist.data.phantom.publish import JOINT, draw_joint
from sslmed_dist.randomness import key


def test_small_findings_change_few_pixels_of_few_slices() -> None:
    """A small bruise, tear or gap is what differs from a healthy knee, and nothing else."""
    for name, most in (("acl", 0.006), ("meniscus", 0.004), ("abnormal", 0.01)):
        for subject in (key(0, "knee", 5), key(0, "knee", 6)):
            found = {"abnormal": True, "acl": False, "meniscus": False} | {name: True}
            with_it = draw_knee(Knee(subject, **found, small=True), "sagittal", 12, 64)
            without = draw_knee(Knee(subject, False, False, False, small=True), "sagittal", 12, 64)
            # those of an abnormal knee may have a bruise beside the tear: compared with one that has no tear
            changed = (with_it - without).abs() > 0.05  # (S, H, W)
            slices = changed.flatten(1).any(1).sum()
            assert 0 < changed.float().mean() < most and 0 < int(slices) <= 7, (name, changed.float().mean(), slices)


def test_labels_go_together_as_in_mrnet() -> None:
    ids = torch.arange(1130)
    labels = draw_joint(ids, {"abnormal": 0, "acl": 0, "meniscus": 0}, 0, "x")
    rows = torch.stack([labels[name] for name in ("abnormal", "acl", "meniscus")], 1).int().tolist()
    assert {combination: rows.count(list(combination)) for combination in JOINT} == JOINT
    some = draw_joint(torch.arange(113), {"abnormal": 0, "acl": 0, "meniscus": 0}, 0, "x")
    for name, positive in {"abnormal": 91.3, "acl": 20.8, "meniscus": 39.7}.items():
        assert abs(int(some[name].sum()) - positive) < 2


def test_knee_examinations_have_series_sides_scanners_and_empty_cells(tmp_path: Path) -> None:
    root = write_knee_exams(tmp_path / "set", exams=10, scanners=5, size=16, slices=(2, 3), missing=0.2)
    sagittal = Exams(root, "all", "sagittal", size=16, mm=9.0, series={"sagittal": "pd", "coronal": "t1", "axial": ""})
    slots = [record["slots"] for record in sagittal.records]
    assert len(sagittal) == 10 and all("sagittal" in names for names in slots)
    assert 0 < sum("coronal" in names for names in slots) < 10  # some contrasts are missing
    assert sorted(sagittal.scanners.tolist()) == [k // 2 for k in range(10)]
    assert bool(sagittal.labels.isnan().any()) and sagittal.classes == ("abnormal", "acl", "meniscus")
    assert {record["laterality"] for record in sagittal.records} == {"left", "right", ""}
    assert max(record["oblique"] for record in sagittal.records) > 5


@pytest.mark.parametrize("kind", ["left", "right"])
def test_a_knee_shows_the_side_that_it_says(kind: str) -> None:
    """The fibula is on the outside: in the patient's left half of a left knee."""
    healthy = [Knee(key(0, n), False, False, False) for n in range(40)]
    knees = [knee for knee in healthy if knee.laterality == kind]
    assert 8 < len(knees) < 32
    # columns of coronal slices run from right to left; below and behind the joint, in fat, dark lines are the fibula's
    below = draw_knee(knees[0], "coronal", 24, 64, "t1")[16, 40:62]
    dark = (below < 0.2).float().sum(0)
    left, right = float(dark[36:50].sum()), float(dark[14:28].sum())
    assert left > 2 * right if kind == "left" else right > 2 * left


def test_unequal_sites_differ_in_size_and_in_torn_menisci() -> None:
    ids = torch.arange(600)
    torn = draw_joint(ids, {"abnormal": 0, "acl": 0, "meniscus": 0}, 0, "x")["meniscus"]
    sites = unequal_sites(ids, torn, 3, 0)
    assert torch.bincount(sites).tolist() == [133, 200, 267]  # 1 : 1.5 : 2
    shares = [float(torn[sites == site].float().mean()) for site in range(3)]
    assert 0.0 < shares[0] < shares[1] - 0.05 < shares[2] - 0.1
    turned = torch.arange(599, -1, -1)
    assert unequal_sites(ids[turned], torn[turned], 3, 0)[turned].equal(sites)  # by id, not by place
    assert unequal_sites(ids[:5], torn[:5], 1, 0).tolist() == [0] * 5
