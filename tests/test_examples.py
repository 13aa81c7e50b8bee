"""Every file of examples/ runs as it is and prints what it says it shows."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The last line of each, as a pattern.
SHOWN = {
    "loss_in_your_loop": r"epoch 2: loss -?\d+\.\d{3}",
    "finetune_an_export": r"phantom test accuracy after 3 epochs of fine-tuning: [01]\.\d\d",
    "embed_and_search": r"5-NN on 120 phantoms, leave one out, raw pixels: [01]\.\d\d",
    "three_hospitals": r"value \[5 %, 95 %\]: .*Research use only, not a medical device\.",
    "segment": r"masks/.*",
}


def test_the_list_of_examples_is_whole() -> None:
    there = {path.stem for path in (ROOT / "examples").glob("*.py")}
    listed = set(re.findall(r"`(\w+)\.py`", (ROOT / "examples" / "README.md").read_text(encoding="utf-8")))
    assert there == listed == set(SHOWN)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHOWN)
def test_an_example_runs_as_it_is(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{name}.py")],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.fullmatch(SHOWN[name], done.stdout.strip().splitlines()[-1])
