"""How the good replies of a round become the next shared tensors: the server's half of every strategy.

Sums run in float64, over the sites in the order of their names, so a repeated round has the same bits; every tensor
keeps its type. Where a strategy moves parameters by an optimiser of its own, running statistics (``is_statistic``) are
averaged all the same: a momentum would carry a variance below zero.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from sslmed_dist.federation.replies import Reply
from sslmed_dist.federation.shared import Arrays, is_statistic

CONTROL = "control."  # begins the names of the tensors that ``Controlled`` sends beside the shared ones


@dataclass(frozen=True)
class Round:
    """What there is to combine: the good replies sorted by site, each site's share of the weight (they sum to 1), the
    shared tensors that the sites were sent, the number of all sites, and (called where it is needed) the sum of the
    learning rates of a site's steps in this round."""

    replies: Sequence[Reply]
    shares: Mapping[str, float]
    reference: Mapping[str, Tensor]
    sites: int
    rates: Callable[[], float]

    def stacked(self, key: str) -> Tensor:
        """The tensor ``key`` of every reply, float64 (sites, ...)."""
        return torch.stack([reply.arrays[key].double() for reply in self.replies])

    def mean(self, key: str) -> Tensor:
        """The mean of the tensor ``key`` weighted by the sites' shares, float64."""
        return torch.stack([reply.arrays[key].double() * self.shares[reply.site] for reply in self.replies]).sum(0)

    def equal_mean(self, key: str) -> Tensor:
        """The mean of the tensor ``key`` in which every site counts the same, float64."""
        return self.stacked(key).mean(0)


def shares(replies: Sequence[Reply], cap: float = 1.0) -> dict[str, float]:
    """Each site's share of the weight: its samples over those of all, but at most ``cap``, or one part in the number of
    sites where that is more. What is taken from a site goes to the others by their samples. They sum to 1."""
    return parts({reply.site: reply.samples for reply in sorted(replies, key=lambda reply: reply.site)}, cap)


def parts(counts: Mapping[str, int], cap: float = 1.0) -> dict[str, float]:
    """``shares`` of sites with these numbers of samples, in this order."""
    cap = max(cap, 1.0 / len(counts))
    total = sum(counts.values())
    plain = {site: count / total for site, count in counts.items()}
    capped: set[str] = set()
    while over := {site for site, share in plain.items() if share > cap and site not in capped}:
        capped |= over
        rest = sum(count for site, count in counts.items() if site not in capped)
        left = 1.0 - cap * len(capped)
        plain = {site: cap if site in capped else count / rest * left for site, count in counts.items()}
    return plain


class Average(ABC):
    """How replies become the next shared tensors. ``kept`` is what it has to keep between rounds, tensors by name in
    named groups; it goes into the round's file."""

    least = 1  # fewest replies that it can combine
    of_mean = False  # whether it needs nothing but the weighted mean, which is all that a secure sum gives

    def __init__(self) -> None:
        self.kept: dict[str, Arrays] = {}

    @abstractmethod
    def combine(self, done: Round) -> Arrays:
        """The next shared tensors. The same replies give the same bits."""

    def sent(self) -> Arrays:
        """Tensors that the sites are sent beside the shared ones. None by default."""
        return {}

    def first(self, reference: Mapping[str, Tensor]) -> dict[str, Arrays]:
        """What is kept before the first round, which begins at the shared tensors ``reference``. Nothing by default."""
        return {}

    def state(self) -> dict[str, Arrays]:
        """A copy of what is kept, which later rounds do not change."""
        return {group: dict(tensors) for group, tensors in self.kept.items()}

    def begin(self, reference: Mapping[str, Tensor]) -> dict[str, Arrays]:
        """Keep what is kept before the first round, and return it."""
        self.kept = self.first(reference)
        return self.state()

    def load(self, state: Mapping[str, Mapping[str, Tensor]], reference: Mapping[str, Tensor]) -> None:
        """Take over the state of a round's file, or begin, with none, at the shared tensors ``reference``.
        ``ValueError`` names what does not fit."""
        expected = self.begin(reference)
        if not state:
            return
        for group in sorted(set(expected) | set(state)):
            ours, theirs = expected.get(group, {}), state.get(group, {})
            unmatched = [key for key in sorted(set(ours) | set(theirs)) if not alike(ours.get(key), theirs.get(key))]
            if group not in expected or unmatched:
                raise ValueError(f"the strategy's state {group} does not fit: {', '.join(unmatched[:3]) or 'unknown'}")
        self.kept = {group: dict(tensors) for group, tensors in state.items()}


