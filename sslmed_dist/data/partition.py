"""Dealing the samples of one set to federated sites, and holding a part of a set out.

Every function is pure: (labels, groups, sites, ids, *, count, seed, ...) -> one sorted int64 tensor of positions per
site; together they hold every position exactly once. What a sample's key decides depends on its id alone, never on
its position, so the same samples in another order are dealt the same way.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sslmed_dist import randomness

ATTEMPTS = 1000  # of drawing Dirichlet shares that give every site its minimum
TRIALS = 64  # of Marsaglia and Tsang's rejection, which accepts more than 95 % each


def strata(labels: Tensor) -> Tensor:
    """One int64 code per sample: equal codes for equal labels, or for equal rows of multi-labels."""
    code: Tensor = torch.unique(labels, dim=0, return_inverse=True)[1]
    return code


def group_table(labels: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(names of the groups ascending, the row of each sample's group in them, label of each group).

    A group's label is the greatest of its samples', column by column: a patient counts as ill if one image shows it.
    """
    names, row = torch.unique(groups, return_inverse=True)
    table = labels.new_zeros(len(names), *labels.shape[1:])
    index = row if labels.ndim == 1 else row[:, None].expand_as(labels)
    table.scatter_reduce_(0, index, labels, "amax", include_self=False)
    return names, row, table


def stratified_order(labels: Tensor, ids: Tensor, *key: int | str) -> Tensor:
    """Positions sorted by label, and by the samples' keys among equal labels: dealing this list out in turn gives
    every hand its share of every label."""
    order = randomness.order(ids, *key)
    return order[torch.argsort(strata(labels)[order], stable=True)]


def iid(labels: Tensor, groups: Tensor, sites: Tensor | None, ids: Tensor, *, count: int, seed: int) -> list[Tensor]:
    """Samples dealt at random, sizes equal to within one. ``ValueError`` names a site that gets none."""
    order = randomness.order(ids, seed, "partition", "iid")
    return sorted_parts([order[site::count] for site in range(count)], count, "iid")


def by_group(
    labels: Tensor, groups: Tensor, sites: Tensor | None, ids: Tensor, *, count: int, seed: int
) -> list[Tensor]:
    """Whole patients dealt in turn within each label, so none is split between sites and the mix is even.
    ``ValueError`` names a site that gets none."""
    names, row, table = group_table(labels, groups)
    hand = torch.empty_like(names)
    hand[stratified_order(table, names, seed, "partition", "by_group")] = torch.arange(len(names)) % max(count, 1)
    return sorted_parts([torch.nonzero(hand[row] == site)[:, 0] for site in range(count)], count, "by_group")


def by_site(
    labels: Tensor, groups: Tensor, sites: Tensor | None, ids: Tensor, *, count: int, seed: int
) -> list[Tensor]:
    """The sites that the data itself knows, in ascending order of their numbers (``seed`` plays no part).
    ``ValueError`` when it knows none, or not ``count`` of them."""
    if sites is None:
        raise ValueError("partition by_site: the dataset does not say which site a sample is from")
    names = torch.unique(sites)
    if len(names) > count:
        raise ValueError(f"partition by_site: count is {count}, but the data has {len(names)} sites")
    return sorted_parts([torch.nonzero(sites == name)[:, 0] for name in names], count, "by_site")


def dirichlet(
    labels: Tensor,
    groups: Tensor,
    sites: Tensor | None,
    ids: Tensor,
    *,
    count: int,
    seed: int,
    alpha: float,
    min_size: int = 1,
) -> list[Tensor]:
    """Label skew (Hsu, Qi and Brown 2019): the samples of each label go to the sites in shares ~ Dirichlet(alpha).

    Shares are drawn again until every site has ``min_size`` samples; after 1000 attempts ``ValueError`` says so.
    ``ValueError`` also for unlabelled samples and values out of range. Multi-labels count by their combination.
    """
    if alpha <= 0 or min_size < 1 or count < 1:
        raise ValueError(f"partition dirichlet: alpha {alpha} must be > 0, min_size {min_size} and count {count} >= 1")
    if labels.ndim == 1 and bool((labels < 0).any()):
        raise ValueError("partition dirichlet: needs labels, and some samples have none")
    codes = strata(labels)
    order = randomness.order(ids, seed, "partition", "dirichlet")
    members = [order[codes[order] == code] for code in range(int(codes.max()) + 1)]
    sizes = torch.tensor([len(member) for member in members])
    for attempt in range(ATTEMPTS):
        shares = dirichlet_shares(alpha, len(members), count, seed, attempt)
        cuts = torch.round(torch.cumsum(shares, 1) * sizes[:, None]).to(torch.int64)
        cuts = torch.cat([torch.zeros(len(members), 1, dtype=torch.int64), cuts[:, :-1], sizes[:, None]], 1)
        if int(torch.diff(cuts, dim=1).sum(0).min()) >= min_size:
            pieces = [
                [member[a:b] for member, (a, b) in zip(members, cuts[:, site : site + 2].tolist(), strict=True)]
                for site in range(count)
            ]
            return sorted_parts([torch.cat(piece) for piece in pieces], count, "dirichlet")
    raise ValueError(
        f"partition dirichlet: no split of {len(ids)} samples to {count} sites with alpha {alpha} gave every site "
        f"min_size {min_size} samples in {ATTEMPTS} attempts; allowed: a larger alpha, a smaller min_size, fewer sites"
    )


