"""CoWPro: its loss against a slow one, episodes at once and one by one, ranks, micro-batches, modes of batch norm."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslmed_dist import checkpoint, distributed, randomness, registry
from sslmed_dist.config import Plan
from sslmed_dist.data.batches import Batches
from sslmed_dist.data.dataset import ArrayDataset
from sslmed_dist.losses.overlap import edge_dice, soft_dice
from sslmed_dist.methods import METHODS
from sslmed_dist.methods.cowpro import CoWPro, dice, upsampled
from sslmed_dist.models.normalization import synchronise
from sslmed_dist.training import engine, job, optim, pretrained
from sslmed_dist.training.state import begin
from tests import tiny
from tests.gloo import GlooPool

ENCODER = {"name": "dilated_resnet", "depth": 9, "stem": "cifar", "width": 4, "out": 8}
HEAD = {"name": "cowpro", "window": 2}
SIZE, GRID = 16, 8


def build(**arguments: Any) -> CoWPro:
    """A small one from a fixed seed, float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        made: CoWPro = registry.build(METHODS, {"name": "cowpro", "encoder": ENCODER, "head": HEAD, **arguments}, "m")
    return made.double().train()


def pictures(count: int) -> Tensor:
    """Images (n, 1, 16, 16): a bright disc of another size at another place in noise."""
    ids = torch.arange(count)
    noise = randomness.uniform(5, ids[:, None], torch.arange(SIZE * SIZE)[None]).view(count, 1, SIZE, SIZE)
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    place = 5 + 6 * randomness.uniform(6, ids[:, None], torch.arange(2)[None])
    apart = (rows - place[:, 0, None, None]).square() + (columns - place[:, 1, None, None]).square()
    return noise + 2.0 * (apart < 12 + ids[:, None, None] % 3)[:, None]


class Episodes(nn.Module):
    """Support: the image; query: the same flipped and darker. The mask is what is bright."""

    def forward(self, batch: Mapping[str, Tensor], *, seed: int, epoch: int) -> dict[str, Tensor]:
        support = batch["images"]
        mask = (support[:, 0] > 1.5).to(support.dtype)
        rest = {name: value for name, value in batch.items() if name != "images"}
        parts = {"support": support, "support_mask": mask, "query": 0.8 * support.flip(-1), "query_mask": mask.flip(-1)}
        return rest | parts


def batch_of(count: int, shots: int | None = None) -> dict[str, Tensor]:
    """Episodes in float64; with ``shots`` supports each."""
    made = Episodes()({"images": pictures(count).double()}, seed=0, epoch=0)
    if shots is None:
        return made
    turned = {name: [made[name].roll(2 * k, -1) for k in range(shots)] for name in ("support", "support_mask")}
    return made | {name: torch.stack(values, dim=1) for name, values in turned.items()}


def slow_loss(method: CoWPro, support: Tensor, query: Tensor, batch: dict[str, Tensor], e: int) -> dict[str, Tensor]:
    """The terms of episode ``e`` by torch's cross entropy of two logits, from its maps (K, D, h, w) and (D, h, w)."""
    masks = batch["support_mask"].view(len(batch["query"]), -1, SIZE, SIZE)[e : e + 1]
    truth = batch["query_mask"][e : e + 1].long()
    weights = torch.tensor([method.background_weight, 1.0], dtype=torch.float64)
    scores = method.head.scores(method.head.prototypes(support[None], masks), query[None])
    up = [F.interpolate(scores, size=(SIZE, SIZE), mode="bilinear", align_corners=False)]
    segmentation = F.cross_entropy(up[0], truth, weight=weights)
    predicted = (scores[:, 1] > scores[:, 0]).double()
    if not predicted.any():
        return {"segmentation": segmentation, "cycle": segmentation.new_zeros(()), "cycled": torch.tensor(0.0)}
    back = method.head.prototypes(query[None, None], predicted[:, None], 0.95)
    terms = []
    for k in range(len(support)):
        scores = method.head.scores(back, support[None, k])
        up.append(F.interpolate(scores, size=(SIZE, SIZE), mode="bilinear", align_corners=False))
        terms.append(F.cross_entropy(up[-1], masks[:, k].long()))
    return {"segmentation": segmentation, "cycle": torch.stack(terms).mean(), "cycled": torch.tensor(1.0)}


