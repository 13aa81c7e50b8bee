"""How labels stand together: MRNet's published figures, slow references, missing labels, the plot and the verb."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sslmed_dist.analysis.labels import concurrence_plot, describe_labels, label_arcs, pairs, ribbon
from sslmed_dist.cli import main
from sslmed_dist.data.phantom.publish import JOINT

NAMES = ("abnormal", "acl", "meniscus")
MRNET = torch.tensor([row for row, count in JOINT.items() for _ in range(count)]).float()


def test_mrnet_has_the_published_scumble() -> None:
    """Table 4.1 of the thesis: mean 0.0531475, coefficient of variation 1.344904; its columns are permuted there."""
    described = describe_labels(MRNET, NAMES)
    assert described.scumble == pytest.approx(0.0531475, abs=5e-8)
    assert described.cv == pytest.approx(1.344904, abs=5e-7)
    assert described.by_label == pytest.approx((0.0658, 0.1830, 0.1048), abs=5e-5)
    assert described.counts == (913, 208, 397) and described.joint[()] == 217
    assert list(described.joint.values()) == [433, 272, 217, 125, 83]


def test_scumble_is_that_of_a_slow_reference() -> None:
    labels = (
        torch.rand(60, 4, generator=torch.Generator().manual_seed(1)) < torch.tensor([0.1, 0.3, 0.5, 0.9])
    ).float()
    counts = labels.sum(0)
    values = []
    for row in labels.tolist():
        ir = [float(counts.max() / counts[k]) for k in range(4) if row[k]]
        values.append(1 - np.prod(ir) ** (1 / len(ir)) / np.mean(ir) if ir else 0.0)
    described = describe_labels(labels, "abcd")
    assert described.scumble == pytest.approx(np.mean(values)) and described.ir == pytest.approx(counts.max() / counts)
    assert described.cv == pytest.approx(np.std(values, ddof=1) / np.mean(values))


def test_samples_with_a_missing_label_are_left_out_and_counted() -> None:
    holes = torch.cat([MRNET, torch.tensor([[1.0, float("nan"), 1.0], [float("nan"), 0.0, 0.0]])])
    described, whole = describe_labels(holes, NAMES), describe_labels(MRNET, NAMES)
    assert described.left_out == 2 and described.scumble == whole.scumble and described.joint == whole.joint
    assert "(of 1130; 2 left out, of which a label is missing)" in described.lines()[0]
    with pytest.raises(ValueError, match="no sample has all of its labels"):
        describe_labels(holes[-2:], NAMES)
    with pytest.raises(ValueError, match=r"one column for each of 2 names, got shape \(1130, 3\)"):
        describe_labels(MRNET, ("a", "b"))


def test_a_label_without_a_sample_has_no_figure() -> None:
    described = describe_labels(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), ("a", "b"))
    assert described.scumble == 0 and np.isnan(described.cv) and np.isnan(described.by_label[1])


def test_arcs_and_ribbons_are_as_wide_as_their_counts() -> None:
    described = describe_labels(MRNET, NAMES)
    arcs = label_arcs(described)
    lengths = [end - start for start, end in arcs]
    assert lengths[0] / lengths[1] == pytest.approx(913 / 208) and arcs[2][1] < 2 * np.pi
    assert pairs(described) == [(0, 1, 208), (0, 2, 397), (1, 2, 125)]
    x, y = ribbon((0.0, 0.5), (2.0, 2.3))
    radius = np.hypot(x, y)
    assert radius.max() == pytest.approx(0.97) and (np.isclose(radius, 0.97)).sum() >= 62


def test_the_verb_prints_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    root = tmp_path / "knee"
    words = ["train=8", "valid=0", "size=16", "slices=[2,3]", "planes=[axial]", "joint=true"]
    assert main(["data", "phantom", "knee", str(root), *words]) == 0
    plot = tmp_path / "plot.png"
    assert main(["data", "labels", "mrnet", str(root), "plane=axial", "side=16", "--plot", str(plot)]) == 0
    out = capsys.readouterr().out
    assert (
        "labels that stand together: abnormal 3, none 2, abnormal + meniscus 2, abnormal + acl + meniscus 1" in out
        and "SCUMBLE: 0.0" in out
        and plot.read_bytes()[:4] == b"\x89PNG"
    )
    assert not (tmp_path / "other.png").exists()
    titles: list[str] = []
    labels = "sslmed_dist.analysis.labels.concurrence_plot"
    monkeypatch.setattr(labels, lambda _, path, title: titles.append(title) or path)
    for _ in range(3):
        assert main(["data", "labels", "mrnet", str(root), "plane=axial", "side=16", "--plot", str(plot)]) == 0
        mark = next(tmp_path.rglob("phantom.json"), None)
        if mark is not None:  # at first in the folder, then beside it, then nowhere
            mark.rename(tmp_path / "phantom.json" if mark.parent == root else tmp_path / "none.json")
    assert titles == ["phantoms", "phantoms", ""]
    assert concurrence_plot(describe_labels(MRNET, NAMES), tmp_path / "other.png").stat().st_size > 1000


def test_a_set_of_one_label_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "phantom", "shapes", str(tmp_path / "set"), "train=8", "val=0", "test=0"]) == 0
    assert main(["data", "labels", "medmnist", str(tmp_path / "set")]) == 2
    assert "has one label a sample" in capsys.readouterr().err
