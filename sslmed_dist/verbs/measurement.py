"""What ``sslmed evaluate`` measures: an encoder and its data, read once for the figures, the histograms and the
pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from sslmed_dist.config import Config
from sslmed_dist.data.joined import Joined
from sslmed_dist.data.samples import Samples, describe
from sslmed_dist.printable import note
from sslmed_dist.report.runs import runs_inside
from sslmed_dist.training import pretrained
from sslmed_dist.training.evaluation_data import evaluation_splits, measured_on, overridden, suffix


@dataclass(frozen=True)
class Measurement:
    """A run's encoder, and the settings by which it is measured."""

    folder: Path
    which: str
    part: pretrained.Part
    trained: pretrained.Pretrained
    settings: Config

    @cached_property
    def data(self) -> tuple[Joined, dict[str, Tensor]]:
        """The dataset, and the positions int64 (N,) in it of train, val and test; read when first asked for."""
        return evaluation_splits(self.settings)

    @cached_property
    def samples(self) -> Samples:
        """Those of ``data``, each read once."""
        return describe(self.data[0])

    @property
    def measured_on(self) -> dict[str, Any]:
        """What the results say that they were measured on."""
        return measured_on(self.settings, self.samples, self.data[1])

    @cached_property
    def stem(self) -> str:
        """How the results are called: ``last``, ``last-momentum``, ``step_4``; ``last@HASH`` where something else is
        measured than the run's own settings say, so that no result overwrites the answer to another question."""
        run, dataset = self.trained.settings, self.data[0]
        ending = suffix(run, self.settings, self.trained.samples, self.measured_on, dataset, self.samples)
        if ending and self.settings == run:
            note(f"{dataset.name} holds other samples than the run was trained on: the result gets a file of its own")
        return f"{self.which if self.part == 'encoder' else f'{self.which}-{self.part}'}{ending}"


def measurement(
    folder: Path, which: str = "last", part: pretrained.Part = "encoder", overrides: Sequence[str] = ()
) -> Measurement:
    """The measurement of the run in ``folder``: of its checkpoint ``which`` the encoder or its slow copy (``part``), by
    the run's own settings with ``overrides`` (``KEY=VALUE``) of what an evaluation may set.

    ``ValueError`` if ``folder`` is no run folder, the run has no such copy, or an override touches what the checkpoint
    decides.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a run folder; the results go into it")
    if not (folder / "checkpoints").is_dir():
        raise ValueError(f"{folder}: neither a checkpoint file nor a run folder with checkpoints{runs_inside(folder)}")
    trained = pretrained.load(folder, which, part=part)
    return Measurement(folder, which, part, trained, overridden(trained.settings, overrides))
