import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from sslmed_dist.data import DATASETS
from sslmed_dist.data.images import decode


def save(path, level, size=(10, 8), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    if mode == "I;16":
        Image.fromarray(np.full(size[::-1], level, np.uint16)).save(path)
    else:
        Image.new("RGB", size, (level,) * 3).convert(mode).save(path)


def fetch_all(data):
    positions = torch.arange(len(data))
    return data.fetch(positions, seed=0, epoch=0, draw=torch.zeros_like(positions))


def folder(root, **arguments):
    return DATASETS["image_folder"](root=str(root), **arguments)


def test_split_folders_and_classes(tmp_path):
    for split, names in (("train", "ab"), ("test", "b")):
        for name in names:
            for i in range(2):
                save(tmp_path / split / name / f"{i}.png", 10 * i)
    save(tmp_path / "train" / "a" / "deep" / "2.JPG", 20)
    whole, test = folder(tmp_path, split="all", size=8), folder(tmp_path, split="test", size=8)
    assert whole.classes == test.classes == ("a", "b")
    assert whole.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert test.ids.tolist() == [5, 6]
    assert whole.records[2] == {"file": "train/a/deep/2.JPG"}
    batch = fetch_all(whole)
    assert batch["images"].shape == (7, 3, 8, 8) and batch["images"].dtype == torch.uint8
    with pytest.raises(ValueError, match="no split 'val'; allowed: train, test, all"):
        folder(tmp_path, split="val", size=8)
    with pytest.raises(ValueError, match="val_fraction and test_fraction must be 0"):
        folder(tmp_path, val_fraction=0.1, size=8)


def test_keyed_split_is_stable_when_a_file_is_added(tmp_path):
    for i in range(60):
        save(tmp_path / "ab"[i % 2] / f"{i:02d}.png", i)
    arguments = {"size": 4, "val_fraction": 0.2, "test_fraction": 0.2, "seed": 5}
    before = {s: {r["file"] for r in folder(tmp_path, split=s, **arguments).records} for s in ("train", "val", "test")}
    assert sum(map(len, before.values())) == 60 and all(len(files) >= 4 for files in before.values())
    save(tmp_path / "a" / "new.png", 99)
    after = {s: {r["file"] for r in folder(tmp_path, split=s, **arguments).records} for s in ("train", "val", "test")}
    assert {s: files - {"a/new.png"} for s, files in after.items()} == before


def test_flat_folder_is_unlabelled(tmp_path):
    save(tmp_path / "1.png", 5)
    save(tmp_path / "2.png", 5)
    (tmp_path / "notes.txt").write_text("not an image")
    save(tmp_path / ".hidden.png", 5)
    data = folder(tmp_path, size=4)
    assert data.labels.tolist() == [-1, -1] and data.classes == ()


def test_resize_keeps_the_aspect_and_crops_the_centre(tmp_path):
    picture = np.zeros((20, 40), np.uint8)
    picture[:, 15:25] = 200
    Image.fromarray(picture).save(tmp_path / "bar.png")
    image = fetch_all(folder(tmp_path, size=10, channels=1))["images"][0, 0]
    assert image.shape == (10, 10)
    assert image[5, 5] == 200 and image[5, 0] == 0 and image[5, 9] == 0
    assert abs(int((image[5] > 100).sum()) - 5) <= 1
    assert fetch_all(folder(tmp_path, size=50, channels=3))["images"].shape == (1, 3, 50, 50)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_stay_exact(tmp_path, suffix):
    save(tmp_path / f"deep.{suffix}", 1234, mode="I;16")
    save(tmp_path / "shallow.png", 51)
    data = folder(tmp_path, size=8, channels=1, bits=16)
    images = fetch_all(data)["images"]
    assert images.dtype == torch.float32 and data.value_range() == (0.0, 1.0)
    assert torch.allclose(images[0], torch.full((1, 8, 8), 1234 / 65535), atol=1e-7)
    assert torch.allclose(images[1], torch.full((1, 8, 8), 0.2), atol=1e-6)
    assert fetch_all(folder(tmp_path, size=8, channels=3, bits=16))["images"].shape == (2, 3, 8, 8)
    with pytest.raises(ValueError, match=f"deep.{suffix}: a 16-bit image in a set of 8-bit ones; set bits to 16"):
        folder(tmp_path, size=8)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_common_kind_of_pixel(tmp_path, mode, channels):
    save(tmp_path / "x.png", 255, mode=mode)
    images = fetch_all(folder(tmp_path, size=8, channels=channels, workers=0))["images"]
    assert images.shape == (1, channels, 8, 8) and images.unique().tolist() == [255]


def test_threads_give_the_same_images(tmp_path):
    for i in range(12):
        save(tmp_path / f"{i:02d}.png", 20 * i, size=(9 + i, 12))
    one, many = (fetch_all(folder(tmp_path, size=8, workers=workers)) for workers in (0, 3))
    assert torch.equal(one["images"], many["images"])


def test_corrupt_image_is_named_with_its_number(tmp_path):
    for i in range(3):
        save(tmp_path / "a" / f"{i}.png", i, size=(40, 40))
    data = folder(tmp_path, size=8)
    (tmp_path / "a" / "1.png").write_bytes((tmp_path / "a" / "1.png").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"image 1 of test_.*: .*a/1.png is corrupt or no image"):
        fetch_all(data)
    (tmp_path / "a" / "0.png").write_text("nothing")
    with pytest.raises(ValueError, match=r"a/0.png is corrupt or no image"):
        folder(tmp_path, size=8)


def test_layout_mistakes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        folder(tmp_path / "absent")
    with pytest.raises(ValueError, match="no image in it; allowed: .png"):
        folder(tmp_path)
    save(tmp_path / "a" / "1.png", 1)
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match="class 'b' has no image"):
        folder(tmp_path)
    save(tmp_path / "2.png", 1)
    with pytest.raises(ValueError, match="some images lie in class folders and some outside"):
        folder(tmp_path)
    with pytest.raises(ValueError, match="val_fraction . test_fraction at least 0 and below 1"):
        folder(tmp_path, val_fraction=0.5, test_fraction=0.5)


