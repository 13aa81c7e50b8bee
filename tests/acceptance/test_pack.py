"""``make gpu-pack``: what it writes, checks, and says is missing."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from sslmed_dist.data.dataset import Split
from sslmed_dist.data.exams.episodes import Episodes
from sslmed_dist.data.images.natural import cifar10_jpeg
from sslmed_dist.data.phantom import PHANTOMS
from sslmed_dist.models import ENCODERS
from tests.acceptance import pack, rehearsal
from tests.acceptance.parts import PARTS


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set of images, five phantom exams, and weights of two networks under foreign wrappers."""
    folder = tmp_path_factory.mktemp("source")
    rehearsal.write_images(folder / pack.CIFAR)
    PHANTOMS["abdomen"](folder / pack.EXAMS, exams=5, sites=1, size=64, slices=12)
    (folder / pack.NETWORKS).mkdir()
    torch.save({"stem.weight": torch.zeros(3)}, folder / pack.NETWORKS / "a.pth")
    network = ENCODERS["resnet"](depth=18, channels=3)
    wrapped = {f"module.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": wrapped}, folder / pack.NETWORKS / "b.pth")
    return folder


@pytest.mark.slow
def test_everything_is_written_and_read_back(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "out"
    assert pack.pack(source, out) == []
    assert {path.name for path in out.iterdir()} == {
        *(pack.CIFAR, pack.CIFAR_SMALL, pack.EPISODES, pack.WEIGHTS, pack.DESCRIPTION)
    }
    assert {name for part in PARTS for name in part.needs} <= {path.name for path in out.iterdir()}
    whole, small = (cifar10_jpeg(out / name) for name in (pack.CIFAR, pack.CIFAR_SMALL))
    assert torch.equal(whole.images, small.images) and torch.equal(whole.labels, small.labels)
    folder, packed = (
        Episodes(root, fold=0, split="train", cache="") for root in (source / pack.EXAMS, out / pack.EPISODES)
    )
    assert torch.equal(folder.images, packed.images) and torch.equal(folder.maps, packed.maps)
    with zipfile.ZipFile(out / pack.EPISODES) as archive:
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_LZMA}
    described = json.loads((out / pack.DESCRIPTION).read_text())
    assert described == {"encoder": {"name": "dilated_resnet", "depth": 18, "out": 256}, "source": "b.pth"}
    leaf = {key: value for key, value in described["encoder"].items() if key != "name"}
    ENCODERS["dilated_resnet"](**leaf, weights=str(out / pack.WEIGHTS), channels=1)


def test_the_small_set_is_a_balanced_prefix_of_both_splits(source: Path, tmp_path: Path) -> None:
    sizes: dict[Split, int] = {"train": 20, "test": 10}
    pack.write_small(source / pack.CIFAR, tmp_path / "small.npz", sizes)
    for split, count in sizes.items():
        roots = (tmp_path / "small.npz", source / pack.CIFAR)
        small, whole = (cifar10_jpeg(root, split) for root in roots)
        assert len(small) == count and torch.equal(small.images, whole.images[:count])
        assert torch.bincount(small.labels).tolist() == [count // 10] * 10


def test_what_is_missing_is_said(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pack.main([str(tmp_path / "gone"), str(tmp_path / "out")]) == 2
    assert "gone: no such folder; give DATA=FOLDER" in capsys.readouterr().err
    (tmp_path / "half").mkdir()
    shutil.copy(source / pack.CIFAR, tmp_path / "half")
    assert pack.main([str(tmp_path / "half"), str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert "missing: episodes.npz: no chaos-t2spir/ in" in said.err and "weights.pt: no file in weights/" in said.err
    assert "cifar10-jpeg-5k1k.npz" in said.out and "source tree" in said.out
    (tmp_path / "half" / pack.CIFAR).write_bytes(b"nothing")
    assert pack.main([str(tmp_path / "half"), str(tmp_path / "out")]) == 2
    assert "cifar10-jpeg.npz: not a readable .npz" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("in", "in: is a folder of the data in .*; give another PACK=FOLDER"),
        ("in/weights/new", "in/weights/new: is a folder of the data in"),
        ("file", "file: cannot be a folder for the pack: "),
        ("full", "full: holds notes.txt, which is of no pack"),
        ("new/one", "cifar10-jpeg.npz: not in .*; without it .*; episodes.npz: no chaos-t2spir/ in"),
    ],
)
def test_a_pack_is_written_to_a_folder_of_its_own(place: str, message: str, tmp_path: Path) -> None:
    for name in ("in/weights/weights.pt", "file", "full/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=message):
        pack.pack(tmp_path / "in", tmp_path / place)
    assert (tmp_path / "in/weights/weights.pt").read_text() == "mine"
    assert not (tmp_path / "in/weights/new").exists() and not (tmp_path / "new/one").exists()


@pytest.mark.slow
def test_too_much_is_refused_and_weights_that_do_not_fit_are_left_out(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(source / pack.CIFAR, tmp_path / "in")
    shutil.copytree(source / pack.NETWORKS, tmp_path / "in" / pack.NETWORKS)
    monkeypatch.setattr(pack, "MOST", pack.tree_size() + 10_000_000)
    missing = pack.pack(tmp_path / "in", tmp_path / "out")
    assert any("weights.pt: b.pth would make more than" in line for line in missing)
    assert not (tmp_path / "out" / pack.WEIGHTS).exists() and not (tmp_path / "out" / pack.DESCRIPTION).exists()
    monkeypatch.setattr(pack, "MOST", pack.tree_size() + 1000)
    with pytest.raises(ValueError, match=r"cifar10-jpeg-5k1k.npz [\d,]+.* and the source tree .* more than"):
        pack.pack(tmp_path / "in", tmp_path / "out")
    assert 1_000_000 < pack.tree_size() < 10_000_000
