"""An encoder is found in files of any program, whole or not at all, and a refusal says what does not fit."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sslmed_dist import checkpoint, cli, config, state_dicts, weights
from sslmed_dist.models import ENCODERS
from sslmed_dist.training import job, pretrained
from sslmed_dist.verbs.export.tool import export_encoder
from tests import tiny

Tree = dict[str, Any]


def encoder(depth: int = 9, seed: int = 0, name: str = "resnet", **leaf: Any) -> Any:
    """The encoder of ``tests.tiny``, its weights drawn by ``seed``."""
    torch.manual_seed(seed)
    return ENCODERS[name](depth=depth, stem="cifar", width=4, channels=1, **leaf)


OURS: dict[str, Tensor] = encoder().state_dict()
SLOW: dict[str, Tensor] = encoder(seed=1).state_dict()


def under(prefix: str, state: Mapping[str, Tensor] = OURS) -> dict[str, Tensor]:
    """The tensors under names that begin with ``prefix``."""
    return {prefix + key: value for key, value in state.items()}


# How other programs wrap a network: the file, the prefix that is found, how many tensors are left aside.
HEAD = {"fc.weight": torch.ones(2, 3), "fc.bias": torch.ones(2)}
FILES: dict[str, tuple[Tree, str, int]] = {
    "torchvision": ({**OURS, **HEAD}, "", 2),
    "without counters": ({key: value for key, value in OURS.items() if "num_batches" not in key}, "", 0),
    "data parallel": (under("module.") | under("module.", HEAD), "module.", 2),
    "state_dict": ({"epoch": 3, "arch": "resnet", "state_dict": OURS, "optimizer": {"state": {0: {"m": 1}}}},
                   "state_dict.", 0),
    "model, backbone": ({"model": under("backbone.") | under("projector.", HEAD)}, "model.backbone.", 2),
    "MoCo": ({"state_dict": under("module.encoder_k.", SLOW) | under("module.encoder_q.") | under("module.", HEAD)},
             "state_dict.module.encoder_q.", len(OURS) + 2),
    "BYOL": (under("target_network.", SLOW) | under("online_network."), "online_network.", len(OURS)),
    "teacher alone": ({"teacher": under("module.backbone.")}, "teacher.module.backbone.", 0),
    "student and teacher": ({"teacher": under("backbone.", SLOW), "student": under("backbone.")}, "student.backbone.",
                            len(OURS)),
    "segmentation": (under("backbone.") | under("classifier.", HEAD) | under("aux_classifier.", HEAD), "backbone.", 4),
    "the same twice": ({"model": OURS, "state_dict": dict(OURS)}, "model.", len(OURS)),
}  # fmt: skip


def find(file: Path, expected: Mapping[str, Tensor] = OURS) -> weights.Found:
    """What ``weights`` finds in a file."""
    return weights.find(weights.read(file, str(file)), expected, str(file))


@pytest.mark.parametrize("kind", FILES)
def test_the_usual_wrappers(tmp_path: Path, kind: str) -> None:
    content, prefix, aside = FILES[kind]
    torch.save(content, tmp_path / "weights.pth")
    found = find(tmp_path / "weights.pth")
    assert (found.prefix, found.aside) == (prefix, aside)
    assert found.state.keys() == OURS.keys() and all(torch.equal(found.state[key], OURS[key]) for key in OURS)


@pytest.mark.parametrize("prefix", ["", "module.encoder_q.", "backbone."])
def test_safetensors_and_files_of_old_torch(tmp_path: Path, prefix: str) -> None:
    library = pytest.importorskip("safetensors.torch")
    library.save_file({key: value.clone() for key, value in under(prefix).items()}, tmp_path / "a.safetensors")
    torch.save(under(prefix), tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    for name in ("a.safetensors", "a.pth"):
        found = find(tmp_path / name)
        assert found.prefix == prefix and all(torch.equal(found.state[key], OURS[key]) for key in OURS)
    damaged = (tmp_path / "a.safetensors").read_bytes()[:-40]
    (tmp_path / "a.safetensors").write_bytes(damaged)
    with pytest.raises(ValueError, match="a.safetensors: torn or damaged safetensors"):
        find(tmp_path / "a.safetensors")


def changed(change: Callable[[dict[str, Tensor]], Any]) -> dict[str, Tensor]:
    """The encoder's tensors after ``change``."""
    state = dict(OURS)
    change(state)
    return state


