"""Pretraining methods."""

from collections.abc import Mapping

from sslmed_dist.methods.byol import BYOL, SimSiam
from sslmed_dist.methods.classify import Classify
from sslmed_dist.methods.contrastive import Contrastive
from sslmed_dist.methods.cowpro import CoWPro
from sslmed_dist.methods.diagnose import Diagnose
from sslmed_dist.methods.dino import DINO
from sslmed_dist.methods.geometric import Geometric
from sslmed_dist.methods.jigsaw import Jigsaw
from sslmed_dist.methods.jigsaw_pairs import ContrastiveJigsaw, MoCoJigsaw
from sslmed_dist.methods.method import Method
from sslmed_dist.methods.moco import MoCoV2
from sslmed_dist.methods.pirl import PIRL
from sslmed_dist.methods.se_net import SENetEpisodes

METHODS: Mapping[str, type[Method]] = {
    "classify": Classify,
    "contrastive": Contrastive,
    "contrastive_jigsaw": ContrastiveJigsaw,
    "moco_v2": MoCoV2,
    "moco_v2_jigsaw": MoCoJigsaw,
    "pirl": PIRL,
    "byol": BYOL,
    "simsiam": SimSiam,
    "dino": DINO,
    "cowpro": CoWPro,
    "se_net": SENetEpisodes,
    "jigsaw": Jigsaw,
    "geometric": Geometric,
    "diagnose": Diagnose,
}

__all__ = ["METHODS", "Method"]
