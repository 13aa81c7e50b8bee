"""Folds of exams for one-shot segmentation: which exams are the queries, and which one is the support."""

from collections.abc import Sequence


def fold_exams(numbers: Sequence[int], fold: int, folds: int = 5) -> tuple[list[int], int]:
    """(query exams, support exam) of fold ``fold`` = 0 ... ``folds`` - 1, as in Ouyang et al. 2020.

    The n exam numbers, sorted as integers, are cut at floor(k n / folds), k = 0 ... folds (for 20 exams and 5 folds at
    0, 4, 8, 12, 16, 20). The queries are the exams between two cuts, the support is the exam after the second cut;
    after the last cut it is the first exam. All others are for training: neither queries nor support are trained on.

    ``ValueError``: a fold that is not there, fewer than 2 folds, a number that repeats, or too few exams for every fold
    to have a query, a support and an exam to train on.
    """
    exams = sorted(numbers)
    if folds < 2 or not 0 <= fold < folds:
        raise ValueError(f"fold: expected 0 to folds - 1 with at least 2 folds, got fold {fold} of {folds}")
    if len(set(exams)) < len(exams):
        raise ValueError(f"numbers: exam numbers repeat in {exams}")
    cuts = [k * len(exams) // folds for k in range(folds + 1)]
    most = -(-len(exams) // folds)  # queries of the largest fold, rounded up
    if len(exams) < folds or len(exams) < most + 2:
        raise ValueError(
            f"fold: {len(exams)} exams are too few for {folds} folds, each with a query, a support and an exam to "
            f"train on; expected at least {max(folds, 3)}"
        )
    return exams[cuts[fold] : cuts[fold + 1]], exams[cuts[fold + 1] % len(exams)]
