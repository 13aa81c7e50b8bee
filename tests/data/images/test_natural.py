import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from sslmed_dist.data import DATASETS
from sslmed_dist.data.images.natural import decode_jpeg
from tests.real_data import real_data


def write_cifar10(root, per_file=4, protocol=2):
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for number, name in enumerate(names):
        data = np.full((per_file, 3072), number, dtype=np.uint8)
        data[:, :1024] += np.arange(per_file, dtype=np.uint8)[:, None] * 10
        data[:, -1] = 255
        content = {b"data": data, b"labels": [i % 10 for i in range(per_file)]}
        (folder / name).write_bytes(pickle.dumps(content, protocol))
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [f"class {i}" for i in range(10)]}, protocol))
    return folder


def write_packed(path, per_split=(6, 3), broken=None, side=32, **extra):
    files = []
    for number in range(sum(per_split)):
        stream = io.BytesIO()
        Image.fromarray(np.full((side, side, 3), 10 * number, dtype=np.uint8)).save(stream, "JPEG")
        files.append(stream.getvalue() if number != broken else b"nothing")
    np.savez(
        path,
        **{
            "jpeg": np.frombuffer(b"".join(files), dtype=np.uint8),
            "offsets": np.cumsum([0, *map(len, files)]),
            "labels": np.arange(sum(per_split), dtype=np.uint8) % 3,
            "split": np.repeat(np.array([0, 1], dtype=np.uint8), per_split),
            "class_names": np.array(["a", "b", "c"]),
            **extra,
        },
    )
    return path


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_cifar10_ids_count_through_all_files(tmp_path, protocol):
    write_cifar10(tmp_path, protocol=protocol)
    train, test = (DATASETS["cifar10"](root=str(tmp_path), split=split) for split in ("train", "test"))
    whole = DATASETS["cifar10"](root=str(tmp_path / "cifar-10-batches-py"), split="all")
    assert (len(train), len(test), len(whole)) == (20, 4, 24)
    assert train.images.shape[1:] == (3, 32, 32) and train.images.dtype == torch.uint8
    assert test.ids.tolist() == [20, 21, 22, 23]
    assert torch.equal(whole.images, torch.cat([train.images, test.images]))
    assert train.images[5, 0, 0, 0] == 11 and train.images[5, 1, 0, 0] == 1  # batch 2, image 1: planes R then G
    assert whole.classes[3] == "class 3"


def test_cifar100_reads_the_fine_labels(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name, count in (("train", 5), ("test", 2)):
        content = {
            b"data": np.zeros((count, 3072), np.uint8),
            b"fine_labels": [99] * count,
            b"coarse_labels": [1] * count,
        }
        (folder / name).write_bytes(pickle.dumps(content, 2))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [str(i) for i in range(100)]}, 2))
    data = DATASETS["cifar100"](root=str(tmp_path), split="all")
    assert len(data) == 7 and data.labels.unique().tolist() == [99]


def test_cifar_mistakes_name_the_file(tmp_path):
    with pytest.raises(ValueError, match="holds no folder cifar-10-batches-py"):
        DATASETS["cifar10"](root=str(tmp_path))
    folder = write_cifar10(tmp_path)
    with pytest.raises(ValueError, match="no split 'val'; allowed: train, test, all"):
        DATASETS["cifar10"](root=str(tmp_path), split="val")
    (folder / "data_batch_3").write_bytes((folder / "data_batch_3").read_bytes()[:500])
    with pytest.raises(ValueError, match="data_batch_3: not a readable pickle of plain arrays"):
        DATASETS["cifar10"](root=str(tmp_path))
    (folder / "data_batch_3").unlink()
    with pytest.raises(ValueError, match="data_batch_3: no such file"):
        DATASETS["cifar10"](root=str(tmp_path))


