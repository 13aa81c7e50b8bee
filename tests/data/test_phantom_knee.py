"""Knee phantoms: small findings, labels that go together as in MRNet, DICOM examinations, both sides."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sslmed_dist.data.exams.exams import Exams
from sslmed_dist.data.phantom import write_knee, write_knee_exams
from sslmed_dist.data.phantom.canvas import Dice
from sslmed_dist.data.phantom.knee import adjusted, unequal_sites
from sslmed_dist.data.phantom.knee_anatomy import Knee, draw_knee, field_of_view
from sslmed_dist.data.phantom.publish import JOINT, draw_joint
from sslmed_dist.data.phantom.scanner import scanner
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


@pytest.mark.parametrize("name", ["acl", "meniscus", "abnormal"])
def test_varied_findings_change_few_pixels_and_healthy_knees_differ_more(name: str) -> None:
    """A finding is a state of a structure that is not the same in any two healthy knees."""
    healthy = {"abnormal": False, "acl": False, "meniscus": False}
    for subject in (key(0, "knee", 5), key(0, "knee", 6)):
        whole = [Knee(one, **healthy, small=True, varied=True) for one in (subject, key(0, "knee", 7))]
        found = Knee(subject, **(healthy | {"abnormal": True, name: True}), small=True, varied=True)
        image, other, torn = (draw_knee(knee, "sagittal", 12, 64, "fs") for knee in (*whole, found))
        changed = (torn - image).abs() > 0.05  # (S, H, W)
        slices = int(changed.flatten(1).any(1).sum())
        assert 0 < changed.float().mean() < 0.01 and 0 < slices <= 7, (name, changed.float().mean(), slices)
        assert ((other - image).abs() > 0.05).float().mean() > 5 * changed.float().mean()


def test_a_close_up_shows_fluid_bright_and_every_exam_has_settings_of_its_own() -> None:
    torn = Knee(key(0, "knee", 5), abnormal=True, acl=False, meniscus=True, small=True, varied=True)
    image = draw_knee(torn, "sagittal", 12, 64, "fs")
    assert float(image.median()) < 0.4 < 0.8 < float(image.max())
    assert 80 < field_of_view(torn) < 101
    machine = scanner(1, 0)
    settings = [adjusted(machine, Dice(key(0, "knee", i))) for i in range(50)]
    gains, gammas = ([getattr(used, name) for used in settings] for name in ("gain", "gamma"))
    assert 0.4 <= min(gains) < 0.5 and 0.9 < max(gains) <= 1.0
    assert 0.75 <= min(gammas) / machine.gamma < 0.8 and 1.25 < max(gammas) / machine.gamma <= 1.33
    assert [used.noise / used.gain for used in settings] == pytest.approx([machine.noise] * 50)
    assert {(used.shading, used.blur, used.site) for used in settings} == {(machine.shading, machine.blur, 1)}


def test_varied_knees_are_written(tmp_path: Path) -> None:
    small = {"train": 2, "valid": 1, "size": 16, "slices": (3, 4), "planes": ("sagittal",)}
    sets = [write_knee(tmp_path / kind, findings=kind, **small) for kind in ("small", "varied")]  # type: ignore[arg-type]
    kinds = [json.loads((root / "phantom.json").read_text())["findings"] for root in sets]
    stacks = [np.load(root / "train" / "sagittal" / "0000.npy") for root in sets]
    assert kinds == ["small", "varied"] and stacks[0].shape == stacks[1].shape
    assert bool((stacks[0] != stacks[1]).any())
