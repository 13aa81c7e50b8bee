"""What a site does in a round beside plain training: the site's half of every strategy.

A term says which shared tensors never leave, how the sent ones are taken over, what is added to the loss, and what the
site keeps of it on its own disk (tensors by name; a number is a tensor of no dimensions). In a first round, or after
its disk was lost, a site has kept nothing and takes over what it is sent.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sslmed_dist import registry
from sslmed_dist.config import Config
from sslmed_dist.federation.averages import CONTROL
from sslmed_dist.federation.messages import SiteError
from sslmed_dist.federation.shared import Arrays, is_statistic, load_shared, norm_keys
from sslmed_dist.methods import METHODS, Method
from sslmed_dist.training.state import Penalty

PREDICTOR = "predictor."  # begins the names of the tensors of a predictor (BYOL, SimSiam)


@dataclass
class Turn:
    """One site's round: its method (with the state that the site kept, where ``fresh`` is false), the tensors that it
    was sent, what ``federated.share`` says, and what the term kept after the site's round before."""

    method: Method
    sent: Mapping[str, Tensor]
    share: str
    fresh: bool = True
    kept: Arrays = field(default_factory=dict)

    def parameters(self) -> dict[str, nn.Parameter]:
        """The sent tensors that are learned, as the method's own parameters."""
        return {key: value for key, value in self.method.named_parameters() if key in self.sent}


class LocalTerm:
    """Nothing beside plain training: the sent tensors replace the site's, the loss stays, nothing is kept."""

    keeps = False  # whether it needs ``federated.keep_state``

    def own(self, method: Method) -> frozenset[str]:
        """Names of tensors that never leave the site. None by default."""
        return frozenset()

    def check(self, settings: Config) -> None:
        """``ValueError`` where the term cannot be used with this method or optimiser. Nothing by default."""

    def begin(self, turn: Turn) -> Penalty | None:
        """Take over what was sent; returns what is added to the loss."""
        load_shared(turn.method, turn.sent, turn.share, self.own(turn.method))
        return None

    def end(self, turn: Turn, rates: float) -> Arrays:
        """What to keep until the site's next round, after its training. ``rates`` is the sum of the learning rates of
        the round's steps."""
        return {}

    def scalars(self) -> dict[str, float]:
        """What the site reports beside the means of its scalars. Nothing by default."""
        return {}


class Proximal(LocalTerm):
    """FedProx (Li et al. 2020, arXiv 1812.06127, Eq. 2): the loss gets mu / 2 |w - w0|^2, the SQUARED distance of the
    parameters w from those w0 that the site was sent."""

    def __init__(self, mu: float) -> None:
        self.mu = mu

    def begin(self, turn: Turn) -> Penalty:
        """The squared distance, from copies of what was sent."""
        super().begin(turn)
        anchors = {key: value.detach().clone() for key, value in turn.parameters().items()}

        def penalty(method: Method) -> Tensor:
            moved = [
                (value - anchors[key]).square().sum() for key, value in method.named_parameters() if key in anchors
            ]
            return 0.5 * self.mu * torch.stack(moved).sum()

        return penalty


class LocalNorms(LocalTerm):
    """FedBN (Li et al. 2021, arXiv 2102.07623): scales, shifts and statistics of all norms never leave the site."""

    keeps = True

    def own(self, method: Method) -> frozenset[str]:
        """All tensors of norms."""
        return norm_keys(method)


class ControlVariates(LocalTerm):
    """SCAFFOLD at a site (Karimireddy et al. 2020, arXiv 1910.06378, Algorithm 1, option II): every step's gradient
    gets c - c_i, the difference of the server's and the site's control variates; after the round
    c_i = c_i - c + (w0 - w) / (sum of learning rates). c_i stays at the site.

    The correction is the gradient of <c - c_i, w>, which is what is added to the loss (so the logged loss has it)."""

    keeps = True

    def check(self, settings: Config) -> None:
        """``ValueError`` for an optimiser whose steps are not the learning rate times the gradient."""
        optim = settings.optim
        if optim["name"] != "sgd" or optim.get("momentum") != 0 or settings.plan.clip is not None:
            raise ValueError(
                "federated.strategy: scaffold divides a site's update by its learning rates, which is its gradient "
                "under plain descent alone; allowed: optim.name: sgd, optim.momentum: 0, plan.clip: null"
            )

    def begin(self, turn: Turn) -> Penalty:
        """The inner product. ``SiteError`` where a control variate is missing or unknown."""
        control = {key.removeprefix(CONTROL): turn.sent[key] for key in turn.sent if key.startswith(CONTROL)}
        turn.sent = {key: value for key, value in turn.sent.items() if not key.startswith(CONTROL)}
        super().begin(turn)
        own, names = turn.kept, {key for key in turn.sent if not is_statistic(key)}
        if control.keys() != names or (own and own.keys() != names):
            raise SiteError("the control variates are not those of the shared parameters")
        self.start = {key: turn.sent[key].clone() for key in names}
        # c_i - c; 0 - c where the site has kept none.
        self.difference = {key: own[key] - control[key] if own else -control[key] for key in sorted(names)}
        device = {key: value.device for key, value in turn.method.state_dict().items()}
        correction = {key: -value.to(device[key]) for key, value in self.difference.items()}

        def penalty(method: Method) -> Tensor:
            products = [(correction[k] * value).sum() for k, value in method.named_parameters() if k in correction]
            return torch.stack(products).sum()

        return penalty

    def end(self, turn: Turn, rates: float) -> Arrays:
        """The site's control variate."""
        state = turn.method.state_dict()
        moved = {key: (self.start[key] - state[key].detach().cpu()) / rates for key in self.difference}
        return {key: self.difference[key] + value for key, value in moved.items()}


