"""The page of a set of queries: what stands in it, and that a browser shows it."""

import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, read_image

from sslmed_dist.data.scans.grid import place
from sslmed_dist.downstream.oneshot import tidy
from sslmed_dist.report.slice_strips import Column, outline, strip
from sslmed_dist.verbs.segment.files import colour
from sslmed_dist.verbs.segment.page import copied
from sslmed_dist.verbs.segment.search import Encoded
from tests.verbs.segment.test_tool import given, made

__all__ = ["given"]
CHROMIUM = shutil.which("chromium")


def inside(path: str, height: int, width: int) -> Tensor:
    """The pixels that an outline encloses: along a row, those after an odd number of its vertical lines."""
    crossings = torch.zeros(height, width + 1, dtype=torch.int64)
    for x, y, length in re.findall(r"M(\d+) (\d+)v(\d+)", path):
        crossings[int(y) : int(y) + int(length), int(x)] += 1
    return crossings.cumsum(1)[:, :-1] % 2 == 1


def test_outlines_run_along_the_edges_of_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(9, 12, generator=generator) > 0.4
    path = outline(mask)
    assert torch.equal(inside(path, 9, 12), mask)
    turned = re.sub(r"M(\d+) (\d+)h", r"M\2 \1v", re.sub(r"M(\d+) (\d+)v\d+", "", path))
    assert torch.equal(inside(turned, 12, 9), mask.T)
    assert outline(torch.zeros(3, 3, dtype=torch.bool)) == ""
    square = torch.zeros(4, 4, dtype=torch.bool)
    square[1:3, 1:3] = True
    assert outline(square) == "M1 1h2M1 3h2M1 1v2M3 1v2"


def test_a_slice_is_in_the_page_once() -> None:
    mask = torch.eye(8).bool()
    column = Column("slice 3", torch.rand(8, 8), {"found": {0: mask}, "copied mask": {0: mask, 1: ~mask}})
    html = strip([column], "q1", (0.0, 1.0))
    assert html.count("data:image/png;base64,") == 1 and html.count("<use href='#q1-0'/>") == 1
    assert html.count("organ-0") == 2 and html.count("organ-1") == 1
    assert "slice 3, found" in html and "slice 3, copied mask" in html


@pytest.fixture(scope="module")
def page(given: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "out"
    made(given, out, labels=[1, 2], query=given["support"].parent)
    return out / "overlay.html"


def test_a_copied_mask_ends_where_the_image_ends() -> None:
    """A floor's volume counts no voxel that the query does not have: the mask of all 32 x 32 pixels on 20 x 10 ones."""
    everywhere = torch.zeros(3, 32, 32)
    at = tidy.Place(everywhere, (16.0, 16.0), (1.0, 1.0, 3.0), (0.0, 0.0), 0.5, 1.0)
    masks = torch.ones(3, 32, 32, dtype=torch.bool)
    organ = cast(Any, SimpleNamespace(shown=SimpleNamespace(place=at), masks=masks))
    placement = place((10, 20, 6), np.diag([1.0, 1.0, 3.0, 1.0]), pixel=1.0, size=32)
    encoded = Encoded(torch.zeros(6, 1, 4, 4), (16.0, 16.0), placement, [])
    finding = cast(Any, SimpleNamespace(estimate=SimpleNamespace(first=1, last=4)))
    floor = copied(organ, finding, encoded, 32)
    assert floor.pixels() == 4 * 20 * 10 and int(floor.slice(0).sum()) == 0


def test_a_page_of_two_queries(page: Path) -> None:
    text = page.read_text()
    assert text.count("<section class='card'>") == 2 and "<h2>image_02</h2>" in text and "<h2>image_03</h2>" in text
    assert "<script" not in text and not re.search(r"(href|src)='(?!data:|#)", text), "nothing is loaded"
    assert len(re.findall(r"<figure>.*?slice \d+, found", text)) == len(
        re.findall(r"slice \d+, copied mask</fig", text)
    )
    assert text.count("do not trust") >= 2 and "id='show-1' checked" in text
    assert "Research use only" in text.split("<section")[0], "said before any mask is seen"
    names = re.findall(r"<image id='([\w-]+)'", text)
    assert len(names) == len(set(names)) == len(re.findall(r"<use href=", text))
    assert str(page.parent) not in text


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (Debian's package)")
@pytest.mark.parametrize("hidden", [None, 0])
def test_a_browser_shows_it(page: Path, tmp_path: Path, hidden: int | None) -> None:
    """Outlines have the colours of their organs, and one that is switched off has gone."""
    text = page.read_text()
    if hidden is not None:
        text = text.replace(f"id='show-{hidden}' checked", f"id='show-{hidden}'")
    # the swatches have the colours too
    (tmp_path / "page.html").write_text(text.replace("style='background:rgb", "style='outline-color:rgb"))
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1000,1600"]
    words += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'page.png'}"]
    assert CHROMIUM is not None
    address = (tmp_path / "page.html").as_uri()
    subprocess.run([CHROMIUM, *words, address], check=True, capture_output=True, timeout=300)
    pixels = read_image(str(tmp_path / "page.png"), ImageReadMode.RGB).int()
    assert pixels.shape == (3, 1600, 1000)
    for number in (0, 1):
        near = (pixels - torch.tensor(colour(number))[:, None, None]).abs().amax(0) < 40
        assert bool(near.sum() > 20) is (number != hidden)
    assert (pixels.amax(0) < 10).sum() > 1000, "slices are black around the body"