REFUSED: dict[str, tuple[Tree, str]] = {
    "a deeper network": (dict(encoder(18).state_dict()), "48 unexpected (layer1.1.bn1.bias, layer1.1.bn1.num_batches_"),
    "several faults": (
        changed(lambda s: (s.pop("bn1.bias"), s.update({"conv1.weight": torch.ones(4, 3, 3, 3)}))),
        "1 missing (bn1.bias); 1 of another shape (conv1.weight (4, 3, 3, 3) in the file and (4, 1, 3, 3) here)",
    ),
    "a wrapper that lacks one": (
        {"state_dict": under("module.", changed(lambda s: s.pop("bn1.weight")))},
        "(looked under 'state_dict.module.'): 1 missing (bn1.weight)",
    ),
    "integers": (
        changed(lambda s: s.update({"bn1.bias": torch.ones(4, dtype=torch.int64)})),
        "1 of another type (bn1.bias torch.int64 in the file and torch.float32 here)",
    ),
    "NaN": (changed(lambda s: s.update({"bn1.bias": torch.full((4,), float("nan"))})), "1 not finite (bn1.bias)"),
    "infinite": (changed(lambda s: s.update({"bn1.bias": torch.full((4,), float("inf"))})), "1 not finite (bn1.bias)"),
    "a variance below 0": (
        changed(lambda s: s.update({"bn1.running_var": torch.full((4,), -1.0)})),
        "1 with variances below 0 (bn1.running_var)",
    ),
    "sparse": (
        changed(lambda s: s.update({"bn1.bias": torch.ones(4).to_sparse()})),
        "1 of another type (bn1.bias sparse torch.float32 in the file and torch.float32 here)",
    ),
    "two encoders": (under("a.") | under("b.", SLOW), "holds 2 encoders, 'a.', 'b.'; save one alone"),
    "no tensor": ({"epoch": 1}, "expected a state dict of tensors, got dict without any"),
    "two of one name": ({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}, "two tensors are called a.b"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_refusal_says_which_keys_and_shapes(tmp_path: Path, kind: str) -> None:
    content, line = REFUSED[kind]
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError) as caught:
        find(tmp_path / "weights.pth")
    assert str(caught.value).startswith(f"{tmp_path / 'weights.pth'}: ") and line in str(caught.value)
    assert "\n" not in str(caught.value)


class Evil:
    """What runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("was_run"),))


def test_no_code_of_a_file_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": OURS, "args": Evil()}, "weights.pth")
    with pytest.raises(ValueError, match=r"weights.pth: not a state dict that torch can read \(it holds a Python obj"):
        find(Path("weights.pth"))
    assert not Path("was_run").exists()


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(OURS, file)
    content = bytearray(file.read_bytes())
    place = content.find(OURS["layer4.0.conv2.weight"].numpy().tobytes())
    content[place] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="torn or damaged checkpoint"):
        find(file)


def test_misfit_counts_and_shows_a_few() -> None:
    assert state_dicts.misfit(OURS, OURS) is None
    assert state_dicts.misfit(OURS, {key: value.double() for key, value in OURS.items() if key} | {}) is not None
    floats = {key: value.half() if value.is_floating_point() else value for key, value in OURS.items()}
    assert state_dicts.misfit(OURS, floats) is None, "precision is converted"
    sparse = {**OURS, "bn1.bias": OURS["bn1.bias"].to_sparse()}
    assert state_dicts.misfit(OURS, sparse) is not None


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> config.Config:
    """The settings of a run of one step."""
    folder = tmp_path_factory.mktemp("weights")
    return job.train(tiny.settings(folder, plan={"epochs": 1, "steps_per_epoch": 1})).settings


def own_files(run: config.Config, folder: Path) -> dict[str, Path]:
    """The run's encoder in every form that this program writes, and in one of another program."""
    pytest.importorskip("safetensors")
    exported, card, _ = export_encoder(run.folder, folder / "encoder")
    state = pretrained.load(run.folder).encoder.state_dict()
    torch.save(
        {"state_dict": under("module.encoder_q.", state) | under("module.encoder_k.", SLOW)}, folder / "moco.pth"
    )
    (folder / "moco.json").write_bytes(card.read_bytes())
    return {"checkpoint": pretrained.find(run.folder), "export": exported, "MoCo": folder / "moco.pth"}


@pytest.mark.parametrize("kind", ["checkpoint", "export", "MoCo"])
def test_each_form_is_read_in_all_three_places(
    run: config.Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """As ``weights`` of the configuration, as ``run.start_from``, and by ``embed``: the same encoder."""
    file = own_files(run, tmp_path)[kind]
    expected = pretrained.load(run.folder).encoder
    for section in ({"method": {"encoder": {"weights": str(file)}}}, {"run": {"start_from": str(file)}}):
        method = pretrained.first_method(config.replace(run, **section))
        for key, value in expected.state_dict().items():
            # A checkpoint's counters are loaded where it is read as a whole; they play no part here.
            assert key.endswith(state_dicts.COUNTER) or torch.equal(method.encoder.state_dict()[key], value), key
        said = capsys.readouterr().err
        took = bool(
            re.search(r"^(method.encoder.weights|run.start_from): \d+ tensors taken .* left aside$", said, re.M)
        )
        assert took == (kind != "checkpoint" or "method" in section) and str(tmp_path) not in said
    (tmp_path / "images").mkdir()
    Image.fromarray(np.arange(144, dtype=np.uint8).reshape(12, 12)).save(tmp_path / "images" / "a.png")
    rows = []
    for source in (run.folder, file):
        out = tmp_path / f"{len(rows)}.npz"
        assert cli.main(["embed", str(source), str(tmp_path / "images"), "--out", str(out)]) == 0
        with np.load(out) as archive:
            rows.append(archive["features"])
    np.testing.assert_array_equal(*rows)


def test_a_dilated_encoder_is_loaded_with_its_own_convolution(tmp_path: Path) -> None:
    first = encoder(name="dilated_resnet", out=6)
    torch.save({"model": first.state_dict()}, tmp_path / "whole.pth")
    again = encoder(name="dilated_resnet", out=6, seed=2, weights=str(tmp_path / "whole.pth"))
    assert torch.equal(again.project.weight, first.project.weight) and "0 others" in again.taken
    torch.save(under("backbone.", first.backbone.state_dict()), tmp_path / "body.pth")
    body = encoder(name="dilated_resnet", out=6, seed=2, weights=str(tmp_path / "body.pth"))
    assert not torch.equal(body.project.weight, first.project.weight)
    assert torch.equal(body.backbone.conv1.weight, first.backbone.conv1.weight)
    with pytest.raises(ValueError, match=r"project.weight \(6, 32, 1, 1\) in the file and \(5, 32, 1, 1\) here"):
        encoder(name="dilated_resnet", out=5, weights=str(tmp_path / "whole.pth"))


@pytest.mark.parametrize(
    "change, line",
    [
        (None, "w.pth: neither a checkpoint of this program nor described: w.json beside it would have to say archite"),
        ({"channels": 0}, "w.json: channels: expected an integer >= 1, got 0"),
        ({"input": {"size": 12, "mean": [0.5], "std": [0.0]}}, "w.json: input.std: expected 1 finite numbers"),
        ({"input": {"mean": [0.5], "std": [0.1]}}, "w.json: input.size: expected an integer >= 1, got None"),
        ({"architecture": "resnet"}, "w.json: architecture: expected a mapping, got 'resnet'"),
        ({"architecture": {"name": "resnet", "depth": 7}}, "w.json: architecture.depth: expected one of 9, 18"),
        ({"part": "momentum"}, "w.json: holds the part momentum, asked for encoder"),
    ],
)
def test_weights_need_a_description_to_embed(tmp_path: Path, change: Tree | None, line: str) -> None:
    torch.save(OURS, tmp_path / "w.pth")
    leaf = {"name": "resnet", "depth": 9, "stem": "cifar", "width": 4}
    facts = {"architecture": leaf, "channels": 1, "input": {"size": 12, "mean": [0.5], "std": [0.1]}}
    if change is not None:
        (tmp_path / "w.json").write_text(json.dumps(facts | change))
    with pytest.raises(ValueError) as caught:
        pretrained.load(tmp_path / "w.pth")
    assert line in str(caught.value)
    (tmp_path / "w.json").write_text(json.dumps(facts))
    assert (
        pretrained.load(tmp_path / "w.pth").taken
        == f"{len(OURS)} tensors taken as they are, 0 others in the file left aside"
    )


@pytest.mark.parametrize("fault", ["integers", "NaN", "step", "two steps"])
def test_a_checkpoint_that_cannot_be_is_refused_by_every_verb(
    run: config.Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    saved = checkpoint.load(pretrained.find(run.folder))
    bias = saved["method"]["encoder.bn1.bias"]
    lines = {
        "integers": "1 of another type (encoder.bn1.bias torch.int64 in the file and torch.float32 here)",
        "NaN": "1 not finite (encoder.bn1.bias)",
        "step": f"contradicts its plan: step {10**8} of a run of 1 step",
        "two steps": f"contradicts itself: step 1 of the file, {10**8} of the training state",
    }
    if fault in ("integers", "NaN"):
        saved["method"]["encoder.bn1.bias"] = bias.long() if fault == "integers" else bias * float("nan")
    else:
        saved["state"]["step"] = 10**8
        saved["step"] = 10**8 if fault == "step" else 1
    tree = config.merge(saved.pop("config"), {"run": {"dir": str(tmp_path)}})
    content = {key: saved[key] for key in ("step", "method", "state", "fingerprint")}
    folder = tmp_path / "tiny"
    name = f"step_{saved['step']:09d}.pt"
    checkpoint.save(folder / "checkpoints" / name, kind="training", config=tree, **content)
    (folder / "config.yaml").write_bytes((run.folder / "config.yaml").read_bytes())
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text((run.folder / "config.yaml").read_text())
    for words in (
        ["evaluate", str(folder)],
        ["export", str(folder), str(tmp_path / "out")],
        ["train", str(recipe), f"run.dir={tmp_path}"],
    ):
        assert cli.main(words) == 2
        line = capsys.readouterr().err.splitlines()[-1].replace("(bn1", "(encoder.bn1")
        assert name in line and lines[fault] in line
    assert not list(tmp_path.glob("out*")) and not (folder / "evaluate").exists()