class Divergent(LocalTerm):
    """What FedU and FedEMA share: they measure how far the online encoder that the site kept (encoder and head, learned
    tensors) is from the one that it is sent, as an L2 norm. They need a predictor, and ``federated.share: all``."""

    keeps = True

    def __init__(self) -> None:
        self.divergence: float | None = None

    def check(self, settings: Config) -> None:
        """``ValueError`` without a predictor that is shared."""
        assert settings.federated is not None
        method, share = settings.method["name"], settings.federated.share
        if share != "all" or "predictor" not in registry.schema(METHODS[method])[0]:
            raise ValueError(
                f"federated.strategy: fedu and fedema need federated.share: all (here {share}) and a method with a "
                f"predictor, such as byol or simsiam (here {method})"
            )

    def measure(self, turn: Turn) -> float:
        """The L2 norm of the difference, before anything is taken over."""
        online = {key: value for key, value in turn.parameters().items() if not key.startswith(PREDICTOR)}
        moved = [value.detach().cpu().double() - turn.sent[key].double() for key, value in online.items()]
        self.divergence = math.sqrt(float(torch.stack([update.square().sum() for update in moved]).sum()))
        return self.divergence

    def scalars(self) -> dict[str, float]:
        """The divergence of this round."""
        return {} if self.divergence is None else {"divergence": self.divergence}


class OwnPredictor(Divergent):
    """FedU (Zhuang et al. 2021, arXiv 2108.06492): the online encoder is replaced in every round; the predictor only
    where the divergence is at most ``threshold``, else the site goes on with its own."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def begin(self, turn: Turn) -> None:
        """Take over everything, or everything but the predictor."""
        keep = not turn.fresh and self.measure(turn) > self.threshold
        skip = [key for key in turn.sent if keep and key.startswith(PREDICTOR)]
        load_shared(turn.method, turn.sent, turn.share, skip=skip)


class MixedIn(Divergent):
    """FedEMA (Zhuang et al. 2022, arXiv 2204.04385, Eqs. 2 to 4): online encoder and predictor become
    m own + (1 - m) sent with m = min(scale x divergence, 1). A null ``scale`` is found by the site itself, once: with
    ``tau`` / divergence the first mix has m = ``tau``."""

    def __init__(self, tau: float, scale: float | None) -> None:
        super().__init__()
        self.tau, self.scale = tau, scale
        self.share: float | None = None  # m of this round

    def begin(self, turn: Turn) -> None:
        """Mix what was sent into what the site kept. ``SiteError`` where the tensors do not fit."""
        scale = float(turn.kept["scale"]) if "scale" in turn.kept else self.scale
        own = {key: value.clone() for key, value in turn.method.state_dict().items() if key in turn.sent}
        divergence = None if turn.fresh else self.measure(turn)
        load_shared(turn.method, turn.sent, turn.share)
        if divergence is not None:
            if scale is None and divergence > 0:
                scale = self.tau / divergence
            self.share = min((scale or 0.0) * divergence, 1.0)
            state = turn.method.state_dict()
            with torch.no_grad():
                for key, value in own.items():
                    state[key].lerp_(value, self.share)
        self.scale = scale

    def end(self, turn: Turn, rates: float) -> Arrays:
        """The scale, once it is known."""
        return {} if self.scale is None else {"scale": torch.tensor(self.scale, dtype=torch.float64)}

    def scalars(self) -> dict[str, float]:
        """The divergence and m."""
        return super().scalars() | ({} if self.share is None else {"own_share": self.share})
