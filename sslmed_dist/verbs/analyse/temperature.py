"""``sslmed analyse RUN temperature``: the run's temperature as a curve, and how hard each pair is pulled or pushed."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sslmed_dist.analysis.pair_gradients import kinds, pair_gradients
from sslmed_dist.analysis.temperature_curves import Profile, profile
from sslmed_dist.arguments import require_least
from sslmed_dist.data.dataset import unlabelled
from sslmed_dist.losses.pairs import PairLoss
from sslmed_dist.printable import plural
from sslmed_dist.report.panels import Panel, curve
from sslmed_dist.report.plots import Curve
from sslmed_dist.verbs.analyse.subject import Answer, Point, Subject

GRID = 201  # cosines of a curve, from -1 to 1
KINDS = ("positive", "negative of its class", "negative of another class")


def temperature(asked: Sequence[Subject], *, which: str = "last", samples: int = 512, bins: int = 40) -> Answer:
    """tau(c) and c / tau(c) of every temperature in the loss (thesis Figures 6.3 and 6.6), and on a keyed batch of
    ``samples`` the mean derivative of the loss by the cosine of a pair (Eq. 6.2, 6.3, 6.6 and 6.7), over the pairs of
    each of ``bins`` bins of the cosine. Positive pairs, negatives of one class and others apart, where there are
    labels. ``ValueError`` for a method without such a loss.
    """
    require_least("bins", bins, 1)
    rows: list[dict[str, Any]] = []
    curves: dict[str, list[Curve]] = {"tau(c)": [], "c / tau(c)": []}
    pulls, lines = [], []
    for subject in asked:
        for file in subject.files(which):
            point = subject.point(file, samples, "float32")
            name = f"{subject.label} step {point.step}"
            for term, shown in profiles(point):
                label = f"{name} {term}"
                curves["tau(c)"].append(curve(label, zip(shown.c.tolist(), shown.tau.tolist(), strict=True)))
                curves["c / tau(c)"].append(curve(label, zip(shown.c.tolist(), shown.logit.tolist(), strict=True)))
                rows += profile_rows(label, shown)
            found = binned(point, labels_of(subject, point), bins)
            rows += [{"run": name, **row} for row in found]
            pulls.append(pull_panel(name, found))
            lines += totals(name, found)
    panels = [Panel(title, "cosine c", title, lines_of) for title, lines_of in curves.items()]
    return Answer(f"Temperature, and pull on pairs of {plural(samples, 'sample')}", rows, [*panels, *pulls], lines)


def objective(point: Point) -> nn.Module:
    """The method's loss. ``ValueError`` where it has none of two views."""
    loss = getattr(point.method, "loss", None)
    if not isinstance(loss, nn.Module):
        raise ValueError(f"temperature: needs a method with a loss of two views, got {type(point.method).__name__}")
    return loss


def profiles(point: Point) -> list[tuple[str, Profile]]:
    """The temperature of every term of the loss by the term's class, over the whole range of cosines."""
    c = torch.linspace(-1.0, 1.0, GRID, dtype=torch.float64)
    terms = [it for it in objective(point).modules() if isinstance(it, PairLoss)]
    return [(type(term).__name__, profile(term.temperature, c)) for term in terms]


def labels_of(subject: Subject, point: Point) -> Tensor | None:
    """A class for each sample of the batch, or None where samples have none, or several."""
    labels = point.batch["labels"]
    return None if subject.dataset.task != "single" or bool(unlabelled(labels).any()) else labels.cpu()


@torch.no_grad()
def embeddings(point: Point) -> tuple[Tensor, Tensor]:
    """z0 and z1 (N, D) in float64 on the CPU."""
    found = point.method.embed(point.batch)
    return found["z0"].double().cpu(), found["z1"].double().cpu()


def binned(point: Point, labels: Tensor | None, bins: int) -> list[dict[str, Any]]:
    """For every kind of pair and bin of the cosine: how many pairs, the mean derivative, and its sum over the pairs."""
    cosines, slopes, _ = pair_gradients(objective(point), *embeddings(point))
    positive, negative = kinds(len(cosines))
    same = torch.zeros_like(negative) if labels is None else alike(labels)
    masks = (positive, negative & same, negative & ~same)
    rows = []
    for kind, mask in zip(KINDS, masks, strict=True):
        place = ((cosines[mask] + 1.0) * (bins / 2)).long().clamp(0, bins - 1)
        count = torch.bincount(place, minlength=bins)
        total = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, slopes[mask])
        for index in count.nonzero().flatten().tolist():
            middle, pull = (2 * index + 1) / bins - 1, float(total[index])
            mean = pull / int(count[index])
            rows.append({"kind": kind, "c": middle, "pairs": int(count[index]), "mean_slope": mean, "sum": pull})
    return rows


def alike(labels: Tensor) -> Tensor:
    """Which rows, two for each sample, are of one class; bool (2 N, 2 N)."""
    doubled = labels.repeat_interleave(2)
    return doubled[:, None] == doubled


def profile_rows(label: str, shown: Profile) -> list[dict[str, Any]]:
    """A row for each cosine of the curve."""
    numbers = zip(shown.c.tolist(), shown.tau.tolist(), shown.logit.tolist(), shown.slope.tolist(), strict=True)
    return [
        {"run": label, "kind": "temperature", "c": c, "tau": tau, "logit": logit, "slope": slope}
        for c, tau, logit, slope in numbers
    ]


def pull_panel(name: str, found: Sequence[dict[str, Any]]) -> Panel:
    """The mean absolute derivative over the cosine, one curve for each kind of pair."""
    of_kind = {kind: [(row["c"], abs(row["mean_slope"])) for row in found if row["kind"] == kind] for kind in KINDS}
    shown = [curve(kind, pairs) for kind, pairs in of_kind.items() if pairs]
    return Panel(f"{name}: pull on a pair", "cosine c", "mean |dL / dc|", shown, log=True)


def totals(name: str, found: Sequence[dict[str, Any]]) -> list[str]:
    """What all pairs of each kind are pulled by together, as a share of the pull on positives, in words."""
    sums = {kind: sum(abs(row["sum"]) for row in found if row["kind"] == kind) for kind in KINDS}
    if not sums[KINDS[0]]:
        return [f"{name}: no pull on positive pairs"]
    shares = ", ".join(f"{kind} {sums[kind] / sums[KINDS[0]]:.2f}" for kind in KINDS[1:] if sums[kind])
    return [f"{name}: pull on all pairs of a kind, in units of that on the positive ones: {shares}"]
