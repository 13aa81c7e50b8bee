"""How long a recipe trains: as many epochs as fit into the time asked for, from real steps of it on this machine."""

import math
from dataclasses import dataclass

from sslmed_dist import config
from sslmed_dist.config import Config
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.printable import duration
from sslmed_dist.training import check
from sslmed_dist.training.rehearsal import Need

MOST_EPOCHS = 500  # of a small set: what is gained after so many was never measured here
SHARE = 0.9  # of the time asked for: a machine is not always as fast as in the first seconds


@dataclass(frozen=True)
class Length:
    """``epochs`` of ``steps`` each, at ``rate`` images a second; ``seconds`` of the whole, from ``tried`` steps."""

    epochs: int
    steps: int
    rate: float
    seconds: float
    tried: int

    @property
    def line(self) -> str:
        """What the recipe says of it."""
        return (
            f"about {duration(self.seconds)} on this machine: {self.rate:,.0f} images/s, from {self.tried} steps tried "
            "here while the recipe was written; evaluation is not in it"
        )


def measure(settings: Config, dataset: Dataset) -> tuple[Need, int]:
    """What one process needs to train on ``dataset``, from some real steps, and the steps of an epoch. Nothing is
    written."""
    tried = check.try_out(config.replace(settings, driver="local"), dataset)
    return check.expected(tried), tried.work.batches.steps


def fit(settings: Config, dataset: Dataset, minutes: float, arms: int = 1) -> Length:
    """The length of the run. ``arms``: how many trainings of that length are made one after another."""
    need, steps = measure(settings, dataset)
    fixed = need.start + need.prepare + need.first + need.end
    epoch = arms * (steps * need.step + need.save)
    wanted = (SHARE * minutes * 60 - fixed) / epoch
    epochs = min(max(math.floor(wanted), 1), MOST_EPOCHS)
    rate = settings.plan.batch_size / need.step
    return Length(epochs, steps, rate, fixed + epochs * epoch, need.tried)
