"""Noise at the server: the mean of a round's clipped updates gets it before anything is written down.

A strategy around a strategy (McMahan et al. 2018, arXiv 1710.06963, Algorithm 1, with every site in every round). With
u_i the shortened updates of the replies (``federation.privacy``) and n the number of ALL sites of the federation:

    noised mean = g + (sum of u_i + X) / n,  X discrete Gaussian, standard deviation z C

n does not depend on who answered: a site that is away, or whose reply is none, counts as no change. So whatever one
site answers moves the sum by at most 2 C. The inner strategy sees the noised mean alone, as if one site had sent it;
what it makes of it spends no further privacy. The server itself sees every update: it is trusted here, and the noise
protects from those who get the model.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from sslmed_dist.federated_section import Privacy
from sslmed_dist.federation import accountant, privacy
from sslmed_dist.federation.averages import Average, Round
from sslmed_dist.federation.privacy import Mechanism, Steps
from sslmed_dist.federation.replies import Reply
from sslmed_dist.federation.shared import Arrays

MEAN = "(noised mean)"  # stands for a site's name; no site can be called so
GROUP, SPENT = "privacy", "rho"  # where the strategy's state keeps what was spent


class NoisedMean(Average):
    """``inner`` on the noised mean. Every site counts the same, whatever number of samples it names."""

    single = True

    def __init__(self, inner: Average, rules: Privacy) -> None:
        super().__init__()
        self.inner, self.rules, self.least = inner, rules, inner.least
        self.mechanism = Mechanism(rules.clip, rules.noise_multiplier)
        self.spent = 0.0

    def combine(self, done: Round) -> Arrays:
        """What the inner strategy makes of the noised mean. Not the same bits twice: the noise is drawn anew."""
        total: Steps = {}
        for reply in done.replies:
            for key, value in self.mechanism.shortened(reply.arrays, done.reference).items():
                total[key] = total[key] + value if key in total else value
        self.spent += accountant.rho(self.rules.noise_multiplier)
        mean = self.mechanism.released(self.mechanism.noised(total), done.reference, done.sites)
        return self.inner.combine(replace(done, replies=[Reply(MEAN, mean, 1)], shares={MEAN: 1.0}))

    def epsilon(self) -> float:
        """What has been spent."""
        return accountant.epsilon(self.spent, self.rules.delta)

    def words(self) -> str:
        """What has been spent, in words."""
        return privacy.words(self.spent, self.rules.delta)

    def sent(self) -> Arrays:
        """The inner strategy's."""
        return self.inner.sent()

    def state(self) -> dict[str, Arrays]:
        """The inner strategy's, and what was spent."""
        return {**self.inner.state(), GROUP: {SPENT: torch.tensor(self.spent, dtype=torch.float64)}}

    def first(self, reference: Mapping[str, Tensor]) -> dict[str, Arrays]:
        """The inner strategy's, and nothing spent."""
        return {**self.inner.first(reference), GROUP: {SPENT: torch.zeros((), dtype=torch.float64)}}

    def begin(self, reference: Mapping[str, Tensor]) -> dict[str, Arrays]:
        """Keep what is kept before the first round, and return it."""
        self.inner.begin(reference)
        self.spent = 0.0
        return self.state()

    def load(self, state: Mapping[str, Mapping[str, Tensor]], reference: Mapping[str, Tensor]) -> None:
        """As ``Average.load``; the inner strategy takes its own part."""
        super().load(state, reference)
        if self.kept:
            self.spent = float(self.kept.pop(GROUP)[SPENT])
            self.inner.kept, self.kept = self.kept, {}
