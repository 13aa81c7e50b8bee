"""Labelled episodes: which slice of which other exam shows the organ, who may be whose support, what is refused."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from sslmed_dist.data.dataset import Subset
from sslmed_dist.data.phantom import write_abdomen
from tests.data.exams.test_episodes import AFFINE, episodes, fetch, write_exam

pytest.importorskip("skimage")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_abdomen(tmp_path_factory.mktemp("abdomen") / "set", exams=7, size=64, slices=9)


def test_labelled_episodes_pair_slices_of_two_exams(root: Path) -> None:
    """Every draw: an organ of the query that is not excluded, on a slice of another training exam that shows it too."""
    names, whole = ("right kidney", "left kidney"), episodes(root, masks="organs")
    data = episodes(root, masks="labelled", split="train", fold=0, exclude=names)
    maps = {int(i): one for i, one in zip(whole.ids, whole.maps, strict=True)}
    images = {int(i): one for i, one in zip(whole.ids, whole.images, strict=True)}
    holds = {n: set(one.unique().tolist()) - {0} for n, one in maps.items()}
    trained = set(data.groups.tolist())
    assert trained == set(range(3, 8)) and data.classes == () and data.labels.eq(-1).all()
    wanted = [n for n in holds if n // 4096 in trained and holds[n] and not holds[n] & {2, 3}]
    assert data.ids.tolist() == wanted  # every phantom shows every organ
    seen = {n: set() for n in wanted}
    for epoch in range(60):
        batch = fetch(data, list(range(len(data))), epoch=epoch)
        for row, n in enumerate(wanted):
            masks = {k for k in holds[n] if torch.equal(batch["mask"][row].bool(), maps[n] == k)}
            others = [m for m in wanted if torch.equal(batch["support_images"][row], images[m])]
            assert len(masks) == len(others) == 1 and others[0] // 4096 != n // 4096
            (organ,) = masks
            assert organ in holds[others[0]] and torch.equal(
                batch["support_mask"][row].bool(), maps[others[0]] == organ
            )
            seen[n].add((organ, others[0]))
    first = wanted[0]
    assert {organ for organ, _ in seen[first]} == holds[first]
    for organ in holds[first]:  # sixty draws of at most fifteen supports
        possible = {m for m in wanted if m // 4096 != first // 4096 and organ in holds[m]}
        assert {m for k, m in seen[first] if k == organ} <= possible
        assert len({m for k, m in seen[first] if k == organ}) > len(possible) / 2
    again = fetch(data, [3, 0], epoch=59)
    assert torch.equal(again["support_images"], batch["support_images"][[3, 0]])


def test_a_site_pairs_its_own_exams_alone(root: Path) -> None:
    data = episodes(root, masks="labelled")
    own = torch.nonzero((data.groups == 2) | (data.groups == 6))[:, 0]
    for part in (Subset(data, own), Subset(Subset(data, torch.arange(len(data))), own).to("cpu")):
        for epoch in range(20):
            batch = part.fetch(torch.arange(len(part)), seed=0, epoch=epoch, draw=torch.zeros(len(part)).long())
            for row, group in enumerate(part.groups.tolist()):
                support = data.images[data.groups == 8 - group]
                assert bool((support == batch["support_images"][row]).flatten(1).all(1).any())
    assert Subset(episodes(root), own).dataset.partners is None
    assert Subset(part, torch.tensor([0])).whole is part.whole  # what a pooled arm puts together
    alone = Subset(data, torch.nonzero(data.groups == 3)[:, 0])
    with pytest.raises(
        ValueError, match="^masks: labelled: no other exam of this part shows an organ of a slice of exa"
    ):
        alone.fetch(torch.tensor([0]), seed=0, epoch=0, draw=torch.tensor([0]))


def test_labelled_episodes_need_two_exams_with_an_organ(tmp_path: Path) -> None:
    write_exam(tmp_path, 1, mask=True)
    with pytest.raises(ValueError, match="no slice is left: every one has no organ that another exam shows too$"):
        episodes(tmp_path, masks="labelled", organs=("a", "b"))
    write_exam(tmp_path, 2)
    mask = np.zeros((30, 24, 4), np.uint8)
    mask[:9, :9, 3] = 1
    nibabel.save(nibabel.Nifti1Image(mask, AFFINE), tmp_path / "label_02.nii.gz")
    data = episodes(tmp_path, masks="labelled", organs=("a", "b"))
    assert data.ids.tolist() == [4096 + 1, 2 * 4096 + 3]  # organ b is in exam 1 alone, so slice 2 is no sample
    with pytest.raises(ValueError, match="or holds one of exclude: a, b$"):
        episodes(tmp_path, masks="labelled", organs=("a", "b"), exclude=["a", "b"])
