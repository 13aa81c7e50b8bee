"""DINO: a student, seeing any crop, predicts what a slow teacher says of the large crops (Caron et al. 2021, arXiv
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

LARGE = 2  # views_0 and views_1 are the large crops


def crops_of(batch: Mapping[str, Tensor]) -> list[Tensor]:
    """The views of a batch, each (n, C, H, W): two large crops of one shape, then any number of small ones, which
    also share a shape. ``ValueError`` for anything else."""
    count = sum(name.startswith("views_") for name in batch)
    names = [f"views_{view}" for view in range(count)]
    if count < LARGE or any(name not in batch for name in names):
        raise ValueError(f"views: dino needs views_0 and views_1 (large) and then small crops, got {count} views")
    crops = [batch[name] for name in names]
    # Within the large and within the small crops, every view has the shape of the first.
    for start, stop in ((0, LARGE), (LARGE, count)):
        for view in range(start, stop):
            if crops[view].shape != crops[start].shape:
                shapes = f"{tuple(crops[start].shape)}, got {tuple(crops[view].shape)}"
                raise ValueError(f"views_{view}: expected the shape of views_{start}, {shapes}")
    return crops


def cross_entropy(targets: Tensor, student: Tensor, temperature: float) -> Tensor:
    """Mean over samples and over pairs (large crop i, any other crop v) of -sum_k targets_ik ln p_vk; a scalar.

    p is the softmax of ``student`` (n, V, K) over ``temperature``; ``targets`` (n, 2, K) are distributions over the K
    prototypes. Source: Caron et al. 2021, Eq. 3, divided by the number of pairs as in the authors' code.
    """
    predicted = (student / temperature).log_softmax(dim=2)
    # The mean over samples for each pair of a large crop and a crop; a crop is not compared with itself.
    pairs = torch.einsum("nik,nvk->iv", targets, predicted) / len(student)  # (2, V)
    return -pairs[~torch.eye(LARGE, student.shape[1], dtype=torch.bool, device=pairs.device)].mean()


class DINO(MomentumMethod):
    """The teacher (slow copies of encoder and head) sees the two large crops; the student sees all crops.

    The student's loss is the ``cross_entropy`` with targets = softmax((teacher - centre) / teacher temperature).

    * After each step the centre follows the mean of the teacher's outputs over the batch of all ranks, with
      ``centre_momentum`` (Eq. 4).
    * The teacher's temperature rises linearly from ``first_teacher_temperature`` to ``teacher_temperature`` within
      ``warmup_epochs``, step by step (in the authors' code epoch by epoch).
    * The student's prototypes do not change in the first ``freeze_epochs`` epochs.
    * The momentum goes from ``momentum`` to ``momentum_end`` by a cosine.
    * Crops of one size pass the encoder together, and all crops pass the head together, as in the authors' code: their
      statistics meet in batch norm.

    The paper's schedule of the weight decay is missing. Defaults: the paper's, Sec. 3.2 and appendix.
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
        self.waiting: Tensor | None = None  # this rank's mean teacher output (K,), until the end of the step

    def temperature_at(self, epoch: float) -> float:
        """The teacher's temperature after ``epoch`` epochs."""
        done = min(epoch / self.warmup_epochs, 1.0) if self.warmup_epochs else 1.0
        return self.first_temperature + (self.teacher_temperature - self.first_temperature) * done

    def targets(self, teacher: Tensor) -> Tensor:
        """The teacher's outputs (n, 2, K) as distributions over the K prototypes, centred and sharpened."""
        return ((teacher - self.centre) / self.temperature_at(self.epoch)).softmax(dim=2)

    def embed(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """``student`` (n, V, K) of all V crops, and ``teacher`` (n, 2, K) of the large ones, without gradient. For the
        measures also ``z0`` and ``z1`` (n, B), the student's bottlenecks of the large crops, without gradient."""
        crops = crops_of(batch)
        # Crops of one size in one batch, crop after crop: (2 n, C, H, W), and the small ones if there are any.
        groups = [torch.cat(part) for part in (crops[:LARGE], crops[LARGE:]) if part]
        count = len(crops[0])
        assert isinstance(self.head, DinoHead) and isinstance(self.momentum_head, DinoHead)
        narrow = self.head.bottleneck(torch.cat([self.encoder(group) for group in groups]))  # (V n, B)
        student = self.head.last(narrow).unflatten(0, (-1, count)).transpose(0, 1)  # (n, V, K)
        with torch.no_grad():
            teacher = self.momentum_head(self.momentum_encoder(groups[0]))  # (2 n, K)
            z0, z1 = narrow.detach()[: LARGE * count].chunk(LARGE)
        return {"student": student, "teacher": teacher.unflatten(0, (LARGE, count)).transpose(0, 1), "z0": z0, "z1": z1}

    def objective(self, embeddings: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The cross entropy of this rank's samples. The mean of the teacher's outputs is put aside for the centre."""
        teacher = embeddings["teacher"].detach()
        self.waiting = teacher.mean(dim=(0, 1))
        return {"loss": cross_entropy(self.targets(teacher), embeddings["student"], self.student_temperature)}

    def before_update(self) -> None:
        """In the first ``freeze_epochs`` the prototypes get no gradient."""
        if self.epoch < self.freeze_epochs:
            assert isinstance(self.head, DinoHead)
            self.head.last.zero_grad(set_to_none=True)

    def remember(self) -> None:
        """The centre follows the step's mean teacher output over all ranks."""
        if self.waiting is None:
            return
        mean = distributed.reduce_sum(self.waiting) / distributed.world_size()
        self.centre.lerp_(mean, 1.0 - self.centre_momentum)
        self.waiting = None

    @torch.no_grad()
    def measures(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        """Collapse measures of the bottlenecks of all ranks' batch, and two measures of the targets.

        ``teacher_entropy`` is the mean entropy of the targets (with the centre after the step). ``teacher_information``
        is the entropy of the mean target minus that. It is 0 when the targets do not depend on the sample, whether all
        name one prototype or all are uniform."""
        measures = collapse_measures(*(distributed.gather(embeddings[name]) for name in ("z0", "z1")))
        targets = self.targets(embeddings["teacher"])
        # The mean target and the mean entropy, in one message.
        local_means = torch.cat([targets.mean(dim=(0, 1)), torch.special.entr(targets).sum(2).mean()[None]])  # (K + 1,)
        means = distributed.reduce_sum(local_means) / distributed.world_size()
        information = torch.special.entr(means[:-1]).sum() - means[-1]
        return {**measures, "teacher_entropy": means[-1], "teacher_information": information}
