"""The kept maps of frozen stages: they train what images train, and are computed once for each copy."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sslmed_dist import checkpoint, config
from sslmed_dist.data.phantom import write_abdomen
from sslmed_dist.models import ENCODERS
from sslmed_dist.run_folder import Metrics
from sslmed_dist.training import job, stem_cache
from sslmed_dist.training.stem_cache import StemSet
from tests import tiny

pytest.importorskip("skimage")
pytest.importorskip("timm")
NETWORK = {"name": "timm", "model": "test_efficientnet", "stages": [1, 2], "stride": 4, "width": 8, "frozen_stages": 2}
OPTIM = {"name": "sgd", "lr": 0.002}
PLAN = {"epochs": 1, "batch_size": 4, "steps_per_epoch": 6, "checkpoint_every": 3, "log_every": 1, "copies": 2}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Episodes of 32 x 32 from one small scan: eight slices at most, in two copies each."""
    folder = tmp_path_factory.mktemp("stems")
    root = write_abdomen(folder / "scans", exams=1, size=48, slices=8)
    made = tiny.tree(folder, plan=PLAN, optim=OPTIM)
    made["data"] = {"name": "episodes", "root": str(root), "size": 32, "min_size": 24, "workers": 1, "cache": ""}
    made["views"] = {"name": "episode", "size": 32}
    made["method"] = {"name": "cowpro", "encoder": NETWORK, "head": {"name": "cowpro", "window": 2}}
    made["method"]["batch_norm"] = "batch"
    return made


def trained(tree: dict[str, Any], name: str, **method: Any) -> tuple[dict[str, Tensor], list[float], Path]:
    """The state after training, the loss of every step and the run's folder."""
    settings = config.replace(config.from_tree(tree, "test"), run={"name": name}, method=method)
    state = dict(job.train(settings).method.state_dict())
    rows = [row for row in Metrics(settings.folder / "metrics.jsonl").read() if row["name"] == "loss"]
    return state, [row["value"] for row in rows], settings.folder


@pytest.mark.parametrize(
    ("kept", "method", "agreement"), [(torch.float32, {}, 1e-4), (torch.float16, {"cycle": 0.0}, 2e-3)]
)
def test_kept_maps_train_what_images_train_and_a_restart_changes_no_bit(
    tree: dict[str, Any],
    kept: torch.dtype,
    method: dict[str, Any],
    agreement: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Kept without rounding they are the same to float32's own; float16 is compared without the cyclic term, whose hard
    masks turn a rounding into another mask."""
    computed: list[tuple[int, int]] = []
    episode = StemSet.episode

    def counting(self: StemSet, position: int, copy: int) -> Any:
        computed.append((position, copy))
        return episode(self, position, copy)

    monkeypatch.setattr(StemSet, "episode", counting)
    monkeypatch.setattr(stem_cache, "KEPT", kept)
    state, losses, folder = trained(tree, f"kept-{kept}", cache="stem", **method)
    # the first one is the sample by which the shapes are known
    assert computed[0] == (0, 0) and len(set(computed[1:])) == len(computed) - 1 > 5
    plain, expected, _ = trained(tree, f"plain-{kept}", **method)
    assert losses == pytest.approx(expected, rel=agreement) and len(losses) == 6
    for key, value in plain.items():
        assert (state[key].float() - value.float()).norm() <= agreement * value.float().norm().clamp_min(1e-2), key
    store = checkpoint.Checkpoints(folder / "checkpoints")
    store.path(6).unlink()
    again, _, _ = trained(tree, f"kept-{kept}", cache="stem", **method)
    assert all(torch.equal(value, again[key]) for key, value in state.items())


@pytest.mark.parametrize("network", ["test_efficientnet", "test_resnet", "test_convnext"])
def test_the_rest_goes_on_from_the_frozen_stages(network: str) -> None:
    """For frozen parts that are joined, that are not, and for one behind which nothing is left."""
    for stages, frozen in (((1, 2), 2), ((2,), 1), ((0, 1), 2)):
        torch.manual_seed(0)
        encoder: Any = ENCODERS["timm"](network, stages=stages, stride=8, width=4, frozen_stages=frozen, channels=1)
        images = torch.randn(2, 1, 64, 64)
        encoder.eval()
        whole = encoder.maps(images)
        assert torch.allclose(encoder.maps_after(encoder.stem(images), (64, 64)), whole, atol=1e-6)
        assert len(encoder.stem(images)) == {(1, 2): 1, (2,): 1, (0, 1): 2}[stages]


@pytest.mark.parametrize(
    ("method", "plan", "line"),
    [
        ({}, {"copies": None}, r"method\.cache: needs plan\.copies"),
        (
            {"cache_gb": 1e-6},
            {},
            r"method\.cache: maps of the frozen stages of .* GB, more than method\.cache_gb 1e-06;",
        ),
        (
            {"encoder": {**NETWORK, "frozen_stages": 0}},
            {},
            r"method\.cache: stem keeps the maps of frozen stages; allowed",
        ),
        ({"encoder": {"name": "dilated_resnet", "depth": 9}}, {}, r"method\.cache: stem needs an encoder with frozen"),
        ({"encoder": {**NETWORK, "model": "test_vit"}}, {}, r"method\.cache: stem keeps the maps of frozen stages; "),
    ],
)
def test_what_cannot_be_kept_is_one_line(
    tree: dict[str, Any], method: dict[str, Any], plan: dict[str, Any], line: str
) -> None:
    changed = {**tree, "method": {**tree["method"], "cache": "stem", **method}, "plan": {**tree["plan"], **plan}}
    with pytest.raises(ValueError, match=rf"^{line}"):
        job.assemble(config.from_tree(changed, "test"))
