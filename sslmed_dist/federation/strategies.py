"""The table of strategies. One is two halves: how the server combines replies (``federation.averages``), and what a
site does beside plain training (``federation.local_terms``). Both are built from the same leaf, so that they agree.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from sslmed_dist import registry
from sslmed_dist.arguments import require_between, require_least, require_not_negative, require_positive
from sslmed_dist.config import Config, Federated
from sslmed_dist.federation.averages import (
    Adam,
    Average,
    Controlled,
    Krum,
    Median,
    Momentum,
    TrimmedMean,
    WeightedMean,
)
from sslmed_dist.federation.central_noise import NoisedMean
from sslmed_dist.federation.local_terms import (
    ControlVariates,
    LocalNorms,
    LocalTerm,
    MixedIn,
    OwnPredictor,
    Proximal,
)

WHERE = "federated.strategy"


@dataclass(frozen=True)
class Strategy:
    """The server's half and the site's."""

    average: Average
    local: LocalTerm

    @property
    def noise(self) -> NoisedMean | None:
        """The server's half where it adds noise."""
        return self.average if isinstance(self.average, NoisedMean) else None


def fedavg() -> Strategy:
    """Federated averaging."""
    return Strategy(WeightedMean(), LocalTerm())


def fedprox(mu: float = 0.01) -> Strategy:
    """Sites stay near what they were sent."""
    return Strategy(WeightedMean(), Proximal(require_positive(f"{WHERE}.mu", mu)))


def fedbn() -> Strategy:
    """Norms stay at the sites."""
    return Strategy(WeightedMean(), LocalNorms())


def fedavgm(momentum: float = 0.9, lr: float = 1.0) -> Strategy:
    """Momentum at the server."""
    require_between(f"{WHERE}.momentum", momentum, 0.0, 0.999)
    return Strategy(Momentum(momentum, require_positive(f"{WHERE}.lr", lr)), LocalTerm())


def fedadam(lr: float = 0.01, beta1: float = 0.9, beta2: float = 0.99, tau: float = 0.001) -> Strategy:
    """Adam at the server."""
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        require_between(f"{WHERE}.{name}", beta, 0.0, 0.999)
    positive = [require_positive(f"{WHERE}.{name}", value) for name, value in (("lr", lr), ("tau", tau))]
    return Strategy(Adam(positive[0], (beta1, beta2), positive[1]), LocalTerm())


def scaffold(lr: float = 1.0) -> Strategy:
    """Control variates against the drift of sites."""
    return Strategy(Controlled(require_positive(f"{WHERE}.lr", lr)), ControlVariates())


def median() -> Strategy:
    """The median over sites."""
    return Strategy(Median(), LocalTerm())


def trimmed_mean(share: float = 0.2) -> Strategy:
    """The mean over sites without the extremes, ``share`` of the sites on each side."""
    if not 0.0 < share < 0.5:
        raise ValueError(f"{WHERE}.share: expected a number above 0 and below 0.5, got {share}")
    return Strategy(TrimmedMean(share), LocalTerm())


def krum(bad: int = 0, kept: int = 1) -> Strategy:
    """The replies that others agree with most, with up to ``bad`` bad sites."""
    require_least(f"{WHERE}.bad", bad, 0), require_least(f"{WHERE}.kept", kept, 1)
    return Strategy(Krum(bad, kept), LocalTerm())


def fedu(threshold: float) -> Strategy:
    """The predictor is taken over only where site and server have not diverged."""
    return Strategy(WeightedMean(), OwnPredictor(require_not_negative(f"{WHERE}.threshold", threshold)))


def fedema(tau: float = 0.7, scale: float | None = None) -> Strategy:
    """Sites mix what they are sent into what they have, the less the more they have diverged."""
    require_between(f"{WHERE}.tau", tau, 0.0, 1.0)
    if scale is not None:
        require_positive(f"{WHERE}.scale", scale)
    return Strategy(WeightedMean(), MixedIn(tau, scale))


STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "fedavg": fedavg,
    "fedprox": fedprox,
    "fedbn": fedbn,
    "fedadam": fedadam,
    "fedavgm": fedavgm,
    "scaffold": scaffold,
    "median": median,
    "trimmed_mean": trimmed_mean,
    "krum": krum,
    "fedu": fedu,
    "fedema": fedema,
}
OF_MEAN = (
    "fedavg",
    "fedprox",
    "fedbn",
    "fedadam",
    "fedavgm",
    "fedu",
    "fedema",
)  # those that ``federated.secure`` allows


# Those whose server needs no more than the mean update, so that ``federated.privacy`` can wrap them.
NOISED = ("fedavg", "fedprox", "fedbn", "fedadam", "fedavgm")


def build(fed: Federated) -> Strategy:
    """The strategy that ``federated.strategy`` names. ``ValueError`` names the key, and what is allowed."""
    strategy: Strategy = registry.build(STRATEGIES, fed.strategy, WHERE)
    if strategy.local.keeps and not fed.keep_state:
        raise ValueError(f"{WHERE}: {fed.strategy['name']} needs federated.keep_state: true, its sites keep a state")
    if fed.privacy is not None and fed.privacy.at == "server":
        if fed.strategy["name"] not in NOISED:
            raise ValueError(
                f"{WHERE}: {fed.strategy['name']} looks at single updates, or keeps what they were, and "
                f"federated.privacy has their noised mean alone; allowed: {', '.join(NOISED)}"
            )
        strategy = replace(strategy, average=NoisedMean(strategy.average, fed.privacy))
    if fed.quorum < strategy.average.least:
        raise ValueError(
            f"federated.quorum: {fed.quorum}; {WHERE} {fed.strategy['name']} needs at least {strategy.average.least} "
            "replies in every round"
        )
    return strategy


def check(settings: Config) -> Strategy:
    """The strategy of a configuration. ``ValueError`` where its section ``federated`` names none, or one that its
    method or optimiser cannot have."""
    assert settings.federated is not None
    strategy = build(settings.federated)
    if settings.federated.secure is not None and not strategy.average.of_mean:
        name, able = settings.federated.strategy["name"], ", ".join(OF_MEAN)
        raise ValueError(f"{WHERE}.name: {name} needs single updates, which federated.secure hides; allowed: {able}")
    strategy.local.check(settings)
    return strategy
