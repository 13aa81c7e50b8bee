"""Contrastive losses with a softmax over the batch.

With c_nm the cosine of two of the 2 N rows, s_nm its logit (c/t for a constant temperature t) and n' the other view of
n, all of them are the mean over the rows n of

    w_n ( lse_n - v_n s_nn' ),    lse_n = ln sum_m e^(s_nm)

with weights w_n (1 but for MACL) and v_n (1 but for DCLW). In lse_n, NT-Xent and MACL take all m but n itself; DCL and
DCLW leave the positive n' out as well.
"""

from typing import Literal

import torch
from torch import Tensor

from sslmed_dist import distributed
from sslmed_dist.arguments import require_positive
from sslmed_dist.losses.pairs import PairLoss, Pairs
from sslmed_dist.losses.similarity import Similarity
from sslmed_dist.losses.temperature import Leaf
from sslmed_dist.losses.tiles import row_logsumexp


def nt_xent(pairs: Pairs, similarity: Similarity) -> Tensor:
    """Mean over this rank's rows n of lse_n - s_nn', lse_n over all rows but n itself; a scalar."""
    candidates = row_logsumexp(pairs.rows, similarity, partner=True)  # (2 N,)
    return candidates.mean() - similarity.logits(pairs.cosines).mean()


class NTXent(PairLoss):
    """NT-Xent of SimCLR: the softmax cross-entropy of finding a row's other view among all rows but itself.

        L = 1/(2N) sum_n [ ln sum_{m != n} e^(s_nm) - s_nn' ]

    Source: Chen et al. 2020, "A simple framework for contrastive learning of visual representations", Eq. 1. For one
    anchor view it is thesis Eq. 4.2 to 4.5 and Eq. 6.1. With a DySTreSS temperature it is that of thesis chapter 6.
    """

    def __init__(self, temperature: Leaf = 0.2) -> None:
        super().__init__(temperature)

    def value(self, pairs: Pairs, similarity: Similarity) -> Tensor:
        return nt_xent(pairs, similarity)


class Contr(PairLoss):
    """L_contr, thesis Eq. 4.17: NT-Xent with s = -|x - y|^2 / t of unit rows; equals NT-Xent at temperature t / 2."""

    squared_distance = True

    def __init__(self, temperature: Leaf = 0.33) -> None:
        super().__init__(temperature)

    def value(self, pairs: Pairs, similarity: Similarity) -> Tensor:
        return nt_xent(pairs, similarity)


class DCL(PairLoss):
    """Decoupled contrastive loss: NT-Xent without the positive in the denominator.

    Source: Yeh et al. 2022, "Decoupled contrastive learning", Eq. 5; negatives are both views of all other samples.
    """

    def __init__(self, temperature: Leaf = 0.1) -> None:
        super().__init__(temperature)

    def value(self, pairs: Pairs, similarity: Similarity) -> Tensor:
        negatives = row_logsumexp(pairs.rows, similarity, partner=False)
        return negatives.mean() - similarity.logits(pairs.cosines).mean()


class DCLW(PairLoss):
    """DCL with a weight on the positive: v_n = 2 - N e^(c_nn'/sigma) / sum_k e^(c_kk'/sigma).

    Source: Yeh et al. 2022, Eq. 6 and 7, with sigma 0.5: positives that are already alike pull less. N and the sum in
    the denominator are those of all ranks' samples (``weights="global"``) or of this rank's (``"local"``, what public
    code does; it depends on how a batch is split). ``detach_weights``: whether the weights are constants for the
    gradient (as in public code; the paper does not say).
    """

    def __init__(
        self,
        temperature: Leaf = 0.1,
        sigma: float = 0.5,
        weights: Literal["global", "local"] = "global",
        detach_weights: bool = True,
    ) -> None:
        super().__init__(temperature)
        self.sigma = require_positive("sigma", sigma)
        if weights not in ("global", "local"):
            raise ValueError(f"weights: expected one of 'global', 'local', got {weights!r}")
        self.weights, self.detach_weights = weights, detach_weights

    def value(self, pairs: Pairs, similarity: Similarity) -> Tensor:
        negatives = row_logsumexp(pairs.rows, similarity, partner=False)  # (2 N,)
        positives = pairs.cosines  # (N,)
        scaled = (positives.detach() if self.detach_weights else positives) / self.sigma
        # v_n = 2 - N softmax(c / sigma)_n, over the samples of all ranks or of this one.
        all_scaled = distributed.gather(scaled) if self.weights == "global" else scaled
        weights = 2.0 - len(all_scaled) * (scaled - all_scaled.logsumexp(0)).exp()
        return negatives.mean() - (weights * similarity.logits(positives)).mean()


class MACL(PairLoss):
    """Model-aware contrastive loss: NT-Xent with a temperature that follows the alignment, and re-weighted rows.

        t = t0 (1 + alpha (A - A0)),   L = mean_n [ -ln P_n / (1 - P_n) ],   P_n = e^(s_nn' - lse_n)

    A is the mean cosine of the positives of all ranks; A and the weight 1 / (1 - P_n) are constants for the gradient.
    Source: Huang et al. 2023, "Model-aware contrastive learning: towards escaping the dilemmas", Eq. 10 and 13, with
    alpha 0.5 and A0 0. 1 - P_n is never taken below 1e-8. A temperature that depends on the pair is multiplied by
    the same factor.
    """

    def __init__(self, temperature: Leaf = 0.1, alpha: float = 0.5, threshold: float = 0.0) -> None:
        super().__init__(temperature)
        # The least factor 1 + alpha (A - A0) over all alignments A in [-1, 1]; it is linear in A.
        smallest = 1.0 + min(alpha * (1.0 - threshold), alpha * (-1.0 - threshold))
        if not smallest > 0:
            raise ValueError(
                f"alpha: expected a number that keeps 1 + alpha (A - threshold) > 0 for every alignment A in [-1, 1], "
                f"got {alpha} with threshold {threshold}"
            )
        self.alpha, self.threshold = alpha, threshold

    def value(self, pairs: Pairs, similarity: Similarity) -> Tensor:
        cosines = pairs.cosines
        alignment = distributed.gather(cosines.detach()).mean()
        scale = 1.0 + self.alpha * (alignment - self.threshold)
        adapted = Similarity(similarity.temperature, similarity.squared_distance, scale)
        positives = adapted.logits(cosines).repeat_interleave(
            2
        )  # (2 N,): both views of a sample have the same positive
        # -ln P_n, and its weight 1 / (1 - P_n).
        surprise = row_logsumexp(pairs.rows, adapted, partner=True) - positives
        weights = 1.0 / (-torch.expm1(-surprise.detach())).clamp_min(1e-8)
        return (weights * surprise).mean()