@pytest.mark.parametrize("shots", [None, 2])
@pytest.mark.parametrize("head", ["cowpro", "alpnet", "panet"])
def test_the_loss_is_the_slow_one(head: str, shots: int | None) -> None:
    """Terms and gradients; one episode whose query mask is empty, one whose support mask is."""
    leaf = {"name": head} if head == "panet" else {"name": head, "window": 2}
    method, batch = build(head=leaf, background_weight=0.1, cycle=0.7), batch_of(4, shots)
    batch["query_mask"][1] = 0
    batch["support_mask"][2] = 0
    embeddings = method.embed(batch)
    found = method.objective(embeddings, {})
    assert embeddings["support"].shape == (4, shots or 1, 8, GRID, GRID) and embeddings["query"].dtype == torch.float64
    parts = [slow_loss(method, embeddings["support"][e], embeddings["query"][e], batch, e) for e in range(4)]
    means = {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
    assert 0 < means["cycled"] < 1
    for name, value in means.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-10), name
    loss = means["segmentation"] + 0.7 * means["cycle"]
    assert found["loss"].item() == pytest.approx(loss.item(), rel=1e-10)
    parameters = list(method.parameters())
    got = torch.autograd.grad(found["loss"], parameters, retain_graph=True)
    for one, other in zip(got, torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_the_dice_terms_are_added_with_their_weights() -> None:
    """Values and gradients against the terms of each episode by itself; of weight 0 they are not there."""
    method, batch = build(overlap=0.5, edge=2.0), batch_of(4)
    batch["query_mask"][1] = 0
    embeddings = method.embed(batch)
    found = method.objective(embeddings, {})
    plain = build().objective(embeddings, {})
    margins = upsampled(
        method.head.scores(
            method.head.prototypes(embeddings["support"], batch["support_mask"][:, None]), embeddings["query"]
        ),
        batch["query_mask"],
    )
    terms = {}
    for name, term in (("overlap", soft_dice), ("edge", edge_dice)):
        each = [term(1 / (1 + torch.exp(-margins[e : e + 1])), batch["query_mask"][e : e + 1]) for e in range(4)]
        terms[name] = torch.stack(each).mean()
        assert found[name].item() == pytest.approx(terms[name].item(), rel=1e-10) and not found[name].requires_grad
        assert 0 < found[name] < 1 and name not in plain
    loss = plain["loss"] + 0.5 * terms["overlap"] + 2.0 * terms["edge"]
    assert found["loss"].item() == pytest.approx(loss.item(), rel=1e-10)
    parameters = list(method.parameters())
    got = torch.autograd.grad(found["loss"], parameters, retain_graph=True)
    for one, other in zip(got, torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert build(overlap=1.0, cycle=0.0)(batch).keys() == {"loss", "segmentation", "overlap", "dice"}


@pytest.mark.parametrize("kind, exact", [("episode", True), ("frozen", True), ("batch", False)])
@pytest.mark.parametrize("shots", [None, 2])
def test_episodes_at_once_are_episodes_one_by_one(kind: str, exact: bool, shots: int | None) -> None:
    """Loss and gradient of four episodes are the mean of four batches of one, if no statistics cross episodes."""
    batch = batch_of(4, shots)

    def gradient(method: CoWPro, rows: slice) -> Tensor:
        terms = method({name: value[rows] for name, value in batch.items()})
        grads = torch.autograd.grad(terms["loss"], list(method.parameters()))
        return torch.cat([terms["loss"].detach().view(1), *(grad.flatten() for grad in grads)])

    together = gradient(build(batch_norm=kind), slice(None))
    apart = torch.stack([gradient(build(batch_norm=kind), slice(e, e + 1)) for e in range(4)]).mean(0)
    assert ((together - apart).norm() <= 1e-10 * apart.norm()).item() == exact


def trained(kind: str = "episode", method: CoWPro | None = None, **plan: Any) -> tuple[dict[str, Tensor], list[Any]]:
    """Two epochs of two steps of eight episodes through ``fit``, as one rank: (state dict, logged)."""
    rank, world = distributed.rank(), distributed.world_size()
    settings = Plan(**{"epochs": 2, "batch_size": 8, "log_every": 1, "precision": "float64", **plan})
    made = build(batch_norm=kind) if method is None else method
    made = made if settings.precision == "float64" else made.float()
    made = synchronise(made, torch.device("cpu")) if world > 1 else made  # type: ignore[assignment]
    images = pictures(16).float()
    dataset = ArrayDataset(name="toy", images=images, labels=torch.zeros(16, dtype=torch.int64), classes=("a",))
    batches = Batches(dataset, global_batch=8, seed=1, rank=rank, world=world)
    leaf = {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.0}
    sizes = {"batch_size": 8, "epochs": settings.epochs, "per_epoch": batches.steps}
    state = begin(made, optim.build(leaf, made, **sizes), settings, batches.steps)
    average = distributed.average_gradients if world > 1 else distributed.leave_gradients
    logged: list[Any] = []

    def keep(_: Any, values: dict[str, float]) -> None:
        logged.append(values)

    engine.fit(made, batches, settings, views=Episodes(), state=state, average=average, on_step=keep)
    return {name: value.clone() for name, value in made.state_dict().items()}, logged


def relative(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest norm-wise difference of one tensor."""
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).double().norm() / b[k].double().norm().clamp_min(1e-3)) for k in b)


@pytest.mark.parametrize("kind", ["episode", "batch", "frozen"])
def test_workers_walk_one_float64_trajectory(gloo: GlooPool, kind: str) -> None:
    """Parameters, running statistics and counters, and what is logged, do not depend on how many workers there are."""
    alone, logged = trained(kind)
    for world in (2, 4):
        (first, log), *others = gloo.run(trained, world, kind)
        assert relative(first, alone) < 1e-9
        assert all(torch.equal(other[key], first[key]) for other, _ in others for key in alone)
        for ours, expected in zip(log, logged, strict=True):
            assert ours == pytest.approx(expected, rel=1e-6)


def test_micro_batches_are_the_whole_batch() -> None:
    """With statistics per episode the gradient cache is exact, and the running statistics move once per step."""
    whole, logged = trained()
    for micro in (2, 4):
        cut, log = trained(micro_batch=micro)
        assert relative(cut, whole) < 1e-9
        assert [row["loss"] for row in log] == pytest.approx([row["loss"] for row in logged], rel=1e-10)
    assert cut["encoder.backbone.bn1.num_batches_tracked"].item() == 4
    assert relative(trained("batch", micro_batch=4)[0], trained("batch")[0]) > 1e-3


def test_what_is_logged_and_that_it_learns() -> None:
    _, logged = trained(epochs=12)
    assert logged[0].keys() >= {"loss", "segmentation", "cycle", "cycled", "dice"}
    for row in logged:
        assert row["loss"] == pytest.approx(row["segmentation"] + row["cycle"]) and 0 <= row["cycled"] <= 1
    assert logged[-1]["loss"] < 0.5 * logged[0]["loss"] and logged[-1]["dice"] > max(0.8, logged[0]["dice"])


def test_half_precision_trains() -> None:
    state, logged = trained(precision="bf16")
    assert all(bool(value.isfinite().all()) for value in state.values())
    assert {value.dtype for value in state.values()} == {torch.float32, torch.int64}
    assert all(value == value and abs(value) < 1e6 for row in logged for value in row.values())


def test_frozen_statistics_stay_and_the_encoder_learns() -> None:
    method = build(batch_norm="frozen")
    assert method.training and not method.encoder.training
    before = {name: value.clone() for name, value in method.state_dict().items()}
    after, _ = trained(method=method)
    for name, value in before.items():
        moved = not torch.equal(after[name], value)
        assert moved == (not any(word in name for word in ("running", "tracked"))), name


def test_without_a_cycle_and_without_a_prediction() -> None:
    """cycle 0: one term; a head that predicts nothing has a cyclic term of 0."""
    batch = batch_of(3)
    terms = build(cycle=0.0)(batch)
    assert terms.keys() == {"loss", "segmentation", "dice"} and torch.equal(terms["loss"], terms["segmentation"])
    batch["support_mask"] = torch.zeros_like(batch["support_mask"])
    method = build()
    terms = method(batch)
    assert terms["cycled"] == terms["cycle"] == terms["dice"] == 0 and torch.equal(terms["loss"], terms["segmentation"])
    terms["loss"].backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in method.parameters())


def test_dice_of_masks() -> None:
    one = torch.tensor([[[1, 1], [0, 0]], [[0, 0], [0, 0]], [[1, 0], [0, 0]]]).bool()
    other = torch.tensor([[[1, 0], [1, 1]], [[0, 0], [0, 0]], [[0, 0], [0, 0]]]).bool()
    assert dice(one, other).tolist() == pytest.approx([2 / 5, 1.0, 0.0])


def test_it_starts_from_a_contrastive_encoder(tmp_path: Path) -> None:
    """The same encoder class under two methods, per-episode norm or not: the same keys."""
    start = job.train(tiny.settings(tmp_path, method={"encoder": ENCODER}, plan={"epochs": 1}))
    found = pretrained.load(start.settings.folder)
    method = build().float()
    checkpoint.load_method(method.encoder, found.encoder.state_dict(), found.file)
    own, other = method.encoder.state_dict(), start.method.encoder.state_dict()
    assert own.keys() == other.keys() and all(torch.equal(own[key], other[key]) for key in own)
    assert start.method.encoder(torch.ones(2, 1, SIZE, SIZE)).shape == (2, 8)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"query_mask": None}, r"views: cowpro needs episodes \(views.name: episode\), .* query_mask"),
        ({"support_mask": torch.ones(4, 8, 8)}, r"support_mask: expected the shape \(4, 1, 16, 16\) .*, got \(4, 1, 8"),
        ({"query_mask": torch.ones(3, SIZE, SIZE)}, r"query_mask: expected the shape \(4, 16, 16\) beside a query of"),
        ({"support": torch.ones(4, 1, 9, 9)}, r"support: expected the shape \(4, 1, 1, 16, 16\) beside a query of"),
    ],
)
def test_batches_that_are_no_episodes(change: dict[str, Any], message: str) -> None:
    batch = {name: value for name, value in {**batch_of(4), **change}.items() if value is not None}
    with pytest.raises(ValueError, match=f"^{message}"):
        build().embed(batch)


def test_wrong_arguments_are_named() -> None:
    for arguments, message in (
        ({"background_weight": 0.0}, "method.background_weight: expected a finite number > 0, got 0.0"),
        (
            {"encoder": "se_net"},
            "method.encoder: it is its own head, of which cowpro knows nothing; .* method.name: se_net",
        ),
        ({"overlap": -1.0}, "method.overlap: expected a finite number >= 0, got -1.0"),
        ({"edge": -1.0}, "method.edge: expected a finite number >= 0, got -1.0"),
        ({"cycle": -1.0}, "method.cycle: expected a finite number >= 0, got -1.0"),
        ({"batch_norm": "group"}, "m.batch_norm: expected one of 'episode', 'frozen', 'batch', got 'group'"),
        ({"head": {"name": "cowpro", "grid": 1}}, "method.head.grid: unknown key; allowed: .*"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            build(**arguments)
