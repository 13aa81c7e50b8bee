"""What is learned on the device: beside what the CPU had learned at the same step, and in the time that is left.

The CPU's figures are those of docs/measured.md (2 shared cores of an AMD EPYC), measured by

    sslmed reproduce configs/tables/losses-cpu.yaml --root cifar10_jpeg=cifar10-jpeg-5k1k.npz --seeds 3
    sslmed reproduce configs/tables/one-shot-cpu.yaml --root episodes=chaos-t2spir

Here the same cells are trained on the device: same images, seed, keyed batches and number of steps. The bits differ,
and so do the figures, about as between two seeds.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from torch import nn

from sslmed_dist import config
from sslmed_dist.config import Config
from sslmed_dist.data import Dataset
from sslmed_dist.downstream import FLOORS, metrics
from sslmed_dist.downstream.predictions import Measure, Predictions, measures_of
from sslmed_dist.training import build, job, pretrained
from sslmed_dist.training.evaluation_data import evaluation_splits
from sslmed_dist.training.measuring import arm_predictions
from sslmed_dist.verbs.reproduce import read_table
from tests.acceptance.pack import CIFAR, CIFAR_SMALL, DESCRIPTION, EPISODES, WEIGHTS
from tests.acceptance.part import Bench, NotRun, Value
from tests.acceptance.speed import RECIPES, images, recipe, seconds_of, stepper

APART = (
    5.0  # points of per cent between the device's figure and the mean of the CPU's three seeds (their sd: 1.1 to 1.6)
)
KNN = {"name": "knn", "k": 200, "temperature": 0.1}
RESERVE = 0.35  # of a part's time: the data, the evaluation, and what the estimate of a step is wrong by


@dataclass(frozen=True)
class Cell:
    """A loss: its row in configs/tables/losses-cpu.yaml, the mean of the CPU's three seeds there (200-NN, %), and what
    it changes of the recipe for the whole set."""

    row: str
    cpu: float
    overrides: tuple[str, ...] = ()


DYSTRESS = "method.loss={name: nt_xent, temperature: {name: dystress, low: 0.07, high: 0.2, gradient: false}}"
CELLS = {
    "mio_v3": Cell("MIOv3", 41.2, ("method.loss={name: mio_v3, temperature: 0.2}",)),
    "simclr": Cell("NT-Xent", 40.4),
    "dystress": Cell("DySTreSS", 40.3, (DYSTRESS,)),
}
# What is shown, by the name of the measure; and configs/tables/one-shot-cpu.yaml, row CoWPro, column kidneys, seed 0.
ACCURACY = {"accuracy": "200-NN"}
DICE = {"dice/right kidney": "Dice, right kidney", "dice/left kidney": "Dice, left kidney"}
KIDNEYS_CPU = {"Dice, right kidney": 51.5, "Dice, left kidney": 63.8}


def measured(settings: Config, train: Dataset, wanted: Mapping[str, str]) -> list[Value]:
    """Train to the end in a run folder, and measure as ``sslmed evaluate`` does, by the run's only protocol and with
    its floors. ``wanted``: which measures, and what they are called. The encoder's come with their 5-95 % bootstrap
    interval."""
    done = job.train(settings, dataset=train)
    if done.state.step != job.total(done):
        raise RuntimeError(f"training stopped at step {done.state.step} of {job.total(done)}")
    trained = pretrained.load(settings.folder)
    data, parts = evaluation_splits(trained.settings)
    (evaluator,) = build.build_evaluators(trained.settings).values()
    arms: dict[str, nn.Module] = {"encoder": trained.encoder, "random": pretrained.untrained(trained.settings)}
    arms[evaluator.floor] = FLOORS[evaluator.floor]()
    values = [Value("steps", float(done.state.step)), Value("samples", float(done.state.samples))]
    for arm, network in arms.items():
        (predictions,) = arm_predictions(trained.settings, network, data, parts, arm).values()
        for measure in measures_of(predictions):
            if measure.name in wanted:
                values += per_cent(f"{wanted[measure.name]}, {arm}", measure, predictions, arm == "encoder")
    return values


def per_cent(name: str, measure: Measure, predictions: Predictions, interval: bool) -> list[Value]:
    """A measure of predictions, and the ends of its interval where one is asked for and there is one."""
    arrays = (predictions.scores, measure.labels)
    value = metrics.point(measure.statistic, arrays)
    values = [Value(name, float("nan") if value is None else 100 * value, "%")]
    if interval:
        ends = metrics.bootstrap(measure.statistic, arrays, predictions.groups, draws=1000, seed=0)
        named = (("5 %", ends.low), ("95 %", ends.high))
        values += [Value(f"{name}, {end}", 100 * bound, "%") for end, bound in named if bound is not None]
    return values


def beside_the_cpu(bench: Bench, loss: str) -> list[Value]:
    """The cell of the CPU's table on the device: ten epochs of 5,000 images, 200-NN."""
    cell, file = CELLS[loss], bench.data / CIFAR_SMALL
    table = read_table.load(RECIPES / "tables" / "losses-cpu.yaml")
    overrides = [f"run.device={bench.device}", f"run.dir={bench.scratch}"]
    if bench.tiny:
        overrides += ["method.encoder.width=4", "plan.epochs=1"]
    settings = table.settings(cell.row, "CIFAR-10-5k", overrides, root=str(file))
    values = measured(config.replace(settings, run={"threads": None}), images(file, "train"), ACCURACY)
    if bench.tiny:
        return values
    away = abs(next(value.value for value in values if value.name == "200-NN, encoder") - cell.cpu)
    return [*values, Value("the CPU, three seeds", cell.cpu, "%"), Value("between the two", away, "points", most=APART)]


