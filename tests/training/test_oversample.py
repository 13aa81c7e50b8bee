"""``data.oversample``: from the recipe to the order of training."""

from pathlib import Path

import pytest

from sslmed_dist import config
from sslmed_dist.training import build, job
from tests import tiny

RARE = {"name": "long_tail", "imbalance": 6.0}


def test_a_rare_class_is_visited_as_often_as_the_other(tmp_path: Path) -> None:
    """24 and 4 images: 48 visits a pass. Validation, evaluation and the list of samples know nothing of it."""
    settings = tiny.settings(tmp_path, data={"subset": RARE, "oversample": {}}, plan={"batch_size": 12, "epochs": 1})
    work = job.assemble(settings)
    assert len(work.dataset) == 28 and work.batches.steps == 4
    labels = [label for batch in work.batches.epoch(0) for label in batch["labels"].tolist()]
    assert labels.count(0) == labels.count(1) == 24
    assert build.load_data(settings, "test").repeats is None


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (True, r"^data\.oversample: expected a mapping, such as \{label: acl\}, got True"),
        ({"labels": "acl"}, r"^data\.oversample\.labels: unknown key; allowed: label"),
        ({"label": "acl"}, r"^data\.oversample\.label: this data has one class per sample"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, leaf: object, message: str) -> None:
    settings = config.replace(tiny.settings(tmp_path), data={"oversample": leaf})
    with pytest.raises(ValueError, match=message):
        job.assemble(settings)
