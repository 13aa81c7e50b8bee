"""From numbers to words: what ails a run, and what usually helps. The limits were set on runs made to fail on purpose
and on healthy ones (docs/verdict.md has their numbers)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sslmed_dist.printable import plural

COPIES = 0.2  # share of images with a copy, above which they are the finding
GROWN = 10.0  # times that weights are longer than at the start; healthy runs: 1 to 5
COLLAPSED = 0.1  # standard deviation of embeddings, 1 where they are spread evenly; healthy runs: 0.4 and more
LOST = 0.2  # the same of features: what is left of the one at the start
FAR, GUESSED = 0.5, 0.65  # views that far apart, and told apart no surer than this; a guess is 0.5, healthy runs 0.8
NEAR = 0.02  # views no further apart than this
GAIN = 0.1  # part of the mistakes in telling views apart that is gone where something is learned; healthy runs: 0.18
LOWER = 0.02  # part by which the loss has to be lower than at the start
EARLY = 30  # steps before which batch norm has not settled, and little is said


@dataclass(frozen=True)
class Facts:
    """All that is known of a run. ``now`` and ``first`` are ``measures.look``'s numbers of its encoder and of the one
    that it began with; ``embedding`` are the run's own last logged collapse measures; ``losses`` its logged losses;
    ``images`` how many were looked at; ``steps`` is None where a
    checkpoint counts none. ``pushes`` is None where the method is none of pairs."""

    method: str
    steps: int | None
    images: int
    now: Mapping[str, float]
    first: Mapping[str, float]
    views: Mapping[str, float]
    embedding: Mapping[str, float]
    losses: Sequence[float]
    copies: float
    grown: float
    pushes: bool | None

    @property
    def gain(self) -> float | None:
        """Which part of the mistakes of the first encoder this one no longer makes, telling two views of an image from
        views of two images; None without such views."""
        if not {"told_apart"} <= self.now.keys() & self.first.keys():
            return None
        before, after = (1.0 - of["told_apart"] for of in (self.first, self.now))
        return (before - after) / max(before, 1e-6)


@dataclass(frozen=True)
class Finding:
    """One state of a run: its name, the sentence that says it, and what usually helps."""

    name: str
    words: str
    mends: tuple[str, ...] = ()


HEALTHY = Finding("healthy", "is learning its own task; what that is worth, sslmed evaluate says")


def copied(facts: Facts) -> Finding | None:
    """Repeated images."""
    if facts.copies < COPIES:
        return None
    words = f"images repeat: {facts.copies:.0%} of those looked at have a copy among them, which the loss pushes apart"
    return Finding(
        "copies", words, ("sslmed data check names copies; leave them out (data.deduplicate, data.duplicates)",)
    )


def blown_up(facts: Facts) -> Finding | None:
    """A learning rate that is far too high."""
    bad = not all(math.isfinite(loss) for loss in facts.losses)
    if facts.grown < GROWN and not bad:
        return None
    words = f"the learning rate is too high: weights are {facts.grown:.0f} times as long as at the start"
    mends = ("a tenth of optim.lr, then a tenth again", "optim.schedule with a warm-up", "plan.clip=1.0")
    return Finding("learning rate", words, mends)


def repelled_by_nothing(facts: Facts) -> Finding | None:
    """A loss of pairs that is as low where all images are one point."""
    if facts.pushes is not False:
        return None
    words = "nothing pushes images apart: the loss is as low where all of them lie in one point"
    mends = ("a loss with negatives (nt_xent, mio_v3), or with its terms of variance and covariance above 0",)
    return Finding("no negatives", words, (*mends, "a batch of more than a few images"))


def collapsed(facts: Facts) -> Finding | None:
    """All images at one point."""
    spread, own = facts.embedding.get("embedding_std", 1.0), facts.now["embedding_std"]
    lost = own < min(LOST * facts.first["embedding_std"], COLLAPSED)
    if not lost and spread >= COLLAPSED:
        return None
    value, what = (spread, "embeddings") if spread < COLLAPSED else (own, "features")
    words = f"has collapsed: all images lie near one point (spread of {what} {value:.3f}; 1 is even, 0 is one point)"
    mends = ["a lower optim.lr", "batch norm in the head (method.head.batch_norm: true)"]
    if facts.method in ("byol", "simsiam"):
        mends.insert(0, "a predictor of two layers with batch norm, and for BYOL method.momentum of 0.99 and more")
    if facts.method == "dino":
        mends.insert(0, "method.teacher_temperature lower, and the centre on")
    return Finding("collapsed", words, tuple(mends))


def too_strong(facts: Facts) -> Finding | None:
    """Views that show nothing in common."""
    if "view_distance" not in facts.views or facts.views["view_distance"] < FAR:
        return None
    if facts.now["told_apart"] >= GUESSED:
        return None
    words = (
        f"views are too strong: two views of an image are {facts.views['view_distance']:.0%} as far apart as two "
        f"images, and told from those in {facts.now['told_apart']:.0%} of cases (a guess: 50%)"
    )
    mends = ("larger crops (views.crop_scale: [0.2, 1.0], medical [0.6, 1.0])", "less jitter, blur and noise")
    return Finding("views too strong", words, mends)


def too_weak(facts: Facts) -> Finding | None:
    """Views that are nearly the same."""
    if facts.views.get("view_distance", 1.0) > NEAR:
        return None
    words = f"views are too weak: two views of an image differ by {facts.views['view_distance']:.1%} of two images"
    return Finding(
        "views too weak", words, ("smaller crops, more jitter: what is alike in both views is all that counts",)
    )


def not_learning(facts: Facts) -> Finding | None:
    """Nothing gained over the first encoder."""
    mends = (
        "more epochs",
        "another optim.lr, three times higher or lower",
        "sslmed data show CONFIG: look at the views",
    )
    if facts.gain is not None:
        if facts.gain >= GAIN:
            return None
        words = (
            f"is not learning: two views of an image are told from views of two in {facts.now['told_apart']:.1%} of "
            f"cases, at the start in {facts.first['told_apart']:.1%}"
        )
        return Finding("not learning", words, mends)
    if len(facts.losses) < 2 or facts.losses[-1] < facts.losses[0] - LOWER * abs(facts.losses[0]):
        return None
    words = f"is not learning: the loss was {facts.losses[0]:.3f} and is {facts.losses[-1]:.3f}"
    return Finding("not learning", words, mends)


def early(facts: Facts) -> Finding | None:
    """Too few steps."""
    if facts.steps is None or facts.steps >= EARLY:
        return None
    return Finding("too early", f"too early to say: {plural(facts.steps, 'step')} done; ask again after {EARLY}")


# In this order; the first that speaks is the verdict, since one ail explains those behind it.
STATES: tuple[Callable[[Facts], Finding | None], ...] = (
    copied,
    blown_up,
    repelled_by_nothing,
    early,
    collapsed,
    too_strong,
    too_weak,
    not_learning,
)


def read(facts: Facts) -> Finding:
    """The verdict."""
    return next((found for state in STATES if (found := state(facts)) is not None), HEALTHY)


def remarks(facts: Facts, width: int) -> list[str]:
    """What is worth knowing beside the verdict."""
    said = []
    if facts.embedding.get("effective_rank", width) < 0.1 * width:
        said.append(f"embeddings fill {facts.embedding['effective_rank']:.1f} of {width} directions: few")
    if 0 < facts.copies < COPIES:
        said.append(f"{facts.copies:.1%} of the images looked at have a copy among them")
    if facts.gain is None:
        said.append("these views are not two of one image: only spread, loss and weights are looked at")
    if "knn" in facts.now and facts.now["knn"] < facts.first["knn"]:
        said.append("labels are told worse than at the start: its own task may not be what the labels are about")
    return said
