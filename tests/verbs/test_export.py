"""An export is read back as the same encoder, by us and by the libraries that it is written for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sslmed_dist as sd
from sslmed_dist import checkpoint, cli, config
from sslmed_dist.atomic_files import sha256
from sslmed_dist.training import build, job, pretrained
from sslmed_dist.verbs.export import formats, onnx_graph
from sslmed_dist.verbs.export.tool import export_encoder
from tests import tiny

ROOT = Path(__file__).parents[2]
SIZE = 32
LICENCES = {"licence": "cc-by-nc-4.0", "data_licence": "CC BY 4.0"}


def write_run(folder: Path, channels: int, **encoder: Any) -> Path:
    """A run folder with a checkpoint of drawn weights and statistics."""
    tree: dict[str, Any] = {
        "run": {"name": folder.name, "dir": str(folder.parent), "device": "cpu"},
        "data": {"name": "medmnist", "root": str(folder / "secret.npz")},
        "views": {"name": "contrastive", "size": SIZE, "mean": [0.4] * channels, "std": [0.2] * channels},
        "method": {"name": "contrastive", "channels": channels, "encoder": {"name": "resnet", **encoder}},
    }
    settings = config.from_tree(tree, "test")
    torch.manual_seed(3)
    method = build.build_method(settings)
    for module in method.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)  # type: ignore[union-attr, operator]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr, operator]
    content = {"config": config.to_tree(settings), "fingerprint": config.fingerprint(settings)}
    file = folder / "checkpoints" / "step_000000001.pt"
    checkpoint.save(file, kind="training", step=1, method=method.state_dict(), state={}, **content)
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Runs of ResNet-18 with one and with three channels."""
    folder = tmp_path_factory.mktemp("published")
    return {channels: write_run(folder / f"run{channels}", channels) for channels in (1, 3)}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step, evaluated."""
    folder = tmp_path_factory.mktemp("small")
    run = job.train(tiny.settings(folder, plan={"epochs": 1, "steps_per_epoch": 1})).settings.folder
    assert cli.main(["evaluate", str(run)]) == 0
    return run


def images(channels: int, size: int = SIZE) -> Tensor:
    """Normalised images (4, channels, size, size)."""
    return torch.randn(4, channels, size, size, generator=torch.Generator().manual_seed(0))


def by_torchvision(folder: Path, channels: int) -> torch.nn.Module:
    import torchvision

    network: Any = torchvision.models.resnet18()
    if channels != 3:
        network.conv1 = torch.nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    network.fc = torch.nn.Identity()
    network.load_state_dict(torch.load(f"{folder}.pth", weights_only=True))
    return network


def by_timm(folder: Path, channels: int) -> torch.nn.Module:
    timm = pytest.importorskip("timm")
    network: torch.nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    facts = network.pretrained_cfg
    assert tuple(facts["input_size"]) == (channels, SIZE, SIZE) and list(facts["mean"]) == [0.4] * channels
    return network


LOADERS: dict[str, Callable[[Path, int], torch.nn.Module]] = {"torchvision": by_torchvision, "timm": by_timm}


@pytest.mark.parametrize(("library", "channels"), [("torchvision", 1), ("timm", 3)])
def test_another_library_gives_the_same_features(
    published: dict[int, Path], tmp_path: Path, library: str, channels: int
) -> None:
    pytest.importorskip("safetensors")
    out = tmp_path / "encoder"
    weights = export_encoder(published[channels], out, format=library)[0]
    network = LOADERS[library](out, channels).eval()
    expected = pretrained.load(published[channels]).encoder(images(channels))
    torch.testing.assert_close(network(images(channels)), expected, rtol=1e-5, atol=1e-5)
    again = sd.load_encoder(weights)
    assert torch.equal(again.encoder(images(channels)), expected), "our own reading"


def test_a_timm_encoder_goes_back_to_timm(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    run = write_run(tmp_path / "run", 1, name="timm", model="resnet18")
    weights, *_ = export_encoder(run, tmp_path / "out", format="timm")
    network = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    grey = images(1)
    expected = pretrained.load(run).encoder(grey)
    torch.testing.assert_close(network(grey.expand(-1, 3, -1, -1)), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(sd.load_encoder(weights).encoder(grey), expected)


@pytest.mark.parametrize("format", ["safetensors", "huggingface"])
def test_our_own_reading_of_a_network_that_no_library_has(small: Path, tmp_path: Path, format: str) -> None:
    pytest.importorskip("safetensors")
    weights = export_encoder(small, tmp_path / "e", format=format)[0]
    assert torch.equal(sd.load_encoder(weights).encoder(images(1, 12)), sd.load_encoder(small).encoder(images(1, 12)))


@pytest.mark.slow
def test_an_onnx_graph_computes_what_torch_does(small: Path, tmp_path: Path) -> None:
    for library in onnx_graph.LIBRARIES:
        pytest.importorskip(library)
    import onnxruntime

    graph, card, _ = export_encoder(small, tmp_path / "e", format="onnx")
    stored = torch.arange(5 * 144, dtype=torch.uint8).view(5, 1, 12, 12)
    session = onnxruntime.InferenceSession(graph)
    features = session.run(None, {"images": (stored.float() / 255).numpy()})[0]
    expected = sd.load_encoder(small)(stored).numpy()
    assert features.shape == (5, 32) and np.abs(features - expected).max() <= 1e-4 * np.abs(expected).max()
    facts = json.loads(card.read_text())
    assert 0 <= facts["onnx_difference"] <= 1e-4 and facts["weights_sha256"] == sha256(graph)
    content = graph.read_bytes()
    assert str(ROOT).encode() not in content and b"site-packages" not in content
    other = onnx_graph.Normalised(pretrained.untrained(sd.load_encoder(small).settings), [0.5], [0.25]).eval()
    with pytest.raises(ValueError, match=r"the graph differs from torch by .*; allowed: 0\.0001"):
        onnx_graph.compared(content, other, 1, 12)


@pytest.mark.slow
def test_a_monai_bundle_segments_as_the_tool_does(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    monai = pytest.importorskip("monai.bundle")
    from sslmed_dist.data.phantom.abdomen import write_abdomen
    from sslmed_dist.verbs.segment import tool
    from tests.verbs.segment import test_tool

    scans = write_abdomen(tmp_path / "scans", exams=2, sites=1, size=64, slices=10, seed=1)
    words = {"support": scans / "image_01.nii.gz", "support_mask": scans / "label_01.nii.gz"}
    words["query"] = scans / "image_02.nii.gz"
    run, bundle = test_tool.write_run(tmp_path / "run"), tmp_path / "bundle"
    export_encoder(run, bundle, format="monai")
    tool.segment(run, out=tmp_path / "own", device="cpu", **words)
    given = {key: str(value) for key, value in words.items()}
    out = tmp_path / "theirs"
    config_file = str(bundle / "configs" / "inference.json")
    monai.run(
        run_id="run", config_file=config_file, bundle_root=str(bundle), meta_file=str(bundle / "configs/metadata.json"),
        out=str(out), device="cpu", **given,
    )  # fmt: skip
    for own in (tmp_path / "own").glob("*.nii.gz"):
        assert (out / own.name).read_bytes() == own.read_bytes(), own.name
    parser = monai.ConfigParser()
    parser.read_config(config_file)
    parser["bundle_root"] = str(bundle)
    network = parser.get_parsed_content("network_def")
    slices = images(1, 64)
    assert torch.equal(network.maps(slices), pretrained.load(run).encoder.maps(slices))  # type: ignore[operator]
    assert (bundle / "docs" / "README.md").read_text().startswith('---\nwritten_by: "sslmed export"\n')


def test_the_card_says_data_licence_figures_and_limits(small: Path, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    _, file, card = export_encoder(small, tmp_path / "e", **LICENCES)
    facts, text = json.loads(file.read_text()), card.read_text()
    samples = pretrained.load(small).samples
    assert samples is not None
    assert facts["data"]["digest"] == samples["digest"] and samples["digest"] in text and "48 samples" in text
    assert facts["licence"] == "cc-by-nc-4.0" and 'license: "cc-by-nc-4.0"' in text and "CC BY 4.0" in text
    row = next(row for row in facts["figures"] if (row["arm"], row["metric"]) == ("encoder", "accuracy"))
    assert f"| knn | accuracy | encoder | {row['value']:.4g} [{row['low']:.4g}, {row['high']:.4g}] | 24 |" in text
    assert "| knn | accuracy | random |" in text and "| knn | accuracy | raw\\_pixels |" in text.replace(
        "raw_p", "raw\\_p"
    )
    assert "## Limits" in text and "Research use only, not a medical device." in text
    assert "tiny.npz" not in text + file.read_text() and str(tmp_path.parent) not in text + file.read_text()
    _, file, card = export_encoder(small, tmp_path / "f")
    assert json.loads(file.read_text())["licence"] is None and 'license: "unknown"' in card.read_text()
    assert card.read_text().count("not stated; ask whoever holds the rights") == 2


def test_results_of_another_checkpoint_are_not_this_ones(small: Path, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    results = small / "evaluate" / "last.json"
    before = results.read_text()
    tree = json.loads(before)
    results.write_text(json.dumps({**tree, "encoder": {**tree["encoder"], "sha256": "0" * 64}}))
    try:
        _, file, card = export_encoder(small, tmp_path / "e")
    finally:
        results.write_text(before)
    assert json.loads(file.read_text())["figures"] == [] and "Not measured" in card.read_text()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["e", "--format", "tf"],
            "--format: tf: unknown; allowed: safetensors, torchvision, timm, huggingface, onnx, m",
        ),
        (["e", "--format", "torchvision"], "--format torchvision: torchvision has no such network as {'depth': 9"),
        (["e", "--format", "timm"], "--format timm: timm has no such network as {'depth': 9"),
        (["e", "--format", "monai"], "does not say how large the pixels of its training slices were"),
        (
            ["e.onnx"],
            "e.onnx: this format writes .safetensors, .json, .md; give a name without .onnx, or another --for",
        ),
        (["full", "--format", "huggingface"], "full: exists and is not empty; a folder is made whole"),
        (["full"], "full: is a folder; --out expects the name of the files in it"),
    ],
)
def test_a_refusal_is_one_line_and_writes_nothing(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    words: list[str], line: str,
) -> None:  # fmt: skip
    pytest.importorskip("safetensors")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert cli.main(["export", str(small), *words]) == 2
    said = capsys.readouterr().err
    assert line in said and len(said.splitlines()) == 1
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "mine.txt"]


@pytest.mark.parametrize("format", ["safetensors", "onnx", "huggingface", "monai"])
def test_a_missing_library_is_named_with_what_installs_it(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    extra = "onnx" if format == "onnx" else "report"
    with pytest.raises(ValueError, match=rf"needs \w+: pip install 'sslmed-dist\[{extra}\]'"):
        export_encoder(small, tmp_path / "e", format=format)
    assert not list(tmp_path.iterdir())


def test_every_format_is_named_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["export", "--help"])
    said = capsys.readouterr().out
    assert all(name in said for name in formats.FORMATS)
