"""Prototype heads against slow ones, ALPNet's identity, episodes that lack a class, and what must not matter."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sslmed_dist import randomness, registry
from sslmed_dist.models import PROTOTYPE_HEADS
from sslmed_dist.models.prototype_heads import ALPNetHead, CoWProHead, PANetHead, Prototypes
from tests.models import prototype_references as slow

SIDE, GRID, WIDTH = 36, 9, 5
HEADS: dict[str, Any] = {
    "cowpro": CoWProHead(window=2),
    "dot": CoWProHead(window=2, score="dot", top=30.0),
    "dynamic": CoWProHead(window=3, threshold="dynamic"),
    "alpnet": ALPNetHead(window=2),
    "panet": PANetHead(),
}


def features(key: int, *shape: int) -> Tensor:
    """Keyed standard normal float64 numbers with an offset, so that centring matters."""
    return 0.5 + randomness.normal(key, torch.arange(torch.Size(shape).numel()).view(shape)).double()


def box(rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
    mask = torch.zeros(SIDE, SIDE, dtype=torch.float64)
    mask[slice(*rows), slice(*columns)] = 1
    return mask


MASKS = {
    "large": box((3, 30), (0, 20)),
    "small": box((9, 14), (21, 27)),
    "stripe": box((0, 36), (10, 11)),
    "nearly all": 1 - box((8, 11), (8, 11)),
    "empty": box((0, 0), (0, 0)),
    "full": box((0, 36), (0, 36)),
}


def episodes(names: list[str], shots: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Support maps (E, K, D, h, w), masks (E, K, H, W) and query maps (E, D, h, w)."""
    masks = torch.stack([torch.stack([MASKS[name].roll(3 * k, 1) for k in range(shots)]) for name in names])
    count = len(names)
    return features(1, count, shots, WIDTH, GRID, GRID), masks, features(2, count, WIDTH, GRID, GRID)


def run(head: Any, support: Tensor, masks: Tensor, query: Tensor) -> Tensor:
    logits: Tensor = head.scores(head.prototypes(support, masks), query)
    return logits


@pytest.mark.parametrize("shots", [1, 2])
@pytest.mark.parametrize(
    "arguments",
    [
        {"window": 2},
        {"window": 4, "score": "dot"},
        {"window": 2, "threshold": "dynamic", "centre": False},
        {"window": 1, "score": "dot", "centre": False, "level": 0.5, "temperature": 0.2},
        {"window": 3, "threshold": "dynamic", "top": 40.0},
        {"window": 2, "top": 5.0, "score": "dot"},
    ],
)
def test_scores_are_the_slow_ones(arguments: dict[str, Any], shots: int) -> None:
    """Every kind of mask in one batch (so sets of every size, empty ones too), pixel by pixel; 9 = 2 x 4 + 1."""
    names = list(MASKS)
    support, masks, query = episodes(names, shots)
    found = run(CoWProHead(**arguments), support, masks, query)
    for episode, name in enumerate(names):
        expected = slow.scores(support[episode], masks[episode], query[episode], arguments)
        torch.testing.assert_close(found[episode], expected, rtol=1e-10, atol=1e-10, msg=name)


def test_the_other_heads_are_special_cases() -> None:
    """ALPNet: the sum over prototypes by a loop; PANet: one prototype per class."""
    names = list(MASKS)
    support, masks, query = episodes(names)
    plain = {"window": 2, "score": "dot", "centre": False}
    one = run(PANetHead(0.1), support, masks, query)
    many = run(ALPNetHead(2, temperature=0.1), support, masks, query)
    for episode in range(len(names)):
        given = (support[episode], masks[episode], query[episode])
        torch.testing.assert_close(many[episode], slow.scores(*given, {**plain, "temperature": 0.1}))
        inside, outside = slow.sets(support[episode], masks[episode], GRID, level=0.9999)
        for channel, found in enumerate((outside, inside)):
            for i, j in ((0, 0), (4, 7)):
                expected = slow.score(query[episode, :, i, j], found[-1:], 0.1, False, "dot", 100.0)
                torch.testing.assert_close(one[episode, channel, i, j], expected)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("window", [1, 2, 4])
def test_dot_without_centring_is_alpnet(dtype: torch.dtype, tolerance: float, window: int) -> None:
    """sum_n w_n (q . p_n) = q . sum_n w_n p_n; errors relative to the largest score, 1 / temperature."""
    given = [value.to(dtype) for value in episodes(list(MASKS))]
    ours, theirs = run(CoWProHead(window, score="dot", centre=False), *given), run(ALPNetHead(window), *given)
    assert float((ours - theirs).abs().max()) <= 20 * tolerance
    assert float((run(CoWProHead(window, score="dot"), *given) - theirs).abs().max()) > 0.1
    assert float((run(CoWProHead(window, centre=False), *given) - theirs).abs().max()) > 0.1


