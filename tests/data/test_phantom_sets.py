"""Phantoms in the layouts of BTCV, FLARE22 and MOGaMBO: recognised, named, drawn where their values say, and taken by a
federation whose sites have one each."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sslmed_dist import config
from sslmed_dist.data.exams.abdominal import Abdominal
from sslmed_dist.data.exams.episodes import Episodes
from sslmed_dist.data.exams.exam_layouts import find_layout, names_beside
from sslmed_dist.data.phantom import PHANTOMS, pelvis
from sslmed_dist.data.scans.nifti import read_canonical
from sslmed_dist.federation.sites import everything, own_sites
from tests.data.test_phantom import SMALL

RECIPE = Path(__file__).parents[2] / "configs" / "federated" / "abdomen_fedcowpro.yaml"
FOUR = ("liver", "right kidney", "left kidney", "spleen")
TITLES = {"btcv": "BTCV", "flare22": "FLARE22", "mogambo": "MOGaMBO"}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The small phantom of each kind, made once, all in one folder."""
    folder = tmp_path_factory.mktemp("sets")
    return functools.cache(lambda kind: PHANTOMS[kind](folder / kind, **SMALL[kind] | {"exams": 2}))


@pytest.mark.parametrize("kind", TITLES)
def test_a_set_is_recognised_and_its_organs_are_named(kind: str, phantom: Callable[[str], Path]) -> None:
    layout = find_layout(phantom(kind))
    assert layout.name == TITLES[kind] and list(layout.images) == list(layout.masks) == [1, 2] and not layout.aside
    assert names_beside(layout.masks[2]) == (layout.organs, [])
    drawn = pelvis.ORGANS if kind == "mogambo" else FOUR
    data = Abdominal(phantom(kind))
    assert data.classes == drawn and data.labels.eq(1).all()  # every exam shows every organ that is drawn
    mask = read_canonical(layout.masks[1]).voxels
    assert {layout.organs[int(value)] for value in np.unique(mask) if value} == set(drawn)


def test_ct_sets_show_the_same_bodies_by_their_own_values(phantom: Callable[[str], Path]) -> None:
    one, other = (Episodes(phantom(kind), masks="organs", cache="") for kind in ("btcv", "flare22"))
    assert one.classes == other.classes == FOUR and torch.equal(one.maps, other.maps)
    assert torch.equal(one.images, other.images)
    stored = [read_canonical(find_layout(phantom(kind)).masks[1]).voxels for kind in ("btcv", "flare22")]
    for in_btcv, in_flare in ((6, 1), (2, 2), (3, 13), (1, 3)):
        assert np.array_equal(stored[0] == in_btcv, stored[1] == in_flare) and (stored[0] == in_btcv).any()


def test_the_pelvis_has_its_organs_in_their_places(phantom: Callable[[str], Path]) -> None:
    """Axes left, anterior, superior in the file: the bladder in front of the rectum, a femoral head on either side, the
    sigmoid colon above the rectum; urine is brighter than the heads."""
    scan = read_canonical(find_layout(phantom("mogambo")).images[1])
    mask = read_canonical(find_layout(phantom("mogambo")).masks[1]).voxels
    bladder, rectum, colon, heads = (np.argwhere(mask == value).mean(0) for value in (1, 2, 3, 4))
    assert bladder[1] > rectum[1] and colon[2] > rectum[2]
    middle = (mask.shape[0] - 1) / 2
    sides = np.argwhere(mask == 4)[:, 0] - middle
    assert (sides > 0).any() and (sides < 0).any() and abs(heads[0] - middle) < 0.1 * middle
    assert scan.voxels[mask == 1].mean() > scan.voxels[mask == 4].mean()
    with pytest.raises(ValueError, match="at least 32 pixels and 8 slices"):
        PHANTOMS["mogambo"](phantom("mogambo") / "x", size=16)


def test_a_federation_takes_a_site_in_each_layout(phantom: Callable[[str], Path]) -> None:
    """The recipe with ``{site}`` in ``data.root``: each site reads its own layout, all may train together."""
    kinds = ("abdomen", "btcv", "flare22")
    for kind in kinds:
        PHANTOMS[kind](phantom("btcv").parent / "sites" / kind, **SMALL[kind] | {"exams": 4})
    changes = [f"data.root={phantom('btcv').parent / 'sites' / '{site}'}", f"federated.site_names=[{','.join(kinds)}]"]
    changes += [
        "data.size=48",
        "views.size=48",
        "data.min_size=12",
        "data.body_threshold=-1000",
        "data.workers=1",
        'data.cache=""',
    ]
    settings = config.load(RECIPE, changes)
    assert settings.method["overlap"] == settings.method["edge"] == 1.0
    dealt = own_sites(settings)
    assert [site.name for site in dealt.usable] == list(kinds) and not dealt.excluded
    whole = everything(dealt.usable)
    assert len(whole) == sum(len(site.pretrain) for site in dealt.usable) and len(whole.groups.unique()) >= 2
    for site in dealt.usable:
        batch = site.pretrain.fetch(torch.tensor([0, 3]), seed=0, epoch=0, draw=torch.zeros(2).long())
        assert batch["images"].shape == (2, 1, 48, 48) and batch["mask"].flatten(1).any(1).all()
