"""What a run that trains on episodes segments after a quarter, a half, three quarters and all of its training (thesis,
Fig. 7.2), by the checkpoints that were kept."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from sslmed_dist import checkpoint
from sslmed_dist.atomic_files import write_atomically
from sslmed_dist.config import Config
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.downstream import OneShot
from sslmed_dist.downstream.oneshot.evaluator import Picture
from sslmed_dist.printable import say
from sslmed_dist.report.outlines import FOUND, GIVEN, TRUE, Panel, sheet
from sslmed_dist.training import build, pretrained
from sslmed_dist.verbs import pictures
from sslmed_dist.verbs.measurement import Measurement

QUARTERS = 4
TOLERANCE = 1 / 16  # of the training: how far from its mark a checkpoint may lie
FILE = "quarter_marks.png"
CAPTION = (
    "One-shot segmentation in the course of training: given mask (yellow), true (green) and found (red), the middle "
    "third of each organ"
)


def of_evaluation(asked: Measurement) -> None:
    """All pictures of a run that trains on episodes: ``pictures.of_evaluation``, and those of its quarter marks."""
    pictures.of_evaluation(asked)
    if asked.settings.evaluate.pictures and asked.settings.views["name"] == "episode" and asked.folder.is_dir():
        dataset, parts = asked.data
        draw(asked.settings, asked.folder, dataset, parts["test"])


def marks(steps: Mapping[int, Path]) -> dict[int, tuple[int, Path]]:
    """Of the checkpoints by step, those at quarters 1 to 4 of the last one's steps: quarter -> (step, file). A quarter
    without a checkpoint within ``TOLERANCE`` is left out."""
    last = max(steps)
    found = {}
    for quarter in range(1, QUARTERS + 1):
        step = min(steps, key=lambda step: abs(step * QUARTERS - last * quarter))
        if abs(step - last * quarter / QUARTERS) <= TOLERANCE * last:
            found[quarter] = (step, steps[step])
    return found


def draw(settings: Config, folder: Path, dataset: Dataset, positions: Tensor) -> None:
    """Write ``pictures/quarter_marks.png`` of the scans at ``positions``: a row for each organ, the support and then
    the query at each mark. Nothing where no evaluator of the run segments scans, or only the last mark has a
    checkpoint; marks without one are said."""
    evaluators = [each for each in build.build_evaluators(settings).values() if isinstance(each, OneShot)]
    steps = checkpoint.numbered(folder / "checkpoints", "step")
    if not evaluators or not steps:
        return
    kept = marks(steps)
    if len(kept) < QUARTERS:
        missing = ", ".join(f"{100 * q // QUARTERS} %" for q in range(1, QUARTERS + 1) if q not in kept)
        say(
            f"pictures: no checkpoint was kept at {missing} of the training; plan.keep_every={max(steps) // QUARTERS} "
            "keeps them"
        )
    if len(kept) < 2:
        return
    device = build.choose_device(settings)
    rows: dict[str, list[Panel]] = {}
    for quarter, (step, file) in kept.items():
        encoder = pretrained.load(file).encoder.to(device)
        drawn = evaluators[0].pictures(encoder, dataset, positions, device=device, seed=settings.run.seed)
        for picture in middle_thirds(drawn):
            title = f"{100 * quarter // QUARTERS} %, step {step}"
            row = rows.setdefault(picture.organ, [support_panel(picture)])
            row.append(Panel(picture.query_image, {TRUE: picture.truth, FOUND: picture.prediction}, title))
    if rows:
        write_atomically(folder / "pictures" / FILE, sheet(list(rows.values()), CAPTION))
        pictures.describe(folder, {FILE: CAPTION})


def middle_thirds(drawn: list[Picture]) -> list[Picture]:
    """Of each organ the picture of its middle part, or the first where it has none."""
    chosen: dict[str, Picture] = {}
    for picture in drawn:
        if picture.organ not in chosen or picture.part == 1:
            chosen[picture.organ] = picture
    return list(chosen.values())


def support_panel(picture: Picture) -> Panel:
    """The support slice with the mask that was given."""
    return Panel(picture.support_image, {GIVEN: picture.support_mask}, f"{picture.organ}: support")