def test_thirty_two_bit_images_are_refused(tmp_path):
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match="float.tif: pixels of kind F.*allowed: 8-bit grey or colour, 16-bit grey"):
        folder(tmp_path, size=8)


def test_sixteen_bit_colour_is_refused_and_not_read_as_eight(tmp_path):
    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    rows = zlib.compress((b"\0" + bytes(12)) * 2)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    (tmp_path / "deep.png").write_bytes(data)
    with pytest.raises(ValueError, match="deep.png: pixels of 16-bit colour; allowed"):
        folder(tmp_path, size=2)


def test_transparent_pixels_are_said_once(tmp_path, capsys):
    decode.tell_of_transparency.cache_clear()
    for name, mode in (("a", "RGB"), ("b", "RGBA"), ("c", "LA")):
        Image.new(mode, (4, 4)).save(tmp_path / f"{name}.png")
        decode.read_picture(tmp_path / f"{name}.png", 4, 3)
    assert capsys.readouterr().err.count("some images have transparent pixels") == 1


def test_images_of_a_patient_are_in_one_split_and_one_group(tmp_path):
    for kind in "ab":
        for number in range(60):
            save(tmp_path / kind / f"p{number // 3:02d}_{number % 3}.png", number)
    save(tmp_path / "a" / "alone.png", 1)
    options = {"size": 8, "patient": r"([^/]+)_\d+\.png$", "test_fraction": 0.3}
    parts = {split: folder(tmp_path, split=split, **options) for split in ("train", "test", "all")}
    assert len(parts["train"]) + len(parts["test"]) == len(parts["all"]) == 121
    assert len(torch.unique(parts["all"].groups)) == 21  # 20 patients, each in both classes, and one path of its own
    groups = [set(parts[split].groups.tolist()) for split in ("train", "test")]
    assert not groups[0] & groups[1] and all(groups)
    names = {}
    for record, group in zip(parts["all"].records, parts["all"].groups.tolist(), strict=True):
        names.setdefault(group, set()).add(record["file"].rpartition("/")[2].partition("_")[0])
    assert all(len(each) == 1 for each in names.values())
    with pytest.raises(ValueError, match="data.patient: '\\(' is no regular expression"):
        folder(tmp_path, size=8, patient="(")


def test_without_patients_the_split_is_by_path(tmp_path):
    for number in range(40):
        save(tmp_path / f"{number}_0.png", number)
    without, by_path = (folder(tmp_path, size=8, test_fraction=0.3, patient=p) for p in (None, "nothing"))
    assert torch.equal(without.groups, without.ids) and len(torch.unique(by_path.groups)) == len(by_path)
