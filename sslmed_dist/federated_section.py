"""The section ``federated`` of a configuration and its parts. ``sections`` has the others."""

from dataclasses import dataclass, field
from typing import Literal

from sslmed_dist.arguments import Leaf, require_between, require_component, require_fields_least, require_positive

LEAST_NOISE, MOST_NOISE = 0.01, 1000.0  # of a noise multiplier; see ``federation.privacy``
USUAL_HEALTH, FEWEST_HEALTH, MOST_HEALTH = 256, 16, 2048  # images of ``federated.health``
# What a federation can be compared with: floors, and encoders trained otherwise or not at all.
Arm = Literal["metadata", "raw_pixels", "copy_mask", "random", "local", "pooled"]


@dataclass(frozen=True)
class Screen:
    """The limits of the screen that every reply and every average passes; the formula is in ``federation.updates``.

    How far an update may move a parameter (``tensor``), all of them together (``total``) and a running variance, in
    sizes of what it started from; how many times a site's own earlier updates (``history``), or the median over sites
    (``spread``), it may be. ``share``: the most that one site may have of the weight of an average.
    """

    tensor: float = 50.0
    variance: float = 500.0
    total: float = 5.0
    history: float = 10.0
    spread: float = 10.0
    share: float = 0.7

    def __post_init__(self) -> None:
        for name in ("tensor", "variance", "total"):
            require_positive(f"federated.screen.{name}", getattr(self, name))
        require_fields_least("federated.screen", self, 1, "history", "spread")
        require_between("federated.screen.share", self.share, 0.0, 1.0)


@dataclass(frozen=True)
class Privacy:
    """Each site's update is shortened to the L2 norm ``clip``, and Gaussian noise of ``noise_multiplier`` times it is
    added. ``at``: by the ``server`` to the sum of all (``federation.central_noise``), or by each of the ``sites`` of a
    research run to its own, as a hospital does by its own rules. ``delta``: the one at which epsilon is named."""

    clip: float
    noise_multiplier: float
    delta: float = 1e-6
    at: Literal["server", "sites"] = "server"

    def __post_init__(self) -> None:
        require_positive("federated.privacy.clip", self.clip)
        require_between("federated.privacy.noise_multiplier", self.noise_multiplier, LEAST_NOISE, MOST_NOISE)
        require_positive("federated.privacy.delta", self.delta)
        require_between("federated.privacy.delta", self.delta, 0.0, 0.01)


@dataclass(frozen=True)
class Secure:
    """The secure sum: the server learns the sum of the sites' updates and no single one (``federation.secure_sum``).

    ``threshold``: how many sites have to be left at the end of a round, above half of those that began it and at least
    3; null: the smallest such number. ``clip``: the largest change of one number that a site may send. ``bits``: of
    each number on the way, 32 (as many bytes as without the sum) or 64 (finer steps)."""

    threshold: int | None = None
    clip: float = 16.0
    bits: Literal[32, 64] = 32

    def __post_init__(self) -> None:
        require_fields_least("federated.secure", self, 3, "threshold")
        require_between("federated.secure.clip", self.clip, 1e-3, 1e4)


@dataclass(frozen=True)
class Federated:
    """A federation: its rounds, how data is dealt to simulated sites, what is shared and what makes a round fail.

    ``share``: which tensors are averaged, those of the encoder alone or of the whole method (encoder and head).
    ``keep_state``: optimiser, head and queues are kept at the site; otherwise they start afresh in every round.
    ``compare``: the other arms of the comparison, trained with the same number of optimiser steps per site as the
    federation. ``evaluate``: after the last round the server asks every site to measure the arms on its own held-out
    part. ``health``: in each round every site measures, without labels, what it was sent on so many of its own images
    (``federation.health``; true: 256, null: never). ``pool``: the split of the dataset that is dealt to simulated sites
    (every site then has held-out parts of its own). ``seed`` decides which samples a site gets and holds out; it is not
    the run's seed, because a hospital stays the same hospital when the run is repeated.
    """

    rounds: int = 10
    local_epochs: int = 1
    strategy: Leaf = field(default_factory=lambda: {"name": "fedavg"})
    partition: Leaf = field(default_factory=lambda: {"name": "iid", "count": 3})
    pool: Literal["train", "all"] = "all"
    seed: int = 0
    site_names: tuple[str, ...] | None = None
    held_out: float = 0.25
    held_out_groups: int | None = None
    validation: float = 0.15
    share: Literal["encoder", "all"] = "encoder"
    keep_state: bool = True
    quorum: int = 2
    screen: Screen = field(default_factory=Screen)
    privacy: Privacy | None = None
    secure: Secure | None = None
    timeout_s: float = 3600.0
    runtime: Literal["in_process", "simulation", "deployment"] = "simulation"
    compare: tuple[Arm, ...] = ("random", "local", "pooled")
    evaluate: bool = False
    health: int | bool | None = None

    def __post_init__(self) -> None:
        if isinstance(self.health, bool):  # true and false in short
            object.__setattr__(self, "health", USUAL_HEALTH if self.health else None)
        if self.health is not None:
            require_between("federated.health", self.health, FEWEST_HEALTH, MOST_HEALTH)
        if self.privacy is not None and (self.evaluate or self.health is not None):
            key = "evaluate" if self.evaluate else "health"
            raise ValueError(
                f"federated.{key}: with federated.privacy no figure of a single site may reach the server, because "
                f"none is noised; allowed: {'false' if self.evaluate else 'null'}"
            )
        if self.privacy is not None and self.secure is not None:
            raise ValueError(
                "federated.privacy: noise at the server needs single updates, which federated.secure hides, and sites "
                "that add noise to a secure sum do so by their own rules (policy.privacy); allowed: one of the two"
            )
        require_fields_least("federated", self, 1, "rounds", "local_epochs", "quorum", "held_out_groups")
        if self.timeout_s <= 0:
            raise ValueError(f"federated.timeout_s: expected a number > 0, got {self.timeout_s}")
        for name in self.site_names or ():
            require_component("federated.site_names", name)
