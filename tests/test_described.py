"""A file may describe a network or an input of any size: nothing is allocated before what it holds is compared."""

import json
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sslmed_dist import checkpoint, config
from sslmed_dist.models import ENCODERS
from sslmed_dist.training import pretrained
from tests import tiny

MOST_GROWTH = 2**27  # bytes: what a refusal may take
LEAF = {"name": "resnet", "depth": 9, "stem": "cifar", "width": 4}
FACTS: dict[str, Any] = {"architecture": LEAF, "channels": 1, "input": {"size": 12, "mean": [0.5], "std": [0.1]}}


@pytest.fixture(autouse=True)
def bounded() -> Any:
    """No test of this file takes much memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_GROWTH


def state_of(width: int = 4, device: str = "cpu") -> dict[str, Tensor]:
    """The state dict of an encoder of this width."""
    with torch.device(device):
        made = ENCODERS["resnet"](depth=9, stem="cifar", width=width, channels=1)
    return dict(made.state_dict())


def repeated(expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of these names and shapes that all show one stored number."""
    return {key: torch.zeros((), dtype=value.dtype).expand(value.shape) for key, value in expected.items()}


def described(folder: Path, state: Mapping[str, Tensor], change: Mapping[str, Any]) -> Path:
    """A file of weights and its description."""
    torch.save(dict(state), folder / "w.pth")
    (folder / "w.json").write_text(json.dumps(FACTS | dict(change)))
    return folder / "w.pth"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"architecture": {**LEAF, "width": 512}}, "of another shape (bn1.bias (4,) in the file and (512,) here, bn1"),
        ({"architecture": {**LEAF, "width": 10**6}}, "w.json: architecture: describes a network of "),
        (
            {"architecture": {**LEAF, "width": 2**50}},
            "w.json: architecture: describes a network that cannot be built",
        ),
        ({"input": {**FACTS["input"], "size": 10**6}}, "w.json: input.size: 1,000,000 pixels; allowed: at most 8,192"),
        (
            {"input": {**FACTS["input"], "scale": "[0, 255]"}},
            "w.json: input.scale: got '[0, 255]'; allowed: '[0, 1] bef",
        ),
        ({"input": {**FACTS["input"], "mean": [float("nan")]}}, "w.json: not valid JSON: NaN is not a number of JSON"),
        ({"input": {**FACTS["input"], "mean": [10**300]}}, "w.json: input.mean: expected 1 finite numbers"),
    ],
)
def test_a_description_that_asks_for_more_than_the_weights_hold(
    tmp_path: Path, change: Mapping[str, Any], line: str
) -> None:
    path = described(tmp_path, state_of(), change)
    with pytest.raises(ValueError) as caught:
        pretrained.load(path)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_one_stored_number_is_not_taken_for_a_network(tmp_path: Path) -> None:
    state = repeated(state_of(512, "meta"))
    path = described(tmp_path, state, {"architecture": {**LEAF, "width": 512}})
    with pytest.raises(ValueError, match=r"w.pth: its tensors have [\d,]+ bytes; allowed: 8 times"):
        pretrained.load(path)
    tree = config.to_tree(tiny.settings(tmp_path, method={"channels": 1, "encoder": {"width": 512}}))
    saved = checkpoint.save(
        tmp_path / "round_00001.pt",
        kind="encoder",
        config=tree,
        fingerprint="",
        round=1,
        method={f"encoder.{key}": value for key, value in state.items()},
    )
    with pytest.raises(ValueError, match=r"round_00001.pt: method: its tensors have [\d,]+ bytes; allowed: 8 times"):
        pretrained.load(saved)


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"method": {"encoder": {"width": 512}}}, "does not fit this architecture: "),
        ({"method": {"head": {"hidden": 2**45}}}, "method: describes a network of "),
        ({"views": {"size": 10**6}}, "views.size: 1,000,000 pixels; allowed: at most 8,192"),
    ],
)
def test_so_is_the_configuration_in_a_checkpoint(tmp_path: Path, sections: dict[str, Any], line: str) -> None:
    tree = config.to_tree(tiny.settings(tmp_path, **{"method": {"channels": 1}, **sections}))
    tree["method"]["channels"] = 1
    method = {f"encoder.{key}": value for key, value in state_of().items()}
    path = checkpoint.save(
        tmp_path / "round_00001.pt", kind="encoder", config=tree, fingerprint="", round=1, method=method
    )
    with pytest.raises(ValueError) as caught:
        pretrained.load(path)
    assert str(caught.value).startswith(f"{path}: ") and line in str(caught.value)


RESNET: dict[str, Any] = {"depth": 9, "stem": "cifar", "width": 4}
# A small one of each encoder; a new one has to be named here.
SMALL: dict[str, dict[str, Any]] = {
    "resnet": RESNET,
    "dilated_resnet": RESNET,
    "sslacl": {"width": 0.004},
    "skid": {"width": 0.016},
    "timm": {"model": "test_resnet"},
    "vgg": {"depth": 11, "batch_norm": True, "width": 0.0625},
    "alexnet": {},
    "se_net": {"segmenter": 4, "conditioner": 2},
}


@pytest.mark.parametrize("name", ENCODERS)
def test_an_outline_is_filled_with_all_that_the_encoder_is(name: str) -> None:
    """Bit for bit what an encoder built at once computes: nothing of it lies outside of its state dict."""
    if name == "timm":
        pytest.importorskip("timm")
    torch.manual_seed(0)
    own = ENCODERS[name](**SMALL[name], channels=1).eval()
    outline = pretrained.outlined(lambda: ENCODERS[name](**SMALL[name], channels=1), "here").eval()
    assert all(tensor.is_meta for tensor in outline.state_dict().values())
    pretrained.fill(outline, own.state_dict())
    images = torch.rand(2, 1, 64, 64)
    assert torch.equal(outline(images), own(images))
