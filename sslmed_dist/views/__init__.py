"""Views: what a method sees of a batch of images. ``VIEWS`` names them for ``views.name`` of a configuration."""

from torch import nn

from sslmed_dist.views.contrastive import ContrastiveViews
from sslmed_dist.views.crops import JigsawViews, MultiCropViews
from sslmed_dist.views.episode import EpisodeViews
from sslmed_dist.views.geometric import GeometricViews
from sslmed_dist.views.jumbled import JumbledViews
from sslmed_dist.views.standard import StandardViews
from sslmed_dist.views.volume import VolumeViews

VIEWS: dict[str, type[nn.Module]] = {
    "contrastive": ContrastiveViews,
    "episode": EpisodeViews,
    "geometric": GeometricViews,
    "jigsaw": JigsawViews,
    "jumbled": JumbledViews,
    "multi_crop": MultiCropViews,
    "standard": StandardViews,
    "volume": VolumeViews,
}
