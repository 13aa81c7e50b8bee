"""How an encoder is doing at a site, told without labels: four numbers on a small fixed set of the site's own images.

They are measured on what the site begins a round with, so on the average of the round before. The set is drawn once,
by the run's seed and the samples' ids; nothing is drawn from a stream that training uses.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from sslmed_dist import randomness
from sslmed_dist.config import Config
from sslmed_dist.data.dataset import Dataset, Item
from sslmed_dist.downstream import alignment, extract
from sslmed_dist.federation.messages import HEALTH
from sslmed_dist.federation.sites import federated_section
from sslmed_dist.losses.collapse import effective_rank, embedding_std, uniformity
from sslmed_dist.models.interfaces import Encoder
from sslmed_dist.training import build
from sslmed_dist.views.one_view import OneView

STD, RANK, UNIFORMITY, ALIGNMENT = HEALTH
RULE = "the round after which alignment + uniformity, the mean over the sites weighted by samples, was lowest"


def measure(settings: Config, dataset: Dataset, encoder: Encoder) -> dict[str, float]:
    """``messages.HEALTH`` of the features of up to ``federated.health`` images of ``dataset``, L2-normalised, in
    float64; nothing where that is null.

    ``embedding_std`` (0: collapse, 1: isotropic), ``effective_rank`` (1 to the width of the features) and
    ``uniformity`` (0 to about -4) are those of the deterministic view (``losses.collapse``). ``alignment`` is the mean
    squared distance of the features of two training views of an image, and left out where the views give no two.
    """
    count = federated_section(settings).health
    if count is None:
        return {}
    positions = randomness.order(dataset.ids, settings.run.seed, "health")[:count]
    if len(positions) < 2:
        return {}
    if settings.plan.precision == "float64":
        encoder = copy.deepcopy(encoder).float()
    device, seed = build.choose_device(settings), settings.run.seed

    def features(views: torch.nn.Module) -> Tensor:
        return extract(encoder, dataset, positions, views=views.to(device), device=device, seed=seed).x

    x = functional.normalize(features(build.standard_views(settings, dataset)).double(), dim=1)
    values = (embedding_std(x), effective_rank(x), uniformity(x))
    found = {name: float(value) for name, value in zip(HEALTH, values, strict=False)}
    views = build.build_views(settings, dataset).to(device)
    first = {name: value.to(device) for name, value in one_sample(dataset, positions[:1], seed).items()}
    if "views_1" in views(first, seed=seed, epoch=0):
        found[ALIGNMENT] = alignment(*(features(OneView(views, number)) for number in (0, 1)))
    return found


def one_sample(dataset: Dataset, position: Tensor, seed: int) -> Item:
    """The batch of one sample, whose views show how many there are."""
    return dataset.fetch(position, seed=seed, epoch=0, draw=torch.zeros_like(position))


@dataclass
class BestRound:
    """Which round's average is best by ``RULE``, of those that were measured (Wang and Isola 2020: both are low where
    views of an image lie together and images apart; at collapse their sum is 0). First weights are no candidate. Rounds
    are compared that equally many sites have measured, the most of any; of equals the later one counts."""

    sums: dict[int, tuple[int, float]] = field(default_factory=dict)  # by rounds done: sites, weighted mean

    def add(self, rounds_done: int, said: Mapping[str, Mapping[str, float]], samples: Mapping[str, int]) -> None:
        """What sites said of the average after ``rounds_done`` rounds (scalars by site); nothing where none said both
        numbers."""
        both = {
            s: told[ALIGNMENT] + told[UNIFORMITY] for s, told in said.items() if {ALIGNMENT, UNIFORMITY} <= set(told)
        }
        if rounds_done < 1 or not both:
            return
        total = sum(samples[site] for site in both)
        self.sums[rounds_done] = (len(both), sum(both[site] * samples[site] for site in sorted(both)) / total)

    @property
    def number(self) -> int | None:
        """The best round; None where none was measured."""
        most = max((sites for sites, _ in self.sums.values()), default=0)
        of = {number: mean for number, (sites, mean) in self.sums.items() if sites == most}
        return min(of, key=lambda number: (of[number], -number), default=None)

    def state(self) -> dict[str, list[float]]:
        """What has to be kept between rounds."""
        return {str(number): [float(sites), mean] for number, (sites, mean) in self.sums.items()}

    def load(self, state: object) -> None:
        """Take over what ``state`` gave. ``ValueError`` for anything else."""
        if not isinstance(state, dict) or not all(
            str(key).isdecimal() and isinstance(row, list) and len(row) == 2 and all(type(v) is float for v in row)
            for key, row in state.items()
        ):
            raise ValueError("the health of earlier rounds is damaged")
        self.sums = {int(number): (int(sites), mean) for number, (sites, mean) in state.items()}