def test_a_pickle_that_names_a_program_is_refused(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (print, ("executed",))

    folder = write_cifar10(tmp_path)
    (folder / "test_batch").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(ValueError, match="builtins.print, which is not allowed"):
        DATASETS["cifar10"](root=str(tmp_path), split="test")


def test_cifar_labels_out_of_range_are_refused(tmp_path):
    folder = write_cifar10(tmp_path)
    content = {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 10]}
    (folder / "test_batch").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match="test_batch: labels 0 to 10, allowed 0 to 9"):
        DATASETS["cifar10"](root=str(tmp_path), split="test")


def test_packed_jpeg_from_file_or_folder(tmp_path):
    path = write_packed(tmp_path / "pack.npz")
    test = DATASETS["cifar10_jpeg"](root=str(tmp_path), split="test")
    assert test.ids.tolist() == [6, 7, 8] and test.labels.tolist() == [0, 1, 2]
    assert (test.images.float().mean((1, 2, 3)) - torch.tensor([60.0, 70.0, 80.0])).abs().max() < 2
    assert len(DATASETS["cifar10_jpeg"](root=str(path), split="all")) == 9
    write_packed(tmp_path / "second.npz")
    with pytest.raises(ValueError, match="expected exactly one .npz file in it, found 2"):
        DATASETS["cifar10_jpeg"](root=str(tmp_path))


def test_packed_jpeg_mistakes_name_the_file(tmp_path):
    write_packed(tmp_path / "broken.npz", broken=4)
    with pytest.raises(ValueError, match="broken.npz: image 4 is corrupt: [A-Z]"):
        DATASETS["cifar10_jpeg"](root=str(tmp_path / "broken.npz"))
    write_packed(tmp_path / "large.npz", side=40)
    with pytest.raises(ValueError, match=r"large.npz: image 0 is \(3, 40, 40\), expected \(3, 32, 32\)"):
        DATASETS["cifar10_jpeg"](root=str(tmp_path / "large.npz"))
    write_packed(tmp_path / "short.npz", labels=np.zeros(5, np.uint8))
    with pytest.raises(ValueError, match="short.npz: 'offsets' and 'split' do not match 'jpeg' and 'labels'"):
        DATASETS["cifar10_jpeg"](root=str(tmp_path / "short.npz"))
    (tmp_path / "torn.npz").write_bytes((tmp_path / "broken.npz").read_bytes()[:700])
    with pytest.raises(ValueError, match="torn.npz: not a readable .npz"):
        DATASETS["cifar10_jpeg"](root=str(tmp_path / "torn.npz"))
    np.savez(tmp_path / "other.npz", something=np.zeros(3))
    with pytest.raises(ValueError, match="other.npz: not a readable .npz: lacks 'jpeg'"):
        DATASETS["cifar10_jpeg"](root=str(tmp_path / "other.npz"))
    with pytest.raises(ValueError, match="absent.npz: no such file or folder"):
        DATASETS["cifar10_jpeg"](root=str(tmp_path / "absent.npz"))


def test_jpeg_bits_are_those_of_pillow():
    rng = np.random.default_rng(0)
    for quality in (40, 75, 95):
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(stream, "JPEG", quality=quality)
        pillow = torch.from_numpy(np.array(Image.open(stream))).permute(2, 0, 1)
        ours = decode_jpeg(torch.frombuffer(bytearray(stream.getvalue()), dtype=torch.uint8), "image")
        assert torch.equal(ours, pillow)


def test_real_cifar_pack():
    data = DATASETS["cifar10_jpeg"](root=str(real_data("cifar10-jpeg-5k1k.npz")), split="all")
    assert len(data) == 6000 and data.images.shape == (6000, 3, 32, 32)
    assert torch.bincount(data.labels[:5000]).tolist() == [500] * 10
    assert data.classes[0] == "airplane"
    mean = data.images[:5000].float().mean((0, 2, 3)) / 255
    assert (mean - torch.tensor([0.491, 0.482, 0.447])).abs().max() < 0.01
