"""DINO: loss, centre, temperatures, frozen prototypes and the head, by hand."""

import math

import pytest
import torch
from torch import Tensor

from sslmed_dist.methods.dino import cross_entropy
from sslmed_dist.models.heads import DinoHead
from tests.methods import small


def slow_softmax(logits: Tensor) -> list[float]:
    """Of one row."""
    weights = [math.exp(float(logit)) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def slow_loss(teacher: Tensor, student: Tensor, centre: Tensor, warm: float, cold: float) -> float:
    """Mean over large crops i, crops v other than i, and samples of the cross-entropy of two softmaxes."""
    terms = []
    for sample in range(len(teacher)):
        for i in range(2):
            target = slow_softmax((teacher[sample, i] - centre) / warm)
            for v in range(student.shape[1]):
                if v != i:
                    predicted = slow_softmax(student[sample, v] / cold)
                    terms.append(-sum(p * math.log(q) for p, q in zip(target, predicted, strict=True)))
    return sum(terms) / len(terms)


def test_cross_entropy_is_its_definition() -> None:
    source = torch.Generator().manual_seed(0)
    teacher = torch.randn(3, 2, 5, dtype=torch.float64, generator=source)
    student = torch.randn(3, 4, 5, dtype=torch.float64, generator=source)
    centre = torch.randn(5, dtype=torch.float64, generator=source)
    targets = ((teacher - centre) / 0.5).softmax(dim=2)
    slow = slow_loss(teacher, student, centre, 0.5, 0.2)
    assert float(cross_entropy(targets, student, 0.2)) == pytest.approx(slow, rel=1e-12)
    even = torch.full((3, 2, 5), 0.2)
    assert float(cross_entropy(even, torch.ones(3, 2, 5), 0.1)) == pytest.approx(math.log(5), rel=1e-6)


def test_loss_and_centre_of_four_steps() -> None:
    """The centre of a step is that of the batches before; the temperature rises with the epoch."""
    method = small.build("dino", warmup_epochs=2.0, momentum=0.5)
    centre = torch.zeros(32, dtype=torch.float64)
    for number, epoch in enumerate((0.0, 0.5, 2.0, 9.0)):
        given = small.batch("dino", first=6 * number)
        method.step_begin(epoch, 0.0)
        made = {key: value.detach() for key, value in method.embed(given).items()}
        warm = 0.04 + 0.03 * min(epoch / 2.0, 1.0)
        terms = small.step(method, given, epoch=epoch, progress=0.0)
        slow = slow_loss(made["teacher"], made["student"], centre, warm, 0.1)
        assert float(terms["loss"]) == pytest.approx(slow, rel=1e-10)
        centre = 0.9 * centre + 0.1 * made["teacher"].flatten(0, 1).mean(0)
        torch.testing.assert_close(method.centre, centre, rtol=0, atol=1e-14)
    assert small.build("dino", warmup_epochs=0).temperature_at(0.0) == pytest.approx(0.07)


def test_which_crops_are_which() -> None:
    """Student rows in the order of the views, the teacher on the large ones; evaluated, so that rows stand alone."""
    method, given = small.build("dino").eval(), small.batch("dino")
    made = method.embed(given)
    assert made["student"].shape == (6, 4, 32) and made["teacher"].shape == (6, 2, 32)
    for view in range(4):
        torch.testing.assert_close(made["student"][:, view], method.head(method.encoder(given[f"views_{view}"])))
    for view in range(2):
        images = given[f"views_{view}"]
        torch.testing.assert_close(made["teacher"][:, view], method.momentum_head(method.momentum_encoder(images)))
        torch.testing.assert_close(made[f"z{view}"], method.head.bottleneck(method.encoder(images)))


def test_prototypes_are_frozen_at_first() -> None:
    method = small.build("dino", freeze_epochs=1.0)
    for epoch, frozen in ((0.0, True), (0.9, True), (1.0, False)):
        method.step_begin(epoch, 0.0)
        method.zero_grad()
        method(small.batch("dino"))["loss"].backward()
        assert method.head.last.weight.grad is not None
        method.before_update()
        assert (method.head.last.weight.grad is None) == frozen
        assert method.encoder.conv1.weight.grad is not None


def test_information_of_targets_is_zero_when_they_say_nothing() -> None:
    method, given = small.build("dino"), small.batch("dino")
    made = method.embed(given)
    told = method.measures(made)
    assert 0.0 < float(told["teacher_information"]) <= math.log(12) + 1e-9
    one = torch.zeros(6, 2, 32, dtype=torch.float64)
    one[:, :, 3] = 100.0
    for teacher, entropy in ((one, 0.0), (torch.zeros_like(one), math.log(32))):
        told = method.measures({**made, "teacher": teacher})
        assert float(told["teacher_information"]) == pytest.approx(0.0, abs=1e-9)
        assert float(told["teacher_entropy"]) == pytest.approx(entropy, abs=1e-9)


def test_the_heads_outputs_are_cosines_with_prototypes() -> None:
    head = DinoHead(hidden=7, bottleneck=5, out=3, layers=3, in_dim=4).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    narrow = head.layers(x)
    for i in range(6):
        for j in range(3):
            expected = torch.cosine_similarity(narrow[i], head.last.weight[j], dim=0)
            torch.testing.assert_close(head(x)[i, j], expected)
    assert [tuple(p.shape) for p in head.parameters() if p.dim() == 2] == [(7, 4), (7, 7), (5, 7), (3, 5)]
    assert head.last.scale is None and head.out_dim == 3
    scaled = DinoHead(hidden=7, bottleneck=5, out=3, normalised=False, in_dim=4)
    with torch.no_grad():
        before = scaled(x.float())
        assert scaled.last.scale is not None
        scaled.last.scale.mul_(2.0)
        torch.testing.assert_close(scaled(x.float()), 2.0 * before)


def test_prototypes_keep_full_precision_under_autocast() -> None:
    head = DinoHead(hidden=7, bottleneck=5, out=3, in_dim=4)
    x = torch.randn(6, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = head.bottleneck(x)
        out = head.last(narrow)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, head.last(narrow.float()))


def test_bad_crops_are_named() -> None:
    method, given = small.build("dino"), small.batch("dino")
    with pytest.raises(ValueError, match=r"^views: dino needs views_0 and views_1 \(large\) .*, got 1 views$"):
        method.embed({"views_0": given["views_0"]})
    with pytest.raises(ValueError, match=r"^views: dino needs views_0 and views_1 \(large\) .*, got 3 views$"):
        method.embed({name: value for name, value in given.items() if name != "views_1"})
    with pytest.raises(
        ValueError, match=r"^views_1: expected the shape of views_0, .*\(6, 1, 12, 12\), got \(6, 1, 8, 8\)$"
    ):
        method.embed({**given, "views_1": given["views_2"]})
    with pytest.raises(
        ValueError, match=r"^views_3: expected the shape of views_2, \(6, 1, 8, 8\), got \(6, 1, 12, 12\)$"
    ):
        method.embed({**given, "views_3": given["views_0"]})
    made = method.embed({name: given[name] for name in ("views_0", "views_1")})
    assert made["student"].shape == (6, 2, 32), "small crops are not required"
