"""How sites, arms, evaluators, measures and numbers are printed."""

from collections.abc import Mapping
from typing import Any

ALL_SITES = "all"
ARM_NAMES = {
    "metadata": "metadata only",
    "raw_pixels": "raw pixels",
    "copy_mask": "copied support mask",
    "random": "random encoder",
    "labels": "labels alone",
    "local": "local only",
    "federated": "federated",
    "best_round": "federated, best round",
    "pooled": "pooled data",
    "encoder": "this encoder",
    "momentum": "its momentum encoder",
}
METRIC_NAMES = {
    "accuracy": "accuracy, %",
    "balanced_accuracy": "balanced accuracy, %",
    "auc": "AUC",
    "top5": "top-5, %",
    "dice": "Dice, %",
    "dice_whole": "Dice without the true slice range, %",
    "dice_last_support": "Dice of the last support, %",
    "dice_sd_supports": "Dice, sd over supports, %",
    "uniformity": "uniformity",
    "inter_class_uniformity": "inter-class uniformity",
    "tolerance": "tolerance",
    "hd95": "HD95, mm",
    "hd95_whole": "HD95 without the true slice range, mm",
    "surface_dice": "surface Dice, %",
    "sensitivity": "sensitivity, %",
    "specificity": "specificity, %",
    "brier": "Brier score",
    "calibration_error": "calibration error",
}
PROBES = (("site_probe", "which site, linear probe"), ("membership", "trained on or not, similarity of views"))
PERCENT = (
    "accuracy",
    "balanced_accuracy",
    "top5",
    "dice",
    "dice_whole",
    "dice_last_support",
    "dice_sd_supports",
    "surface_dice",
    "sensitivity",
    "specificity",
)
KIND_NAMES = {
    "true_positive": "true positives (two views of an image)",
    "false_negative": "false negatives (two images of a class)",
    "true_negative": "true negatives (two classes)",
}
NO_PICTURES = "Pictures: not run. 'sslmed report RUN --pictures' draws them and puts them into this page."

Column = tuple[str, str]


def left_out(count: int) -> str:
    """What a report says in place of pictures that nobody asked for."""
    return (
        f"{count} left out: they hold image pixels, and only the site that owns the images may put them into its own "
        "page. They are in the folder pictures/ of the run."
    )


def in_percent(metric: str) -> bool:
    """Accuracies and Dice are printed in per cent; areas under a curve and the geometry of features as they are."""
    return metric.partition("/")[0] in PERCENT


def number(value: float, metric: str, *, signed: bool = False) -> str:
    """``84.2`` per cent, or ``0.871`` and ``-2.314``; differences with their sign."""
    text = f"{100 * value:{'+' if signed else ''}.1f}" if in_percent(metric) else f"{value:{'+' if signed else ''}.3f}"
    return text.replace("-", "\N{MINUS SIGN}")


def arm_name(arm: str) -> str:
    """An arm as a reader would say it; both sides of a difference."""
    return " \N{MINUS SIGN} ".join(ARM_NAMES.get(part, part) for part in arm.split(" - "))


def column_name(column: Column) -> str:
    """``kNN accuracy, %``, ``one-shot Dice liver, %``."""
    kind, _, label = column[1].partition("/")
    words = METRIC_NAMES.get(kind, kind)
    if label:
        words = f"{words.removesuffix(', %')} {label}" + (", %" if words.endswith(", %") else "")
    return f"{evaluator_name(column[0])} {words}"


def evaluator_name(evaluator: str) -> str:
    """An evaluator as a reader would say it."""
    for word, name in (("knn", "kNN"), ("linear", "linear probe"), ("one_shot", "one-shot"), *PROBES):
        if evaluator.startswith(word):
            return name + evaluator.removeprefix(word)
    return evaluator


def site_name(site: str) -> str:
    """A table's title."""
    return "All sites together" if site == ALL_SITES else site[:1].upper() + site[1:]


def similarity(histogram: Mapping[str, Any]) -> str:
    """The means of ``histogram``, the contents of ``evaluate/similarity.json``, in a line."""
    means = (
        f"{KIND_NAMES.get(kind, kind)} {'none' if mean is None else number(mean, 'cosine')}"
        for kind, mean in histogram["means"].items()
    )
    return (
        f"Mean cosine similarity between training views of {histogram['n']} test images: {', '.join(means)}; "
        f"alignment {number(histogram['alignment'], 'alignment')}"
    )