@pytest.mark.parametrize("name", HEADS)
def test_episodes_at_once_are_episodes_one_by_one(name: str) -> None:
    """Sets of different sizes in one batch, values and gradients."""
    given = [value.requires_grad_(n != 1) for n, value in enumerate(episodes(list(MASKS), 2))]
    weights = features(5, len(MASKS), 2, GRID, GRID)
    together = run(HEADS[name], *given)
    apart = torch.cat([run(HEADS[name], *(value[e : e + 1] for value in given)) for e in range(len(MASKS))])
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-12)
    found, expected = (torch.autograd.grad((x * weights).sum(), given[::2]) for x in (together, apart))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", HEADS)
def test_a_class_that_is_not_there_has_the_lowest_score(name: str) -> None:
    """An empty mask has no foreground, a full one no background; nothing is NaN and nothing flows back from there."""
    support, masks, query = episodes(["empty", "full"])
    support.requires_grad_()
    logits = run(HEADS[name], support, masks, query.requires_grad_())
    seen = logits.detach()
    assert bool((seen[0, 1] == -20).all()) and bool((seen[1, 0] == -20).all())
    assert bool((seen.abs() <= 20 + 1e-9).all())
    assert float(seen[0, 0].min()) > -20 and float(seen[1, 1].min()) > -20
    for grads in (
        torch.autograd.grad(logits.sum(), (support, query), retain_graph=True),
        torch.autograd.grad(logits[0, 1].sum() + logits[1, 0].sum(), (support, query)),
    ):
        assert all(bool(grad.isfinite().all()) for grad in grads)
    assert all(not grad.any() for grad in grads)


def test_features_without_direction_give_finite_gradients() -> None:
    """A constant vector less its mean is zero: its cosine is 0, not NaN."""
    support, masks, query = (value.float() for value in episodes(["large"]))
    support = torch.ones_like(support).requires_grad_()
    logits = run(CoWProHead(2), support, masks, query)
    assert not logits.any()
    assert bool(torch.autograd.grad(logits.sum(), support)[0].isfinite().all())


def test_which_cells_are_prototypes() -> None:
    """Fixed: local ones where a cell is full. Foreground always has the global one, background only as a way out."""
    support, masks, _ = episodes(["large", "small", "empty", "full"])
    found = CoWProHead(3).prototypes(support, masks)
    assert found.foreground.shape == found.background.shape == (4, 3 * 3 + 1, WIDTH)
    assert found.foreground_valid[:, -1].tolist() == [True, True, False, True]
    assert found.background_valid[:, -1].tolist() == [False, False, False, False]
    assert found.foreground_valid[:, :-1].sum(1).tolist() == [1, 0, 0, 9]
    crossed = box((10, 12), (0, 36)) + box((0, 36), (10, 12)) + box((24, 26), (0, 36)) + box((0, 36), (24, 26))
    found = CoWProHead(4).prototypes(support[:1], crossed.clamp(max=1)[None, None])
    assert found.background_valid[0].tolist() == [False] * 4 + [True], "no cell is free of it"


def test_dynamic_thresholds_follow_each_support() -> None:
    """A thin mask passes at 0.8 of its largest share where it could never fill a cell."""
    support, masks, _ = episodes(["stripe", "large"], shots=2)
    fixed, dynamic = (CoWProHead(1, threshold=kind).prototypes(support, masks) for kind in ("fixed", "dynamic"))
    assert not fixed.foreground_valid[0, :-2].any() and int(dynamic.foreground_valid[0, :-2].sum()) == 2 * GRID
    again = CoWProHead(1, threshold="dynamic").prototypes(support, masks, level=0.95)
    assert torch.equal(again.foreground_valid, fixed.foreground_valid)
    assert torch.equal(again.background_valid, fixed.background_valid)


@pytest.mark.parametrize("side", [3, 5, 9])
def test_a_small_organ_has_a_local_prototype_under_the_dynamic_threshold(side: int) -> None:
    """0.8 of the largest value of the mask before pooling is more than a pooled small organ ever reaches."""
    support, masks, _ = episodes(["large"])
    small = torch.zeros_like(masks)
    small[..., 7 : 7 + side, 13 : 13 + side] = 1
    found = CoWProHead(4, threshold="dynamic").prototypes(support, small)
    assert int(found.foreground_valid[0, :-1].sum()) >= 1
    assert int(found.background_valid[0, :-1].sum()) >= 1


