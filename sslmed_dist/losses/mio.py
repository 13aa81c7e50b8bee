"""Contrastive losses that are plain sums over pairs, without a softmax: the thesis's binary losses and MIOv1-3.

With c the cosine of two of the 2 N rows, x = c/t its logit and s the logistic function; with mean_pos the mean over the
2 N ordered positive pairs (both views of one sample) and mean_neg the mean over the 4 N^2 - 4 N ordered negative pairs
(rows of different samples):

    binary = -1/(4N^2) [ sum_pos ln s(x) + sum_neg ln(1 - s(x)) ]   thesis Eq. 4.14
    v1 = -mean_pos ln s(x) - mean_neg ln(1 - s(x))                  thesis Eq. 5.13
    v2 = -mean_pos x + mean_neg ln(1 + e^x)                         thesis Eq. 5.15
    v3 = -mean_pos x + mean_neg e^x                                 thesis Eq. 5.21

Hence v1 = v2 + mean_pos ln(1 + e^x) and v3 >= v2. Being sums over pairs, they are exact tile by tile in one pass.
"""

from torch import Tensor

from sslmed_dist.losses.contrastive import nt_xent
from sslmed_dist.losses.pairs import PairLoss, Pairs
from sslmed_dist.losses.similarity import Similarity
from sslmed_dist.losses.temperature import Constant, Leaf
from sslmed_dist.losses.tiles import EXPONENTIAL, SOFTPLUS, Repel, repulsion, softplus


def mean_repulsion(pairs: Pairs, similarity: Similarity, repel: Repel) -> Tensor:
    """Mean of ``repel`` over the negative pairs of this rank's rows, a scalar: mean_neg, once averaged over ranks."""
    return repulsion(pairs.rows, similarity, repel) / (len(pairs.rows) * pairs.negatives)


def mio_v1(pairs: Pairs, similarity: Similarity) -> Tensor:
    """This rank's MIOv1 of ``pairs``, a scalar."""
    attraction = softplus(-similarity.logits(pairs.cosines)).mean()
    return attraction + mean_repulsion(pairs, similarity, SOFTPLUS)


class MIOv1(PairLoss):
    """Thesis Eq. 5.13: binary cross-entropy of "same sample", positives and negatives averaged apart."""

    def __init__(self, temperature: Leaf = 0.2) -> None:
        super().__init__(temperature)

    def value(self, pairs: Pairs, similarity: Similarity) -> Tensor:
        return mio_v1(pairs, similarity)


class MIOv2(PairLoss):
    """Thesis Eq. 5.15: MIOv1 without the term that pushes positives apart."""

    def __init__(self, temperature: Leaf = 0.2) -> None:
        super().__init__(temperature)

    def value(self, pairs: Pairs, similarity: Similarity) -> Tensor:
        return mean_repulsion(pairs, similarity, SOFTPLUS) - similarity.logits(pairs.cosines).mean()


class MIOv3(PairLoss):
    """Thesis Eq. 5.21: MIOv2 with ln(1 + e^x) replaced by its upper bound e^x.

    In float32 e^(1/t) overflows below t = 0.0113 and the loss is then inf.
    """

    def __init__(self, temperature: Leaf = 0.2) -> None:
        super().__init__(temperature)

    def value(self, pairs: Pairs, similarity: Similarity) -> Tensor:
        return mean_repulsion(pairs, similarity, EXPONENTIAL) - similarity.logits(pairs.cosines).mean()


class Binary(PairLoss):
    """L_proposed, thesis Eq. 4.14: the binary cross-entropy of MIOv1 with one normaliser 1/(4 N^2) for both sums."""

    def __init__(self, temperature: Leaf = 0.25) -> None:
        super().__init__(temperature)

    def value(self, pairs: Pairs, similarity: Similarity) -> Tensor:
        attraction = 2.0 * softplus(-similarity.logits(pairs.cosines)).sum()
        # A rank has its share of the 2 N rows, with 2 N columns each: the mean over ranks is the sum over 4 N^2.
        return (attraction + repulsion(pairs.rows, similarity, SOFTPLUS)) / (len(pairs.rows) * 2 * pairs.samples)


class Combo(PairLoss):
    """L_combo, thesis Eq. 4.18: L_proposed with its two sums as separate means (MIOv1) plus L_contr (Eq. 4.17) at
    ``contr_temperature``."""

    def __init__(self, temperature: Leaf = 0.25, contr_temperature: float = 0.33) -> None:
        super().__init__(temperature)
        self.contr = Constant(contr_temperature)

    def value(self, pairs: Pairs, similarity: Similarity) -> Tensor:
        return mio_v1(pairs, similarity) + nt_xent(pairs, Similarity(self.contr, squared_distance=True))
