"""The slow copies and the queue, by hand; what every method must keep to; what is refused."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sslmed_dist import distributed, registry
from sslmed_dist.methods import METHODS
from sslmed_dist.methods.momentum import Queue
from sslmed_dist.training import gradient_cache
from tests.gloo import GlooPool
from tests.methods import small

WITH_COPIES = [name for name in small.METHOD if name != "simsiam"]


def parameters(module: Any) -> list[Tensor]:
    """Copies of a module's parameters."""
    return [parameter.detach().clone() for parameter in module.parameters()]


@pytest.mark.parametrize("name", WITH_COPIES)
def test_the_copies_follow_by_the_momentum_of_the_step(name: str) -> None:
    method = small.build(name, momentum=0.8, momentum_end=1.0)
    expected = parameters(method.momentum_encoder) + parameters(method.momentum_head)
    for number in range(3):
        small.step(method, small.batch(name, first=6 * number), epoch=number / 2, progress=number / 3)
        m = 1.0 - 0.2 * (math.cos(math.pi * number / 3) + 1.0) / 2.0
        moved = parameters(method.encoder) + parameters(method.head)
        expected = [m * old + (1.0 - m) * new for old, new in zip(expected, moved, strict=True)]
        found = parameters(method.momentum_encoder) + parameters(method.momentum_head)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-14)
    assert all(not p.requires_grad for p in method.momentum_encoder.parameters())
    assert all(p.grad is None for p in method.momentum_head.parameters())


def test_a_constant_momentum_is_constant() -> None:
    method = small.build("moco", momentum=0.75)
    assert {method.momentum_at(progress) for progress in (0.0, 0.3, 1.0)} == {0.75}


@pytest.mark.parametrize("name", WITH_COPIES)
def test_the_copies_start_from_what_was_loaded(name: str) -> None:
    """An encoder that is put in before the first step (``run.start_from``, a federation) is what is copied; later on
    (the state of a resumed run) nothing is copied any more."""
    method = small.build(name)
    small.nudge(method)
    assert not torch.equal(method.momentum_encoder.conv1.weight, method.encoder.conv1.weight)
    method.step_begin(0.0, 0.0)
    for key, value in method.encoder.state_dict().items():
        assert torch.equal(value, method.momentum_encoder.state_dict()[key])
    resumed = small.build(name)
    small.nudge(method)
    resumed.load_state_dict(method.state_dict())
    resumed.step_begin(0.5, 0.5)
    for key, value in resumed.state_dict().items():
        assert torch.equal(value, method.state_dict()[key]), key


@pytest.mark.parametrize("name", list(small.METHOD))
def test_embedding_leaves_no_trace(name: str) -> None:
    """Rows for samples, and no change but batch norm's running statistics: embeddings may be computed twice."""
    method, given = small.build(name), small.batch(name)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    first, second = method.embed(given), method.embed(given)
    assert all(len(rows) == 6 and torch.equal(rows, second[key]) for key, rows in first.items())
    for key, value in method.state_dict().items():
        assert "running_" in key or "num_batches" in key or torch.equal(value, before[key]), key
    for module in method.modules():
        assert getattr(module, "waiting", None) is None
    slow = {"keys", "memory", "t0", "t1", "teacher", "z0", "z1"}
    assert {key for key, rows in first.items() if not rows.requires_grad} == slow & first.keys()


@pytest.mark.parametrize("name", WITH_COPIES)
def test_the_copies_normalise_by_the_batch(name: str) -> None:
    """Batch norm of the copies trains: what one sample becomes depends on the others, and its statistics move."""
    method = small.build(name)
    before = method.momentum_encoder.bn1.running_mean.clone()
    method.embed(small.batch(name))
    assert method.momentum_encoder.training and not torch.equal(method.momentum_encoder.bn1.running_mean, before)


@pytest.mark.parametrize("name", list(small.METHOD))
def test_every_trained_parameter_gets_a_gradient(name: str) -> None:
    method, given = small.build(name), small.batch(name)
    method.step_begin(0.0, 0.0)
    method(given)["loss"].backward()
    for key, parameter in method.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key


@pytest.mark.parametrize("name", list(small.METHOD))
def test_micro_batches_give_the_gradient_of_the_whole_batch(name: str) -> None:
    """With batch norm evaluated, so that a sample's rows do not depend on who is beside it."""
    method, given = small.build(name).eval(), small.batch(name)
    method.step_begin(0.0, 0.0)
    whole = method(given)
    whole["loss"].backward()
    expected = {key: p.grad.clone() for key, p in method.named_parameters() if p.requires_grad}
    method.zero_grad()
    pieces = [{key: value[number::3] for key, value in given.items()} for number in range(3)]

    def objective(embeddings: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        terms = method.objective(embeddings, {"index": given["index"]})
        return terms["loss"], terms

    terms, embeddings = gradient_cache.backward(method, lambda number: method.embed(pieces[number]), objective, 3)
    torch.testing.assert_close(terms["loss"], whole["loss"], rtol=1e-12, atol=0)
    assert method.measures(embeddings).keys() >= {"embedding_std", "effective_rank"}
    for key, parameter in method.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, expected[key], rtol=1e-9, atol=1e-12)


def unit(*numbers: int) -> Tensor:
    """Unit rows (n, 1, 2) that can be told apart: the angle is the number in degrees."""
    angles = torch.deg2rad(torch.tensor(numbers, dtype=torch.float64))
    return torch.stack([angles.cos(), angles.sin()], dim=1)[:, None]


def degrees(queue: Queue) -> list[int]:
    """The angles in a queue, in its order."""
    return [round(value) for value in torch.rad2deg(torch.atan2(queue.rows[:, 1], queue.rows[:, 0])).tolist()]


