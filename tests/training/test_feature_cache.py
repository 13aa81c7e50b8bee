"""Features of a frozen encoder kept: the same head as without, what goes on after a restart, sizes and refusals."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sslmed_dist import checkpoint, cli, config
from sslmed_dist.training import job
from sslmed_dist.training.feature_cache import FOLDER, FeatureSet
from tests import knees
from tests.gloo import GlooPool

# A batch of 3 in passes over 8 exams: batches reach over the ends of passes, and an epoch has two draws.
PLAN = {"epochs": 3, "batch_size": 3, "copies": 2, "steps_per_epoch": 4, "checkpoint_every": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("knee")
    knees.write_exams(place / "knees", train=8, valid=2, planes=("sagittal",))
    return place


def tree(folder: Path, cache: str, head: Any = None, **plan: Any) -> dict[str, Any]:
    method = {"cache": cache, **({"head": head} if head else {})}
    return knees.tree(folder, method=method, plan={**PLAN, **plan}, optim={"name": "sgd", "lr": 0.05})


def trained(tree: dict[str, Any], name: str) -> dict[str, Tensor]:
    settings = config.replace(config.from_tree(tree, "test"), run={"name": name})
    return dict(job.train(settings).method.state_dict())


def gap(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    keys = [key for key in first if key.startswith("head.")]
    difference = torch.sqrt(torch.stack([(first[k] - second[k]).square().sum() for k in keys]).sum())
    return float(difference / torch.sqrt(torch.stack([second[k].square().sum() for k in keys]).sum()))


@pytest.mark.parametrize(
    "cache, head", [("float16", None), ("pooled", "max"), ("float16", {"name": "divfram"}), ("pooled", "mean")]
)
def test_the_head_is_the_one_without_a_cache(folder: Path, cache: str, head: Any) -> None:
    """The same copies are drawn without one; ``max`` and ``mean`` need the averages only."""
    name = f"{cache}-{head if isinstance(head, str | None) else head['name']}"
    kept, fresh = (trained(tree(folder, how, head), f"{name}-{how}") for how in (cache, "off"))
    begun = dict(job.assemble(config.from_tree(tree(folder, "off", head), "test")).method.state_dict())
    assert gap(kept, fresh) < 1e-3 < gap(begun, fresh)
    assert not (folder / "runs" / f"{name}-{cache}" / FOLDER).exists()  # it was finished


def test_a_restart_changes_no_bit_and_computes_nothing_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    most = [1000]
    compute = FeatureSet.compute

    def counting(self: FeatureSet, position: int, copy: int) -> tuple[Tensor, int]:
        asked.append((position, copy))
        if len(asked) > most[0]:
            raise KeyboardInterrupt
        return compute(self, position, copy)

    monkeypatch.setattr(FeatureSet, "compute", counting)
    whole = trained(tree(folder, "float16"), "whole")
    needed = asked[1:]  # the first one gave the shape
    assert len(needed) == len(set(needed)) and len(needed) >= 14
    asked.clear()
    most[0] = 11
    with pytest.raises(KeyboardInterrupt):
        trained(tree(folder, "float16"), "broken")
    assert checkpoint.Checkpoints(folder / "runs" / "broken" / "checkpoints").steps() == []
    asked.clear()
    most[0] = 1000
    again = trained(tree(folder, "float16"), "broken")
    assert all(torch.equal(again[key], whole[key]) for key in whole)
    assert asked[1:] == needed[10:]


def test_two_ranks_have_the_head_of_one(folder: Path, gloo: GlooPool) -> None:
    own = tree(folder, "float16", batch_size=4, precision="float64", epochs=2, checkpoint_every=3)
    alone = trained(own, "one")
    together = gloo.run(trained, 2, own, "two")
    assert gap(together[0], alone) < 1e-9
    assert all(torch.equal(together[0][key], together[1][key]) for key in alone)


def test_kept_features_of_another_encoder_are_not_taken(folder: Path) -> None:
    """The files of a broken run; then the encoder's weights are others."""
    settings = config.from_tree(tree(folder, "float16"), "test")
    work = job.assemble(settings)
    assert work.features is not None
    place = folder / "kept"
    work.features.open(place)
    work.features.fetch(torch.tensor([1]), seed=0, epoch=0, draw=torch.tensor([1]))
    again = job.assemble(settings)
    assert again.features is not None
    again.features.open(place)
    assert again.features.lengths[3] == work.features.lengths[3] > 0
    with torch.no_grad():
        next(again.method.encoder.parameters()).add_(1.0)
    again.features.open(place)
    assert not again.features.lengths.any()


def test_check_prints_the_size_and_too_much_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    path = folder / "size.yaml"
    path.write_text(yaml.safe_dump(tree(folder, "float16")))
    assert cli.main(["train", str(path), "--check"]) == 0
    # 8 exams, 2 copies, a clip of 4, the maps of skid at width 0.02 and 32 pixels
    assert "features  maps of 8 exams x 2 copies x 4 slices, 82 x 2 x 2 each, are 4.2e-05 GB" in capsys.readouterr().out
    assert cli.main(["train", str(path), "method.cache_gb=0.00001"]) == 2
    assert "more than method.cache_gb 1e-05; allowed: a larger" in capsys.readouterr().err
    assert cli.main(["train", str(path), "plan.copies=null"]) == 2
    assert "method.cache: needs plan.copies" in capsys.readouterr().err
    assert cli.main(["train", str(path), "data.clip=null"]) == 2
    assert not (folder / "runs" / "size").exists()
