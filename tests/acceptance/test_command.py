"""The acceptance itself: what a part may do to the command, what is written, and that every comparison can fail."""

import ctypes
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.acceptance import gpu, learning
from tests.acceptance.part import Bench, Comparison, NotRun, Part, Value, state_of
from tests.acceptance.parts import PARTS
from tests.acceptance.results import Results, facts
from tests.differences import MEASURES, Tolerance

ROOT = Path(__file__).parents[2]
COMPARISONS = [part for part in PARTS if part.group == "correctness"]
HEAVY = {"compile", "resume", "training step"}  # minutes of a compiler, whole runs


def fine(bench: Bench) -> list[Value]:
    return [Value("is two", 2.0, "things", most=2.0)]


def slow_goal(bench: Bench) -> list[Value]:
    return [Value("is two", 2.0, "s", most=1.0, goal=True)]


def beyond(bench: Bench) -> list[Value]:
    return [Value("is two", 2.0, least=2.5)]


def raises(bench: Bench) -> list[Value]:
    raise ValueError("no such thing\nand more of it")


def crashes(bench: Bench) -> list[Value]:
    ctypes.string_at(0)
    return []


def leaves(bench: Bench) -> list[Value]:
    print("out of memory, say", flush=True)
    os._exit(3)


def hangs(bench: Bench) -> list[Value]:
    child = subprocess.Popen(["sleep", "60"])
    (bench.data / "child").write_text(str(child.pid))
    time.sleep(60)
    return []


def nothing(bench: Bench) -> list[Value]:
    return []


def declines(bench: Bench) -> list[Value]:
    raise NotRun("needs what is not here")


ENDINGS = {
    "fine": (fine, "passed", None),
    "crashes": (crashes, "failed", "ended by SIGSEGV: Fatal Python error: Segmentation fault"),
    "leaves": (leaves, "failed", "ended with code 3: out of memory, say"),
    "raises": (raises, "failed", "ValueError: no such thing"),
    "hangs": (hangs, "cut off", "not done after 12 s"),
    "beyond": (beyond, "failed", None),
    "slow goal": (slow_goal, "missed", None),
    "nothing": (nothing, "failed", None),
    "declines": (declines, "not run", "needs what is not here"),
}


