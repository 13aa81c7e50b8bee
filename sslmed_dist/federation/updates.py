"""How far a reply moves the model, and whether that is plausible: the second half of the screen.

Every tensor's update is measured in sizes of what it started from (g the tensor that was sent, w the one that came
back, n its number of values, |.| the L2 norm):

    parameter    r = |w - g| / max(|g|, 0.1 sqrt(n))
    variance     r = |w - g| / max(|g|, sqrt(n))
    mean         r = |(w - g) / s| / sqrt(n), s the root of the larger variance of w and g, at least 0.001
    total        r = |all parameters' w - g| / |all parameters' max(|g|, 0.1 sqrt(n))|

A reply is refused where r of any tensor, or of the total,

    is above ``tensor`` (``variance``, ``total``), whatever the others do (a variance that was sent as exactly 1, as
      nobody has measured it yet, may become any);
    is above ``history`` x max(m, 0.02), m the largest r of the same site in its last five accepted rounds;
    is above max(``spread``, e^(6 x 1.4826 MAD)) x max(median, 0.02), from four replies on: the median over the round's
    replies, and MAD the median distance of ln r from its median.

0.02 is an update too small to do harm. Nothing here sees the direction of an update, and an attacker who knows these
limits may stay below them: against such a one there are the strategies median, trimmed_mean and krum.
"""

import math
import statistics
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from sslmed_dist.federated_section import Screen
from sslmed_dist.federation.replies import Reply
from sslmed_dist.printable import plural

SMALL, WINDOW, FEWEST, TOTAL = 0.02, 5, 4, "total"
DEVIATIONS = 6 * 1.4826  # six standard deviations, as multiples of the MAD of a normal distribution
Sizes = dict[str, float]  # r by the name of the tensor, and of TOTAL


def sizes(arrays: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> Sizes:
    """r of every tensor and of the total; both have passed ``replies.misfit``. Integer counters have none."""
    found: Sizes = {}
    moved, scale = 0.0, 0.0
    for key, sent in reference.items():
        if not sent.is_floating_point():
            continue
        before, after = sent.double(), arrays[key].double()
        root = math.sqrt(max(before.numel(), 1))
        if key.endswith(".running_mean"):
            variances = [tensors[key.removesuffix("mean") + "var"].double() for tensors in (reference, arrays)]
            deviation = torch.maximum(*variances).sqrt().clamp_min(1e-3)
            found[key] = float(((after - before) / deviation).norm()) / root
            continue
        floor = root if key.endswith(".running_var") else 0.1 * root
        update, size = float((after - before).norm()), max(float(before.norm()), floor)
        found[key] = update / size
        if not key.endswith(".running_var"):
            moved, scale = math.hypot(moved, update), math.hypot(scale, size)
    return found | {TOTAL: moved / scale if scale else 0.0}


class Plausibility:
    """The limits, and of every site the sizes of its last accepted updates."""

    def __init__(self, limits: Screen) -> None:
        self.limits = limits
        self.history: dict[str, list[Sizes]] = {}

    def judge(self, replies: Sequence[Reply], reference: Mapping[str, Tensor]) -> dict[str, str]:
        """Why a reply is implausible, by its site. All have passed ``replies.screen``. The accepted ones are
        remembered."""
        measured = {reply.site: sizes(reply.arrays, reference) for reply in replies}
        # The spread is that of all of them: whoever is out of range by another rule moves a median little.
        spread = self.spread(list(measured.values())) if len(measured) >= FEWEST else {}
        fresh = {key for key, sent in reference.items() if key.endswith(".running_var") and bool((sent == 1).all())}
        refused = {}
        for site, own in measured.items():
            reason = self.fault(site, own, spread, fresh, len(measured))
            if reason is None:
                self.history[site] = [*self.history.get(site, []), own][-WINDOW:]
            else:
                refused[site] = reason
        return refused

    def fault(
        self, site: str, own: Sizes, spread: Mapping[str, tuple[float, float]], fresh: Collection[str], count: int
    ) -> str | None:
        """The first rule that the sizes of a site's update break, with its numbers. ``fresh`` are the variances that
        were sent as nobody has measured them yet."""
        past = self.history.get(site, [])
        for key, size in own.items():
            what = f"{'the whole model' if key == TOTAL else f'tensor {key}'} moved by {size:.3g} of its size"
            limit, name = self.limit(key)
            if size > limit and key not in fresh:
                return f"{what}, allowed {limit:g} (federated.screen.{name})"
            most = max((row[key] for row in past), default=math.inf)
            if size > self.limits.history * max(most, SMALL):
                times = f"{self.limits.history:g} x {max(most, SMALL):.3g}"
                return f"{what}, allowed {times}, its most in {plural(len(past), 'round')} (federated.screen.history)"
            if key in spread and size > spread[key][0] * max(spread[key][1], SMALL):
                times = f"{spread[key][0]:.3g} x {max(spread[key][1], SMALL):.3g}"
                return f"{what}, allowed {times}, the median of {plural(count, 'site')} (federated.screen.spread)"
        return None

    def limit(self, key: str) -> tuple[float, str]:
        """The limit that holds whatever others do, and the key of the configuration that sets it."""
        name = "total" if key == TOTAL else "variance" if key.endswith(".running_var") else "tensor"
        return float(getattr(self.limits, name)), name

    def spread(self, measured: Sequence[Sizes]) -> dict[str, tuple[float, float]]:
        """By tensor, how many times the median a size may be, and the median over sites."""
        found = {}
        for key in measured[0]:
            rows = [own[key] for own in measured]
            # Sizes below SMALL differ by anything; they count as SMALL.
            logs = [math.log(max(row, SMALL)) for row in rows]
            middle = statistics.median(logs)
            mad = statistics.median(abs(value - middle) for value in logs)
            found[key] = (max(self.limits.spread, math.exp(DEVIATIONS * mad)), statistics.median(rows))
        return found

    def state(self) -> dict[str, list[Sizes]]:
        """What has to be kept between rounds."""
        return {site: [dict(row) for row in rows] for site, rows in self.history.items()}

    def load(self, state: object, reference: Mapping[str, Tensor]) -> None:
        """Take over what ``state`` gave. ``ValueError`` for anything else."""
        names = {key for key, value in reference.items() if value.is_floating_point()} | {TOTAL}
        if not isinstance(state, dict) or not all(rows_of_sizes(rows, names) for rows in state.values()):
            raise ValueError("the sizes of earlier updates are damaged")
        self.history = {str(site): [dict(row) for row in rows] for site, rows in state.items()}


def rows_of_sizes(rows: object, names: set[str]) -> bool:
    """Whether ``rows`` are at most ``WINDOW`` sizes of updates of the tensors ``names``, finite and not negative."""
    if not isinstance(rows, list) or len(rows) > WINDOW:
        return False
    return all(
        isinstance(row, dict)
        and row.keys() == names
        and all(type(size) is float and 0 <= size < math.inf for size in row.values())
        for row in rows
    )
