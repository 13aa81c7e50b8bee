"""``sslmed diagnose --predict``: probabilities of new exams, how sure they are, which slices count, and what is odd."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslmed_dist import config, outputs
from sslmed_dist.analysis import gradcam
from sslmed_dist.atomic_files import sha256, write_atomically
from sslmed_dist.config import Config
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.data.exams.exam_dataset import whole_exam
from sslmed_dist.downstream.diagnosis import calibration, ensemble
from sslmed_dist.downstream.diagnosis.inference import Examiner
from sslmed_dist.printable import note
from sslmed_dist.run_folder import phantom_data, phantoms_at, write_json
from sslmed_dist.training import build
from sslmed_dist.verbs.diagnose import likeness, predicted_page
from sslmed_dist.verbs.diagnose.new_exams import read_exams, shown_names
from sslmed_dist.verbs.diagnose.parts import PARTS, examiner, load_method, section
from sslmed_dist.verbs.diagnose.predicted_page import Answer
from sslmed_dist.verbs.diagnose.run import MODEL
from sslmed_dist.verbs.diagnose.unlearnt import lines_of

PAGE, TABLE, RECORD = "diagnosis.html", "predictions.csv", "run.json"
MARK = "sslmed diagnose --predict"
HEAD = ("exam", "label", "probability", "uncalibrated", "part", "part_probability", "part_spread")


@dataclass(frozen=True)
class Model:
    """A trained part, how it looks, what it was trained on, and its new exams by name; where there is none of these, it
    has no dataset and does not look."""

    name: str
    look: Examiner | None
    ranges: Mapping[str, Any]
    dataset: Dataset | None
    places: Mapping[str, int]


def predict(
    folder: Path, run: Path, out: Path, device: str = "auto", *, anonymous: bool = False, force: bool = False
) -> list[Path]:
    """Examine every exam of ``folder`` by the diagnosis in the run folder ``run``; writes ``diagnosis.html``,
    ``predictions.csv`` and ``run.json`` into ``out`` and returns them. ``anonymous``: exams are numbered there, not
    named. ``ValueError``: a run that was not finished, no
    exam with any series of the parts, an output that must stay."""
    known = read_model(run)
    targets = {out / PAGE: outputs.is_page, out / TABLE: is_table, out / RECORD: is_record}
    outputs.require_writable(list(targets.items()), force=force)
    settings = config.replace(config.load(run / "config.yaml"), run={"device": device})
    models = [open_part(run, name, known, settings, folder) for name in known["parts"]]
    names = sorted({name for model in models for name in model.places})
    if not names:
        wanted = ", ".join(known["parts"])
        raise ValueError(
            f"{folder}: no exam in it has a series of {wanted}; sslmed data check {folder} lists its series"
        )
    called = shown_names(folder, names, anonymous)
    answers = [answer(name, shown, models, known) for name, shown in called.items()]
    phantom = phantom_data(settings) or phantoms_at(folder)
    notices = [] if len(answers) == 1 else aside(models)
    for line in notices:
        note(line)
    page = predicted_page.html(answers, known["labels"], phantom, notices)
    write_atomically(out / PAGE, page.encode())
    write_atomically(out / TABLE, table(answers).encode())
    warnings = {entry.exam: entry.warnings for entry in answers}
    files = {name: sha256(out / name) for name in (PAGE, TABLE)}
    record = {"labels": known["labels"], "warnings": warnings, "notices": notices, "files": files}
    write_json(out / RECORD, {outputs.MARK: MARK, **record})
    return list(targets)


def aside(models: Sequence[Model]) -> list[str]:
    """What reading several exams left aside, guessed or replaced, in counts; of a single one its warnings say it."""
    return [f"{model.name}: {line}" for model in models if model.dataset is not None for line in model.dataset.notices]


def read_model(run: Path) -> dict[str, Any]:
    """What ``sslmed diagnose CONFIG`` wrote down of the parts. ``ValueError`` where it is not there or damaged."""
    path = run / MODEL
    if not path.is_file():
        raise ValueError(f"{run}: holds no finished diagnosis ({MODEL} is missing); run sslmed diagnose CONFIG first")
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(known, dict) and all(isinstance(known[key], dict) for key in ("parts", "training"))
        assert len(known["labels"]) == len(known["temperatures"])
        assert all(len(part["weights"]) == len(known["labels"]) for part in known["parts"].values())
    except (ValueError, KeyError, TypeError, AssertionError):
        raise ValueError(f"{path}: is damaged; sslmed diagnose CONFIG writes it anew") from None
    return known


def open_part(run: Path, name: str, known: Mapping[str, Any], settings: Config, folder: Path) -> Model:
    """One part with the new exams that it can look at."""
    method, own, _ = load_method(run / PARTS / name)
    dataset = read_exams(folder, own, known.get("reading", {}).get(name, {}))
    if dataset is None:
        return Model(name, None, {}, None, {})
    look = examiner(method, own, dataset, section(settings), build.choose_device(settings))
    places = {exam_name(dataset, i): i for i in range(len(dataset))}
    return Model(name, look, known["training"].get(name, {}), dataset, places)


def exam_name(dataset: Dataset, position: int) -> str:
    """What an exam is called: as its data calls it, else its number."""
    record = dataset.records[position] if dataset.records else {}
    return str(record.get("exam") or record.get("file") or int(dataset.ids[position]))


def answer(name: str, called: str, models: Sequence[Model], known: Mapping[str, Any]) -> Answer:
    """Everything that is said of the exam ``name``, which is ``called`` so."""
    labels = list(known["labels"])
    said = Answer(called, warnings=lines_of(known.get("unlearnt", {})))
    table = torch.full((len(models), 1, len(labels)), torch.nan, dtype=torch.float64)
    for k, model in enumerate(models):
        if model.dataset is None or model.look is None or name not in model.places:
            said.warnings.append(f"no series for {model.name}: the others answer without it")
            continue
        position = model.places[name]
        slices = whole_exam(model.dataset, position)
        table[k, 0] = examine(said, model.name, model.look, slices, labels)
        odd = likeness.unlike(likeness.facts(model.dataset, position, slices), model.ranges)
        said.warnings += [f"unlike the training exams, {model.name}: {line}" for line in odd]
        said.warnings += [f"{model.name}: {line}" for line in model.dataset.notices if len(model.dataset) == 1]
    weights = torch.tensor(
        [[float("nan") if w is None else w for w in known["parts"][model.name]["weights"]] for model in models],
        dtype=torch.float64,
    )
    weighted = ensemble.combined(table, weights)
    calibrated = calibration.scaled(weighted, torch.tensor(known["temperatures"], dtype=torch.float64))
    for column, label in enumerate(labels):
        plain, scaled = float(weighted[0, column]), float(calibrated[0, column])
        said.uncalibrated[label] = None if plain != plain else plain
        said.probabilities[label] = None if scaled != scaled else scaled
    return said


def examine(said: Answer, part: str, look: Examiner, slices: Tensor, labels: Sequence[str]) -> Tensor:
    """One part's probabilities (L,) by the labels of the whole diagnosis, NaN for those that it does not answer. Its
    own numbers and its slices that count go into ``said``."""
    mean, spread = look.answer(slices)
    own = look.method.labels
    said.parts[part] = {label: (float(mean[k]), float(spread[k])) for k, label in enumerate(own)}
    row = torch.full((len(labels),), torch.nan, dtype=torch.float64)
    numbers, differences = look.without_each(slices)
    # Where in the slice that counts most the answer comes from, in the clip of all of these slices.
    view = look.view(slices[numbers])
    heat = gradcam.of_slices(look.method, view)
    for k, label in enumerate(own):
        row[labels.index(label)] = mean[k]
        strongest = differences[:, k].abs().argsort(descending=True)[:3]
        said.slices += [(part, label, int(numbers[i]) + 1, float(differences[i, k])) for i in strongest]
        place = int(strongest[0])
        picture = predicted_page.overlay(view[0, place, 0].float().cpu(), heat[k][place].float().cpu())
        said.pictures.append((f"{part}, {label}, slice {int(numbers[place]) + 1}", picture))
    return row


def table(answers: Sequence[Answer]) -> str:
    """``predictions.csv``: a line for each exam, label and part."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(HEAD)
    for said in answers:
        for label, probability in said.probabilities.items():
            both = [number(probability), number(said.uncalibrated[label])]
            for part, values in said.parts.items():
                if label in values:
                    writer.writerow([said.exam, label, *both, part, *map(number, values[label])])
    return stream.getvalue()


def number(value: float | None) -> str:
    """A probability as it is written; empty where there is none."""
    return "" if value is None else f"{value:.6f}"


def is_table(path: Path) -> bool:
    """The predictions of an earlier call."""
    return path.read_text(encoding="utf-8").startswith(",".join(HEAD))


def is_record(path: Path) -> bool:
    """The record of an earlier call."""
    return outputs.read_mapping(path).get(outputs.MARK) == MARK
