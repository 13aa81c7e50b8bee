"""What is done for one part, here or in a process elsewhere: it is trained, then looks at held-out and test exams."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslmed_dist import config
from sslmed_dist.atomic_files import sha256
from sslmed_dist.config import Config, Diagnosis
from sslmed_dist.downstream.diagnosis.inference import ExamScores
from sslmed_dist.drivers import ray_tasks
from sslmed_dist.drivers.ray_train import absolute_paths, refuse_package
from sslmed_dist.printable import note, plural
from sslmed_dist.run_folder import RunFolder
from sslmed_dist.training import build
from sslmed_dist.training.stopping import Stop, finish
from sslmed_dist.verbs.diagnose.parts import Part, examiner, load_method, section, train


@dataclass(frozen=True)
class Examined:
    """What a trained part says of the held-out and of the test exams; its checkpoint's name and SHA-256."""

    held: ExamScores
    tested: ExamScores
    file: str
    digest: str


def finish_part(part: Part, diagnosis: Diagnosis, resume: str, stop: Stop | None = None) -> Examined:
    """Train a part to the end, and look. ``Stopped`` where it was stopped before that, or ``stop`` asks for it."""

    def look_up() -> None:
        finish(stop is not None and stop())

    look_up()
    train(part, resume, stop)
    method, resolved, path = load_method(part.folder)
    look = examiner(method, resolved, part.train, diagnosis, build.choose_device(part.settings))
    held = look.examine(part.train, part.val, look_up)
    tested = look.examine(part.test, part.asked, look_up)
    note(f"{part.name}: {len(part.val)} held-out and {plural(len(part.asked), 'test exam')} examined")
    return Examined(held, tested, path.name, sha256(path))


@dataclass(frozen=True)
class PartWork:
    """``finish_part`` for another process: its data are read there. ``tree`` are the part's settings with absolute
    paths, ``rest``, ``val`` and ``asked`` as ``Part`` has them, ``ids`` those of the training and the test exams."""

    name: str
    tree: dict[str, Any]
    folder: Path
    rest: Tensor
    val: Tensor
    asked: Tensor
    ids: tuple[Tensor, Tensor]
    test: str
    diagnosis: Diagnosis
    threads: int

    def __call__(self) -> Examined:
        """``ValueError`` where the data read there are other exams."""
        settings = config.from_tree(self.tree, self.name)
        # As many as the task has cores; the job sets ``run.threads`` itself.
        torch.set_num_threads(settings.run.threads or self.threads)
        learnt, test = (build.load_data(settings, split) for split in ("train", self.test))
        for dataset, ids in zip((learnt, test), self.ids, strict=True):
            if not torch.equal(dataset.ids, ids):
                raise ValueError(f"{self.name}: data.root: other exams here ({len(dataset)}) than where it was started")
        part = Part(self.name, settings, self.folder, learnt, test, self.rest, self.val, self.asked)
        return finish_part(part, self.diagnosis, "auto")


def work_of(part: Part, settings: Config) -> PartWork:
    """The work for ``part`` of the diagnosis ``settings``."""
    own = absolute_paths(part.settings)
    ids = (part.train.ids, part.test.ids)
    threads = max(1, settings.ray.cpus_per_worker)
    folder = part.folder.expanduser().resolve()
    facts = (part.rest, part.val, part.asked, ids, settings.evaluate.test, section(settings), threads)
    return PartWork(part.name, config.to_tree(own), folder, *facts)


def finish_parts(settings: Config, parts: Sequence[Part], resume: str) -> list[Examined]:
    """Every part trained and looking: one after another in this process, or with ``driver: ray`` as tasks of Ray,
    ``ray.num_workers`` at a time. The bits are the same for the same number of threads.

    Where one fails, what is done is kept: alone, the first one ends the command; as tasks, the others go on first."""
    if settings.driver != "ray" or settings.ray.most == 0:
        with Stop.anew(settings.folder) as stop:
            return [located(part, section(settings), resume, stop) for part in parts]
    refuse_package(settings)
    for part in parts:
        if resume == "never":  # the tasks themselves go on where a lost one stopped
            RunFolder(part.folder, part.settings).require_unbegun()
    done = ray_tasks.run({part.name: work_of(part, settings) for part in parts}, settings, "diagnose")
    return [done[part.name] for part in parts]


def located(part: Part, diagnosis: Diagnosis, resume: str, stop: Stop) -> Examined:
    """``finish_part``; a mistake is said with the part's name."""
    try:
        return finish_part(part, diagnosis, resume, stop)
    except ValueError as error:
        raise ValueError(f"{part.name}: {error}") from error
