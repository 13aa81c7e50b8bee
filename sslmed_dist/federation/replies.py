"""What one site answered, and the closed schema that an answer has to keep before anything of it is looked at closer.

``screen`` is the first half: what can be said of one reply by itself. ``federation.updates`` is the second: how far it
moves the model, beside the site's earlier replies and those of the others.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sslmed_dist.federation.messages import HEALTH, Account
from sslmed_dist.losses import LOSSES
from sslmed_dist.printable import excerpt, plural

# The scalars that a site may report: those of a step, of every method's objective and measures, of the strategies. A
# sum of losses reports its terms by their names, a second one of a kind with its place ("mio_v3_1").
SCALARS = frozenset(
    {
        *("loss", "penalty", "lr", "gradient_norm", "missed_rounds", "divergence", "own_share", "epsilon"),
        *("embedding_std", "effective_rank", "uniformity", "alignment", "teacher_entropy", "teacher_information"),
        *HEALTH,
        *("accuracy", "loss_jigsaw", "loss_image", "segmentation", "dice", "cycle", "cycled", "overlap", "edge"),
    }
)
TERM = re.compile(rf"(?:{'|'.join(LOSSES)})(?:_\d{{1,2}})?")
MOST_COUNTED = 1 << 40  # how far an integer counter may move in one round
MOST_VARIANCE = 1e12  # float16 images of 65504 have a variance below it


@dataclass(frozen=True)
class Reply:
    """What one site answered: its name, its shared tensors by name, and how many samples it trained on."""

    site: str
    arrays: Mapping[str, Tensor]
    samples: int


@dataclass(frozen=True)
class Asked:
    """What a site was asked in a round: its name, the round's number (0, 1, ...), the digest of all tensors that it was
    sent, the shared ones that it has to send back (``reference``), and how many samples it may count at most."""

    site: str
    round: int
    model: str
    reference: Mapping[str, Tensor]
    most: int


def screen(account: Account, arrays: Mapping[str, Tensor], asked: Asked) -> str | None:
    """Why a reply is none to what was asked, or None if it is one: what ``unlike`` says, or tensors as of
    ``misfit``."""
    return unlike(account, asked) or misfit(arrays, asked.reference)


def unlike(account: Account, asked: Asked) -> str | None:
    """Why what a reply says of itself does not fit what was asked: another site, round or model; a count of samples
    that is not from 1 to ``asked.most``; a scalar that no method reports. None where it fits."""
    if account.site != asked.site:
        return "its reply bears another site's name"
    if account.round != asked.round:
        return f"it answers round {account.round + 1}"  # people count rounds from 1
    if account.model != asked.model:
        return "it started from another model than this round's"
    if not 1 <= account.samples <= asked.most:
        return f"it reports {plural(account.samples, 'sample')}, allowed 1 to {asked.most}"
    unknown = [name for name in account.scalars if name not in SCALARS and not TERM.fullmatch(name)]
    if unknown:
        return f"scalar {excerpt(unknown[0], 40)} is unknown ({len(unknown)} such)"
    return None


def misfit(arrays: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> str | None:
    """Why ``arrays`` cannot stand for ``reference``: other names, shapes or types; values that are not finite; a
    negative or absurd variance; a counter that ran back or leapt. None where they can."""
    unmatched = sorted(set(arrays) ^ set(reference))
    if unmatched:
        known = "unknown" if unmatched[0] in arrays else "missing"
        return f"tensor {excerpt(unmatched[0])} is {known} ({len(unmatched)} such)"
    for key, expected in reference.items():
        value = arrays[key]
        if value.shape != expected.shape:
            return f"tensor {key} has shape {tuple(value.shape)}, expected {tuple(expected.shape)}"
        if value.dtype != expected.dtype:
            return f"tensor {key} is {value.dtype}, expected {expected.dtype}"
        if not bool(torch.isfinite(value).all()):
            return f"tensor {key} is not finite"
        if key.endswith(".running_var") and value.numel():
            low, high = float(value.min()), float(value.max())
            if low < 0 or high > MOST_VARIANCE:
                return f"tensor {key} has variances from {low:g} to {high:g}, allowed 0 to {MOST_VARIANCE:g}"
        if not expected.is_floating_point() and value.numel():
            moved = value.double() - expected.double()
            if float(moved.min()) < 0 or float(moved.max()) > MOST_COUNTED:
                return f"tensor {key} counts from {int(expected.max())} to {int(value.max())}"
    return None
