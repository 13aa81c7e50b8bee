"""Losses between a predicted mask and a true one: the overlap of areas, and of their edges."""

import torch.nn.functional as F
from torch import Tensor

SMOOTH = 1e-5  # in numerator and denominator, so that two empty masks have no loss and no division by zero


def soft_dice(probabilities: Tensor, masks: Tensor) -> Tensor:
    """One minus the Dice coefficient of each pair, (E,):

        1 - (2 sum_x p(x) m(x) + eps) / (sum_x p(x) + sum_x m(x) + eps),    eps = 1e-5

    ``probabilities`` in [0, 1] and ``masks`` 0 or 1 (or shares), both floating-point (E, H, W).
    Source: Guha Roy et al. 2020, the Dice loss of SE-Net (there without eps); the spatial Dice term of FedCoWPro (Manna
    et al. 2025, arXiv 2503.23507).
    """
    both = (probabilities * masks).sum(dim=(1, 2))
    sizes = probabilities.sum(dim=(1, 2)) + masks.sum(dim=(1, 2))
    return 1 - (2 * both + SMOOTH) / (sizes + SMOOTH)


def edges(maps: Tensor) -> Tensor:
    """The morphological gradient (E, H, W) of maps (E, H, W): of the 3 x 3 pixels about each pixel the largest value
    less the smallest. Pixels beyond the border do not count.

    Of a mask it is 1 on both sides of the outline and 0 elsewhere; of probabilities it is in [0, 1] and has a gradient.
    """
    highest = F.max_pool2d(maps[:, None], 3, stride=1, padding=1)
    lowest = -F.max_pool2d(-maps[:, None], 3, stride=1, padding=1)
    return (highest - lowest).squeeze(1)


def edge_dice(probabilities: Tensor, masks: Tensor) -> Tensor:
    """``soft_dice`` of the ``edges`` of both, (E,); arguments as there.

    Source: the edge Dice term of FedCoWPro (Manna et al. 2025, arXiv 2503.23507). Which edges its paper takes was not
    to be read, and no code is public: the morphological gradient is our choice.
    """
    return soft_dice(edges(probabilities), edges(masks))
