"""What an analysis looks at: a run, one of its checkpoints, and a keyed batch of its training views."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sslmed_dist import checkpoint, config, distributed, randomness
from sslmed_dist.atomic_files import refuse_links, sha256
from sslmed_dist.config import Config
from sslmed_dist.data.dataset import Dataset, content_hash
from sslmed_dist.json_files import read_object
from sslmed_dist.methods import Method
from sslmed_dist.printable import note
from sslmed_dist.report.panels import Panel
from sslmed_dist.report.runs import runs_inside
from sslmed_dist.run_folder import Metrics, write_json
from sslmed_dist.training import build, pretrained

FOLDER = "analysis"
Precision = Literal["float32", "float64"]
DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Answer:
    """What an analysis gives: its ``rows`` for the csv, the ``panels`` of its picture (or the ``picture`` itself as
    PNG), a ``heading``, and in ``lines`` what it says in words."""

    heading: str
    rows: Sequence[Mapping[str, Any]]
    panels: Sequence[Panel] = ()
    lines: Sequence[str] = ()
    picture: bytes | None = None


@dataclass(frozen=True)
class Point:
    """A run at one checkpoint: the method in training mode, its ``parameters`` that train, and the views of a batch."""

    step: int
    method: Method
    batch: dict[str, Tensor]
    seed: int
    lr: float | None

    @cached_property
    def parameters(self) -> list[Tensor]:
        """Those that get a gradient."""
        return [it for it in self.method.parameters() if it.requires_grad]

    def loss(self, samples: int | None = None) -> Tensor:
        """The method's loss of the batch, or of its first ``samples``; a scalar. Without weight decay. What the method
        draws (dropout) is the same at every call."""
        distributed.seed_step(self.seed, self.step)
        terms: dict[str, Tensor] = self.method({name: value[:samples] for name, value in self.batch.items()})
        return terms["loss"]


@dataclass(frozen=True)
class Subject:
    """A run folder, under the ``label`` that tells it from those beside it."""

    folder: Path
    label: str
    root: str | None = None  # where the data is now, if elsewhere
    read: dict[str, dict[str, Tensor]] = field(default_factory=dict, compare=False)

    @cached_property
    def settings(self) -> Config:
        """As the run folder has them."""
        settings = config.load(self.folder / "config.yaml")
        return settings if self.root is None else config.replace(settings, data={"root": self.root})

    @cached_property
    def dataset(self) -> Dataset:
        """Its training samples."""
        return build.load_data(self.settings, "train")

    def files(self, which: str) -> list[Path]:
        """The checkpoints that ``which`` names: ``last``, ``all``, or names as step_78 with commas between.
        ``ValueError`` lists what there is, or names one that is of another run."""
        found = self.named(which)
        for file in found:
            pretrained.require_own(file, checkpoint.load(file))
        return found

    def named(self, which: str) -> list[Path]:
        """``files``, whatever run they are of."""
        if which != "all":
            found = [pretrained.find(self.folder, name.strip()) for name in which.split(",")]
            twice = next((file.stem for number, file in enumerate(found) if file in found[:number]), None)
            if twice is not None:
                raise ValueError(f"which: {twice} twice; each checkpoint once")
            return found
        last = pretrained.find(self.folder)  # refuses a folder without any
        numbered = checkpoint.numbered(self.folder / "checkpoints", "step")
        if not numbered:
            raise ValueError(
                f"which: all: {self.folder} has no checkpoints of steps; allowed: last ({last.stem}), names"
            )
        return [numbered[n] for n in sorted(numbered)]

    def at_most(self, samples: int) -> int:
        """``samples``, or as many as there are where these are fewer."""
        return min(samples, len(self.dataset))

    def batch(self, samples: int) -> dict[str, Tensor]:
        """Views of the first ``samples`` of the training set in an order of the run's seed, drawn as in epoch 0: the
        same for every run of one seed on one set. ``ValueError`` for more samples than there are."""
        if not 2 <= samples <= len(self.dataset):
            raise ValueError(f"samples: expected 2 to {len(self.dataset)}, those of {self.folder}, got {samples}")
        seed = self.settings.run.seed
        chosen = randomness.order(self.dataset.ids, seed, "analysis")[:samples]
        stored = self.dataset.fetch(chosen, seed=seed, epoch=0, draw=torch.zeros_like(chosen))
        device = build.choose_device(self.settings)
        views = build.build_views(self.settings, self.dataset).to(device)
        shown: dict[str, Tensor] = views({name: it.to(device) for name, it in stored.items()}, seed=seed, epoch=0)
        return shown

    def batch_digest(self, samples: int) -> str:
        """What tells the ``batch`` of ``samples`` from another, in hexadecimal digits."""
        batch = self.shared_batch(samples)
        return hashlib.sha256(b"".join(name.encode() + content_hash(batch[name]) for name in sorted(batch))).hexdigest()

    def shared_batch(self, samples: int) -> dict[str, Tensor]:
        """``batch``, which is drawn once for all checkpoints."""
        if str(samples) not in self.read:
            self.read[str(samples)] = self.batch(samples)
        return self.read[str(samples)]

    def point(self, file: Path, samples: int, precision: Precision) -> Point:
        """The run at the checkpoint ``file``, with a batch of ``samples``."""
        method, settings = pretrained.load_method(file)
        state = checkpoint.load(file)["state"]
        step, per_epoch = int(state.get("step", 0)), int(state.get("steps_per_epoch") or 1)
        dtype, device = DTYPES[precision], build.choose_device(settings)
        method = method.to(device, dtype).train()
        method.step_begin(step / per_epoch, step / (per_epoch * settings.plan.epochs))
        drawn = self.shared_batch(samples)
        batch = {n: it.to(dtype) if it.is_floating_point() else it for n, it in drawn.items()}
        return Point(step, method, batch, settings.run.seed, self.rate(step))

    def rate(self, step: int) -> float | None:
        """The learning rate of the last logged step up to ``step``; None where none was logged."""
        rows = Metrics(self.folder / "metrics.jsonl").read()
        rates = [row["value"] for row in rows if row["name"] == "lr" and 0 < (row.get("step") or 0) <= step]
        return float(rates[-1]) if rates else None

    def kept(
        self, analysis: str, file: Path, question: Mapping[str, Any], compute: Callable[[], Any]
    ) -> dict[str, Any]:
        """The answer to ``question`` about the checkpoint ``file``: from ``analysis/ANALYSIS/FILE.json`` where it was
        answered before, else computed now and kept there. So an analysis that was stopped goes on where it was. Of
        another batch of ``samples`` (other data at their place, other views) the answer is another one."""
        place = self.folder / FOLDER / analysis / f"{file.stem}.json"
        batch = self.batch_digest(int(question["samples"]))
        asked = {**question, "checkpoint": sha256(file), "batch": batch}
        if place.is_file():
            try:
                before = read_object(place)
            except ValueError as error:
                note(f"{error}; it is asked anew")
                before = {}
            if before.get("question") == asked and isinstance(before.get("answer"), dict):
                return dict(before["answer"])
        answer: dict[str, Any] = compute()
        write_json(place, {"question": asked, "answer": answer})
        return answer


def subjects(folders: Sequence[Path]) -> list[Subject]:
    """The runs in ``folders``, each labelled by the parts of its path that tell it from the others. ``ValueError`` for
    what is no run folder, a link in one, or the same one twice."""
    for folder in folders:
        if not (folder / "checkpoints").is_dir() or not (folder / "config.yaml").is_file():
            raise ValueError(f"{folder}: expected a run folder with checkpoints{runs_inside(folder)}")
        refuse_links(folder)
    paths = [folder.resolve().parts for folder in folders]
    if len(set(paths)) < len(paths):
        raise ValueError("--beside: names a run twice; each once")
    if len(paths) == 1:
        return [Subject(folders[0], folders[0].resolve().name)]
    longest = max(map(len, paths))
    padded = [(*path, *[""] * (longest - len(path))) for path in paths]
    telling = [index for index in range(longest) if len({path[index] for path in padded}) > 1]
    labels = ["/".join(path[index] for index in telling if path[index]) for path in padded]
    return [Subject(folder, label) for folder, label in zip(folders, labels, strict=True)]


def free_memory() -> int:
    """Bytes that processes can still take here without swapping (MemAvailable)."""
    for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
