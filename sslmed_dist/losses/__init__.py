"""Losses on the embeddings of two views: ``LOSSES[name](temperature=0.2)(z0, z1)`` -> scalar.

For one's own training loop each class can be imported from here: ``MIOv3(temperature=Dystress(0.07, 0.2))(z0, z1)``.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from sslmed_dist.losses.arb import ARB
from sslmed_dist.losses.barlow_twins import BarlowTwins
from sslmed_dist.losses.contrastive import DCL, DCLW, MACL, Contr, NTXent
from sslmed_dist.losses.logdet import LogDet
from sslmed_dist.losses.mio import Binary, Combo, MIOv1, MIOv2, MIOv3
from sslmed_dist.losses.pairs import PairLoss, advance
from sslmed_dist.losses.temperature import (
    TEMPERATURES,
    Constant,
    CosineSchedule,
    Dystress,
    DystressExponential,
    DystressLinear,
    DystressShifted,
    Temperature,
)
from sslmed_dist.losses.vicreg import VICReg
from sslmed_dist.losses.weighted import WeightedSum
from sslmed_dist.losses.wmse import WMSE
from sslmed_dist.losses.zero_cl import ZeroFCL, ZeroICL

__all__ = [
    "ARB",
    "BarlowTwins",
    "Binary",
    "Combo",
    "Constant",
    "Contr",
    "CosineSchedule",
    "DCL",
    "DCLW",
    "Dystress",
    "DystressExponential",
    "DystressLinear",
    "DystressShifted",
    "LOSSES",
    "LogDet",
    "MACL",
    "MIOv1",
    "MIOv2",
    "MIOv3",
    "NTXent",
    "PairLoss",
    "TEMPERATURES",
    "Temperature",
    "VICReg",
    "WMSE",
    "WeightedSum",
    "ZeroFCL",
    "ZeroICL",
    "advance",
    "weighted_sum",
]


def weighted_sum(terms: Sequence[Mapping[str, Any]]) -> nn.Module:
    """A weighted sum of other losses: ``terms`` are leaves with a ``weight`` each (``WeightedSum``)."""
    return WeightedSum(terms, losses=LOSSES)


LOSSES: dict[str, Callable[..., nn.Module]] = {
    "nt_xent": NTXent,
    "dcl": DCL,
    "dclw": DCLW,
    "macl": MACL,
    "binary": Binary,
    "contr": Contr,
    "combo": Combo,
    "mio_v1": MIOv1,
    "mio_v2": MIOv2,
    "mio_v3": MIOv3,
    "barlow_twins": BarlowTwins,
    "vicreg": VICReg,
    "wmse": WMSE,
    "zero_icl": ZeroICL,
    "zero_fcl": ZeroFCL,
    "arb": ARB,
    "logdet": LogDet,
    "sum": weighted_sum,
}