def alike(ours: Tensor | None, theirs: object) -> bool:
    """Whether a tensor of a file can stand for one of ours: the same shape and type, finite."""
    if ours is None or not isinstance(theirs, Tensor) or ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    return bool(theirs.isfinite().all())


class WeightedMean(Average):
    """Federated averaging (McMahan et al. 2017): of each tensor the mean over sites, weighted by their shares. The mean
    of one reply is that reply, bit for bit."""

    of_mean = True

    def combine(self, done: Round) -> Arrays:
        """The weighted means."""
        return {key: done.mean(key).to(value.dtype) for key, value in done.reference.items()}


class Moved(Average):
    """The parameters move from where they were by an optimiser at the server; its gradient is the mean update, with the
    sign turned. Statistics are averaged."""

    of_mean = True

    def combine(self, done: Round) -> Arrays:
        """Where the optimiser takes each parameter."""
        combined = {}
        for key, before in done.reference.items():
            mean = done.mean(key)
            if not is_statistic(key):
                mean = before.double() + self.step(key, mean - before.double())
            combined[key] = mean.to(before.dtype)
        return combined

    @abstractmethod
    def step(self, key: str, update: Tensor) -> Tensor:
        """How far the parameter ``key`` moves, from the mean update of this round; both float64."""


class Momentum(Moved):
    """FedAvgM (Hsu et al. 2019, arXiv 1909.06335): v = ``momentum`` v + update, w = w + ``lr`` v."""

    def __init__(self, momentum: float, lr: float) -> None:
        super().__init__()
        self.momentum, self.lr = momentum, lr

    def step(self, key: str, update: Tensor) -> Tensor:
        """``lr`` times the velocity after this round."""
        kept = self.kept["velocity"]
        velocity = self.momentum * kept[key].double() + update
        kept[key] = velocity.to(kept[key].dtype)
        return self.lr * velocity

    def first(self, reference: Mapping[str, Tensor]) -> dict[str, Arrays]:
        """No velocity."""
        return {"velocity": zeros(reference)}


class Adam(Moved):
    """FedAdam (Reddi et al. 2021, arXiv 2003.00295, Algorithm 2): m = beta1 m + (1 - beta1) update,
    v = beta2 v + (1 - beta2) update^2, w = w + lr m / (sqrt(v) + tau), v = tau^2 before the first round."""

    def __init__(self, lr: float, betas: tuple[float, float], tau: float) -> None:
        super().__init__()
        self.lr, self.betas, self.tau = lr, betas, tau

    def step(self, key: str, update: Tensor) -> Tensor:
        """The step of Adam without a correction of its start, as in the paper."""
        firsts, seconds = self.kept["first"], self.kept["second"]
        first = self.betas[0] * firsts[key].double() + (1.0 - self.betas[0]) * update
        second = self.betas[1] * seconds[key].double() + (1.0 - self.betas[1]) * update.square()
        firsts[key], seconds[key] = (moment.to(firsts[key].dtype) for moment in (first, second))
        return self.lr * first / (second.sqrt() + self.tau)

    def first(self, reference: Mapping[str, Tensor]) -> dict[str, Arrays]:
        """First moments 0, second moments tau^2."""
        first = zeros(reference)
        return {"first": first, "second": {key: torch.full_like(value, self.tau**2) for key, value in first.items()}}


