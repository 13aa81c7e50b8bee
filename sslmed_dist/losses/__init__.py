"""Losses on the embeddings of two views: ``LOSSES[name](temperature=0.2)(z0, z1)`` -> scalar."""

from collections.abc import Callable

from torch import nn

from sslmed_dist.losses.contrastive import NTXent
from sslmed_dist.losses.mio import MIOv1, MIOv2, MIOv3

LOSSES: dict[str, Callable[..., nn.Module]] = {
    "nt_xent": NTXent,
    "mio_v1": MIOv1,
    "mio_v2": MIOv2,
    "mio_v3": MIOv3,
}
