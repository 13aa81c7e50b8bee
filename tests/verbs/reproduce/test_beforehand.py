"""What no cell can be trained with is said before the first cell is trained."""

from pathlib import Path

import pytest

from sslmed_dist import cli, plain_yaml
from tests import tiny
from tests.verbs.reproduce.test_run import TABLE


def test_a_value_that_no_cell_allows_is_found_before_the_first_one_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny.tree(tmp_path)
    del recipe["run"]["name"]
    (tmp_path / "tiny.yaml").write_text(plain_yaml.write(recipe))
    wrong = {"method.loss": {"name": "mio_v3", "temperature": -1.0}}
    file = tmp_path / "table-9.1.yaml"
    file.write_text(plain_yaml.write({**TABLE, "rows": {"SimCLR": {}, "MIOv3": wrong}}))
    assert cli.main(["reproduce", str(file)]) == 2
    said = capsys.readouterr().err
    assert "table-9.1: MIOv3 / tiny / seed-0: " in said and "temperature" in said and len(said.splitlines()) == 1
    assert not (tmp_path / "runs").exists()
