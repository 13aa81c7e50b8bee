"""From a trained diagnosis to probabilities: an examination at a time, so that company never changes a result."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sslmed_dist.data.dataset import Dataset
from sslmed_dist.data.exams.exam_dataset import whole_exam
from sslmed_dist.downstream.diagnosis.sampling import Sampling, content_key
from sslmed_dist.methods.diagnose import Diagnose


@dataclass(frozen=True)
class ExamScores:
    """What one model says of N examinations. ``probabilities`` and ``spread`` (the standard deviation over the draws of
    slices, n - 1; 0 for one draw) are float64 (N, L), in the order of ``labels``; ``index`` int64 (N,) are sample
    ids."""

    probabilities: Tensor
    spread: Tensor
    index: Tensor
    labels: tuple[str, ...]


class Examiner:
    """A trained method with its deterministic views, on a device."""

    def __init__(
        self, method: Diagnose, views: nn.Module, sampling: Sampling, *, device: torch.device | str, seed: int
    ) -> None:
        self.method, self.views, self.sampling = method.to(device).eval(), views.to(device), sampling
        self.device, self.seed = torch.device(device), seed

    @torch.inference_mode()
    def draws(self, slices: Tensor) -> Tensor:
        """Probabilities (R, L), float64, of R draws of the slices (N, C, H, W) of one examination."""
        numbers = self.sampling.numbers(len(slices), content_key(slices, self.seed))  # (R, K)
        return self.of_clips(slices, numbers)

    @torch.inference_mode()
    def of_clips(self, slices: Tensor, numbers: Tensor) -> Tensor:
        """Probabilities (R, L) of R clips of one examination, the slices ``numbers`` (R, K) of ``slices``."""
        there, places = torch.unique(numbers, return_inverse=True)
        view = self.view(slices[there])  # (1, n, C, H, W)
        length = torch.tensor([numbers.shape[1]], device=self.device)
        out = []
        # Which branch a slice goes through depends on its place in the clip; all other maps are of the slice alone.
        maps = None if self.method.stem else self.pooled(self.method.maps(view, length.new_tensor([len(there)])))[0]
        for row in places.to(self.device):
            clip = maps[row][None] if maps is not None else self.method.maps(view[:, row], length)
            out.append(self.method.probabilities(clip, length)[0].cpu())
        return torch.stack(out)

    def view(self, slices: Tensor) -> Tensor:
        """The slices (n, C, H, W) as the encoder takes them, (1, n, C, size, size), in the precision of its weights."""
        zero = torch.zeros(1, dtype=torch.int64, device=self.device)
        batch = {"images": slices[None].to(self.device), "index": zero, "draw": zero}
        view: Tensor = self.views(batch, seed=0, epoch=0)["views_0"]
        return view.to(next(self.method.parameters()).dtype)

    def pooled(self, maps: Tensor) -> Tensor:
        """Maps as the head was trained on them: averaged where the cache kept averages only."""
        return maps.mean(dim=(3, 4), keepdim=True) if self.method.cache == "pooled" else maps

    def without_each(self, slices: Tensor) -> tuple[Tensor, Tensor]:
        """Which slices count for each label, by occlusion: (numbers (K,), differences (K, L) float64). Of up to
        ``slices`` evenly spaced slices, the probability of all of them less the probability without this one."""
        count, most = len(slices), self.sampling.slices
        numbers = torch.unique(torch.linspace(0, count - 1, min(count, most)).round().to(torch.int64))
        if len(numbers) == 1:
            return numbers, torch.zeros(1, len(self.method.labels), dtype=torch.float64)
        whole = self.of_clips(slices, numbers[None])
        others = torch.stack([torch.cat([numbers[:k], numbers[k + 1 :]]) for k in range(len(numbers))])
        return numbers, whole - self.of_clips(slices, others)

    def answer(self, slices: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and spread (L,) of the probabilities of one examination (N, C, H, W) over its ``draws``."""
        draws = self.draws(slices)
        mean = draws.mean(dim=0)
        return mean, draws.std(dim=0) if len(draws) > 1 else torch.zeros_like(mean)

    def examine(self, dataset: Dataset, positions: Tensor, each: Callable[[], None] = lambda: None) -> ExamScores:
        """Mean probabilities over the draws of the examinations at ``positions`` (int64 (N,)) of a set of examinations.
        ``each`` is called before each of them, and may raise. ``ValueError`` naming the first examination whose
        probabilities are not finite."""
        means, spreads = [], []
        for position in positions.tolist():
            each()
            mean, spread = self.answer(whole_exam(dataset, position))
            if not mean.isfinite().all():
                raise ValueError(f"{dataset.name}: the diagnosis of exam {int(dataset.ids[position])} is not finite")
            means.append(mean)
            spreads.append(spread)
        none = torch.zeros(0, len(self.method.labels), dtype=torch.float64)
        mean, spread = (torch.stack(rows) if rows else none for rows in (means, spreads))
        return ExamScores(mean, spread, dataset.ids[positions], self.method.labels)