def dirichlet_shares(alpha: float, rows: int, columns: int, *key: int | str) -> Tensor:
    """(rows, columns) float64 of Dirichlet(alpha, ..., alpha) draws, from logarithms of keyed gamma variates.

    Marsaglia and Tsang 2000 for shape alpha + 1, then log gamma(alpha) = log gamma(alpha + 1) + log(u) / alpha: in
    logarithms, because at small alpha the variates themselves underflow to zero together.
    """
    cell = torch.arange(rows * columns).view(rows, columns)
    d = alpha + 1.0 - 1.0 / 3.0
    draws = torch.full((rows, columns), float("nan"), dtype=torch.float64)
    for trial in range(TRIALS):
        x = randomness.normal(*key, "gamma", trial, cell)
        v = (1.0 + x / (9.0 * d) ** 0.5) ** 3
        u = randomness.uniform(*key, "accept", trial, cell)
        logs = torch.log(v.clamp_min(1e-300))
        accepted = (v > 0) & (torch.log1p(-u) < 0.5 * x * x + d - d * v + d * logs)
        draws = torch.where(
            torch.isnan(draws) & accepted, torch.log(torch.tensor(d, dtype=torch.float64)) + logs, draws
        )
        if not bool(torch.isnan(draws).any()):
            break
    boost = torch.log1p(-randomness.uniform(*key, "boost", cell)) / alpha
    return torch.softmax(draws + boost, dim=1)


def sorted_parts(parts: list[Tensor], count: int, name: str) -> list[Tensor]:
    """Sort each site's positions. ``ValueError`` naming the first site (from 0) that got no sample."""
    if count < 1:
        raise ValueError(f"partition {name}: count must be at least 1, got {count}")
    for site in range(count):
        if site >= len(parts) or len(parts[site]) == 0:
            raise ValueError(f"partition {name}: site {site} of {count} would hold no sample; allowed: fewer sites")
    return [torch.sort(part).values for part in parts]


def hold_out(
    labels: Tensor,
    groups: Tensor,
    ids: Tensor,
    *,
    fraction: float | None = None,
    groups_per_site: int | None = None,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """(train, held out): sorted int64 positions of two parts of one site's samples, no group in both.

    ``groups_per_site`` holds out that many whole groups (patients) at random; ``fraction`` that share of the groups,
    evenly over the labels. ``ValueError`` unless exactly one is given and both parts get a sample.
    """
    if (fraction is None) == (groups_per_site is None):
        raise ValueError("hold_out: give exactly one of fraction and groups_per_site")
    names, row, table = group_table(labels, groups)
    if groups_per_site is not None:
        held = randomness.order(names, seed, "hold_out")[: max(groups_per_site, 0)]
        asked = f"groups_per_site {groups_per_site}"
    else:
        assert fraction is not None
        order = stratified_order(table, names, seed, "hold_out")
        # every 1/fraction-th of the sorted list, so each label gives its share to within one group
        steps = torch.floor(torch.arange(len(names) + 1, dtype=torch.float64) * fraction + 0.5)
        held, asked = order[torch.diff(steps) > 0], f"fraction {fraction}"
    mark = torch.zeros(len(names), dtype=torch.bool)
    mark[held] = True
    if len(held) == 0 or bool(mark.all()):
        part = "held-out" if len(held) == 0 else "training"
        raise ValueError(f"hold_out: {asked} of {len(names)} groups leaves the {part} part empty")
    return torch.nonzero(~mark[row])[:, 0], torch.nonzero(mark[row])[:, 0]


PARTITIONS: dict[str, Callable[..., list[Tensor]]] = {
    "iid": iid,
    "dirichlet": dirichlet,
    "by_group": by_group,
    "by_site": by_site,
}
