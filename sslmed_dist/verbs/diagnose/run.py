"""``sslmed diagnose CONFIG``: train every part, put them together, measure, and write what came out."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sslmed_dist import outputs
from sslmed_dist.atomic_files import refuse_links, write_atomically
from sslmed_dist.config import Config
from sslmed_dist.data.exams.exam_dataset import exams_of
from sslmed_dist.downstream import write_rows
from sslmed_dist.downstream.diagnosis.inference import ExamScores
from sslmed_dist.downstream.predictions import Predictions
from sslmed_dist.printable import note, plural
from sslmed_dist.run_folder import RunFolder, write_json
from sslmed_dist.training.check import check_lines
from sslmed_dist.verbs.diagnose import page, scoring
from sslmed_dist.verbs.diagnose.folds import Fold, folds_of, rows_of_folds, unknown_scanners
from sslmed_dist.verbs.diagnose.folds_page import fold_section
from sslmed_dist.verbs.diagnose.likeness import likeness
from sslmed_dist.verbs.diagnose.parts import Part, read_parts, section
from sslmed_dist.verbs.diagnose.scoring import Combination, Exams
from sslmed_dist.verbs.diagnose.unlearnt import banners, lines_of, unlearnt
from sslmed_dist.verbs.diagnose.work import Examined, finish_parts

RESULTS, MODEL, PREDICTIONS, PAGE = "evaluate/diagnosis.json", "diagnosis.json", "predictions.csv", "diagnosis.html"


def check(settings: Config) -> list[str]:
    """Validate everything and try two steps of each part; nothing is written. Returns lines that say what it is."""
    parts = read_parts(settings)
    lines = lines_of(unlearnt(parts))
    for part in parts:
        counts = f"{len(part.rest)} train, {len(part.val)} held out, {plural(len(part.test), 'test exam')}"
        lines += [f"part      {part.name}: {counts}", *check_lines(part.settings, part.learnt())]
    more = [part for fold in folds_of(settings, parts) for part in fold.parts]
    if more:
        kinds = " and ".join(section(settings).folds)
        lines.append(f"folds     {kinds}: {len(more)} more trainings, each of one of the parts above with fewer exams")
    return lines


def run(settings: Config, resume: str = "auto") -> Path:
    """Train and measure; what was interrupted goes on where it stopped. Returns the page. The run folder then holds
    ``parts/NAME`` (a run each), ``evaluate/diagnosis.json``, ``predictions.csv``, ``diagnosis.json`` (what
    ``--predict`` needs beside the parts) and ``diagnosis.html``."""
    folder = settings.folder
    refuse_links(folder)
    outputs.require_ours(folder / RESULTS, outputs.is_results)
    parts = read_parts(settings)
    for line in dict.fromkeys(line for part in parts for line in (*part.train.notices, *part.test.notices)):
        note(f"data: {line}")
    for line in lines_of(unlearnt(parts)):
        note(line)
    folds = folds_of(settings, parts)
    everything = [*parts, *(part for fold in folds for part in fold.parts)]
    examined = dict(zip((part.name for part in everything), finish_parts(settings, everything, resume), strict=True))
    run_folder = RunFolder(folder, settings)
    run_folder.open("auto")
    try:
        run_folder.describe()
        return measure(settings, parts, folds, examined)
    finally:
        run_folder.close()


def measure(settings: Config, parts: Sequence[Part], folds: Sequence[Fold], examined: Mapping[str, Examined]) -> Path:
    """Combine what every part says of held-out and test exams, score, and write. ``examined`` are by the names of the
    parts and of those of the folds."""
    folder, diagnosis, seed = settings.folder, section(settings), settings.run.seed
    own = [examined[part.name] for part in parts]
    held, tested = [one.held for one in own], [one.tested for one in own]
    files = {part.name: {"file": one.file, "sha256": one.digest} for part, one in zip(parts, own, strict=True)}
    classes = scoring.label_names(tested)
    combination = scoring.combine(joined(parts, held, test=False), classes)
    test = joined(parts, tested, test=True)
    arms = scoring.arms_of(parts, test, combination, seed)
    rows = scoring.rows_of_arms(arms, published=diagnosis.published, seed=seed)
    if folds:
        rows += rows_of_folds(diagnosis.folds, folds, parts, {name: one.held for name, one in examined.items()}, seed)
    poor = unlearnt(parts)
    facts = {"combination": described(parts, combination), "notices": list(parts[0].test.notices), "unlearnt": poor}
    write_rows(folder / RESULTS, rows, encoder=files, **facts)
    write_json(
        folder / MODEL,
        {outputs.MARK: "sslmed diagnose", **described(parts, combination), "unlearnt": poor, **known_range(parts)},
    )
    write_atomically(folder / PREDICTIONS, table(parts, test, combination, arms).encode())
    content = page.html(
        settings,
        rows,
        arms,
        combination,
        [part.name for part in parts],
        banners(poor) + fold_section(diagnosis.folds, rows, unknown_scanners(parts)),
    )
    write_atomically(folder / PAGE, content.encode())
    return folder / PAGE


def joined(parts: Sequence[Part], scores: Sequence[ExamScores], *, test: bool) -> Exams:
    """The exams of all parts that ``scores`` are of."""
    datasets = [part.test if test else part.train for part in parts]
    positions = [torch.arange(len(part.test)) if test else part.val for part in parts]
    return scoring.join(datasets, positions, scores)


def described(parts: Sequence[Part], combination: Combination) -> dict[str, Any]:
    """The combination as plain data, by part and label; null where a part does not answer a label."""

    def plain(values: torch.Tensor) -> list[float | None]:
        return [None if value != value else round(value, 9) for value in values.tolist()]

    by_part = {
        part.name: {"accuracies": plain(combination.accuracies[k]), "weights": plain(combination.weights[k])}
        for k, part in enumerate(parts)
    }
    return {"labels": list(combination.classes), "parts": by_part, "temperatures": plain(combination.temperatures)}


def known_range(parts: Sequence[Part]) -> dict[str, Any]:
    """What the training exams of each part are like: number of slices, spacing in mm, mean and deviation of the
    intensities on [0, 1], each as the least and greatest value. A new exam outside of it is warned about. ``reading``
    is how they were read (by which rules, at which scale): new exams are read alike, also where these were a pack."""
    return {
        "training": {part.name: likeness(part.train, part.rest) for part in parts},
        "reading": {part.name: exams_of(part.train)[0].reading() for part in parts},
    }


def table(parts: Sequence[Part], test: Exams, combination: Combination, arms: dict[str, Predictions]) -> str:
    """``predictions.csv``: a line for each test exam and label. The exam is its number, and its name where the data
    has one: the file stays at the site, as the run folder does."""
    names: dict[int, str] = {}
    for part in parts:
        records = part.test.records or [{} for _ in range(len(part.test))]
        names |= {int(i): str(r.get("exam", "")) for i, r in zip(part.test.ids, records, strict=True)}
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    own = [f"{part.name}{suffix}" for part in parts for suffix in ("", " spread")]
    combinations = (scoring.ENSEMBLE, scoring.SCALED, scoring.MEAN)
    writer.writerow(["exam", "name", "label", "truth", *combinations, *own])
    for row, exam in enumerate(test.ids.tolist()):
        for column, label in enumerate(combination.classes):
            truth = test.labels[row, column]
            pairs = [(p[row, column], s[row, column]) for p, s in zip(test.probabilities, test.spread, strict=True)]
            values = [arms[arm].scores[row, column] for arm in combinations] + [v for pair in pairs for v in pair]
            written = ["" if value.isnan() else f"{float(value):.6f}" for value in values]
            writer.writerow([exam, names[exam], label, "" if truth.isnan() else int(truth), *written])
    return stream.getvalue()
