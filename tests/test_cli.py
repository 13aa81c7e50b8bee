"""``sslmed VERB`` end to end on a tiny run: what it prints, writes and returns."""

import json
import re
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from sslmed_dist import checkpoint, cli, plain_yaml
from sslmed_dist.atomic_files import sha256
from sslmed_dist.models.resnet import ResNet
from sslmed_dist.run_folder import Metrics
from sslmed_dist.training import pretrained
from sslmed_dist.verbs import doctor
from tests import tiny


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.yaml and a run trained from it."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.yaml").write_text(plain_yaml.write(tiny.tree(folder, plan={"keep_last": 9})))
    assert cli.main(["train", str(folder / "tiny.yaml")]) == 0
    return folder


@pytest.fixture
def run(workplace: Path) -> Path:
    """The run folder."""
    return workplace / "runs" / "tiny"


def test_train_writes_a_run_folder(workplace: Path, run: Path) -> None:
    assert {path.name for path in run.iterdir()} == {
        ".lock",
        "checkpoints",
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "samples.jsonl",
    }
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings["method"]["channels"] == 1 and 0 < settings["views"]["mean"][0] < 1, "what data decides is written"
    assert checkpoint.Checkpoints(run / "checkpoints").steps() == [1, 2, 3, 4, 5, 6]
    rows = list(Metrics(run / "metrics.jsonl").read())
    names = {"loss", "lr", "gradient_norm", "embedding_std", "effective_rank", "uniformity", "alignment", "wait_share"}
    assert {row["name"] for row in rows} == names and {row["step"] for row in rows} == set(range(1, 7))
    assert {(row["step"], row["epoch"]) for row in rows} == {(1, 0), (2, 0), (3, 0), (4, 1), (5, 1), (6, 1)}


