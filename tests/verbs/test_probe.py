"""What an encoder gives away: a planted leak is found, nothing is found where there is none, floors stand beside."""

from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sslmed_dist import config, randomness
from sslmed_dist.cli import main
from sslmed_dist.data.dataset import ArrayDataset
from sslmed_dist.downstream import extract, site_probe
from sslmed_dist.downstream.features import Features
from sslmed_dist.downstream.membership import membership, similarity
from sslmed_dist.downstream.predictions import measure
from sslmed_dist.json_files import read_object
from sslmed_dist.training import build, job
from sslmed_dist.verbs import probe as verb
from sslmed_dist.verbs.probe import probe
from sslmed_dist.views.one_view import OneView
from tests import tiny
from tests.federation import tiny as small


def noise(site: int, count: int, shift: float) -> Features:
    """Random features of a site, moved by ``shift`` times its number in one direction."""
    x = torch.randn(count, 8, generator=torch.Generator().manual_seed(site + 10 * count))
    x[:, 0] += shift * site
    numbers = torch.arange(count)
    return Features(x, torch.full((count,), site), site * site_probe.GROUP_ROOM + numbers, numbers)


@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, 0.35, 0.65), (8.0, 0.95, 1.0)])
def test_a_site_is_named_where_its_features_stand_apart(shift: float, low: float, high: float) -> None:
    sizes = {"train": 200, "val": 50, "test": 101}
    parts = {f"site-{site}": {name: noise(site, count, shift) for name, count in sizes.items()} for site in (0, 1)}
    scores = {score.metric: score for score in measure(site_probe.predict_sites(parts, seed=0), "site_probe", seed=0)}
    auc = scores["auc"]
    assert auc.value is not None and low <= auc.value <= high
    assert (auc.n, auc.groups) == (202, 202)  # the same numbers at two sites are two patients
    with pytest.raises(ValueError, match="at least two sites"):
        site_probe.predict_sites({"site-0": parts["site-0"]}, seed=0)


class Remembers(nn.Module):
    """Maps every view of a bright image to one point, and other images to their own pixels."""

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C * H * W)."""
        bright = images.mean(dim=(1, 2, 3), keepdim=True) > 0
        return torch.where(bright, torch.ones_like(images), images).flatten(1)


def test_members_are_told_by_the_similarity_of_their_views(tmp_path: Path) -> None:
    chosen = small.settings(tmp_path)
    images = torch.randint(0, 60, (40, 1, 12, 12), generator=torch.Generator().manual_seed(0)).byte()
    images[20:] += 190  # the members
    data = ArrayDataset(name="made", images=images, labels=torch.zeros(40).long(), classes=("one",))
    views, everything = build.build_views(chosen, data), torch.arange(40)

    def scores_of(encoder: nn.Module, count: int) -> Tensor:
        return similarity(encoder, data, everything, views=views, device="cpu", seed=0, count=count)

    scores = scores_of(Remembers(), 3)
    sides = [(scores[part], part, part) for part in (everything[20:], everything[:20])]
    (found,) = measure(membership(*sides), "membership", seed=0)
    assert (found.value, found.low, found.n) == (1.0, 1.0, 40)
    (turned,) = measure(membership(*sides[::-1]), "membership", seed=0)
    assert turned.value == 0.0
    # The mean over pairs, written out.
    seeds = [randomness.key(0, "membership", number) for number in range(3)]
    how: dict[str, Any] = {"views": OneView(views, 0), "device": "cpu"}
    x = [
        functional.normalize(extract(Remembers(), data, everything, seed=seed, **how).x.double(), dim=1)
        for seed in seeds
    ]
    slow = torch.stack([(x[i] * x[j]).sum(dim=1) for i, j in permutations(range(3), 2)]).mean(dim=0)
    assert torch.allclose(scores, slow, atol=1e-12)
    with pytest.raises(ValueError, match="at least 2 views"):
        scores_of(Remembers(), 1)


def table(file: Path) -> dict[tuple[str, str, str], Any]:
    """The rows of a probe by arm, site and metric."""
    return {(row["arm"], row["site"], row["metric"]): row for row in read_object(file)["rows"]}


def test_a_federation_is_probed_beside_its_floors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.write_images(tmp_path / "tiny.npz", train=110, val=20, test=20)
    chosen = small.settings(tmp_path, federated={"rounds": 1, "partition": {"name": "iid", "count": 2}})
    folder = small.federate(chosen, monkeypatch)
    assert main(["probe", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "which site, linear probe AUC" in said and "trained on or not, similarity of views AUC" in said
    assert "labels alone" in said and "random encoder" in said and "Research use only" in said
    sites = table(folder / "evaluate" / "probe-sites.json")
    arms = {"labels", "raw_pixels", "random", "federated"}
    assert {arm for arm, _, _ in sites} == arms | {"federated - random"}
    assert (
        sites["federated", "all", "auc"]["n"]
        == read_object(folder / "evaluate" / "probe-sites.json")["samples"]["site-0"]["test"] * 2
    )
    members = table(folder / "evaluate" / "probe-membership.json")
    assert {site for _, site, _ in members} == {"all", "site-0", "site-1"}
    both = members["federated", "all", "auc"]
    assert both["n"] == 150 and both["low"] < both["value"] < both["high"]
    # The same question has the same answer, and a checkpoint of its own has a file of its own.
    before = (folder / "evaluate" / "probe-membership.json").read_bytes()
    assert [file.name for file in probe(folder, "membership")] == ["probe-membership.json"]
    assert (folder / "evaluate" / "probe-membership.json").read_bytes() == before
    (first,) = probe(folder, "membership", "round_0")
    untrained = table(first)
    assert untrained["federated", "all", "auc"]["value"] == untrained["random", "all", "auc"]["value"]
    assert untrained["federated - random", "all", "auc"]["value"] == 0.0

    # Under fedbn, say, a site's encoder is its own: its features would name the site whatever the image is.
    def own(arm: str, site: str, *more: Any) -> nn.Module:
        encoder = verb.pretrained.untrained(chosen)
        nn.init.constant_(next(encoder.parameters()), float(site == "site-1"))
        return encoder

    monkeypatch.setattr(verb, "encoder_of", own)
    capsys.readouterr()
    (file,) = probe(folder, "sites")
    assert {arm for arm, _, _ in table(file)} == {"labels", "raw_pixels", "random"}
    assert "federated: each site's encoder differs" in capsys.readouterr().err


def test_a_run_without_sites_is_probed_for_members(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = tiny.settings(tmp_path, plan={"epochs": 1})
    folder = job.train(chosen, folder=chosen.folder) and chosen.folder
    assert [file.name for file in probe(folder)] == ["probe-membership.json"]
    assert "the run knows of no sites" in capsys.readouterr().err
    rows = table(folder / "evaluate" / "probe-membership.json")
    assert rows["encoder", "all", "auc"]["n"] == 48 + 24  # members: the whole training split
    with pytest.raises(ValueError, match="at least two sites"):
        probe(folder, "sites")
    with pytest.raises(ValueError, match="expected a run folder"):
        probe(tmp_path)
    with pytest.raises(ValueError, match="is decided by the checkpoint"):
        probe(folder, overrides=["views.size=8"])
    assert config.load(folder / "config.yaml").federated is None
