"""What a frozen encoder is worth: ``EVALUATORS[name](hyper-parameters)(split_features, seed=0)`` -> scores."""

from collections.abc import Callable

from sslmed_dist.downstream.classifier import CLASSIFIER, classified
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
from sslmed_dist.downstream.representation import Representation, alignment
from sslmed_dist.downstream.similarity import Histogram, histogram

EVALUATORS: dict[str, Callable[..., Evaluator]] = {
    "knn": KNN,
    "linear": LinearProbe,
    "representation": Representation,
}

__all__ = [
    "ALL_SITES",
    "CLASSIFIER",
    "EVALUATORS",
    "KNN",
    "Evaluator",
    "Features",
    "Histogram",
    "LinearProbe",
    "Predictions",
    "RawPixels",
    "Representation",
    "Score",
    "SplitFeatures",
    "alignment",
    "classified",
    "compared_rows",
    "evaluate",
    "extract",
    "extract_splits",
    "histogram",
    "pooled",
    "pooled_rows",
    "predict",
    "rows_of",
    "write_rows",
]
