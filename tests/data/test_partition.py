import pytest
import torch

from sslmed_dist import registry
from sslmed_dist.data.partition import PARTITIONS, dirichlet_shares, group_table, hold_out, strata, stratified_order

COUNT = 240
LABELS = torch.arange(COUNT) % 5
GROUPS = torch.arange(COUNT) // 4 + 1000
SITES = torch.arange(COUNT) // 60 + 7
IDS = torch.arange(COUNT) * 3 + 11
ARGUMENTS = {"iid": {}, "by_group": {}, "by_site": {}, "dirichlet": {"alpha": 0.5, "min_size": 5}}


def deal(name, count=4, seed=0, order=None, **arguments):
    order = torch.arange(COUNT) if order is None else order
    given = {"labels": LABELS[order], "groups": GROUPS[order], "sites": SITES[order], "ids": IDS[order]}
    leaf = {"name": name, **ARGUMENTS[name], **arguments}
    return registry.build(PARTITIONS, leaf, "partition", **given, count=count, seed=seed)


@pytest.mark.parametrize("name", PARTITIONS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_parts_are_sorted_disjoint_and_cover_everything(name, seed):
    parts = deal(name, seed=seed)
    assert len(parts) == 4 and all(part.dtype == torch.int64 for part in parts)
    assert all(torch.equal(part, part.sort().values) for part in parts)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(COUNT))


@pytest.mark.parametrize("name", PARTITIONS)
def test_dealing_is_pure_and_does_not_depend_on_the_order_of_the_samples(name):
    shuffled = torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))
    first = [set(IDS[part].tolist()) for part in deal(name)]
    assert first == [set(IDS[part].tolist()) for part in deal(name)]
    assert first == [set(IDS[shuffled][part].tolist()) for part in deal(name, order=shuffled)]


@pytest.mark.parametrize("name", ["iid", "by_group", "dirichlet"])
def test_another_seed_deals_another_way(name):
    assert not all(map(torch.equal, deal(name, seed=0), deal(name, seed=1)))


def test_iid_sizes_differ_by_at_most_one():
    sizes = [len(part) for part in deal("iid", count=7)]
    assert max(sizes) - min(sizes) <= 1


def test_by_group_never_splits_a_patient():
    parts = deal("by_group", count=4)
    owners = [set(GROUPS[part].tolist()) for part in parts]
    assert sum(map(len, owners)) == len(set(GROUPS.tolist()))


def test_by_site_follows_the_data():
    assert [SITES[part].unique().tolist() for part in deal("by_site")] == [[7], [8], [9], [10]]


def test_dirichlet_skews_labels_more_at_small_alpha():
    def skew(alpha):
        parts = [part for seed in range(5) for part in deal("dirichlet", seed=seed, alpha=alpha, min_size=1)]
        shares = torch.stack([torch.bincount(LABELS[part], minlength=5) / len(part) for part in parts])
        return float((shares - 0.2).abs().mean())

    assert skew(0.1) > 2 * skew(100.0)
    assert skew(1000.0) < 0.03
    assert all(len(part) >= 40 for part in deal("dirichlet", alpha=1.0, min_size=40))


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0, 10.0])
def test_dirichlet_shares_have_the_right_moments(alpha):
    shares = dirichlet_shares(alpha, 4000, 4, 9, "moments")
    assert torch.allclose(shares.sum(1), torch.ones(4000, dtype=torch.float64))
    variance = 0.25 * 0.75 / (4 * alpha + 1)
    assert (shares.mean(0) - 0.25).abs().max() < 4 * (variance / 4000) ** 0.5
    assert (shares.var(0) / variance - 1).abs().max() < 0.1


