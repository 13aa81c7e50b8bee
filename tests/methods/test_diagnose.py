"""The diagnosis method: its loss against a slow one, missing labels, chunks, padding, ranks, and whole runs."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sslmed_dist import config, distributed, registry
from sslmed_dist.methods import METHODS
from sslmed_dist.methods.diagnose import Diagnose, balance, patches_of
from sslmed_dist.training import build, job
from tests import knees
from tests.gloo import GlooPool

SKID = {"name": "skid", "width": 0.02}
SSLACL = {"name": "sslacl", "width": 0.02}
RESNET = {"name": "resnet", "depth": 9, "stem": "cifar", "width": 4}
HEAD = {"name": "convlstm", "hidden": 4}
WEIGHTS = ((1.0, 4.2074), (4.4327, 1.0), (1.8463, 1.0))  # of the published code
MRNET_COUNTS = ((217, 913), (922, 208), (733, 397))
NAN = math.nan
LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, 0.3], [-3.0, 1.0, 4.0], [-1.0, 1.0, 1.0]], dtype=torch.float64)
TRUTH = torch.tensor([[1.0, 0.0, NAN], [0.0, NAN, 1.0], [NAN, NAN, NAN], [1.0, 1.0, 0.0]])


def diagnosis(**arguments: Any) -> Diagnose:
    """A tiny diagnosis of three labels with keyed weights, in float64."""
    leaf = {"name": "diagnose", "encoder": SKID, "head": HEAD, "classes": 3, **arguments}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made: Diagnose = registry.build(METHODS, leaf, "method")
    return made.double().train()


def clips(exams: int = 3, slices: int = 5, side: int = 32) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(2)
    views = torch.randn(exams, slices, 1, side, side, dtype=torch.float64, generator=source)
    return {"views_0": views, "length": 2 + torch.arange(exams) % (slices - 1), "labels": TRUTH[:exams]}


def slow(weights: Any) -> float:
    """Summed over the known labels of an exam, mean over exams; one number at a time."""
    total = 0.0
    for row, labels in zip(LOGITS.tolist(), TRUTH.tolist(), strict=True):
        for value, label, (one, zero) in zip(row, labels, weights, strict=True):
            p = 1 / (1 + math.exp(-value))
            if label == 1:
                total -= one * math.log(p)
            elif label == 0:
                total -= zero * math.log(1 - p)
    return total / len(LOGITS)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_the_loss_is_the_slow_one_and_missing_labels_add_nothing(weights: Any) -> None:
    logits = LOGITS.clone().requires_grad_()
    terms = diagnosis(weights=weights).objective({"logits": logits}, {"labels": TRUTH})
    assert terms["loss"].item() == pytest.approx(slow(weights or [(1, 1)] * 3), rel=1e-12)
    terms["loss"].backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert torch.equal(logits.grad == 0, TRUTH.isnan())
    # right: (1, 0), (wrong, 1), none, (wrong, 1, wrong)
    assert terms["accuracy"].item() == pytest.approx(4 / 7)


def test_balanced_weights_are_the_published_ones_on_mrnets_counts() -> None:
    made = diagnosis(weights="balanced", label_counts=MRNET_COUNTS)
    assert torch.allclose(made.weights, torch.tensor(WEIGHTS, dtype=torch.float64), atol=6e-5)
    assert balance(0, 5) == balance(5, 0) == [1.0, 1.0]
    one = diagnosis(
        weights="balanced", label_counts=MRNET_COUNTS, names=("abnormal", "acl", "meniscus"), labels=("acl",)
    )
    assert one.labels == ("acl",) and torch.allclose(one.weights[0], made.weights[1])


def test_labels_are_chosen_by_name() -> None:
    made = diagnosis(names=("abnormal", "acl", "meniscus"), labels=("meniscus", "abnormal"))
    assert made.head.out_dim == 2
    assert torch.equal(made.targets(TRUTH)[3], torch.tensor([0.0, 1.0]))


def test_exclusive_classes_are_a_cross_entropy() -> None:
    made = diagnosis(task="single", classes=3, weights="balanced", label_counts=((690, 172, 55),))
    labels = torch.tensor([0, 2, 1, 1])
    terms = made.objective({"logits": LOGITS}, {"labels": labels})
    weights = [1.0, 690 / 172, 690 / 55]
    total = norm = 0.0
    for row, label in zip(LOGITS.tolist(), labels.tolist(), strict=True):
        share = math.exp(row[label]) / sum(map(math.exp, row))
        total, norm = total - weights[label] * math.log(share), norm + weights[label]
    assert terms["loss"].item() == pytest.approx(total / norm, rel=1e-12)
    two = diagnosis(task="single", classes=2, names=("intact", "ruptured"))
    assert two.labels == ("ruptured",) and two.targets(torch.tensor([0, 1])).tolist() == [[0.0], [1.0]]


@pytest.mark.parametrize(
    "arguments",
    [
        {"freeze": True},
        {"freeze": True, "input": "patches"},
        {"freeze": False, "encoder": RESNET, "head": "max"},
        {"freeze": False, "encoder": SSLACL, "head": {"name": "divfram"}},
        {"freeze": True, "encoder": SKID, "head": {"name": "divfram"}},
    ],
)
def test_padded_slices_and_chunks_change_nothing(arguments: dict[str, Any]) -> None:
    """An exam alone gets the logits that it gets padded in a batch; a frozen encoder works in chunks."""
    made, batch = diagnosis(chunk=2, **arguments).eval(), clips()
    whole = made.embed(batch)["logits"]
    for row, length in enumerate(batch["length"].tolist()):
        alone = {"views_0": batch["views_0"][row : row + 1, :length], "length": batch["length"][row : row + 1]}
        assert torch.allclose(made.embed(alone)["logits"][0], whole[row], rtol=1e-9, atol=1e-12)
    made.chunk = 1000
    assert torch.allclose(made.embed(batch)["logits"], whole, rtol=1e-9, atol=1e-12)
    maps = made.maps(batch["views_0"], batch["length"])
    assert torch.equal(made.embed({"maps": maps, "length": batch["length"]})["logits"], made.embed(batch)["logits"])


def test_divfram_sends_each_part_through_its_own_branch() -> None:
    made = diagnosis(encoder=SSLACL, head={"name": "divfram"}, freeze=False).eval()
    batch = clips(2, 11)
    batch["length"] = torch.tensor([11, 5])
    maps = made.maps(batch["views_0"], batch["length"])
    for exam, parts in ((0, [2, 2, 1, 1, 1, 1, 1, 1, 1]), (1, [1, 1, 1, 1, 1, 0, 0, 0, 0])):
        start = 0
        for k, count in enumerate(parts):
            for number in range(start, start + count):
                alone = made.encoder.stem.branch(k, batch["views_0"][exam, number : number + 1])
                assert torch.allclose(maps[exam, number], alone[0])
            start += count
        assert not maps[exam, start:].any()


def test_what_is_trained_and_what_stays(tmp_path: Path) -> None:
    frozen, batch = diagnosis(freeze=True), clips()
    assert all(name.startswith("head.") for name, p in frozen.named_parameters() if p.requires_grad)
    assert not any(module.training for module in frozen.encoder.modules())
    before = {key: value.clone() for key, value in frozen.encoder.state_dict().items()}
    frozen(batch)["loss"].backward()
    assert all(torch.equal(before[key], value) for key, value in frozen.encoder.state_dict().items())
    sslacl = diagnosis(encoder=SSLACL, head={"name": "divfram"}, freeze=False)
    names = {name.split(".")[0] + "." + name.split(".")[1] for name, p in sslacl.named_parameters() if p.requires_grad}
    assert {"encoder.stem", "head.blocks", "head.hidden", "head.linear"} == names
    sslacl(batch)["loss"].backward()
    assert all(p.grad is not None for p in sslacl.parameters() if p.requires_grad)
    tuned = diagnosis(encoder=RESNET, head="max", freeze=False)
    tuned(batch)["loss"].backward()
    assert all(p.grad is not None for p in tuned.parameters())


def test_patches_are_the_centres_of_nine_cells() -> None:
    """85 pixels a cell, 64 a patch, 10 from the cell's corner; a 3 x 3 chequer shows which is which."""
    image = torch.zeros(1, 1, 256, 256)
    for k in range(9):
        top, left = 85 * (k // 3) + 10, 85 * (k % 3) + 10
        image[0, 0, top : top + 64, left : left + 64] = k + 1
    patches = patches_of(image)
    assert patches.shape == (1, 9, 1, 64, 64)
    assert [patch.unique().tolist() for patch in patches[0]] == [[k + 1.0] for k in range(9)]
    assert patches_of(torch.zeros(1, 1, 32, 32)).shape == (1, 9, 1, 7, 7)


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"encoder": RESNET, "head": "divfram"}, "method.head: divfram needs the encoder sslacl or skid, got resnet"),
        ({"encoder": RESNET, "input": "patches"}, "method.input: patches need the encoder sslacl or skid, got resnet"),
        ({"head": "divfram", "input": "patches"}, "method.input: divfram divides whole slices"),
        ({"freeze": False, "cache": "float16"}, "method.cache: keeps what a frozen encoder gives"),
        ({"weights": [[1.0, 2.0]]}, "method.weights: expected 3 pairs (of the value 1, of 0), finite and > 0"),
        ({"weights": [[1.0, 0.0]] * 3}, "method.weights: expected 3 pairs"),
        ({"weights": "balanced"}, "method.label_counts: missing"),
        ({"labels": ["acl"]}, "method.labels: expected some of label 0, label 1, label 2"),
        ({"chunk": 0}, "method.chunk: expected an integer >= 1, got 0"),
        ({"head": "perceptron"}, "method.head.name: 'perceptron' is unknown; allowed: cnn3d, convlstm, divfram"),
    ],
)
def test_a_bad_field_is_named(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        diagnosis(**arguments)
    assert str(caught.value).startswith(said)


def test_single_slices_are_refused() -> None:
    with pytest.raises(ValueError, match=r"diagnose needs examinations \(B, S, C, H, W\), got \(2, 1, 8, 8\)"):
        diagnosis().embed({"views_0": torch.zeros(2, 1, 8, 8)})


def gradients(rows: list[int]) -> tuple[list[float], list[Tensor]]:
    """Mean loss and averaged gradients of this rank's ``rows`` of four exams."""
    world, rank = distributed.world_size(), distributed.rank()
    made = diagnosis(weights=WEIGHTS, head="max")
    own = rows[rank * len(rows) // world : (rank + 1) * len(rows) // world]
    batch = {name: value[own] for name, value in {**clips(4), "labels": TRUTH}.items()}
    terms = made(batch)
    terms["loss"].backward()
    trained = [parameter for parameter in made.parameters() if parameter.requires_grad]
    loss, accuracy = distributed.average_gradients(trained, [terms["loss"], terms["accuracy"]])
    return [float(loss), float(accuracy)], [p.grad for p in trained]


def test_two_ranks_have_the_loss_of_one(gloo: GlooPool) -> None:
    """Missing labels are spread unevenly over the ranks."""
    alone = gradients([0, 1, 2, 3])
    for together in gloo.run(gradients, 2, [0, 1, 2, 3]):
        assert together[0] == pytest.approx(alone[0], rel=1e-12)
        for ours, theirs in zip(together[1], alone[1], strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("knee")
    knees.tree(place)
    return place


def trained(tree: dict[str, Any], name: str) -> dict[str, Tensor]:
    settings = config.replace(config.from_tree(tree, "test"), run={"name": name})
    return dict(job.train(settings).method.state_dict())


@pytest.mark.parametrize("tuned", [False, True])
def test_workers_walk_one_float64_trajectory(folder: Path, gloo: GlooPool, tuned: bool) -> None:
    """A frozen encoder, and one that is trained with batch norm although exams have fewer slices than the clip."""
    method = {"encoder": RESNET, "head": "max", "freeze": False} if tuned else {}
    tree = knees.tree(folder, plan={"precision": "float64", "epochs": 1, "steps_per_epoch": 3}, method=method)
    alone = trained(tree, f"alone-{tuned}")
    together = gloo.run(trained, 2, tree, f"two-{tuned}")
    for key, value in alone.items():
        if value.is_floating_point():
            gap = (together[0][key] - value).norm() / value.norm().clamp_min(1e-3)
            assert gap < 1e-9, key
        assert torch.equal(together[0][key], together[1][key])


def test_data_decides_names_and_counts(folder: Path) -> None:
    settings = config.from_tree(knees.tree(folder, method={"weights": "balanced"}), "test")
    dataset = build.load_data(settings, "train")
    method = build.resolve(settings, dataset).method
    assert method["names"] == list(knees.LABELS) and method["task"] == "multi"
    for column, (without, with_label) in enumerate(method["label_counts"]):
        assert with_label == int(dataset.labels[:, column].sum()) and without + with_label == len(dataset)
