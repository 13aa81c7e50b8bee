"""A frozen encoder on whole exams: features and probe against slow references, missing labels, label shares, floors."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sslmed_dist.data.dataset import Subset
from sslmed_dist.data.exams.mrnet import MRNet
from sslmed_dist.data.joined import Joined
from sslmed_dist.data.phantom import write_knee
from sslmed_dist.downstream import METADATA, ExamProbe, Features, Metadata, SplitFeatures, extract_splits, predict
from sslmed_dist.downstream.linear import LinearProbe
from sslmed_dist.downstream.predictions import compare, measure
from sslmed_dist.views.standard import StandardViews

TOO_MANY = 12  # slices of a clip: more than any exam has


class Corners(nn.Module):
    """Three features of a slice that a reference computes as easily."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([images.mean((1, 2, 3)), images.amax((1, 2, 3)), images[:, 0, 0, 0]], 1)


@pytest.fixture(scope="module")
def knees(tmp_path_factory: pytest.TempPathFactory) -> MRNet:
    """30 exams of 3 to 6 slices."""
    root = tmp_path_factory.mktemp("knees") / "knee"
    write_knee(root, train=30, valid=1, size=16, slices=(3, 6), planes=("sagittal",))
    return MRNet(root, "train", clip=TOO_MANY, side=16)


def views() -> StandardViews:
    return StandardViews(16, channels=1, value_range=(0.0, 255.0), mean=(0.5,), std=(0.5,))


PARTS = {"train": torch.arange(0, 16), "val": torch.arange(16, 22), "test": torch.arange(22, 30)}


def made_up(seed: int = 0, missing: float = 0.0) -> SplitFeatures:
    """Features of exams with two labels, the first of which follows the first feature."""
    generator = torch.Generator().manual_seed(seed)
    parts = {}
    for start, (name, count) in zip((0, 1000, 2000), (("train", 60), ("val", 30), ("test", 40)), strict=True):
        x = torch.randn(count, 4, generator=generator)
        labels = torch.stack([x[:, 0] > 0, torch.rand(count, generator=generator) > 0.6], 1).float()
        labels[torch.rand(count, 2, generator=generator) < missing] = torch.nan
        ids = torch.arange(count) + start
        parts[name] = Features(x, labels, ids.clone(), ids)
    return SplitFeatures(**parts, task="multi", classes=("acl", "meniscus"))


def test_features_of_an_exam_are_mean_and_maximum_over_its_slices(knees: MRNet) -> None:
    found = extract_splits(Corners(), knees, PARTS, views=views(), device="cpu", batch_size=5)
    for name, rows in PARTS.items():
        for row, features in zip(rows.tolist(), getattr(found, name).x, strict=True):
            slices = [
                Corners()((knees.slices(row, torch.tensor([k])).float() / 255 - 0.5) / 0.5)[0]
                for k in range(int(knees.counts[row]))
            ]
            expected = []
            for column in range(3):
                expected.append(sum(float(each[column]) for each in slices) / len(slices))
            for column in range(3):
                expected.append(max(float(each[column]) for each in slices))
            assert features.tolist() == pytest.approx(expected, abs=1e-5)


def test_a_missing_label_takes_no_part_in_the_fit() -> None:
    """One step of the probe by hand: the gradient of the mean cross entropy over the labels that are known."""
    splits = made_up(missing=0.3)
    x, labels = splits.train.x, splits.train.labels
    weight, bias = ExamProbe(learning_rates=(0.5,), epochs=1, batch_size=1000).fit(splits.train, 2, seed=0)
    known = [(i, k) for i in range(len(x)) for k in range(2) if not math.isnan(float(labels[i, k]))]
    assert 0 < len(known) < labels.numel()
    for k in range(2):
        gradient, offset = torch.zeros(4), 0.0
        for i, column in known:
            if column == k:
                error = (0.5 - float(labels[i, k])) / len(known)
                gradient, offset = gradient + error * x[i], offset + error
        assert torch.allclose(weight[0, :, k], -0.5 * gradient, atol=1e-6)
        assert float(bias[0, k]) == pytest.approx(-0.5 * offset, abs=1e-6)