def read(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


@pytest.mark.slow
def test_whatever_a_part_does_the_next_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [Part(name, "learning", run, 12.0 if name == "hangs" else 60.0) for name, (run, *_) in ENDINGS.items()]
    out, command = tmp_path / "out", ["--rehearse", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert gpu.main(command, parts) == 1
    results = {part["name"]: part for part in read(out)["parts"]}
    for name, (_, state, error) in ENDINGS.items():
        assert (results[name]["state"], results[name]["error"]) == (state, error), name
    with pytest.raises(ProcessLookupError):  # what the part had started is ended too
        os.kill(int((tmp_path / "child").read_text()), 0)
    table = (out / "table.md").read_text()
    assert table.count("Rehearsal at tiny sizes") == 1
    assert "| slow goal | missed | is two | 2 s | at most 1: missed" in table
    assert "| beyond | failed | is two | 2 | at least 2.5: broken |" in table
    # Once more: only what has no result runs again, in this case what declined.
    before = read(out)["parts"]
    capsys.readouterr()
    assert gpu.main(command, parts) == 1
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == ["declines"]
    assert [part for part in read(out)["parts"] if part["name"] != "declines"] == before[:-1]
    assert gpu.main([*command, "--parts", "slow goal,fine", "--again"], parts) == 1  # the others' failures still stand
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == ["fine", "slow goal"]
    assert {path.name for path in out.iterdir()} == {"results.json", "table.md", "log.txt"}


@pytest.mark.slow
def test_a_missed_goal_is_no_failure_and_the_time_of_a_call_ends(tmp_path: Path) -> None:
    named = {"slow goal": slow_goal, "hangs": hangs, "fine": fine}
    parts = [Part(name, "speed", run, 60.0) for name, run in named.items()]
    command = ["--rehearse", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert gpu.main([*command, "--parts", "slow goal"], parts) == 0
    assert gpu.main([*command, "--minutes", "0.01"], parts) == 0
    assert [part["state"] for part in read(tmp_path / "out")["parts"]] == ["missed", "not run", "not run"]
    assert gpu.main([*command, "--minutes", "0.08", "--parts", "hangs"], parts) == 0
    cut = read(tmp_path / "out")["parts"][1]
    assert cut["state"] == "cut off" and cut["allowed"] < cut["limit"], "it runs again in the next call"
    results = Results(tmp_path / "out", facts("cpu", True, None))
    assert results.has("slow goal") and not results.has("hangs") and not results.has("fine")


@pytest.mark.slow
def test_results_of_another_source_are_kept_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part = [Part("fine", "speed", fine, 9.0)]
    command = ["--rehearse", "--data", str(tmp_path), "--out", str(tmp_path)]
    assert gpu.main(command, part) == 0
    before = read(tmp_path) | {"source": "another"}
    (tmp_path / "results.json").write_text(json.dumps(before))
    assert gpu.main(command, part) == 0
    assert "results.json is of another source; it is kept as results.before.json" in capsys.readouterr().err
    assert json.loads((tmp_path / "results.before.json").read_text()) == before
    (tmp_path / "results.json").write_text('{"kind": "shopping list"}')
    assert gpu.main(command, part) == 2
    assert "results.json: not a result of this command" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rehearse", "--parts", "views,vews"], "--parts: no part 'vews'; allowed: views, losses"),
        (["--rehearse", "--disturb", "some"], "--disturb: no part 'some'; allowed: views"),
        (["--rehearse", "--minutes", "0"], "--minutes: expected a number > 0, got 0.0"),
        (["--device", "cpu"], "--device: cpu is for --rehearse"),
        (["--rehearse", "--data", "."], "lacks cifar10-jpeg.npz, cifar10-jpeg-5k1k.npz, episodes.npz; make gpu-pack"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main([*arguments, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/x"])
def test_a_place_that_cannot_hold_results_is_one_line(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    command = ["--rehearse", "--data", str(tmp_path), "--out", str(tmp_path / place)]
    assert gpu.main(command, [Part("fine", "speed", fine, 9.0)]) == 2
    said = capsys.readouterr().err
    assert "cannot be a folder for results: " in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([{}], r"parts\[0\]: has no allowed, limit, name"),
        ("x", "parts: expected list"),
        ([{"name": "fine", "state": 1, "seconds": 1, "limit": 1, "allowed": 1, "values": []}], "state: expected text"),
        (
            [{"name": "a", "state": "passed", "seconds": 1, "limit": 1, "allowed": 1, "values": [{}]}],
            r"parts\[0\]: values\[0\]: has no held, name",
        ),
    ],
)
def test_results_that_were_changed_are_one_line(parts: Any, message: str, tmp_path: Path) -> None:
    now = facts("cpu", True, None)
    (tmp_path / "results.json").write_text(json.dumps(now | {"parts": parts}))
    with pytest.raises(ValueError, match=f"results.json: .*{message}"):
        Results(tmp_path, now)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "torch sees no CUDA device; allowed here: --rehearse" in capsys.readouterr().err


def test_values_and_their_bounds() -> None:
    held = [Value("x", value, most=2.0, least=1.0).held for value in (0.9, 1.0, 2.0, 2.1, float("nan"), float("inf"))]
    assert held == [False, True, True, False, False, False]
    assert Value("x", 5.0).held is None and Value("x", float("nan")).held is False
    assert state_of([Value("x", float("nan"), goal=True)]) == "failed" and state_of([]) == "failed"
    with pytest.raises(ValueError, match="fine: a part of correctness is a Comparison"):
        Part("fine", "correctness", fine, 9.0)


@pytest.mark.parametrize(
    ("measure", "most"), [("share", 0.0), *((measure, most) for measure in MEASURES for most in (1e-4, 0.2))]
)
def test_a_broken_tensor_is_beyond_its_tolerance(measure: Any, most: float) -> None:
    tolerance = Tolerance(measure, most)
    for tensor in (torch.arange(7.0), torch.zeros(3), torch.tensor(2.5), torch.arange(5, dtype=torch.uint8)):
        assert tolerance.difference(tensor, tensor) == 0
        assert tolerance.difference(tensor, tolerance.broken(tensor)) > most
    for other in (torch.zeros(4), torch.zeros(0)):
        with pytest.raises(ValueError, match=r"expected the shape"):
            tolerance.difference(torch.zeros(3) if len(other) else other, other)


@pytest.mark.parametrize(
    "part",
    [pytest.param(part, marks=pytest.mark.slow if part.name in HEAVY else ()) for part in COMPARISONS],
    ids=lambda part: part.name,
)
def test_every_comparison_fails_for_every_tensor_that_is_wrong(part: Part, tmp_path: Path) -> None:
    """Computed once; then one tensor after another is wrong, by a little more than its tolerance, NaN, or missing."""
    comparison = part.run
    assert isinstance(comparison, Comparison)
    bench = Bench("cpu", tmp_path, tmp_path, 60.0, tiny=True)
    expected, actual = comparison.expected(bench), comparison.actual(bench)
    assert state_of(comparison.judge(expected, actual)) == "passed"
    for name, value in actual.items():
        for wrong in (comparison.tolerance_of(name).broken(value), torch.full_like(value.double(), torch.nan)):
            values = comparison.judge(expected, {**actual, name: wrong})
            assert state_of(values) == "failed" and [v.name for v in values if not v.held] == [name]
        with pytest.raises(ValueError, match="expected tensors"):
            comparison.judge(expected, {other: kept for other, kept in actual.items() if other != name})


def test_a_disturbed_comparison_fails_the_command(tmp_path: Path) -> None:
    command = ["--rehearse", "--out", str(tmp_path), "--parts", "views,batches", "--disturb", "batches"]
    assert gpu.main(command) == 1
    assert {part["name"]: part["state"] for part in read(tmp_path)["parts"]} == {"views": "passed", "batches": "failed"}


@pytest.mark.slow
def test_the_rehearsal_passes_and_its_json_is_read_back(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.acceptance.gpu", "--rehearse", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    log = tmp_path / "log.txt"
    assert done.returncode == 0, done.stderr + log.read_text()[-3000:]
    found = read(tmp_path)
    assert {part["name"]: part["state"] for part in found["parts"]} == {part.name: "passed" for part in PARTS}
    assert [part["name"] for part in found["parts"]] == [part.name for part in PARTS]
    for part in found["parts"]:
        assert part["values"] and all(value["held"] is not False for value in part["values"]), part["name"]
        bounded = [value for value in part["values"] if "tolerance" in value or "goal" in value]
        assert bounded or part["group"] != "correctness", part["name"]
    known = ("version", "commit", "source", "card", "driver", "torch", "date", "device")
    assert set(known) <= found.keys() and found["rehearsal"] is True and found["device"] == "cpu"
    assert found["card"] is None and re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"])
    assert len(list(tmp_path.iterdir())) <= 8 and done.stdout.strip() == (tmp_path / "table.md").read_text().strip()


def test_the_figures_of_the_cpu_stand_in_the_page() -> None:
    page = (ROOT / "docs" / "measured.md").read_text(encoding="utf-8")
    for cell in learning.CELLS.values():
        assert re.search(rf"^\| {re.escape(cell.row)}(?: \([^)]*\))? \| {cell.cpu} ± ", page, re.MULTILINE), cell.row
    assert f"CoWPro (score: cosine) | {learning.KIDNEYS_CPU['Dice, right kidney']} [" in page
    assert f"] | {learning.KIDNEYS_CPU['Dice, left kidney']} [" in page