def test_tiny_alpha_does_not_underflow():
    shares = dirichlet_shares(1e-3, 500, 4, 9)
    assert bool(torch.isfinite(shares).all()) and torch.allclose(shares.sum(1), torch.ones(500, dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("iid", {"count": 241}, "site 240 of 241 would hold no sample"),
        ("by_group", {"count": 61}, "site 60 of 61 would hold no sample"),
        ("by_site", {"count": 5}, "site 4 of 5 would hold no sample"),
        ("by_site", {"count": 3}, "count is 3, but the data has 4 sites"),
        ("iid", {"count": 0}, "count must be at least 1, got 0"),
        (
            "dirichlet",
            {"alpha": 0.01, "min_size": 55},
            "alpha 0.01 gave every site min_size 55 samples in 1000",
        ),
        ("dirichlet", {"alpha": 0.0}, "alpha 0.0 must be > 0"),
    ],
)
def test_impossible_partitions_are_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        deal(name, **arguments)


def test_missing_facts_are_refused():
    with pytest.raises(ValueError, match="does not say which site"):
        PARTITIONS["by_site"](LABELS, GROUPS, None, IDS, count=2, seed=0)
    with pytest.raises(ValueError, match="needs labels"):
        PARTITIONS["dirichlet"](torch.full((COUNT,), -1), GROUPS, None, IDS, count=2, seed=0, alpha=1.0)


def test_hold_out_fraction_is_even_over_labels():
    train, held = hold_out(LABELS, IDS, IDS, fraction=0.25, seed=0)
    assert len(held) == 60 and torch.bincount(LABELS[held]).tolist() == [12] * 5
    assert torch.equal(torch.cat([train, held]).sort().values, torch.arange(COUNT))


def test_hold_out_of_whole_patients():
    train, held = hold_out(LABELS, GROUPS, IDS, groups_per_site=2, seed=0)
    assert len(set(GROUPS[held].tolist())) == 2 and len(held) == 8
    assert not set(GROUPS[held].tolist()) & set(GROUPS[train].tolist())
    train, held = hold_out(LABELS, GROUPS, IDS, fraction=0.3, seed=0)
    assert not set(GROUPS[held].tolist()) & set(GROUPS[train].tolist())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of fraction and groups_per_site"),
        ({"fraction": 0.5, "groups_per_site": 1}, "exactly one of"),
        ({"fraction": 0.0}, "fraction 0.0 of 60 groups leaves the held-out part empty"),
        ({"fraction": 1.0}, "leaves the training part empty"),
        ({"groups_per_site": 60}, "groups_per_site 60 of 60 groups leaves the training part empty"),
    ],
)
def test_impossible_hold_outs_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        hold_out(LABELS, GROUPS, IDS, seed=0, **arguments)


def test_multi_labels_are_stratified_by_combination():
    labels = torch.stack([(torch.arange(COUNT) % 2).float(), (torch.arange(COUNT) % 3 == 0).float()], 1)
    _, held = hold_out(labels, IDS, IDS, fraction=0.5, seed=0)
    assert (labels[held].mean(0) - labels.mean(0)).abs().max() < 0.02
    parts = PARTITIONS["dirichlet"](labels, IDS, None, IDS, count=3, seed=0, alpha=1.0)
    assert sum(map(len, parts)) == COUNT


def test_a_group_has_the_greatest_label_of_its_samples():
    names, row, table = group_table(torch.tensor([0, 2, 1, -1]), torch.tensor([9, 9, 4, 5]))
    assert names.tolist() == [4, 5, 9] and row.tolist() == [2, 2, 0, 1] and table.tolist() == [1, -1, 2]


def test_stratified_order_keeps_equal_labels_together():
    order = stratified_order(LABELS, IDS, 0, "x")
    assert torch.equal(LABELS[order], LABELS.sort().values)


def test_a_missing_label_is_a_value_of_its_own_and_does_not_hide_another() -> None:
    nan = float("nan")
    labels = torch.tensor([[1, nan], [1, nan], [0, nan], [nan, 0], [nan, 1]])
    assert strata(labels).unique(return_counts=True)[1].tolist() == [1, 1, 1, 2]
    _, _, of_group = group_table(labels, torch.tensor([0, 0, 0, 1, 1]))
    assert torch.allclose(of_group, torch.tensor([[1, nan], [nan, 1]]), equal_nan=True)