def as_long_as_it_fits(bench: Bench, settings: Config, train: Dataset) -> Config:
    """The run with as many epochs as fit into the part's time, by the speed of its first steps; with fewer steps where
    not even one does. Its schedule is that of the shorter run."""
    began = time.monotonic()
    made = job.assemble(settings, train)
    each = seconds_of(bench, stepper(made), most=2.0, least_turns=10)
    left = (bench.seconds - (time.monotonic() - began)) * (1 - RESERVE)
    steps = 2 if bench.tiny else max(1, int(left / each))
    epochs = min(settings.plan.epochs, steps // made.batches.steps)
    if epochs:
        return config.replace(settings, plan={"epochs": epochs})
    return config.replace(settings, plan={"epochs": 1, "steps_per_epoch": min(steps, made.batches.steps)})


def cifar(bench: Bench, loss: str) -> list[Value]:
    """The thesis's recipe on all of CIFAR-10 for as many epochs as fit: 200-NN on 10,000 test images."""
    file = bench.data / CIFAR
    train = images(file, "train")
    settings = recipe(bench, "contrastive/cifar10_simclr.yaml", file, (*CELLS[loss].overrides, f"run.name={loss}"))
    settings = config.replace(settings, evaluate={"protocols": [KNN]})
    settings = as_long_as_it_fits(bench, settings, train)
    epochs = settings.plan.epochs if settings.plan.steps_per_epoch is None else 0  # less than one
    return [Value("whole epochs", float(epochs)), *measured(settings, train, ACCURACY)]


def cowpro(bench: Bench) -> list[Value]:
    """CoWPro on fold 0, kidneys, by the recipe for a CPU (12,000 episodes from random weights) or what fits of it.
    Where all of it does, the CPU's figures stand beside."""
    settings = recipe_of(bench, "segmentation/chaos_cowpro_cpu.yaml")
    values, whole = one_shot(bench, settings)
    if not whole or bench.tiny:
        return values
    return values + [Value(f"{name}, the CPU, one seed", dice, "%") for name, dice in KIDNEYS_CPU.items()]


def cowpro_from_weights(bench: Bench) -> list[Value]:
    """CoWPro on fold 0, kidneys, by the published recipe from the weights at hand, but 16 episodes a step (the recipe
    says how), in half precision."""
    if not (bench.data / WEIGHTS).is_file():
        raise NotRun(f"no {WEIGHTS} in the data folder: no weights at hand fit an encoder")
    described = json.loads((bench.data / DESCRIPTION).read_text(encoding="utf-8"))
    settings = recipe_of(bench, "segmentation/chaos_cowpro.yaml")
    encoder = described["encoder"] | {"weights": str(bench.data / WEIGHTS)}
    batch = {"batch_size": 4, "steps_per_epoch": 2} if bench.tiny else {"batch_size": 16, "steps_per_epoch": 62}
    half = {"precision": "bf16", "channels_last": True} if bench.on_gpu else {}
    settings = config.replace(settings, method={"encoder": encoder}, optim={"lr": 4.0e-3}, plan=batch | half)
    return one_shot(bench, settings)[0]


def recipe_of(bench: Bench, name: str) -> Config:
    """A recipe of one-shot segmentation on the packed exams."""
    given = (f"data.root={bench.data / EPISODES}", f"run.device={bench.device}", f"run.dir={bench.scratch}")
    settings = config.replace(config.load(RECIPES / name, list(given)), run={"threads": None})
    if not bench.tiny:
        return settings
    encoder = {"name": "dilated_resnet", "depth": 9, "width": 4, "out": 8, "stride": 8}
    settings = config.replace(settings, data={"size": 64}, views={"size": 64}, method={"encoder": encoder})
    # Of the three exams that a rehearsal trains on, a tenth would be none.
    return config.replace(settings, plan={"batch_size": 4, "steps_per_epoch": 2}, evaluate={"val_fraction": 0.5})


def one_shot(bench: Bench, settings: Config) -> tuple[list[Value], bool]:
    """Train for as long as it fits: Dice of both kidneys, and whether the whole recipe was trained."""
    train = build.load_data(settings, "train")
    shorter = as_long_as_it_fits(bench, settings, train)
    return measured(shorter, train, DICE), shorter.plan == settings.plan


BESIDE = {loss: partial(beside_the_cpu, loss=loss) for loss in CELLS}
WHOLE = {loss: partial(cifar, loss=loss) for loss in CELLS}
