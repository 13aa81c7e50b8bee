"""How a round's replies become the next shared tensors. A strategy is a class with ``combine`` and a line in the table.

``Guarded`` does all that strategies have in common: it asks the sites, screens every reply, leaves out and names the
bad ones, stops below the quorum, and keeps the average, the metrics and the log of every round.
"""

from collections.abc import Callable, Sequence

from server.guarded import Guarded
from sslmed_dist.federation.replies import Reply, fedavg
from sslmed_dist.federation.shared import Arrays


class FedAvg(Guarded):
    """Federated averaging (McMahan et al. 2017): see ``federation.replies.fedavg``."""

    def combine(self, replies: Sequence[Reply]) -> Arrays:
        """The mean weighted by sample counts."""
        return fedavg(replies)


STRATEGIES: dict[str, Callable[..., Guarded]] = {"fedavg": FedAvg}
