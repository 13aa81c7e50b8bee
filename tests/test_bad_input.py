"""A user's mistake is one line on stderr that names the thing, exit code 2, and nothing half-written."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslmed_dist import checkpoint, cli, plain_yaml
from sslmed_dist.training import job
from tests import tiny

Capture = pytest.CaptureFixture[str]


def configuration(folder: Path, **sections: Any) -> Path:
    """tiny.yaml with ``sections`` merged over it."""
    path = folder / "tiny.yaml"
    path.write_text(plain_yaml.write(tiny.tree(folder, **sections)))
    return path


def refused(capsys: Capture, *arguments: str | Path) -> str:
    """The one line of stderr, without ``sslmed VERB: ``; the exit code is 2."""
    capsys.readouterr()
    try:
        code: Any = cli.main([str(argument) for argument in arguments])
    except SystemExit as error:  # argparse's own
        code = error.code
    out, err = capsys.readouterr()
    assert code == 2 and out == ""
    assert len(err.splitlines()) == 1 and err.endswith("\n") and "Traceback" not in err
    return re.sub(r"^sslmed( \w+)?: ", "", err.rstrip("\n"))


@pytest.mark.parametrize(
    "sections, message",
    [
        ({"plan": {"epoch": 3}}, "{config}: plan.epoch: unknown key; allowed: epochs, batch_size, "),
        ({"plan": {"epochs": "three"}}, "{config}: plan.epochs: expected int, got 'three'"),
        ({"data": {"splits": 3}}, "data.splits: unknown key; allowed: root, deduplicate, classes, subset"),
        ({"data": {"name": "cifar", "root": "x"}}, "data.name: 'cifar' is unknown; allowed: "),
        ({"data": {"root": "gone.npz"}}, "gone.npz: no such file or folder"),
        ({"data": {"subset": {"name": "tail"}}}, "data.subset.name: 'tail' is unknown; allowed: "),
        ({"views": {"sise": 3}}, "views.sise: unknown key; allowed: size, "),
        ({"views": {"size": -1}}, "views.size: "),
        (
            {"method": {"name": "simclr", "loss": "x"}},
            "method.name: 'simclr' is unknown; allowed: byol, classify, contrastive, ",
        ),
        ({"method": {"loss": {"name": "infonce", "t": 1}}}, "method.loss.name: 'infonce' is unknown; allowed: "),
        ({"method": {"loss": {"temperature": "0.2"}}}, "method.loss.temperature: expected float or mapping, got '0.2'"),
        ({"method": {"channels": 3}}, "method.channels: 3, but tiny has 1"),
        ({"method": {"encoder": {"weights": "gone.pth"}}}, "method.encoder.weights: gone.pth: no such file"),
        ({"optim": {"lr": -1}}, "optim.lr: expected a number > 0, got -1"),
        ({"plan": {"batch_size": 64}}, "batches: tiny has 48 samples x 1 draws, fewer than one batch of 64; allowed: "),
        ({"plan": {"precision": "fp16"}}, "plan.precision: fp16 needs a CUDA device, this is cpu; allowed here: "),
        (
            {"evaluate": {"protocols": [{"name": "svm"}]}},
            "evaluate.protocols.name: 'svm' is unknown; allowed: exam_probe, knn, ",
        ),
        ({"evaluate": {"protocols": [{"name": "knn", "kk": 1}]}}, "evaluate.protocols.kk: unknown key; allowed: k, "),
    ],
)
def test_mistakes_in_the_configuration(tmp_path: Path, capsys: Capture, sections: Any, message: str) -> None:
    path = configuration(tmp_path, **sections)
    for option in ("--resume=auto", "--check"):
        line = refused(capsys, "train", path, option)
        assert line.startswith(message.replace("{config}", str(path))), line
    assert not (tmp_path / "runs").exists(), "nothing half-written"


def test_mistakes_on_the_command_line(tmp_path: Path, capsys: Capture) -> None:
    path = configuration(tmp_path)
    assert refused(capsys, "train", tmp_path / "gone.yaml") == f"{tmp_path / 'gone.yaml'}: no such configuration file"
    line = refused(capsys, "train", path, "plan.epochs")
    assert line == "override 'plan.epochs': expected section.key=value, such as plan.epochs=3"
    assert refused(capsys, "train", path, "--resume", "maybe").startswith("argument --resume: invalid choice: 'maybe'")
    assert refused(capsys, "train", path, "--chekc") == "unrecognized argument '--chekc'; see sslmed --help"
    assert refused(capsys, "demo", "a=b") == "unrecognized argument 'a=b'; see sslmed --help"
    for words in (("data", "pack", "image_folder", "src", "s3://b/x"), ("export", "run", "gs://b/x")):
        assert f"{words[-1]}: is an address; expected a path of this machine" in refused(capsys, *words)
    line = refused(capsys, "train", path, "run.dir=s3://b/runs")
    assert "run.dir: s3://b/runs: is an address; allowed: a path of this machine" in line
    assert refused(capsys, "trian").startswith("argument VERB: invalid choice: 'trian' (choose from ")
    assert refused(capsys, "train") == "the following arguments are required: CONFIG; see sslmed train --help"
    path.write_text("plan: [1\n")
    assert refused(capsys, "train", path).startswith(f"{path}: not valid YAML: ")
    assert not (tmp_path / "runs").exists()


def test_a_gpu_that_is_not_there(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = refused(capsys, "train", configuration(tmp_path), "run.device=cuda")
    assert line == "run.device: cuda asked for, but torch sees no CUDA device; allowed here: cpu, auto"


@pytest.mark.parametrize("kind", ["truncated", "text", "other arrays", "no labels", "pickle"])
def test_damaged_data(tmp_path: Path, capsys: Capture, kind: str) -> None:
    path, images = configuration(tmp_path), tmp_path / "tiny.npz"
    pictures = np.zeros((3, 12, 12), np.uint8)
    if kind == "truncated":
        images.write_bytes(images.read_bytes()[:-200])
    elif kind == "text":
        images.write_text("not an archive")
    elif kind == "other arrays":
        np.savez(images, x=pictures)
    elif kind == "no labels":
        np.savez(images, train_images=pictures)
    else:
        np.savez(images, train_images=np.array([{}]), train_labels=np.zeros(1, np.uint8))
    assert refused(capsys, "train", path).startswith(f"{images}: ")
    assert not (tmp_path / "runs").exists()


def test_the_folder_of_another_run(tmp_path: Path, capsys: Capture) -> None:
    path = configuration(tmp_path, plan={"epochs": 1, "steps_per_epoch": 1})
    assert cli.main(["train", str(path)]) == 0
    run = tmp_path / "runs" / "tiny"
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    line = refused(capsys, "train", path, "optim.lr=0.5", "run.seed=3", "plan.log_every=7")
    # Another seed draws other samples for the constants of normalisation, but the set is smaller than the draw.
    assert line == f"{run}: holds another run (different: optim.lr, run.seed); choose another run.name"
    line = refused(capsys, "train", path, "--resume", "never")
    assert line == f"{run}: holds a run already; choose another run.name, or --resume auto"
    assert before == {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}


def test_a_torn_checkpoint_ends_the_run_and_lets_go_of_the_folder(tmp_path: Path, capsys: Capture) -> None:
    path = configuration(tmp_path, plan={"epochs": 1, "steps_per_epoch": 2})
    assert cli.main(["train", str(path)]) == 0
    latest = tmp_path / "runs" / "tiny" / "checkpoints" / "step_000000002.pt"
    whole = latest.read_bytes()
    latest.write_bytes(whole[: len(whole) // 2])
    for _ in range(2):
        assert refused(capsys, "train", path).startswith(f"{latest}: torn or damaged checkpoint (")
    torch.save({"w": torch.ones(2)}, latest)
    assert refused(capsys, "evaluate", latest.parents[1]) == f"{latest}: not a checkpoint of this program"
    latest.write_bytes(whole)
    assert cli.main(["train", str(path)]) == 0


def test_a_checkpoint_of_another_run_in_the_folder(tmp_path: Path, capsys: Capture) -> None:
    settings = tiny.settings(tmp_path, plan={"epochs": 1, "steps_per_epoch": 1})
    other = job.train(tiny.settings(tmp_path, plan={"epochs": 1, "steps_per_epoch": 1}, run={"name": "b", "seed": 3}))
    saved = checkpoint.Checkpoints(other.settings.folder / "checkpoints").latest()
    assert saved is not None
    (settings.folder / "checkpoints").mkdir(parents=True)
    target = settings.folder / "checkpoints" / saved.name
    target.write_bytes(saved.read_bytes())
    line = refused(capsys, "train", configuration(tmp_path, plan={"epochs": 1, "steps_per_epoch": 1}))
    assert line == f"{target}: checkpoint of another run (configuration fingerprint differs)"


def test_what_is_not_a_run(tmp_path: Path, capsys: Capture) -> None:
    line = f"{tmp_path}: neither a checkpoint file nor a run folder with checkpoints"
    for arguments in (("evaluate", tmp_path), ("export", tmp_path, tmp_path / "out"), ("embed", tmp_path, tmp_path)):
        assert refused(capsys, *arguments) == line
    (tmp_path / "checkpoints").mkdir()
    line = f"{tmp_path}: no checkpoint 'last'; allowed: last, (none yet)"
    assert refused(capsys, "evaluate", tmp_path) == line
    for name in ("step_000000007.pt", "round_00002.pt"):
        (tmp_path / "checkpoints" / name).write_text("x")
    line = refused(capsys, "evaluate", tmp_path, "--which", "step_8")
    assert line == f"{tmp_path}: no checkpoint 'step_8'; allowed: last, step_7, round_2"
    file = tmp_path / "checkpoints" / "step_000000007.pt"
    assert refused(capsys, "evaluate", file) == f"{file}: expected a run folder; the results go into it"


def test_what_is_not_a_users_mistake_has_its_own_exit_code(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = configuration(tmp_path, optim={"lr": 1e38})
    assert cli.main(["train", str(path)]) == 1
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("sslmed train: NonFinite: step ") and "first non-finite module: " in err
    monkeypatch.setenv("SSLMED_TRACEBACK", "1")
    with pytest.raises(ValueError, match="no such configuration file"):
        cli.main(["train", "gone.yaml"])
