"""DINO: a student's crops predict the prototypes that a slow teacher gives the large crops (Caron et al. 2021, arXiv
2104.14294)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sslmed_dist import distributed
from sslmed_dist.arguments import require_least, require_positive, require_share
from sslmed_dist.losses.collapse import collapse_measures
from sslmed_dist.methods.momentum import MomentumMethod
from sslmed_dist.models.heads import DinoHead

LARGE = 2


def crops_of(batch: Mapping[str, Tensor]) -> list[Tensor]:
    """``views_0`` and ``views_1``, the large crops, then any number of small ones of one shape. ``ValueError`` for
    anything else."""
    count = sum(name.startswith("views_") for name in batch)
    names = [f"views_{view}" for view in range(count)]
    if count < LARGE or any(name not in batch for name in names):
        raise ValueError(f"views: dino needs views_0 and views_1 (large) and then small crops, got {count} views")
    crops = [batch[name] for name in names]
    for start, stop in ((0, LARGE), (LARGE, count)):
        for view in range(start, stop):
            if crops[view].shape != crops[start].shape:
                shapes = f"{tuple(crops[start].shape)}, got {tuple(crops[view].shape)}"
                raise ValueError(f"views_{view}: expected the shape of views_{start}, {shapes}")
    return crops


def cross_entropy(targets: Tensor, student: Tensor, temperature: float) -> Tensor:
    """Mean over samples and over pairs (large crop i, crop v other than i) of -sum_k targets_ik ln p_vk, where p is the
    softmax of ``student`` (n, V, K) over ``temperature``; ``targets`` (n, 2, K) are distributions.

    Source: Caron et al. 2021, Eq. 3, divided by the number of pairs as in the authors' code.
    """
    predicted = (student / temperature).log_softmax(dim=2)
    pairs = torch.einsum("nik,nvk->iv", targets, predicted) / len(student)
    return -pairs[~torch.eye(LARGE, student.shape[1], dtype=torch.bool, device=pairs.device)].mean()


class DINO(MomentumMethod):
    """The teacher (slow copies of encoder and head) sees the two large crops; the student sees all crops.

    targets = softmax((teacher - centre) / teacher temperature); see ``cross_entropy``. The centre follows the mean of
    the teacher's outputs over the global batch with ``centre_momentum`` (Eq. 4), after the step. The teacher's
    temperature rises linearly from ``first_teacher_temperature`` over ``warmup_epochs`` epochs (per step; the authors'
    code has stairs of one epoch). The prototypes of the student do not move in the first ``freeze_epochs`` epochs. The
    momentum goes from ``momentum`` to ``momentum_end`` by a cosine. Crops of one size pass the encoder together, and
    all crops pass the head together, as in the authors' code: batch norm sees them so. The paper's schedule of the
    weight decay is not there. Defaults: the paper's, Sec. 3.2 and appendix.
    """

    centre: Tensor

    def __init__(
        self,
        encoder: Mapping[str, Any] | str = "resnet",
        head: Mapping[str, Any] | str = "dino",
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.07,
        first_teacher_temperature: float = 0.04,
        warmup_epochs: float = 30.0,
        centre_momentum: float = 0.9,
        freeze_epochs: float = 1.0,
        momentum: float = 0.996,
        momentum_end: float | None = 1.0,
        channels: int = 3,
    ) -> None:
        """``ValueError`` for a head other than ``dino``, a momentum outside [0, 1], a temperature that is not above 0
        or a negative number of epochs."""
        super().__init__(encoder, head, channels, momentum, momentum_end)
        if not isinstance(self.head, DinoHead):
            raise ValueError(f"method.head.name: dino needs the head dino (with prototypes), got {head!r}")
        self.student_temperature = require_positive("method.student_temperature", student_temperature)
        self.teacher_temperature = require_positive("method.teacher_temperature", teacher_temperature)
        self.first_temperature = require_positive("method.first_teacher_temperature", first_teacher_temperature)
        self.centre_momentum = require_share("method.centre_momentum", centre_momentum)
        require_least("method.warmup_epochs", warmup_epochs, 0)
        require_least("method.freeze_epochs", freeze_epochs, 0)
        self.warmup_epochs, self.freeze_epochs = warmup_epochs, freeze_epochs
        self.register_buffer("centre", torch.zeros(self.head.out_dim))
        self.waiting: Tensor | None = None

    def temperature_at(self, epoch: float) -> float:
        """The teacher's temperature after ``epoch`` epochs."""
        done = min(epoch / self.warmup_epochs, 1.0) if self.warmup_epochs else 1.0
        return self.first_temperature + (self.teacher_temperature - self.first_temperature) * done

    def targets(self, teacher: Tensor) -> Tensor:
        """The teacher's outputs (n, 2, K) as distributions, centred and sharpened."""
        return ((teacher - self.centre) / self.temperature_at(self.epoch)).softmax(dim=2)

    def embed(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """``student`` (n, crops, K) and ``teacher`` (n, 2, K), the latter without gradient, and for the measures the
        student's bottleneck of the large crops, ``z0`` and ``z1`` (n, B), without gradient."""
        crops = crops_of(batch)
        groups = [torch.cat(part) for part in (crops[:LARGE], crops[LARGE:]) if part]
        count = len(crops[0])
        assert isinstance(self.head, DinoHead) and isinstance(self.momentum_head, DinoHead)
        narrow = self.head.bottleneck(torch.cat([self.encoder(group) for group in groups]))
        student = self.head.last(narrow).unflatten(0, (-1, count)).transpose(0, 1)
        with torch.no_grad():
            teacher = self.momentum_head(self.momentum_encoder(groups[0]))
            z0, z1 = narrow.detach()[: LARGE * count].chunk(LARGE)
        return {"student": student, "teacher": teacher.unflatten(0, (LARGE, count)).transpose(0, 1), "z0": z0, "z1": z1}

    def objective(self, embeddings: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The cross-entropy of this rank's rows, a mean over samples; the batch's mean waits for the step's end."""
        teacher = embeddings["teacher"].detach()
        self.waiting = teacher.mean(dim=(0, 1))
        return {"loss": cross_entropy(self.targets(teacher), embeddings["student"], self.student_temperature)}

    def before_update(self) -> None:
        """In the first epochs the prototypes get no gradient."""
        if self.epoch < self.freeze_epochs:
            assert isinstance(self.head, DinoHead)
            self.head.last.zero_grad(set_to_none=True)

    def remember(self) -> None:
        """The centre follows the mean over all ranks."""
        if self.waiting is None:
            return
        mean = distributed.reduce_sum(self.waiting) / distributed.world_size()
        self.centre.lerp_(mean, 1.0 - self.centre_momentum)
        self.waiting = None

    @torch.no_grad()
    def measures(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        """Collapse measures of the whole batch's bottlenecks; ``teacher_entropy``, the mean entropy of the targets (at
        the centre after the step), and ``teacher_information``, the entropy of their mean less that: 0 when the
        targets say nothing of the sample, be they all equal to one prototype or all uniform."""
        found = collapse_measures(*(distributed.gather(embeddings[name]) for name in ("z0", "z1")))
        targets = self.targets(embeddings["teacher"])
        sums = torch.cat([targets.mean(dim=(0, 1)), torch.special.entr(targets).sum(2).mean()[None]])
        means = distributed.reduce_sum(sums) / distributed.world_size()
        information = torch.special.entr(means[:-1]).sum() - means[-1]
        return {**found, "teacher_entropy": means[-1], "teacher_information": information}
