"""Dealing the samples of one set to federated sites, and holding a part of a set out.

Every function is pure: (labels, groups, sites, ids, *, count, seed, ...) -> one sorted int64 tensor of positions per
site; together they hold every position exactly once. A sample's random key is made of its id and never of its
position, so the same samples in another order are dealt the same way.

Shapes below: N samples, L label columns, G groups (patients or exams), S sites, C distinct labels.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sslmed_dist import randomness
from sslmed_dist.printable import plural

ATTEMPTS = 1000  # of drawing Dirichlet shares that give every site its minimum
TRIALS = 64  # of Marsaglia and Tsang's rejection, which accepts more than 95 % each


def strata(labels: Tensor) -> Tensor:
    """One int64 code per sample, (N,) in [0, C): equal codes for equal labels, or for equal rows of multi-labels. A
    missing label (NaN) is a value of its own."""
    code: Tensor = torch.unique(known_or_below(labels), dim=0, return_inverse=True)[1]
    return code


def group_table(labels: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(group numbers ascending (G,), row of each sample's group among them (N,), label of each group (G,) or (G, L)).

    A group's label is the greatest of its samples', column by column: a patient counts as ill if one image shows it. It
    is missing (NaN) where all of its samples' are.
    """
    labels = known_or_below(labels)
    group_numbers, group_row = torch.unique(groups, return_inverse=True)
    group_labels = labels.new_zeros(len(group_numbers), *labels.shape[1:])  # (G,) or (G, L)
    # the maximum over each group's samples; scatter wants one target row per label value
    index = group_row if labels.ndim == 1 else group_row[:, None].expand_as(labels)
    group_labels.scatter_reduce_(0, index, labels, "amax", include_self=False)
    if labels.is_floating_point():
        group_labels = torch.where(group_labels < 0, torch.nan, group_labels)
    return group_numbers, group_row, group_labels


def known_or_below(labels: Tensor) -> Tensor:
    """``labels`` with -1 in place of a missing one (NaN), below every value: NaN is equal to nothing, not to itself."""
    return labels.nan_to_num(nan=-1.0) if labels.is_floating_point() else labels


def stratified_order(labels: Tensor, ids: Tensor, *key: int | str) -> Tensor:
    """Positions (N,) sorted by label, and at random (by the samples' keys) among equal labels.

    Dealing this list out in turn gives every site its share of every label, to within one sample.
    """
    # shuffle first, then sort stably: equal labels keep the shuffled order
    order = randomness.order(ids, *key)
    return order[torch.argsort(strata(labels)[order], stable=True)]


def iid(labels: Tensor, groups: Tensor, sites: Tensor | None, ids: Tensor, *, count: int, seed: int) -> list[Tensor]:
    """Samples dealt at random; sizes are equal to within one. ``ValueError`` names a site that gets no sample."""
    order = randomness.order(ids, seed, "partition", "iid")
    return sorted_parts([order[site::count] for site in range(count)], count, "iid")


def by_group(
    labels: Tensor, groups: Tensor, sites: Tensor | None, ids: Tensor, *, count: int, seed: int
) -> list[Tensor]:
    """Groups (patients) dealt in turn within each label: none is split between sites, and the mix of labels is even.
    ``ValueError`` names a site that gets no group."""
    group_numbers, group_row, group_labels = group_table(labels, groups)
    site_of_group = torch.empty_like(group_numbers)  # (G,)
    site_of_group[stratified_order(group_labels, group_numbers, seed, "partition", "by_group")] = torch.arange(
        len(group_numbers)
    ) % max(count, 1)
    return sorted_parts(
        [torch.nonzero(site_of_group[group_row] == site)[:, 0] for site in range(count)], count, "by_group"
    )


