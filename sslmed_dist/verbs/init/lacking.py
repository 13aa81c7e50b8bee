"""Which classes the figures will say little or nothing of, known before anything is trained: for the recipe to say."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sslmed_dist import randomness
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.data.partition import hold_out
from sslmed_dist.downstream.coverage import coverage, listed, pooled_coverage
from sslmed_dist.federation.sites import Site
from sslmed_dist.verbs.init import layout


def in_one_set(data: Mapping[str, Any], evaluate: Mapping[str, Any], train: Dataset) -> list[str]:
    """Remarks on what ``sslmed evaluate`` will measure by the sections ``data`` and ``evaluate``. ``train`` is the
    training split as an evaluation reads it."""
    split = evaluate.get("test", "test")
    test = layout.build({**data, **evaluate.get("data", {})}, split)
    seed = randomness.key(0, "validation")  # the recipe's seed
    parts = hold_out(train.labels, train.groups, train.ids, fraction=evaluate["val_fraction"], seed=seed)
    rest, val = (train.labels[part] for part in parts)
    return words(remarks(train, rest, test.labels, val), split)


def at_sites(sites: Sequence[Site]) -> list[str]:
    """Remarks on what the simulated ``sites`` will measure on the samples that they hold out."""
    parts = [
        remarks(site.dataset, *(site.dataset.labels[part] for part in (site.train, site.test, site.val)))
        for site in sites
    ]
    return words(pooled_coverage(parts), "test")


def remarks(of: Dataset, train: Tensor, test: Tensor, val: Tensor) -> tuple[str, ...]:
    """``coverage``, and of several labels those of which the AUC is not defined in ``test``."""
    found = coverage(of.task, of.classes, train, test, val)
    if of.task != "multi":
        return found
    one_value = ((test > 0).sum(0) == 0) | ((test == 0).sum(0) == 0)
    if not bool(torch.any(one_value)):
        return found
    return (*found, f"labels of one value alone in test, so without an AUC: {listed(of.classes, one_value)}")


def words(found: Sequence[str], split: str) -> list[str]:
    """One line of all remarks, or none."""
    if not found:
        return []
    named = "" if split == "test" else f" (test is the split {split})"
    return [f"not every class is measured, or measured well{named}: {'; '.join(found)}"]