def test_a_queue_by_hand() -> None:
    queue = Queue(5, 2).double()
    torch.testing.assert_close(queue.rows.norm(dim=1), torch.ones(5, dtype=torch.float64))
    assert queue.ids.tolist() == [-1] * 5
    queue.rows.copy_(unit(1, 2, 3, 4, 5)[:, 0])
    queue.put_aside(unit(10, 11), torch.tensor([100, 101]))
    assert degrees(queue) == [1, 2, 3, 4, 5], "not before the end of the step"
    queue.write()
    assert degrees(queue) == [10, 11, 3, 4, 5] and queue.ids.tolist() == [100, 101, -1, -1, -1]
    queue.write()
    assert degrees(queue) == [10, 11, 3, 4, 5], "once"
    queue.put_aside(torch.cat([unit(12, 14), unit(13, 15)], dim=1), torch.tensor([102, 103]))
    queue.write()
    assert degrees(queue) == [15, 11, 12, 13, 14] and queue.ids.tolist() == [103, 101, 102, 102, 103]
    assert int(queue.pointer) == 1
    queue.put_aside(unit(20, 21, 22, 23, 24))
    queue.write()
    assert degrees(queue) == [24, 20, 21, 22, 23] and int(queue.pointer) == 1
    with pytest.raises(ValueError, match=r"^method.queue: expected at least 6, the keys of one step, got 5$"):
        queue.put_aside(torch.cat([unit(1, 2, 3), unit(1, 2, 3)], dim=1))


def filled() -> tuple[list[int], list[int]]:
    """A queue after each rank put in its block of four samples with two keys each."""
    queue, local = Queue(10, 2).double(), 4 // distributed.world_size()
    first = distributed.rank() * local
    samples = range(first, first + local)
    keys = torch.cat([unit(*(10 * s for s in samples)), unit(*(10 * s + 1 for s in samples))], dim=1)
    queue.put_aside(keys, torch.tensor(list(samples)))
    queue.write()
    return degrees(queue)[:8], queue.ids.tolist()[:8]


def test_a_queue_is_filled_in_the_order_of_the_global_batch(gloo: GlooPool) -> None:
    expected = ([0, 1, 10, 11, 20, 21, 30, 31], [0, 0, 1, 1, 2, 2, 3, 3])
    assert filled() == expected
    for world in (2, 4):
        assert gloo.run(filled, world) == [expected] * world


NUMBERS = "; a number has to be finite in float32, a whole number within 2^53"
BAD_ARGUMENTS: list[tuple[str, dict[str, Any], str]] = [
    ("moco", {"queue": 0}, "method.queue: expected a number >= 1, got 0"),
    ("moco", {"momentum": 1.5}, "method.momentum: expected a number from 0 to 1, got 1.5"),
    ("moco", {"momentum_end": -0.1}, "method.momentum_end: expected a number from 0 to 1, got -0.1"),
    ("moco", {"temperature": 0.0}, "method.temperature: expected a finite number > 0, got 0.0"),
    ("pirl", {"temperature": math.inf}, f"method.temperature: expected float, got inf{NUMBERS}"),
    ("pirl", {"weight": 2.0}, "method.weight: expected a number from 0 to 1, got 2.0"),
    ("byol", {"momentum": math.nan}, f"method.momentum: expected float, got nan{NUMBERS}"),
    (
        "byol",
        {"predictor": {"name": "projection", "out": 9}},
        "method.predictor.out: expected 8, the output of method.head, got 9",
    ),
    (
        "simsiam",
        {"predictor": {"name": "projection", "out": 9}},
        "method.predictor.out: expected 8, the output of method.head, got 9",
    ),
    ("dino", {"teacher_temperature": -1.0}, "method.teacher_temperature: expected a finite number > 0, got -1.0"),
    ("dino", {"centre_momentum": 1.1}, "method.centre_momentum: expected a number from 0 to 1, got 1.1"),
    ("dino", {"freeze_epochs": -1}, "method.freeze_epochs: expected a number >= 0, got -1"),
    (
        "dino",
        {"head": "projection"},
        "method.head.name: dino needs the head dino (with prototypes), got 'projection'",
    ),
    ("dino", {"head": {"name": "dino", "out": 0}}, "method.head.out: expected an integer >= 1, got 0"),
]


@pytest.mark.parametrize(("name", "arguments", "message"), BAD_ARGUMENTS)
def test_a_bad_argument_is_named(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        registry.build(METHODS, {**small.METHOD[name], **arguments}, "method")
    assert str(caught.value) == message


@pytest.mark.parametrize("name", [name for name in small.METHOD if name != "dino"])
def test_bad_views_are_named(name: str) -> None:
    method, given = small.build(name), small.batch(name)
    third = {**given, "views_2": given["views_0"]}
    label = small.METHOD[name]["name"]
    with pytest.raises(ValueError, match=f"^views: {label} needs two views .*, got views_0, views_1, views_2$"):
        method.embed(third)
    with pytest.raises(ValueError, match=f"^views: {label} needs two views .*, got none$"):
        method.embed({"index": given["index"]})
    with pytest.raises(
        ValueError, match=r"^views_1: expected the shape of views_0, \(6, 1, 12, 12\), got \(6, 1, 8, 8\)$"
    ):
        method.embed({**given, "views_1": given["views_1"][:, :, :8, :8]})


@pytest.mark.parametrize("name", ["moco", "moco_symmetric", "moco_jigsaw", "pirl"])
def test_a_queue_smaller_than_a_batch_is_named(name: str) -> None:
    method, given = small.build(name, queue=5), small.batch(name)
    count = 12 if name in ("moco_symmetric", "moco_jigsaw") else 6
    with pytest.raises(ValueError, match=f"^method.queue: expected at least {count}, the keys of one step, got 5$"):
        method(given)