class Controlled(Average):
    """SCAFFOLD's server (Karimireddy et al. 2020, arXiv 1910.06378, Algorithm 1, option II), every site counting the
    same: w = w + ``lr`` mean(y - w), c = c + |S|/N mean((w - y) / (sum of learning rates) - c). A site's own control
    variate cancels in its change, so the server needs nothing but the site's weights y."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.lr = lr

    def combine(self, done: Round) -> Arrays:
        """The moved parameters and the mean statistics; the control variate moves, too."""
        combined, controls = {}, self.kept["control"]
        for key, before in done.reference.items():
            if is_statistic(key):
                combined[key] = done.mean(key).to(before.dtype)
                continue
            update = done.equal_mean(key) - before.double()
            combined[key] = (before.double() + self.lr * update).to(before.dtype)
            control = controls[key].double()
            moved = control + len(done.replies) / done.sites * (-update / done.rates() - control)
            controls[key] = moved.to(before.dtype)
        return combined

    def sent(self) -> Arrays:
        """The control variate."""
        return {CONTROL + key: value for key, value in self.kept["control"].items()}

    def first(self, reference: Mapping[str, Tensor]) -> dict[str, Arrays]:
        """A control variate of 0."""
        return {"control": zeros(reference)}


class Median(Average):
    """The coordinate-wise median over sites (Yin et al. 2018, arXiv 1803.01498), the mean of the middle two where their
    number is even. Every site counts the same."""

    least = 3

    def combine(self, done: Round) -> Arrays:
        """The medians."""
        return {key: trimmed(done.stacked(key), (len(done.replies) - 1) // 2, v) for key, v in done.reference.items()}


class TrimmedMean(Average):
    """The coordinate-wise mean over sites without the floor(``share`` n) largest and smallest values (Yin et al. 2018,
    arXiv 1803.01498). Every remaining site counts the same."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share, self.least = share, math.ceil(1.0 / share)  # of fewer sites nothing would be left out

    def combine(self, done: Round) -> Arrays:
        """The trimmed means."""
        cut = math.floor(self.share * len(done.replies))
        return {key: trimmed(done.stacked(key), cut, value) for key, value in done.reference.items()}


class Krum(Average):
    """Krum (Blanchard et al. 2017, arXiv 1703.02757): with up to ``bad`` bad sites among n >= 2 ``bad`` + 3, a reply's
    score is the sum of its n - ``bad`` - 2 smallest squared distances to other replies, over all parameters. The equal
    mean of the ``kept`` replies of lowest score (multi-Krum; 1 is Krum)."""

    def __init__(self, bad: int, kept: int) -> None:
        super().__init__()
        self.bad, self.best, self.least = bad, kept, max(2 * bad + 3, kept)

    def combine(self, done: Round) -> Arrays:
        """The mean of the replies that others agree with most."""
        count = len(done.replies)
        distances = torch.zeros(count, count, dtype=torch.float64)
        for key in done.reference:
            if not is_statistic(key):
                rows = done.stacked(key).flatten(1)
                for i, j in combinations(range(count), 2):
                    distances[i, j] += (rows[i] - rows[j]).square().sum()
        distances += distances.T.clone()
        # The first of each sorted row is the distance to itself, 0.
        scores = distances.sort(dim=1).values[:, 1 : count - self.bad - 1].sum(1)
        best = scores.argsort(stable=True)[: self.best].sort().values  # of equal scores the first by name
        return {key: done.stacked(key)[best].mean(0).to(value.dtype) for key, value in done.reference.items()}


def trimmed(rows: Tensor, cut: int, like: Tensor) -> Tensor:
    """The mean of ``rows`` float64 (sites, ...) without the ``cut`` extremes at either end, in the type of ``like``."""
    return rows.sort(dim=0).values[cut : len(rows) - cut].mean(0).to(like.dtype)


def zeros(reference: Mapping[str, Tensor]) -> Arrays:
    """Zeros like every shared parameter; statistics have no optimiser state."""
    return {key: torch.zeros_like(value) for key, value in reference.items() if not is_statistic(key)}
