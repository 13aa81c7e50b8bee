"""A mask that lies the wrong way round on its image is found out, on phantoms and on the real scans."""

import nibabel
import numpy as np
import pytest

from sslmed_dist.data.phantom.abdomen import abdomen_volume
from sslmed_dist.data.phantom.scanner import scanner
from sslmed_dist.data.prepare.orientation import (
    ARRANGEMENTS,
    CLEAR,
    arrangement_scores,
    margin,
    misplaced,
    require_arrangement,
)
from sslmed_dist.data.scans.regrid import Labels, Volume
from sslmed_dist.randomness import key
from tests.real_data import real_data

WRONG = [title for title in ARRANGEMENTS if title != "as it is"]
Pair = tuple[Volume, Labels]


def laid(labels: Labels, title: str) -> Labels:
    return np.ascontiguousarray(labels[tuple(slice(None, None, -1 if flip else 1) for flip in ARRANGEMENTS[title])])


@pytest.fixture(scope="module")
def phantoms() -> list[Pair]:
    pairs = (abdomen_volume(key(5, "abdomen", n), scanner(n, 5), size=64, slices=16) for n in range(4))
    return [(image.astype(np.float32), mask) for image, mask in pairs]


def test_there_are_seven_wrong_ways() -> None:
    assert len(WRONG) == 7 and ARRANGEMENTS["columns and slices reversed"] == (True, False, True)


@pytest.mark.parametrize("title", WRONG)
def test_each_wrong_way_is_caught_on_phantoms(title: str, phantoms: list[Pair]) -> None:
    for image, mask in phantoms:
        scores = arrangement_scores(image, laid(mask, title))
        assert max(scores, key=lambda t: scores[t]) == title, "the way back is the same flips"
        with pytest.raises(ValueError, match=f"exam 07: the mask fits .* times as well with {title}"):
            require_arrangement({"exam 07": scores})


def test_the_score_does_not_depend_on_who_is_turned_nor_on_organ_contrast(phantoms: list[Pair]) -> None:
    image, mask = phantoms[0]
    scores = arrangement_scores(image, mask)
    inverted = arrangement_scores(image.max() - image, mask)
    assert margin(inverted)[0] > CLEAR and margin(scores)[0] > CLEAR
    both = arrangement_scores(np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(mask[:, ::-1]))
    assert both == pytest.approx(scores)


def test_one_turned_scan_among_many_is_named(phantoms: list[Pair]) -> None:
    scans = {f"exam {n}": arrangement_scores(*pair) for n, pair in enumerate(phantoms)}
    require_arrangement(scans)
    scans["exam 2"] = arrangement_scores(phantoms[2][0], laid(phantoms[2][1], "rows reversed"))
    with pytest.raises(ValueError, match="exam 2: .* with rows reversed"):
        require_arrangement(scans)


def test_an_unclear_scan_is_left_to_the_set() -> None:
    clear = {title: 1.0 for title in ARRANGEMENTS} | {"as it is": 4.0}
    unclear = {title: 1.0 for title in ARRANGEMENTS} | {"as it is": 1.2}
    require_arrangement({"a": clear, "b": unclear})
    with pytest.raises(ValueError, match=r"over 1 scan the masks fit only 1.20 times as well"):
        require_arrangement({"b": unclear})
    with pytest.raises(ValueError, match="over 2 scan"):
        require_arrangement({"b": unclear, "c": unclear})


def test_nothing_to_tell_is_not_a_pass() -> None:
    """A symmetric drawing fits as well mirrored; an image without edges fits anything."""
    image, mask = np.zeros((16, 16, 4), np.float32), np.zeros((16, 16, 4), np.uint8)
    image[5:11, 4:9, :2], mask[5:11, 4:9, :2] = 100, 1
    scores = arrangement_scores(image, mask)
    assert scores["as it is"] == pytest.approx(scores["columns reversed"])
    for unclear in (scores, arrangement_scores(np.ones_like(image), mask)):
        with pytest.raises(ValueError, match="not in one orientation"):
            require_arrangement({"a": unclear})


def test_mirrored_together_is_told_by_the_organs(phantoms: list[Pair]) -> None:
    _, mask = phantoms[0]
    affine = np.diag([-1.25, 1.25, 7.7, 1.0])
    assert misplaced(mask, affine) == []
    assert misplaced(mask, affine @ np.diag([-1.0, 1, 1, 1])) == [
        "the liver lies to the left of the spleen",
        "the right kidney lies to the left of the left one",
    ]
    assert misplaced(mask, affine @ np.diag([1.0, -1, -1, 1])) == [
        "the liver lies behind the kidneys",
        "the liver lies below the kidneys",
    ]
    assert misplaced(np.zeros_like(mask), affine) == []


def test_on_real_scans_the_true_way_wins_in_all_20() -> None:
    root = real_data("chaos-t2spir")
    margins = []
    scans = {}
    for path in sorted(root.glob("image_*.nii.gz")):
        image = nibabel.load(path)
        mask = np.asarray(nibabel.load(root / path.name.replace("image", "label")).dataobj)
        scans[path.name] = arrangement_scores(np.asarray(image.dataobj, dtype=np.float32), mask)
        margins.append(margin(scans[path.name])[0])
        assert misplaced(mask, image.affine) == []
    assert len(margins) == 20 and min(margins) > 3
    require_arrangement(scans)


@pytest.mark.parametrize("title", WRONG)
def test_each_wrong_way_is_caught_on_real_scans(title: str) -> None:
    root = real_data("chaos-t2spir")
    for number in ("20", "36"):  # the least clear margins are among them
        image = np.asarray(nibabel.load(root / f"image_{number}.nii.gz").dataobj, dtype=np.float32)
        mask = np.asarray(nibabel.load(root / f"label_{number}.nii.gz").dataobj)
        with pytest.raises(ValueError, match=f"with {title} as it does"):
            require_arrangement({number: arrangement_scores(image, laid(mask, title))})
