"""What the frozen first stages of a segmentation encoder give of episodes, computed once: only the rest then trains."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sslmed_dist.config import Plan
from sslmed_dist.data.dataset import Dataset, Item
from sslmed_dist.methods.cowpro import CoWPro
from sslmed_dist.training.kept import Kept
from sslmed_dist.training.precision import autocast

KEPT = torch.float16
AGREEMENT = 1e-3  # by which kept maps and those of the whole encoder may differ, relative to their norm: float16


class StemSet(Kept):
    """A set of episodes whose samples are the maps of the encoder's frozen stages, float16, and the masks.

    Row r = sample x ``copies`` + copy is computed when it is first asked for, one episode at a time, and kept in
    memory. So it depends on nothing but the sample, the copy, the views and the frozen weights. A run that goes on
    computes them anew, with the same bits. A support that the views leave as it is, is kept once for all copies.
    ``fetch`` gives what ``CoWPro.embed`` takes in place of images: "support_stem_i" (B, K, D, h, w) and "query_stem_i"
    (B, D, h, w) of the i-th kept stage, "support_mask" and "query_mask" float32. K = 1 has no axis.
    """

    def __init__(
        self, dataset: Dataset, views: nn.Module, method: CoWPro, plan: Plan, seed: int, device: torch.device
    ) -> None:
        """``ValueError``: no ``plan.copies``, an encoder whose frozen stages cannot be taken apart, or more than
        ``method.cache_gb`` to keep."""
        super().__init__(dataset, views, plan, seed, device, "slice that are kept")
        self.method = method
        self.encoder: Any = method.encoder
        self.still = not getattr(views, "transform_support", True)  # supports are the slices themselves
        self.kind = next(method.parameters()).dtype
        episode = self.episode(0, 0)
        stem = self.stem(episode["query"])
        self.require_agreement(episode["query"], stem)
        supports = len(dataset) if self.still else self.rows
        shapes: dict[str, list[tuple[int, ...]]] = {"query": [tuple(each.shape[1:]) for each in stem]}
        shots = episode["support_mask"].shape[1:2] if episode["support_mask"].shape[1] > 1 else ()
        shapes["support"] = [(*shots, *shape) for shape in shapes["query"]]
        counts = {"query": self.rows, "support": supports}
        masks = {"query": episode["query_mask"].shape[1:], "support": (*shots, *episode["query_mask"].shape[1:])}
        # Memory that was not touched yet costs nothing.
        self.maps = {
            part: [torch.empty((counts[part], *shape), dtype=KEPT) for shape in shapes[part]] for part in counts
        }
        self.masks = {part: torch.empty((self.rows, *masks[part]), dtype=torch.bool) for part in counts}
        self.known = {part: torch.zeros(counts[part], dtype=torch.bool) for part in counts}
        kept = [*self.masks.values(), *self.maps["query"], *self.maps["support"]]
        self.bytes = sum(each.numel() * each.element_size() for each in kept)
        self.require_room(method.cache_gb, "fewer plan.copies")

    def line(self) -> str:
        """What is kept, in words: how many, and how large."""
        each = ", ".join(" x ".join(map(str, maps.shape[1:])) for maps in self.maps["query"])
        return (
            f"maps of the frozen stages of {len(self.dataset)} slices x {self.copies} copies, {each} each, and masks "
            f"are {self.bytes / 1e9:.3g} GB"
        )

    def episode(self, position: int, copy: int) -> Item:
        """One episode of the views, E = 1; the support with its axis K."""
        at, draw = torch.tensor([position]), torch.tensor([copy])
        fetched = self.dataset.fetch(at, seed=self.seed, epoch=0, draw=draw)
        batch: Item = self.views({k: v.to(self.device) for k, v in fetched.items()}, seed=self.seed, epoch=0)
        if batch["support"].ndim == 4:
            batch["support"], batch["support_mask"] = batch["support"][:, None], batch["support_mask"][:, None]
        return batch

    @torch.no_grad()
    def stem(self, images: Tensor) -> list[Tensor]:
        """The maps of the frozen stages (n, D, h, w) of images (n, C, H, W), on the CPU as they are kept."""
        with autocast(self.plan, self.device):
            maps = [each.to(KEPT).cpu() for each in self.encoder.stem(images.to(self.kind))]
        if not all(bool(each.isfinite().all()) for each in maps):
            raise ValueError(
                "method.cache: the frozen stages give values that float16 cannot hold; allowed: cache: off"
            )
        return maps

    @torch.no_grad()
    def require_agreement(self, images: Tensor, stem: Sequence[Tensor]) -> None:
        """``ValueError`` unless the rest of the encoder makes of the kept maps what the whole encoder makes of images:
        not every network goes on from the maps that timm shows of it."""
        self.encoder.eval()
        whole = self.encoder.maps(images.to(self.kind))
        rest = self.encoder.maps_after([each.to(self.device, self.kind) for each in stem], images.shape[2:])
        if not float((whole - rest).norm()) <= AGREEMENT * float(whole.norm()):
            raise ValueError(
                "method.cache: this network does not go on from the maps of its frozen stages; allowed: cache: off"
            )

    def fill(self, position: int, copy: int) -> None:
        """Compute and keep what is not known yet of one episode. Query and support go through the encoder each by
        itself, so that their bits do not depend on what else is unknown."""
        row = position * self.copies + copy
        if self.known["query"][row]:
            return
        episode = self.episode(position, copy)
        for part, index, images in (
            ("support", position if self.still else row, episode["support"][0]),
            ("query", row, episode["query"]),
        ):
            if not self.known[part][index]:
                for kept, computed in zip(self.maps[part], self.stem(images), strict=True):
                    kept[index] = computed.view(kept.shape[1:])
            self.masks[part][row] = (episode[f"{part}_mask"].cpu() > 0.5).view(self.masks[part].shape[1:])
            self.known[part][index] = True  # last: it says that the maps are there

    def fetch(self, positions: Tensor, *, seed: int, epoch: int, draw: Tensor) -> Item:
        """See the class; ``draw`` are copies."""
        with self.lock:
            for position, copy in zip(positions.tolist(), draw.tolist(), strict=True):
                self.fill(position, copy)
        rows = positions * self.copies + draw
        index = {"query": rows, "support": positions if self.still else rows}
        item = self.item(torch.empty(len(positions), 0), positions, draw)
        del item["images"]
        for part in ("support", "query"):
            item[f"{part}_mask"] = self.masks[part][rows].to(self.device, torch.float32)
            item |= stems(part, [maps[index[part]].to(self.device) for maps in self.maps[part]])
        return item


def stems(part: str, maps: Sequence[Tensor]) -> Item:
    """The entries of a batch for the kept maps of one ``part`` of its episodes."""
    return {f"{part}_stem_{number}": each for number, each in enumerate(maps)}
