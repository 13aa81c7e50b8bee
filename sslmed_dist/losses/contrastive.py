"""Contrastive losses with a softmax over the batch."""

from torch import Tensor, nn

from sslmed_dist.losses import pairs


def nt_xent(z0: Tensor, z1: Tensor, temperature: float = 0.2) -> Tensor:
    """NT-Xent of SimCLR: the softmax cross-entropy of finding a row's other view among all rows but itself.

    With c the cosine of two of the 2 N rows, n' the other view of n, t the temperature,

        L = 1/(2N) sum_n [ ln sum_{m != n} e^(c_nm / t) - c_nn' / t ]

    Source: Chen et al. 2020, "A simple framework for contrastive learning of visual representations", Eq. 1 (thesis
    Eq. 4.2 writes it for one anchor view). ``z0``, ``z1``: un-normalised embeddings (N, D) of this rank's two views;
    returns a scalar, float32 (float64 for float64 input). The unit embeddings of all ranks are gathered as columns;
    each rank returns the mean over its own rows, so the mean over ranks of the value and of the gradient is that of
    one process with the whole batch. ``ValueError`` for a temperature that is not above 0, embeddings that are not
    two equal floating-point (N, D), or a batch of 1 over all ranks.
    """
    pairs.check_temperature(temperature)
    with pairs.full_precision(z0):
        both = pairs.gather_pairs(z0, z1)
        candidates = pairs.logits(both, temperature, partner=True).logsumexp(dim=1)
        return candidates.mean() - pairs.positive_logits(both, temperature).mean()


class NTXent(nn.Module):
    """``nt_xent`` with its temperature (> 0): (z0, z1) -> scalar."""

    def __init__(self, temperature: float = 0.2) -> None:
        super().__init__()
        self.temperature = pairs.check_temperature(temperature)

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        return nt_xent(z0, z1, self.temperature)
