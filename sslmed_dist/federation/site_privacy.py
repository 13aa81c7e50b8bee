"""What a site's own rules do to an update before anything of it is saved or sent.

With noise (``policy.privacy.noise_multiplier`` above 0) every value that leaves is noised and accounted, or it does
not leave: learned tensors are clipped and noised, means and variances of norms go back as they were sent, scalars stay,
and the number of images is the one that the rules name.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sslmed_dist.federation import accountant, privacy
from sslmed_dist.federation.payload import Message
from sslmed_dist.federation.policy import Refusal, Spent
from sslmed_dist.federation.privacy import Mechanism
from sslmed_dist.federation.shared import Arrays
from sslmed_dist.federation.site_file import SiteFile
from sslmed_dist.federation.site_work import withheld


def mechanism(site: SiteFile) -> Mechanism | None:
    """Clipping and noise of the site's rules; None where they ask for no noise."""
    rules = site.policy.privacy
    return Mechanism(rules.clip, rules.noise_multiplier) if rules.clip and rules.noise_multiplier else None


def require_room(site: SiteFile, model: Mapping[str, Tensor]) -> None:
    """``Refusal``, before any work, where the noise alone would move a model of this size further than
    ``policy.update.change`` allows. It is a matter of the rules and of the model that was sent."""
    noise = mechanism(site)
    if noise is None:
        return
    size = sum(float(tensor.double().square().sum()) for tensor in model.values()) ** 0.5
    if noise.noise_norm(model) > site.policy.update.change * size:
        raise Refusal(
            f"the noise that this site's rules add (norm {noise.noise_norm(model):.3g}) is more than they let a model "
            f"of this size change (policy.privacy, policy.update.change)"
        )


def leaving(
    site: SiteFile, sent: Mapping[str, Tensor], update: Arrays, scalars: Mapping[str, float], examinations: int
) -> tuple[Arrays, dict[str, float], list[str]]:
    """(the tensors, the scalars that may leave; the names of what is kept back) of a round's work. ``update`` has the
    tensors of ``sent``, finite ones. Without a ``clip`` and noise the tensors keep their bits."""
    rules, noise = site.policy.privacy, mechanism(site)
    if noise is not None:
        tensors = noise.private(update, sent)
        return tensors, {}, [*privacy.statistics(sent), *sorted(scalars)]
    if rules.clip is not None:
        update = privacy.clipped(update, sent, rules.clip)
    tensors, kept = withheld(sent, update, examinations, site)
    allowed = {name: value for name, value in scalars.items() if name in site.policy.scalars}
    return tensors, allowed, kept + sorted(scalars.keys() - allowed.keys())


def samples(site: SiteFile, counted: int) -> int:
    """The number of images that leaves."""
    return site.policy.privacy.samples if mechanism(site) else counted


def account(site: SiteFile, entries: list[Any]) -> dict[str, float | None]:
    """What the ledger says of an answer with tensors: the privacy that the data set has spent with it."""
    rules = site.policy.privacy
    if mechanism(site) is None:
        return {"epsilon": None}
    spent = Spent.of(entries, site.data_set).rho
    return {"epsilon": accountant.epsilon(spent, rules.delta), "delta": rules.delta}


def reserved(site: SiteFile, message: Message) -> dict[str, float]:
    """What the ledger says of the privacy that a request may spend, before the work."""
    noise = site.policy.privacy.noise_multiplier
    return {"rho": accountant.rho(noise)} if noise and message.kind in ("train", "secure_train") else {}
