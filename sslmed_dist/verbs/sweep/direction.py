"""Whether more or less of a measure is better."""

from collections.abc import Sequence
from dataclasses import dataclass

from sslmed_dist.training.validation import AT_LOWEST
from sslmed_dist.verbs.sweep.trial import is_scalar

HIGHER = (
    "accuracy", "balanced_accuracy", "auc", "top5", "sensitivity", "specificity",
    "dice", "dice_whole", "dice_last_support", "surface_dice", "effective_rank",
)  # fmt: skip
# With what has to be said beside it.
LOWER = {
    "loss": "",
    "brier": "",
    "calibration_error": "",
    "hd95": "",
    "hd95_whole": "",
    "dice_sd_supports": "",
    "uniformity": "",
    "inter_class_uniformity": "",
    "alignment": ", unless all features are one point (uniformity 0)",
}
# Keys that change the value of the loss of one and the same encoder: of its terms and temperatures, of how many samples
# it sees at a time, and how hard they are.
IN_LOSS = ("method", "views", "plan.batch_size", "data")


@dataclass(frozen=True)
class Direction:
    """``lower``: the lowest comes first. ``said``: that, and on what grounds, in a line."""

    lower: bool
    said: str


def stem(metric: str) -> str:
    """The word of the tables above that ``metric`` has: ``auc`` of ``knn/auc/LABEL``, ``loss`` of ``val_loss`` and of
    ``loss_image``. "" where it has none."""
    evaluator, _, measure = metric.partition("/")
    word = (measure or evaluator).partition("/")[0].removesuffix(AT_LOWEST)
    if word.startswith("loss_"):
        return "loss"
    found = [known for known in (*HIGHER, *LOWER) if word == known or word.endswith(f"_{known}")]
    return max(found, key=len, default="")


def unlike(metric: str | None, keys: Sequence[str]) -> list[str]:
    """What has to be said where the swept ``keys`` decide not only how well a trial does but also what ``metric``
    asks. None: the first measure of the encoder."""
    asked = [] if is_scalar(metric) else [key for key in keys if key.partition(".")[0] == "evaluate"]
    lines = [f"{', '.join(asked)}: decides what is measured, so the figures answer different questions."] * bool(asked)
    if metric is not None and stem(metric) == "loss":
        inside = [key for key in keys if key.startswith(IN_LOSS)]
        why = f"decides what {metric} is, so its values do not compare the trials; a measure of the encoder does."
        lines += [f"{', '.join(inside)}: {why}"] * bool(inside)
    return lines


def direction(metric: str, lower: bool) -> Direction:
    """How trials are ranked by ``metric``. ``lower``: the command line says that lower is better, and is obeyed."""
    word = stem(metric)
    if word in LOWER:
        return Direction(True, f"{metric}: lower is better{LOWER[word]}.")
    if word and lower:
        return Direction(True, f"{metric}: the lowest comes first, as --lower asks, though higher is better.")
    if word:
        return Direction(False, f"{metric}: higher is better.")
    if lower:
        return Direction(True, f"{metric}: lower is better, as --lower says.")
    return Direction(False, f"{metric}: not known which is better; higher was taken as better (--lower: lower).")
