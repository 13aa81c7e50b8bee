"""What ``--metric`` may name, known before the first trial trains."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import torch

from sslmed_dist import distributed, registry
from sslmed_dist.config import Config
from sslmed_dist.downstream import CLASSIFIER, Evaluator, Features, Predictions, Segmenting, SplitFeatures
from sslmed_dist.downstream.predictions import Demanding, measures_of
from sslmed_dist.methods import METHODS
from sslmed_dist.training import build
from sslmed_dist.training.check import assembled
from sslmed_dist.training.job import Job
from sslmed_dist.training.precision import deterministic_kernels
from sslmed_dist.training.step import Stepper
from sslmed_dist.training.validation import AT_LOWEST
from sslmed_dist.training.waiting import WAIT_SHARE
from sslmed_dist.verbs.sweep.grid import Trial
from sslmed_dist.verbs.sweep.trial import is_scalar

LOSS = "loss"  # what every training logs
MOST_SAMPLES = 2**24  # of made-up features, before an evaluator is believed that wants more
LATER = "MEASURE"  # stands for names that are known when a trial is measured

Task = Literal["single", "multi"]


def require_known(metric: str | None, trials: Mapping[Trial, Config]) -> None:
    """``ValueError``, with the names that there are, for a ``metric`` that one of the ``trials`` will not have. Trials
    that differ in nothing that decides the names are asked once."""
    if metric is None or metric == LOSS:
        return
    asked: list[tuple[object, ...]] = []
    for one, own in trials.items():
        facts = (own.method, own.views, own.data, own.plan.validate, own.evaluate)
        if facts in asked:
            continue
        asked.append(facts)
        first, other = (scalars, figures) if is_scalar(metric) else (figures, scalars)
        named = first(own)
        if not any(fits(metric, name) for name in named):
            allowed = ", ".join([*named, *other(own)])
            raise ValueError(f"--metric: {metric}: unknown in {one}; allowed: {allowed}")


def fits(metric: str, name: str) -> bool:
    """Whether ``metric`` is ``name``, or one of those that it stands for."""
    title = name.removesuffix(LATER)
    return metric == name if title == name else len(metric) > len(title) and metric.startswith(title)


def unchecked(metric: str, settings: Config) -> list[str]:
    """A line where of the ``metric`` only the evaluator could be checked."""
    if is_scalar(metric):
        return []
    titles = [title for title, one in build.build_evaluators(settings).items() if isinstance(one, Segmenting)]
    found = [title for title in titles if fits(metric, f"{title}/{LATER}")]
    return [f"whether {title} has {metric} is known only when the first trial is measured" for title in found]


def figures(settings: Config) -> list[str]:
    """EVALUATOR/MEASURE of all that ``sslmed evaluate`` will measure of the encoder. The evaluators themselves say it,
    on features that are made up. One that segments has to see scans for that: ``EVALUATOR/MEASURE`` stands for its."""
    dataset = build.load_data(settings, "train", settings.evaluate.data)
    task, classes = dataset.task, tuple(dataset.classes)
    constructor, _ = registry.split(METHODS, settings.method, "method")
    names = [f"{CLASSIFIER}/{name}" for name in of_classes(task, classes)] if hasattr(constructor, "predict") else []
    for title, evaluator in build.build_evaluators(settings).items():
        if isinstance(evaluator, Segmenting):
            names.append(f"{title}/{LATER}")
        elif classes:  # nothing is measured of features without labels
            predictions = evaluator.predict(made_up(evaluator, task, classes), seed=0)
            names += [f"{title}/{measure.name}" for measure in measures_of(predictions)]
    return names


def of_classes(task: Task, classes: tuple[str, ...]) -> Iterator[str]:
    """The measures of predicted classes or labels."""
    part = features(0, task, len(classes))
    scores = torch.zeros(0, len(classes), dtype=torch.float64)
    of = Predictions(scores, part.labels, part.groups, part.index, task, classes)
    return (measure.name for measure in measures_of(of))


def made_up(evaluator: Evaluator, task: Task, classes: tuple[str, ...]) -> SplitFeatures:
    """Features of zeros, as few as the evaluator works on. ``ValueError`` where no number of them is enough."""
    count = 8
    while isinstance(evaluator, Demanding):
        try:
            evaluator.require(count, count)
            break
        except ValueError:
            if count >= MOST_SAMPLES:
                raise
            count *= 2
    part = features(count, task, len(classes))
    return SplitFeatures(part, part, part, task, classes)


def features(count: int, task: Task, classes: int) -> Features:
    """``count`` samples with the classes (or labels) in turn, a patient each."""
    index = torch.arange(count)
    labels = ((index[:, None] + torch.arange(classes)) % 2).float() if task == "multi" else index % classes
    return Features(torch.zeros(count, 1), labels, index, index)


def scalars(settings: Config) -> list[str]:
    """The names that the training will log, ``loss`` first: from one step of it and, with ``plan.validate``, one batch
    of the validation."""
    work = assembled(settings)
    stepper = Stepper(
        work.method, work.views, settings.plan, work.batches, work.state, distributed.leave_gradients, None
    )
    with deterministic_kernels(settings.plan):
        logged = stepper.step(next(iter(work.batches.epoch(0))), 0, True)  # what asks for a stop is logged
    assert logged is not None
    names = [*logged, WAIT_SHARE, *validated(work)]
    every = settings.evaluate.every
    if every is not None and every <= settings.plan.epochs:
        names.append(f"knn_{next(of_classes(work.dataset.task, tuple(work.dataset.classes)))}")
    return sorted(names, key=lambda name: name != LOSS)


def validated(work: Job) -> Iterable[str]:
    """The names that the validation after each epoch will log. The job is of no use afterwards."""
    watching = work.validation
    if watching is None:
        return []
    stepper = Stepper(
        work.method, work.views, work.settings.plan, watching.batches, work.state, distributed.leave_gradients, None
    )
    work.method.eval()
    work.views.eval()
    with torch.no_grad():
        prepared = stepper.prepare(next(iter(watching.batches.epoch(0))), 0)
        terms = stepper.objective(stepper.embed(prepared), prepared)
    names = [f"{watching.split}_{name}" for name in terms]
    return [*names, *(f"{name}{AT_LOWEST}" for name in names)]
