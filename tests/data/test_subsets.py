import pytest
import torch

from sslmed_dist import registry
from sslmed_dist.data.subsets import SUBSETS

COUNT = 1000
LABELS = torch.arange(COUNT) % 10
IDS = torch.arange(COUNT) * 7 + 3
GROUPS = torch.arange(COUNT) // 5
NAMES = [f"train/{code % 10}/{code}.png" for code in IDS.tolist()]
MULTI = torch.stack([LABELS % 2, (LABELS > 6).long()], 1).float()


def cut(name, labels=LABELS, groups=IDS, ids=IDS, names=NAMES, seed=0, **arguments):
    leaf = {"name": name, **arguments}
    given = {"labels": labels, "groups": groups, "ids": ids, "names": names}
    return registry.build(SUBSETS, leaf, "subset", **given, seed=seed)


ALL = {
    "long_tail": {"imbalance": 100.0},
    "label_fraction": {"fraction": 0.1},
    "fold": {"folds": 5, "index": 2},
    "classes": {"keep": [1, 4]},
    "listed": {"file": "list.txt"},
}


def write_list(folder, *lines):
    (folder / "list.txt").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("name", SUBSETS)
def test_subsets_are_sorted_pure_and_follow_the_ids(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_list(tmp_path, *NAMES[70:50:-3])
    positions = cut(name, **ALL[name])
    assert positions.dtype == torch.int64 and torch.equal(positions, positions.unique())
    assert torch.equal(positions, cut(name, **ALL[name]))
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))
    names = [NAMES[i] for i in order.tolist()]
    again = cut(name, labels=LABELS[order], groups=IDS[order], ids=IDS[order], names=names, **ALL[name])
    assert set(IDS[order][again].tolist()) == set(IDS[positions].tolist())


@pytest.mark.parametrize("name", ["long_tail", "label_fraction", "fold"])
def test_another_seed_chooses_others(name):
    assert not torch.equal(cut(name, **ALL[name]), cut(name, seed=1, **ALL[name]))


def test_long_tail_has_the_exponential_profile():
    sizes = torch.bincount(LABELS[cut("long_tail", imbalance=100.0)])
    assert sizes.tolist() == [int(100 * 100.0 ** (-c / 9) + 1e-9) for c in range(10)]
    assert sizes[0] == 100 and sizes[9] == 1
    mild = cut("long_tail", imbalance=10.0)
    assert set(cut("long_tail", imbalance=100.0).tolist()) <= set(mild.tolist())


