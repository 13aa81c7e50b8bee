"""What every protocol of a run predicts with one encoder: the figures of ``sslmed evaluate``, of ``sslmed federate``
and of a site's own data side all come from here."""

from collections.abc import Mapping

from torch import Tensor, nn

from sslmed_dist.config import Config
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.downstream import FLOORS, predict
from sslmed_dist.downstream.predictions import Predictions
from sslmed_dist.training import build
from sslmed_dist.training.build import build_evaluators


def arm_predictions(
    settings: Config, encoder: nn.Module, dataset: Dataset, parts: Mapping[str, Tensor], arm: str = "encoder"
) -> dict[str, Predictions]:
    """Test predictions of every protocol on ``encoder``, by the protocol's title. An ``arm`` that is a floor is only
    measured by the protocols whose floor it is."""
    device = build.choose_device(settings)
    views = build.standard_views(settings, dataset).to(device)
    all_evaluators, seed = build_evaluators(settings), settings.run.seed
    evaluators = {
        title: evaluator for title, evaluator in all_evaluators.items() if arm not in FLOORS or evaluator.floor == arm
    }
    return predict(encoder.to(device), dataset, parts, evaluators=evaluators, views=views, device=device, seed=seed)
