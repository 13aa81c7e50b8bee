"""The maps that a frozen encoder gives of examinations, computed once: a diagnosis's head then trains on these."""

import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sslmed_dist import distributed
from sslmed_dist.config import Config, Plan
from sslmed_dist.data.dataset import Dataset, Item
from sslmed_dist.methods import Method
from sslmed_dist.methods.cowpro import CoWPro
from sslmed_dist.methods.diagnose import Diagnose
from sslmed_dist.printable import note, plural
from sslmed_dist.run_folder import write_json
from sslmed_dist.training.kept import Kept
from sslmed_dist.training.precision import autocast
from sslmed_dist.training.stem_cache import StemSet

FOLDER = "features"  # in the run folder
MAPS, DONE, FACTS = "maps.bin", "done.bin", "features.json"


class Given(nn.Module):
    """The view of what needs none: the batch as it is."""

    def forward(self, batch: Mapping[str, Tensor], *, seed: int, epoch: int) -> dict[str, Tensor]:
        """The same batch; ``seed`` and ``epoch`` are accepted as by every view and change nothing."""
        return dict(batch)


class FeatureSet(Kept):
    """A set of examinations whose samples are "maps" float16 (S, D, h, w) and "length": what a frozen encoder gives of
    the slices and the view of each of K copies.

    Copy k of an examination is computed when it is first asked for, one examination at a time and in chunks of slices,
    and kept: in memory, or from ``open`` on in files, of which a run that goes on reads what is there already. Slices
    that are not there are 0. So a row depends on nothing but the examination, the copy, the views and the encoder.
    """

    def __init__(
        self, dataset: Dataset, views: nn.Module, method: Diagnose, plan: Plan, seed: int, device: torch.device
    ) -> None:
        """``ValueError``: no ``plan.copies``, data that are no clips, or more than ``method.cache_gb`` to keep."""
        super().__init__(dataset, views, plan, seed, device, "exam that are kept, such as 4")
        self.method = method
        method.encoder.eval()
        self.shape = self.compute(0, 0)[0].shape  # (S, D, h, w)
        self.bytes = 2 * self.rows * math.prod(self.shape)
        self.require_room(method.cache_gb, "fewer plan.copies or data.clip, cache: pooled")
        # Memory that was not touched yet costs nothing.
        self.maps: NDArray[np.float16] = np.empty((self.rows, *self.shape), np.float16)
        self.lengths: NDArray[np.int32] = np.zeros(self.rows, np.int32)  # 0: not computed yet

    def line(self) -> str:
        """What is kept, in words: how many, and how large."""
        count, slices, depth, *sides = (len(self.dataset), *self.shape)
        each = f"{depth} x {' x '.join(map(str, sides))}"
        return (
            f"maps of {plural(count, 'exam')} x {self.copies} copies x {slices} slices, {each} each, are "
            f"{self.bytes / 1e9:.3g} GB in float16"
        )

    def open(self, folder: Path) -> None:
        """Keep the maps in files of ``folder`` from now on. What another encoder, other views or other data left there
        is replaced."""
        facts = {"key": self.key(), "shape": list(self.shape), "rows": self.rows}
        if distributed.rank() == 0:
            prepare(folder, facts, self.bytes)
        distributed.barrier()
        if not (folder / FACTS).is_file():  # another machine without the first one's disk
            prepare(folder, facts, self.bytes)
        self.maps = np.memmap(folder / MAPS, np.float16, "r+", shape=(self.rows, *self.shape))
        self.lengths = np.memmap(folder / DONE, np.int32, "r+", shape=(self.rows,))

    def close(self, folder: Path) -> None:
        """Delete the files: all that is in them can be computed again."""
        self.maps, self.lengths = np.empty((0, *self.shape), np.float16), np.zeros(0, np.int32)
        shutil.rmtree(folder, ignore_errors=True)

    def key(self) -> str:
        """A hash of all that decides the maps: the encoder's tensors, the views, the exams, the copies."""
        found = hashlib.sha256()
        for name, value in self.method.encoder.state_dict().items():
            found.update(name.encode())
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        kept = [self.dataset.stored(position) for position in range(len(self.dataset))]
        facts = [self.seed, self.copies, list(self.shape), self.method.cache, self.method.input, self.plan.precision]
        exams = [[entry.file, entry.size] for entry in kept]
        views = {name: repr(value) for name, value in vars(self.views).items() if isinstance(value, int | str | tuple)}
        found.update(json.dumps([facts, self.dataset.ids.tolist(), exams, views]).encode())
        for buffer in self.views.buffers():
            found.update(buffer.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

    def compute(self, position: int, copy: int) -> tuple[Tensor, int]:
        """Maps float16 (S, D, h, w) on the CPU, and the number of slices, of copy ``copy`` of an examination."""
        at, draw = torch.tensor([position]), torch.tensor([copy])
        batch = self.dataset.fetch(at, seed=self.seed, epoch=0, draw=draw)
        if "length" not in batch:
            raise ValueError("method.cache: needs exams as clips of slices; set data.clip")
        batch = {name: value.to(self.device) for name, value in batch.items()}
        with torch.no_grad():
            view = self.views(batch, seed=self.seed, epoch=0)["views_0"]
            view = view.to(next(self.method.parameters()).dtype)
            with autocast(self.plan, self.device):
                maps = self.method.maps(view, batch["length"])[0]
        if self.method.cache == "pooled":
            maps = maps.mean(dim=(2, 3), keepdim=True)
        kept = maps.to(torch.float16).cpu()
        if not bool(kept.isfinite().all()):
            raise ValueError(
                f"method.cache: the encoder gives values of exam {int(self.ids[position])} that float16 cannot hold; "
                "allowed: cache: off"
            )
        return kept, int(batch["length"][0])

    def fetch(self, positions: Tensor, *, seed: int, epoch: int, draw: Tensor) -> Item:
        """As any dataset: "maps" float16 (B, S, D, h, w), "length", "labels", "index", "draw". ``draw`` are copies."""
        rows = (positions * self.copies + draw).tolist()
        for row, position, copy in zip(rows, positions.tolist(), draw.tolist(), strict=True):
            with self.lock:
                if not self.lengths[row]:
                    maps, length = self.compute(position, copy)
                    self.maps[row] = maps.numpy()
                    self.lengths[row] = length  # last: it says that the maps are there
        item = self.item(torch.from_numpy(self.maps[rows]), positions, draw)
        item["maps"] = item.pop("images")
        return item | {"length": torch.from_numpy(self.lengths[rows]).to(self.device, torch.int64)}


def prepare(folder: Path, facts: Mapping[str, Any], size: int) -> None:
    """Files of ``size`` bytes for the maps; those that are there stay where their ``facts`` are the same."""
    known = folder / FACTS
    if known.is_file():
        if json.loads(known.read_text(encoding="utf-8")) == facts:
            return
        note("the kept features are of another encoder, other views or other exams: they are computed anew")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, length in ((MAPS, size), (DONE, 4 * int(facts["rows"]))):
        with (folder / name).open("wb") as file:
            file.truncate(length)  # no byte of it lies on the disk yet
    write_json(known, facts)


def feature_set(
    method: Method, dataset: Dataset, views: nn.Module, settings: Config, device: torch.device
) -> Kept | None:
    """The features that the method asks to keep; None where it asks for none."""
    if isinstance(method, Diagnose) and method.cache != "off":
        return FeatureSet(dataset, views, method, settings.plan, settings.run.seed, device)
    if isinstance(method, CoWPro) and method.cache != "off":
        return StemSet(dataset, views, method, settings.plan, settings.run.seed, device)
    return None
