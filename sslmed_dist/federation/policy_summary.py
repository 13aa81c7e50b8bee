"""A request and a site's rules in words, for the person who accepts a run or keeps the rules."""

import math
from collections.abc import Mapping
from typing import Any

from sslmed_dist.config import Config
from sslmed_dist.federation import accountant
from sslmed_dist.federation.policy import Request, Spent
from sslmed_dist.federation.site_file import Privacy, Rules, SiteFile
from sslmed_dist.printable import plural


def summary(request: Request, rules: Rules) -> list[str]:
    """What a run would do under the site's rules, for the person who accepts it."""
    settings = request.settings
    fed, plan = settings.federated, settings.plan
    assert fed is not None  # ``amounts`` demands it
    steps = (plan.steps_per_epoch or 0) * fed.local_epochs
    noise = rules.privacy.noise_multiplier > 0
    leaf = ("method", "loss", "views", "data", "optim")
    names = {key: settings.method.get("loss") if key == "loss" else getattr(settings, key) for key in leaf}
    chosen = ", ".join(f"{key} {name_of(value)}" for key, value in names.items() if value is not None)
    return [
        f"run {settings.run.name}, seed {settings.run.seed}: digest {request.digest}",
        f"trains: {chosen}; learning rate {settings.optim.get('lr')}, batches of {plan.batch_size}",
        f"{plural(fed.rounds, 'round')} of {plural(steps, 'optimiser step')} each on this site's images",
        f"would send in each round: the tensors of {'the encoder' if fed.share == 'encoder' else 'the whole method'}"
        + (
            ", with noise; no scalars"
            if noise
            else ", the number of training images, and the scalars of policy.scalars"
        ),
        f"the tensors leave {'singly' if fed.secure is None else 'under masks, in secure sums with peers'}",
        *evaluation(settings, rules),
        "would send once or more: this site's name, its program's version, "
        + ("policy.privacy.samples and the channels" if noise else "the number and channels")
        + " of its images",
        worth(rules.privacy),
    ]


def evaluation(settings: Config, rules: Rules) -> list[str]:
    """What a run with ``federated.evaluate`` would do at its end, for the same person."""
    fed = settings.federated
    if fed is None or not fed.evaluate:
        return []
    if rules.privacy.noise_multiplier:
        return ["asks for an evaluation at the end: refused, because figures carry no noise (policy.privacy)"]
    protocols = ", ".join(name_of(leaf) for leaf in settings.evaluate.protocols)
    trains = " after it has trained an encoder on this site's data alone" if "local" in fed.compare else ""
    return [
        f"would measure encoders by {protocols} on this site's held-out images and labels{trains}, and send the figures"
    ]


def worth(privacy: Privacy) -> str:
    """What the rules on noise are worth, in one line."""
    if not privacy.noise_multiplier:
        limit = "" if privacy.clip is None else f"; changes are shortened to the norm {privacy.clip:g}"
        return f"privacy: no noise, so nothing bounds what an update tells of this site's data{limit}"
    answers = accountant.answers_within(privacy.epsilon, privacy.delta, accountant.rho(privacy.noise_multiplier))
    return (
        f"privacy: noise {privacy.noise_multiplier:g} x clip {privacy.clip:g}; epsilon {privacy.epsilon:g} at delta "
        f"{privacy.delta:g} is enough for {answers} rounds in all ({accountant.UNIT})"
    )


def spent_privacy(site: SiteFile, spent: Spent) -> str:
    """The privacy that a data set has spent, in words."""
    privacy = site.policy.privacy
    if math.isinf(spent.rho):
        return "privacy not bounded (rounds without noise)"
    return (
        f"epsilon {accountant.epsilon(spent.rho, privacy.delta):.3g} of {privacy.epsilon:g} (delta {privacy.delta:g})"
    )


def name_of(leaf: Any) -> str:
    """The constructor that a leaf names."""
    return str(leaf.get("name") if isinstance(leaf, Mapping) else leaf)