def test_top_percentages() -> None:
    """100 is all; a percentage that leaves one is the score of the most similar prototype."""
    given = episodes(["large", "small"])
    every = run(CoWProHead(1), *given)
    torch.testing.assert_close(run(CoWProHead(1, top=99.99), *given), every, rtol=1e-12, atol=1e-12)
    head = CoWProHead(1, top=0.5, centre=False)
    found, query = head.prototypes(*given[:2]), given[2].flatten(2).transpose(1, 2)
    cosines = slow.F.cosine_similarity(query[:, :, None], found.background[:, None], dim=3)
    best = cosines.masked_fill(~found.background_valid[:, None], -1).amax(2) * 20
    torch.testing.assert_close(head.scores(found, given[2])[:, 0].flatten(1), best, rtol=1e-10, atol=1e-10)
    assert float((run(CoWProHead(1, top=10.0), *given) - every).abs().max()) > 0.1


@pytest.mark.parametrize("name", HEADS)
def test_the_order_of_prototypes_and_a_support_given_twice_change_nothing(name: str) -> None:
    head, (support, masks, query) = HEADS[name], episodes(list(MASKS))
    expected = run(head, support, masks, query)
    found = head.prototypes(support, masks)
    order = torch.arange(found.foreground.shape[1]).flip(0)
    turned = Prototypes(*(value[:, order] for value in vars(found).values()))
    torch.testing.assert_close(head.scores(turned, query), expected, rtol=1e-12, atol=1e-12)
    if name == "dot":  # of prototypes that are twice there, a percentage may leave one
        head = CoWProHead(2, score="dot")
        expected = run(head, support, masks, query)
    twice = run(head, support.repeat(1, 2, 1, 1, 1), masks.repeat(1, 2, 1, 1), query)
    torch.testing.assert_close(twice, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", HEADS)
def test_one_support_serves_many_queries(name: str) -> None:
    support, masks, _ = episodes(["large"])
    queries = features(3, 4, WIDTH, GRID, 7)  # of another size, too
    head = HEADS[name]
    found = head.prototypes(support, masks)
    expected = torch.cat([head.scores(found, query[None]) for query in queries])
    torch.testing.assert_close(head.scores(found, queries), expected, rtol=1e-12, atol=1e-12)


def test_supports_are_averaged_where_they_have_the_class() -> None:
    """A second support without the organ adds background and leaves the global foreground prototype alone."""
    support, masks, _ = episodes(["large"], shots=2)
    masks = torch.stack([MASKS["large"], MASKS["empty"]])[None]
    both, alone = CoWProHead(3).prototypes(support, masks), CoWProHead(3).prototypes(support[:, :1], masks[:, :1])
    torch.testing.assert_close(both.foreground[:, -1], alone.foreground[:, -1])
    assert int(both.background_valid.sum()) == int(alone.background_valid.sum()) + 9


@pytest.mark.parametrize("name", HEADS)
def test_gradients(name: str) -> None:
    support, masks, query = episodes(["large", "nearly all"])
    support, query = support[:, :, :2], query[:, :2, :2, :3]  # two channels are enough for a Jacobian
    given = (support.contiguous().requires_grad_(), query.contiguous().requires_grad_())
    assert torch.autograd.gradcheck(lambda s, q: run(HEADS[name], s, masks, q), given)


def test_mistakes_are_named() -> None:
    for leaf, message in (
        ({"name": "cowpro", "window": 0}, "head.window: expected an integer >= 1, got 0"),
        ({"name": "cowpro", "level": 1.0}, r"head.level: expected a number in \[0, 1\), got 1.0"),
        ({"name": "cowpro", "top": 0.0}, r"head.top: expected a percentage in \(0, 100\], got 0.0"),
        ({"name": "alpnet", "temperature": 0.0}, "head.temperature: expected a finite number > 0, got 0.0"),
        ({"name": "panet", "temperature": -1.0}, "head.temperature: expected a finite number > 0, got -1.0"),
        ({"name": "cowpro", "score": "l2"}, "method.head.score: expected one of 'cosine', 'dot', got 'l2'"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            registry.build(PROTOTYPE_HEADS, leaf, "method.head")
    support, masks, query = episodes(["large", "small", "full"])
    with pytest.raises(ValueError, match="^head.window: expected at most the feature grid, 9 x 9, got 10$"):
        CoWProHead(10).prototypes(support, masks)
    with pytest.raises(ValueError, match=r"^prototypes: expected maps \(E, K, D, h, w\) and masks \(E, K, H, W\), got"):
        PANetHead().prototypes(support, masks[:2])
    with pytest.raises(ValueError, match=r"^prototypes: 3 episodes do not fit queries \(E, D, h, w\), got \(2, 5,"):
        run(PANetHead(), support, masks, query[:2])