@pytest.mark.parametrize(("count", "sizes"), [(10, [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]), (100, None)])
def test_cifar_lt_has_its_published_sizes(count, sizes):
    """Imbalance 100 on CIFAR's balanced 50,000: 12,406 images of 10 classes, 10,847 of 100 (500 to 5 each)."""
    labels = torch.arange(50_000) % count
    found = torch.bincount(labels[cut("long_tail", labels=labels, groups=labels, ids=torch.arange(50_000))])
    assert sizes is None or found.tolist() == sizes
    assert found.sum() == {10: 12_406, 100: 10_847}[count]
    assert (found[0], found[-1]) == (50_000 // count, 500 // count)


def test_listed_finds_the_lines_of_a_published_list(tmp_path):
    """Whole paths, paths with more or fewer folders in front, with a class number behind or without one."""
    write_list(tmp_path, f"{NAMES[7]} 3", f"imagenet/{NAMES[2]} 12", "", NAMES[500].removeprefix("train/"), NAMES[9])
    assert cut("listed", file=str(tmp_path / "list.txt")).tolist() == [2, 7, 9, 500]
    names = ["a/image 1 2.png", "b/image 1 2.png", *NAMES[2:]]
    write_list(tmp_path, "b/image 1 2.png 0")
    assert cut("listed", names=names, file=str(tmp_path / "list.txt")).tolist() == [1]


@pytest.mark.parametrize(
    ("lines", "names", "message"),
    [
        ([NAMES[1], "train/3/absent.png 3"], NAMES, "list.txt:2: 'train/3/absent.png' means 0 samples"),
        (["in/train/3/3.png", f"{NAMES[0]} 1"], NAMES, r"list.txt:2: 'train/3/3.png' stood already in line 1"),
        (["3.png"], ["a/3.png", "b/3.png", *NAMES[2:]], "list.txt:1: '3.png' means 2 samples of the data, not 1"),
        (["rain/3/3.png"], NAMES, "list.txt:1: 'rain/3/3.png' means 0 samples"),
        ([""], NAMES, "list.txt: lists no image"),
        ([NAMES[1]], [], "this data has no file names"),
    ],
)
def test_lists_that_do_not_fit_are_refused(tmp_path, lines, names, message):
    write_list(tmp_path, *lines)
    with pytest.raises(ValueError, match=message):
        cut("listed", names=names, file=str(tmp_path / "list.txt"))
    with pytest.raises(ValueError, match="absent.txt: no such file"):
        cut("listed", file=str(tmp_path / "absent.txt"))


def test_label_fractions_are_nested_and_stratified():
    small, large = cut("label_fraction", fraction=0.1), cut("label_fraction", fraction=0.5)
    assert set(small.tolist()) < set(large.tolist())
    assert torch.bincount(LABELS[small]).tolist() == [10] * 10
    assert len(cut("label_fraction", fraction=1.0)) == COUNT
    assert torch.bincount(LABELS[cut("label_fraction", fraction=0.001)]).tolist() == [1] * 10
    assert len(cut("label_fraction", fraction=0.1, stratified=False)) == 100


def test_label_fraction_takes_whole_exams():
    positions = cut("label_fraction", groups=GROUPS, fraction=0.3)
    assert torch.bincount(GROUPS[positions]).unique().tolist() == [0, 5]


@pytest.mark.parametrize("labels", [LABELS, MULTI])
def test_folds_cover_everything_without_splitting_a_group(labels):
    held = [cut("fold", labels=labels, groups=GROUPS, folds=5, index=i, part="val") for i in range(5)]
    assert torch.equal(torch.cat(held).sort().values, torch.arange(COUNT))
    for index, part in enumerate(held):
        train = cut("fold", labels=labels, groups=GROUPS, folds=5, index=index)
        assert torch.equal(torch.cat([train, part]).sort().values, torch.arange(COUNT))
        assert not set(GROUPS[train].tolist()) & set(GROUPS[part].tolist())
        assert (labels[part].float().mean(0) - labels.float().mean(0)).abs().max() < 0.5


def test_folds_share_every_label_evenly():
    for index in range(7):
        sizes = torch.bincount(LABELS[cut("fold", folds=7, index=index, part="val")])
        assert set(sizes.tolist()) <= {14, 15}


def test_classes_keeps_the_chosen_labels():
    assert LABELS[cut("classes", keep=[1, 4])].unique().tolist() == [1, 4]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("long_tail", {"imbalance": 0.5}, "imbalance must be at least 1"),
        ("long_tail", {"labels": MULTI}, "needs one label per sample"),
        ("long_tail", {"labels": LABELS * 0 - 1}, "needs one label per sample"),
        ("long_tail", {"labels": LABELS * 0}, "needs at least two classes"),
        ("label_fraction", {"fraction": 0.0}, "fraction must be above 0"),
        ("label_fraction", {"fraction": 1.5}, "fraction must be above 0 and at most 1, got 1.5"),
        ("fold", {"folds": 1, "index": 0}, "folds is 1; allowed: 2 to 1000"),
        ("fold", {"folds": 5, "index": 5}, "index is 5; allowed: 0 to 4"),
        ("classes", {"keep": [1, 12]}, r"names a class without samples: \[12\]"),
        ("classes", {"keep": []}, "is empty"),
        ("classes", {"keep": [1], "labels": MULTI}, "needs one label per sample"),
    ],
)
def test_impossible_subsets_are_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        cut(name, **arguments)


def scanner_folds(scanners: list[int], groups: list[int], folds: int = 3) -> list[list[int]]:
    labels, ids = torch.zeros(len(groups), 2), torch.arange(len(groups))
    parts = []
    for index in range(folds):
        given = {"seed": 3, "folds": folds, "index": index, "by": "scanner", "scanners": torch.tensor(scanners)}
        val = SUBSETS["fold"](labels, torch.tensor(groups), ids, part="val", **given)
        train = SUBSETS["fold"](labels, torch.tensor(groups), ids, **given)
        assert sorted([*val.tolist(), *train.tolist()]) == list(range(len(groups)))
        parts.append(val.tolist())
    return parts


def test_folds_by_scanner_share_neither_scanner_nor_patient() -> None:
    scanners = [0] * 5 + [1] * 3 + [2] * 2 + [3] + [4]
    groups = list(range(12))
    parts = scanner_folds(scanners, groups)
    assert sorted(sum(parts, [])) == groups and sorted(map(len, parts)) == [3, 4, 5]
    assert all(
        len({scanners[i] for i in part} & {scanners[i] for i in other}) == 0
        for part in parts
        for other in parts
        if part is not other
    )
    groups[11] = groups[0]  # the patient of scanner 0 was on scanner 4 too
    parts = scanner_folds(scanners, groups)
    assert any({0, 11} <= set(part) for part in parts) and sorted(map(len, parts)) == [3, 3, 6]


def test_folds_by_scanner_refuse_too_few_scanners_and_data_without() -> None:
    with pytest.raises(ValueError, match="folds is 3; allowed: 2 to 2"):
        scanner_folds([0, 0, 1, 1], [0, 1, 2, 3])
    with pytest.raises(ValueError, match="does not say which scanner"):
        SUBSETS["fold"](torch.zeros(4), torch.arange(4), torch.arange(4), seed=0, folds=2, index=0, by="scanner")
