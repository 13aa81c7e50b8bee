"""What a frozen encoder is worth: ``EVALUATORS[name](hyper-parameters)(split_features, seed=0)`` -> scores."""

from collections.abc import Callable

from torch import nn

from sslmed_dist.downstream.classifier import CLASSIFIER, classified
from sslmed_dist.downstream.exam_probe import METADATA, ExamProbe, Metadata
from sslmed_dist.downstream.features import RAW_PIXELS, Features, RawPixels, SplitFeatures, extract, extract_splits
from sslmed_dist.downstream.knn import KNN
from sslmed_dist.downstream.linear import LinearProbe
from sslmed_dist.downstream.metrics import Score
from sslmed_dist.downstream.oneshot.evaluator import OneShot, Picture
from sslmed_dist.downstream.oneshot.segmenter import COPY_MASK, CopyMask, Segmenter
from sslmed_dist.downstream.predictions import Evaluator, Predictions, Segmenting
from sslmed_dist.downstream.representation import Representation, alignment
from sslmed_dist.downstream.rows import (
    ALL_SITES,
    Row,
    compared_rows,
    pooled,
    pooled_rows,
    predict,
    rows_of,
    write_rows,
)
from sslmed_dist.downstream.similarity import Histogram, histogram

EVALUATORS: dict[str, Callable[..., Evaluator | Segmenting]] = {
    "exam_probe": ExamProbe,
    "knn": KNN,
    "linear": LinearProbe,
    "one_shot": OneShot,
    "representation": Representation,
}

# What every encoder must beat, by the name of its arm; an evaluator says which is its own (``floor``).
FLOORS: dict[str, Callable[[], nn.Module]] = {
    METADATA: Metadata,
    RAW_PIXELS: RawPixels,
    COPY_MASK: CopyMask,
}

__all__ = [
    "ALL_SITES",
    "CLASSIFIER",
    "COPY_MASK",
    "EVALUATORS",
    "FLOORS",
    "METADATA",
    "KNN",
    "CopyMask",
    "Evaluator",
    "ExamProbe",
    "Features",
    "Histogram",
    "LinearProbe",
    "OneShot",
    "Picture",
    "Predictions",
    "RawPixels",
    "Representation",
    "Row",
    "Score",
    "Segmenter",
    "Segmenting",
    "SplitFeatures",
    "alignment",
    "classified",
    "compared_rows",
    "extract",
    "extract_splits",
    "histogram",
    "pooled",
    "pooled_rows",
    "predict",
    "rows_of",
    "write_rows",
]