def test_training_again_has_nothing_to_do(workplace: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {path: path.read_bytes() for path in (run / "checkpoints").iterdir()}
    metrics = (run / "metrics.jsonl").read_text()
    assert cli.main(["train", str(workplace / "tiny.yaml"), "--resume", "auto", "plan.log_every=5"]) == 0
    assert capsys.readouterr().out.splitlines() == [str(run)]
    assert files == {path: path.read_bytes() for path in (run / "checkpoints").iterdir()}
    assert metrics == (run / "metrics.jsonl").read_text()


def test_overrides_may_stand_before_and_after_options() -> None:
    for words in ("a.yaml a.b=1 --check --resume never c=2", "a.yaml --check --resume never a.b=1 c=2"):
        arguments = cli.parse(["train", *words.split()])
        assert (arguments.overrides, arguments.check, arguments.resume) == (["a.b=1", "c=2"], True, "never")


@pytest.mark.parametrize(
    "words",
    [
        "embed RUN IMAGES --out a --out b",
        "report RUN --tensorboard a --tensorboard b",
        "evaluate RUN --which last --which step_1",
        "train a.yaml --resume never --resume=auto",
        "reproduce table-5.2 --seeds 1 --seeds 3",
    ],
)
def test_an_option_that_comes_twice_is_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.parse(words.split())
    assert "stands on the command line twice; give it once" in capsys.readouterr().err


def test_words_of_an_option_that_comes_again_are_added() -> None:
    segment = "segment --model m --support s --support-mask k --query q --out o --labels 1 --labels 2 3"
    assert cli.parse(segment.split()).labels == [1, 2, 3]


def test_check_prints_the_plan_and_writes_nothing(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(workplace.rglob("*"))
    assert cli.main(["train", str(workplace / "tiny.yaml"), "--check", "run.name=other"]) == 0
    out = capsys.readouterr().out
    titles = ["run", "data", "method", "plan", "device", "memory", "time", "slowest", "evaluate"]
    assert [line.split()[0] for line in out.splitlines()] == titles
    assert "other, seed 0, fingerprint " in out and "tiny: 48 samples, 1 channel, 2 classes" in out
    assert "2 epochs x 3 steps = 6 steps of 16" in out and "contrastive: 20,164 parameters" in out
    assert sorted(workplace.rglob("*")) == before


def test_evaluate(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", str(run)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(run / "evaluate" / "last.json")
    result = json.loads((run / "evaluate" / "last.json").read_text())
    latest = run / "checkpoints" / "step_000000006.pt"
    assert result["encoder"] == {"file": latest.name, "sha256": sha256(latest)}
    arms = {row["arm"] for row in result["rows"]}
    assert {"encoder", "random", "raw_pixels"} <= arms
    assert all(0 <= row["value"] <= 1 for row in result["rows"] if row["arm"] in ("encoder", "random", "raw_pixels"))
    assert cli.main(["evaluate", str(run), "--which", "step_3"]) == 0
    assert json.loads((run / "evaluate" / "step_3.json").read_text())["encoder"]["file"] == "step_000000003.pt"


def test_embed_a_folder_of_pictures(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = (torch.arange(3 * 12 * 12) % 251).to(torch.uint8).view(3, 12, 12)
    for number, picture in enumerate(pixels.numpy()):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "pictures" / f"{2 - number}.png")
    out = tmp_path / "features.npz"
    assert cli.main(["embed", str(run), str(tmp_path / "pictures"), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: 3 images\n"
    found = pretrained.load(run)
    mean, std = (torch.tensor(found.settings.views[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    expected = found.encoder((pixels.flip(0)[:, None] / 255 - mean) / std).detach()
    with np.load(out) as archive:
        assert archive["index"].tolist() == [0, 1, 2], "files in sorted order"
        torch.testing.assert_close(torch.from_numpy(archive["features"]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["encoder", "encoder-v0.2", "encoder.safetensors"])
def test_export_reads_back_as_the_same_encoder(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    assert cli.main(["export", str(run), str(tmp_path / name)]) == 0
    stem = name.removesuffix(".safetensors")
    weights, card = tmp_path / f"{stem}.safetensors", tmp_path / f"{stem}.json"
    assert capsys.readouterr().out.splitlines() == [str(weights), str(card), str(card.with_suffix(".md"))]
    facts = json.loads(card.read_text())
    leaf = {key: value for key, value in facts["architecture"].items() if key != "name"}
    again = ResNet(**leaf, channels=facts["channels"]).eval()
    again.load_state_dict(safetensors.load_file(weights))
    found = pretrained.load(run)
    images = torch.linspace(-1, 1, 2 * 144).view(2, 1, 12, 12)
    assert torch.equal(again(images), found.encoder(images)) and again.feature_dim == facts["feature_dim"] == 32
    assert facts["source_sha256"] == sha256(found.file)
    assert facts["input"]["size"] == 12 and facts["input"]["mean"] == found.settings.views["mean"]


def test_a_float64_run_is_evaluated_too(workplace: Path) -> None:
    overrides = ["plan.precision=float64", "plan.epochs=1", "run.name=exact"]
    assert cli.main(["train", str(workplace / "tiny.yaml"), *overrides]) == 0
    assert cli.main(["evaluate", str(workplace / "runs" / "exact")]) == 0


def test_doctor_looks_for_every_extra_that_a_user_installs() -> None:
    extras = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert set(doctor.EXTRAS) == set(extras) - {"dev", "docs", "parity"}
    for extra, (_, package) in doctor.EXTRAS.items():
        assert package in {re.split(r"[\[<>=]", wanted)[0] for wanted in extras[extra]}


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong with this machine is not the test's business: the checks answer as on a good and on a bad one."""
    for name in ("shared_memory", "writable", "loopback"):
        assert isinstance(getattr(doctor, name)(), list)
        monkeypatch.setattr(doctor, name, lambda: [])
    monkeypatch.setattr(doctor, "DISK", 0)
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "Python 3." in out and "cores, GPU: " in out and "free disk here: " in out and "problem" not in out
    monkeypatch.setattr(doctor, "DISK", 2**60)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda _: None)
    assert cli.main(["doctor"]) == 2
    out = capsys.readouterr().out
    assert "problem: only " in out and "extra ray: not installed (pip install 'sslmed-dist[ray]')" in out


@pytest.mark.parametrize("verb", ["train", "evaluate", "report"])
def test_no_verb_writes_through_a_link(
    workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    (tmp_path / "outside").mkdir()
    shutil.copytree(workplace, tmp_path / "copy")
    run = tmp_path / "copy" / "runs" / "tiny"
    shutil.rmtree(run / "evaluate", ignore_errors=True)
    (run / "evaluate").symlink_to(tmp_path / "outside")
    words = {"train": [str(workplace / "tiny.yaml"), f"run.dir={run.parent}"]}.get(verb, [str(run)])
    capsys.readouterr()
    assert cli.main([verb, *words]) == 2
    line = f"{run / 'evaluate'}: is a link; in a run folder nothing is written or deleted through one"
    assert capsys.readouterr().err.splitlines()[-1] == f"sslmed {verb}: {line}"
    assert list((tmp_path / "outside").iterdir()) == [] and not (run / "report.html").exists()
