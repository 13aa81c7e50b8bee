import pytest
import torch
from torch import Tensor

from sslmed_dist.data import DATASETS, PARTITIONS, SUBSETS, ArrayDataset, Subset, duplicates
from sslmed_dist.data.dataset import Item, unlabelled
from sslmed_dist.data.joined import Joined
from sslmed_dist.registry import check


def squares(count: int = 12) -> ArrayDataset:
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    return ArrayDataset(
        name="squares",
        images=images,
        labels=torch.arange(count) % 3,
        classes=("a", "b", "c"),
        ids=torch.arange(count) + 100,
        groups=torch.arange(count) // 2,
        sites=torch.arange(count) % 2,
        records=[{"file": f"{i}.png"} for i in range(count)],
    )


def test_fetch_gives_the_rows_asked_for():
    batch = squares().fetch(torch.tensor([3, 1]), seed=0, epoch=0, draw=torch.tensor([0, 5]))
    assert batch["images"][:, 0, 0, 0].tolist() == [3, 1]
    assert batch["labels"].tolist() == [0, 1]
    assert batch["index"].tolist() == [103, 101]
    assert batch["draw"].tolist() == [0, 5]


def test_subset_of_subset_keeps_ids_labels_groups_sites_records():
    data = squares()
    inner = Subset(Subset(data, torch.tensor([1, 4, 7, 9])), torch.tensor([1, 3]))
    assert inner.dataset is data
    assert inner.ids.tolist() == [104, 109]
    assert inner.groups.tolist() == [2, 4]
    assert inner.sites is not None and inner.sites.tolist() == [0, 1]
    assert [record["file"] for record in inner.records] == ["4.png", "9.png"]
    batch = inner.fetch(torch.tensor([1]), seed=0, epoch=0, draw=torch.tensor([0]))
    assert batch["index"].tolist() == [109] and batch["images"][0, 0, 0, 0] == 9
    assert inner.value_range() == (0.0, 255.0)


def test_to_moves_a_copy_and_leaves_the_dataset():
    data = squares()
    moved = Subset(data, torch.tensor([0, 1])).to("meta")
    assert moved.dataset is not data and data.images.device.type == "cpu"
    assert moved.fetch(torch.tensor([0]), seed=0, epoch=0, draw=torch.tensor([0]))["labels"].device.type == "meta"


def test_empty_and_misshapen_sets_are_refused():
    with pytest.raises(ValueError, match="squares: holds no sample"):
        Subset(squares(), torch.tensor([], dtype=torch.int64))
    with pytest.raises(ValueError, match="images must be uint8 or float32"):
        ArrayDataset(name="x", images=torch.zeros(2, 4, 4), labels=torch.zeros(2), classes=())


def test_duplicates_keep_the_first_of_each_picture():
    images = torch.tensor([5, 6, 5, 7, 6, 5], dtype=torch.uint8).view(-1, 1, 1, 1)
    assert duplicates(images).tolist() == [2, 4, 5]
    assert duplicates(images[:2]).tolist() == []


def test_tables_can_be_checked_by_the_registry():
    check(DATASETS, {"name": "cifar10", "root": "somewhere", "split": "test"}, "data")
    check(DATASETS, {"name": "abdominal", "root": "somewhere", "unit": "slice", "size": 96}, "data")
    check(SUBSETS, {"name": "fold", "folds": 5, "index": 0}, "subset", ("labels", "groups", "ids", "seed"))
    given = ("labels", "groups", "sites", "ids", "count", "seed")
    check(PARTITIONS, {"name": "dirichlet", "alpha": 0.5}, "partition", given)
    with pytest.raises(ValueError, match="data.split: expected one of 'train', 'val', 'test', 'all'"):
        check(DATASETS, {"name": "medmnist", "root": "somewhere", "split": "trian"}, "data")


def test_a_joined_set_keeps_what_its_parts_know() -> None:
    """Sites, duplicates left out and notices: each notice once."""

    def part(first: int, sites: bool = True) -> ArrayDataset:
        made = ArrayDataset(
            name="set",
            images=torch.zeros(2, 1, 4, 4, dtype=torch.uint8),
            labels=torch.zeros(2, dtype=torch.int64),
            classes=("a",),
            ids=torch.arange(first, first + 2),
            sites=torch.full((2,), first) if sites else None,
            dropped={"train": 3, "val": 1},
        )
        made.notices = ("left aside: 1 .txt files", f"part {first}")
        return made

    joined = Joined([part(0), part(2)])
    assert joined.sites is not None and joined.sites.tolist() == [0, 0, 2, 2]
    assert joined.dropped == {"train": 3, "val": 1}
    assert joined.notices == ("left aside: 1 .txt files", "part 0", "part 2")
    assert joined.to("cpu").notices == joined.notices
    assert Joined([part(0), part(2, sites=False)]).sites is None


def test_a_sample_is_unlabelled_where_one_of_its_labels_is_missing() -> None:
    assert unlabelled(torch.tensor([0, -1, 3])).tolist() == [False, True, False]
    labels = torch.tensor([[0.0, 1.0], [float("nan"), 1.0], [float("nan"), float("nan")]])
    assert unlabelled(labels).tolist() == [False, True, True]


class Counted(ArrayDataset):
    """A set whose images have to be decoded: ``read`` counts how many were."""

    in_memory, read = False, 0

    def fetch(self, positions: Tensor, *, seed: int, epoch: int, draw: Tensor) -> Item:
        self.read += len(positions)
        return super().fetch(positions, seed=seed, epoch=epoch, draw=draw)


def test_batches_are_kept_within_bounds_and_as_they_were() -> None:
    images = torch.arange(4 * 48, dtype=torch.uint8).reshape(4, 3, 4, 4)
    data = Counted(name="a", images=images, labels=torch.zeros(4, dtype=torch.int64), classes=("x",))
    joined = Joined([data])

    def fetched(*positions: int, draw: int = 0) -> Tensor:
        at = torch.tensor(positions)
        return joined.fetch(at, seed=0, epoch=0, draw=torch.full_like(at, draw))["images"]

    with joined.keeping(2 * (48 + 24) + 71):  # two images with their label, id and draw, and not quite a third
        fetched(0, 1).zero_()  # whoever was given a batch may write into it
        assert torch.equal(fetched(0, 1), images[:2]) and data.read == 2
        fetched(0, 1).zero_()
        assert torch.equal(fetched(0, 1), images[:2]) and data.read == 2
        assert torch.equal(fetched(0, 1, draw=1), images[:2]) and data.read == 4  # another draw may be another image
        assert torch.equal(fetched(2), images[2:3]) and torch.equal(fetched(2), images[2:3]) and data.read == 6
    assert torch.equal(fetched(0, 1), images[:2]) and data.read == 8 and not joined.kept
    plain = Joined([ArrayDataset(name="a", images=images, labels=data.labels, classes=("x",))])
    with plain.keeping(10**6):
        plain.fetch(torch.tensor([0]), seed=0, epoch=0, draw=torch.tensor([0]))
        assert not plain.kept
