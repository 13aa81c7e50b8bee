"""What a frozen encoder is worth: ``EVALUATORS[name](hyper-parameters)(split_features, seed=0)`` -> scores."""

from collections.abc import Callable

from sslmed_dist.downstream.evaluation import (
    ALL_SITES,
    compared_rows,
    evaluate,
    pooled,
    pooled_rows,
    predict,
    rows_of,
    write_rows,
)
from sslmed_dist.downstream.features import Features, RawPixels, SplitFeatures, extract, extract_splits
from sslmed_dist.downstream.knn import KNN
from sslmed_dist.downstream.linear import LinearProbe
from sslmed_dist.downstream.metrics import Score
from sslmed_dist.downstream.predictions import Evaluator, Predictions

EVALUATORS: dict[str, Callable[..., Evaluator]] = {
    "knn": KNN,
    "linear": LinearProbe,
}

__all__ = [
    "ALL_SITES",
    "EVALUATORS",
    "KNN",
    "Evaluator",
    "Features",
    "LinearProbe",
    "Predictions",
    "RawPixels",
    "Score",
    "SplitFeatures",
    "compared_rows",
    "evaluate",
    "extract",
    "extract_splits",
    "pooled",
    "pooled_rows",
    "predict",
    "rows_of",
    "write_rows",
]