def test_measures_leave_missing_labels_out_and_arms_compare() -> None:
    splits = made_up(missing=0.3)
    predictions = ExamProbe().predict(splits, seed=0)
    scores = {score.metric: score.value for score in measure(predictions, "exam_probe", seed=0, draws=50)}
    by_hand = []
    for column in range(2):
        truth, guess = predictions.labels[:, column].tolist(), predictions.scores[:, column].tolist()
        known = list(zip(guess, truth, strict=True))
        pairs = [(p, n) for p, t in known if t == 1 for n, s in known if s == 0]
        by_hand.append(sum((p > n) + 0.5 * (p == n) for p, n in pairs) / len(pairs))
    assert [scores["auc/acl"], scores["auc/meniscus"]] == pytest.approx(by_hand)
    assert scores["auc"] == pytest.approx(sum(by_hand) / 2) and by_hand[0] > 0.9
    same = compare(predictions, predictions, "exam_probe", seed=0, draws=50)
    assert [score.value for score in same] == [0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="only predictions of the same test samples"):
        compare(predictions, replace(predictions, labels=1 - predictions.labels), "exam_probe", seed=0)


def test_with_all_labels_it_is_the_linear_probe() -> None:
    splits = made_up()
    mine, plain = ExamProbe().predict(splits, seed=3), LinearProbe().predict(splits, seed=3)
    assert mine.scores.equal(plain.scores) and mine.note == plain.note


@pytest.mark.parametrize(("share", "labelled"), [(1.0, 60), (0.5, 30), (0.05, 3), (0.001, 2)])
def test_a_share_of_the_labels(share: float, labelled: int) -> None:
    splits = made_up()
    probe = ExamProbe(label_share=share)
    few = probe.predict(splits, seed=0)
    assert (f"labels of {labelled} of 60 training exams" in few.note) == (share < 1)
    turned = torch.arange(59, -1, -1)
    train = splits.train
    other = Features(train.x[turned], train.labels[turned], train.groups[turned], train.index[turned])
    again = probe.predict(replace(splits, train=other), seed=0)
    assert torch.allclose(few.scores, again.scores, atol=1e-6)  # by id, so the same exams in any order


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1])
def test_a_share_that_cannot_be(share: float) -> None:
    with pytest.raises(ValueError, match=r"^exam_probe.label_share: expected a share above 0 and at most 1"):
        ExamProbe(label_share=share)


def test_a_site_without_one_class_says_so_and_gets_figures_of_the_others() -> None:
    splits = made_up()
    parts = {name: getattr(splits, name) for name in ("train", "val", "test")}
    for name, part in parts.items():
        labels = part.labels.clone()
        labels[:, 1] = 0.0
        parts[name] = replace(part, labels=labels)
    scores = measure(ExamProbe().predict(replace(splits, **parts), seed=0), "exam_probe", seed=0, draws=50)
    values = {score.metric: score for score in scores}
    assert values["auc"].value == values["auc/acl"].value
    assert values["auc/meniscus"].value is None and "every test sample is meniscus = 0" in values["auc/meniscus"].note
    assert "labels never positive in train, so that their AUC says nothing: meniscus" in values["auc"].note


def test_samples_with_some_labels_are_used_by_this_probe_alone(knees: MRNet) -> None:
    def of(evaluator: LinearProbe) -> int:
        found = predict(
            Corners(), knees, PARTS, evaluators={"p": evaluator}, views=views(), device="cpu", seed=0
        )  # fmt: skip
        return len(found["p"].labels)

    before = knees.labels.clone()
    try:
        knees.labels[0, 1] = torch.nan
        assert of(ExamProbe()) == 8
        with pytest.raises(ValueError, match="one missing label is enough"):
            of(LinearProbe())
    finally:
        knees.labels = before


def test_the_floor_knows_the_metadata_and_looks_at_no_image(knees: MRNet, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ExamProbe().floor == METADATA

    def never(*_: object, **__: object) -> None:
        raise AssertionError("an image was read")

    monkeypatch.setattr(MRNet, "fetch", never)
    found = extract_splits(Metadata(), knees, PARTS, views=views(), device="cpu")
    counts = knees.counts[PARTS["test"]].float()
    column = found.test.x[:, 0]
    assert torch.corrcoef(torch.stack([counts, column]))[0, 1] == pytest.approx(1.0, abs=1e-5)
    assert found.test.labels.equal(knees.labels[PARTS["test"]]) and found.val.index.equal(knees.ids[PARTS["val"]])
    # The same exams as two sets joined: columns and scales are those of train.
    rest = torch.cat([PARTS["val"], PARTS["test"]])
    joined = Joined([Subset(knees, PARTS["train"]), Subset(knees, rest)])
    places = {name: torch.nonzero(torch.isin(joined.ids, knees.ids[rows]))[:, 0] for name, rows in PARTS.items()}
    features = Metadata().features(joined, places)
    assert all(torch.equal(features[name], getattr(found, name).x) for name in PARTS)
