"""``sslmed data show``: a slice, its patches as the method gets them, and the solution."""

from pathlib import Path

import pytest
import torch

from sslmed_dist import cli, config, plain_yaml
from sslmed_dist.data.arrangements import arrangements
from sslmed_dist.training import build
from sslmed_dist.verbs import pictures
from tests.methods.test_jigsaw import tree


def test_the_solution_puts_every_patch_into_its_cell(tmp_path: Path) -> None:
    """Cells of one grey each: solved, they stand in order again, whatever the arrangement."""
    given = config.merge(tree(tmp_path, "skid"), {"views": {"noise": 0.0, "mean": [0.0], "std": [1.0]}})
    settings = config.from_tree(given, "test")
    dataset = build.load_data(settings, "train")
    views = build.build_views(settings, dataset)
    cells = torch.arange(9).view(3, 3).repeat_interleave(12, 0).repeat_interleave(12, 1)
    images = cells.to(torch.uint8).mul(20).expand(5, 1, 36, 36)
    batch = {"images": images, "index": torch.arange(5), "draw": torch.zeros(5, dtype=torch.int64)}
    made = views(batch, seed=0, epoch=0)
    solved = pictures.solved(made, views)
    assert torch.equal((solved[:, :, 0, 4, 4] * 255 / 20).round(), torch.arange(9.0).expand(5, 9))
    table = arrangements("uniform", classes=6)
    assert torch.equal((made["patches"][:, :, 0, 4, 4] * 255 / 20).round().long(), table[made["pretext_label"]])
    assert pictures.puzzle(solved, 1).shape == (5, 1, 24, 24)


def test_a_picture_is_written_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "views.png"
    recipe.write_text(plain_yaml.write(tree(tmp_path, "skid")))
    assert cli.main(["data", "show", str(recipe), "--out", str(out), "--count", "2"]) == 0
    assert out.read_bytes().startswith(b"\x89PNG") and str(out) in capsys.readouterr().out
    assert cli.main(["data", "show", str(recipe), "--out", str(out)]) == 2
    assert "is not written over" in capsys.readouterr().err
    assert cli.main(["data", "show", str(recipe), "--out", str(tmp_path / "b.png"), "--count", "9"]) == 2
    assert "--count: expected a number from 1 to 6" in capsys.readouterr().err