def by_site(
    labels: Tensor, groups: Tensor, sites: Tensor | None, ids: Tensor, *, count: int, seed: int
) -> list[Tensor]:
    """The sites that the data itself knows, in ascending order of their numbers; ``seed`` plays no part.
    ``ValueError`` when the data knows no sites, or not exactly ``count`` of them."""
    if sites is None:
        raise ValueError("partition by_site: the dataset does not say which site a sample is from")
    site_numbers = torch.unique(sites)
    if len(site_numbers) > count:
        raise ValueError(f"partition by_site: count is {count}, but the data has {plural(len(site_numbers), 'site')}")
    return sorted_parts([torch.nonzero(sites == site_number)[:, 0] for site_number in site_numbers], count, "by_site")


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

    A small ``alpha`` gives most of a label to few sites, a large one equal shares. Samples with several labels are
    dealt by their combination of labels. Shares are drawn again until every site has ``min_size`` samples.
    ``ValueError`` when 1000 attempts do not reach that, for unlabelled samples and for values out of range.
    """
    if alpha <= 0 or min_size < 1 or count < 1:
        raise ValueError(f"partition dirichlet: alpha {alpha} must be > 0, min_size {min_size} and count {count} >= 1")
    if labels.ndim == 1 and bool((labels < 0).any()):
        raise ValueError("partition dirichlet: needs labels, and some samples have none")
    codes = strata(labels)
    order = randomness.order(ids, seed, "partition", "dirichlet")
    # member of each label's samples, shuffled; each list is cut into one slice per site
    members = [order[codes[order] == code] for code in range(int(codes.max()) + 1)]
    sizes = torch.tensor([len(member) for member in members])  # (C,)
    for attempt in range(ATTEMPTS):
        shares = dirichlet_shares(alpha, len(members), count, seed, attempt)  # (C, S), rows sum to 1
        # cuts[c, s] and cuts[c, s + 1] bound the slice of label c that goes to site s: (C, S + 1), from 0 to sizes[c]
        cuts = torch.round(torch.cumsum(shares, 1) * sizes[:, None]).to(torch.int64)
        cuts = torch.cat([torch.zeros(len(members), 1, dtype=torch.int64), cuts[:, :-1], sizes[:, None]], 1)
        # the slice lengths summed over the labels are the sizes of the sites
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
    """(rows, columns) float64; each row is one draw of Dirichlet(alpha, ..., alpha), made from keyed gamma variates.

    Gamma variates of equal scale, divided by their sum, are a Dirichlet draw. A variate of shape alpha + 1 comes from
    the rejection method of Marsaglia and Tsang (2000). One of shape alpha follows from log gamma(alpha) =
    log gamma(alpha + 1) + log(u) / alpha. All of it is in logarithms, because at small alpha the variates themselves
    underflow to zero together.
    """
    cell = torch.arange(rows * columns).view(rows, columns)
    d = alpha + 1.0 - 1.0 / 3.0  # the paper's d = shape - 1/3; its variate is d v
    log_gamma = torch.full((rows, columns), float("nan"), dtype=torch.float64)
    # a cell is NaN until one of its proposals is accepted; every trial proposes v = (1 + x / sqrt(9 d))^3 anew
    for trial in range(TRIALS):
        x = randomness.normal(*key, "gamma", trial, cell)
        v = (1.0 + x / (9.0 * d) ** 0.5) ** 3
        u = randomness.uniform(*key, "accept", trial, cell)
        log_v = torch.log(v.clamp_min(1e-300))  # v <= 0 is rejected below; the clamp keeps its logarithm finite
        accepted = (v > 0) & (torch.log1p(-u) < 0.5 * x * x + d - d * v + d * log_v)
        log_gamma = torch.where(
            torch.isnan(log_gamma) & accepted, torch.log(torch.tensor(d, dtype=torch.float64)) + log_v, log_gamma
        )
        if not bool(torch.isnan(log_gamma).any()):
            break
    # from shape alpha + 1 down to alpha; softmax of logarithms is division by the sum
    log_boost = torch.log1p(-randomness.uniform(*key, "boost", cell)) / alpha
    return torch.softmax(log_gamma + log_boost, dim=1)


def sorted_parts(parts: list[Tensor], count: int, name: str) -> list[Tensor]:
    """Each site's positions, sorted. ``ValueError`` names the first site (from 0) that got no sample."""
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

    ``groups_per_site`` holds out that many groups (patients), drawn at random. ``fraction`` holds out that share of
    the groups, evenly over the labels. ``ValueError`` unless exactly one is given and both parts get a sample.
    """
    if (fraction is None) == (groups_per_site is None):
        raise ValueError("hold_out: give exactly one of fraction and groups_per_site")
    group_numbers, group_row, group_labels = group_table(labels, groups)
    if groups_per_site is not None:
        held_groups = randomness.order(group_numbers, seed, "hold_out")[: max(groups_per_site, 0)]
        request = f"groups_per_site {groups_per_site}"
    else:
        assert fraction is not None
        order = stratified_order(group_labels, group_numbers, seed, "hold_out")
        # every 1/fraction-th of the sorted list, so each label gives its share to within one group: the rounded
        # running total i * fraction rises by one at the groups to take
        steps = torch.floor(torch.arange(len(group_numbers) + 1, dtype=torch.float64) * fraction + 0.5)
        held_groups, request = order[torch.diff(steps) > 0], f"fraction {fraction}"
    is_held = torch.zeros(len(group_numbers), dtype=torch.bool)  # (G,); is_held[group_row] is (N,)
    is_held[held_groups] = True
    if len(held_groups) == 0 or bool(is_held.all()):
        empty_part = "held-out" if len(held_groups) == 0 else "training"
        raise ValueError(f"hold_out: {request} of {len(group_numbers)} groups leaves the {empty_part} part empty")
    return torch.nonzero(~is_held[group_row])[:, 0], torch.nonzero(is_held[group_row])[:, 0]


PARTITIONS: dict[str, Callable[..., list[Tensor]]] = {
    "iid": iid,
    "dirichlet": dirichlet,
    "by_group": by_group,
    "by_site": by_site,
}
