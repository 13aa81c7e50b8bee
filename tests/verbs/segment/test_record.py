"""What stands in an output folder stays known: earlier calls, others at the same time, queries that fail unforeseen."""

import csv
import json
import multiprocessing
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sslmed_dist import locks
from sslmed_dist.atomic_files import sha256
from sslmed_dist.data.phantom.chaos import write_series
from sslmed_dist.endings import PartlyFailed
from sslmed_dist.locks import alone, alone_in_output
from sslmed_dist.verbs.segment import tool
from sslmed_dist.verbs.segment.files import is_ours
from sslmed_dist.verbs.segment.naming import calls_of, is_output
from tests.verbs.segment.test_tool import given, load, made

__all__ = ["given"]  # a fixture


def facts(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "run.json").read_text()))


def listed(out: Path) -> list[tuple[str, list[int]]]:
    """(query, the labels that its call looked for) of every query that ``run.json`` tells of."""
    return [
        (query["query"], sorted(int(label) for label in call["support"]["labels"]))
        for call in calls_of(facts(out))
        for query in call["queries"]
    ]


def test_the_record_of_other_queries_stays(given: dict[str, Path], tmp_path: Path) -> None:
    """Calls that did the same share one record; one that did something else keeps its own, with its own queries."""
    out, third = tmp_path / "out", given["support"].parent / "image_03.nii.gz"
    made(given, out, labels=[1, 2], probabilities=False)
    first = facts(out)["queries"][0]
    made(given, out, query=third, labels=[1, 2], probabilities=False, force=True)
    assert listed(out) == [("image_02", [1, 2]), ("image_03", [1, 2])] and "earlier" not in facts(out)
    assert facts(out)["queries"][0] == first
    made(given, out, query=third, labels=[3], probabilities=False, force=True)
    assert listed(out) == [("image_02", [1, 2]), ("image_03", [3])]
    rows = [(row["query"], row["label"], row["call"]) for row in csv.DictReader((out / "volumes.csv").open())]
    before, now = facts(out)["earlier"][0]["call"], facts(out)["call"]
    assert before != now and [len(before), len(now)] == [8, 8]
    assert rows == [("image_02", "1", before), ("image_02", "2", before), ("image_03", "3", now)]
    for name in ("image_02_labels.nii.gz", "image_03_labels.nii.gz", "image_02_overlay.png"):
        assert is_ours(out / name) and is_output(out / name)
    made(given, out, labels=[3], probabilities=False, force=True)
    assert listed(out) == [("image_03", [3]), ("image_02", [3])] and "earlier" not in facts(out)


def test_a_query_that_fails_keeps_the_files_and_the_record_it_has(given: dict[str, Path], tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    shutil.copytree(given["support"].parent, scans)
    made(given, tmp_path / "out", query=scans, labels=[1], probabilities=False)
    (scans / "image_02.nii.gz").write_bytes(b"torn")
    with pytest.raises(ValueError, match="1 of 3 queries"):
        made(given, tmp_path / "out", query=scans, labels=[1], probabilities=False, force=True)
    kept = [query for query in facts(tmp_path / "out")["queries"] if query["query"] == "image_02"]
    assert [set(query) >= {"files"} for query in kept] == [True, False] and "error" in kept[1]
    assert is_ours(tmp_path / "out" / "image_02_labels.nii.gz")


@pytest.mark.parametrize("error", [MemoryError("Unable to allocate 9 TiB"), KeyError("PixelData"), OSError(5, "gone")])
def test_a_query_that_fails_unforeseen_stops_no_other(
    given: dict[str, Path],
    tmp_path: Path,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = tool.read_said

    def read(source: Any, series: str = "") -> Any:
        if getattr(source, "name", "") in ("image_01", "image_02"):
            raise error
        return real(source, series)

    monkeypatch.setattr(tool, "read_said", read)
    scans, out = tmp_path / "scans", tmp_path / "out"
    shutil.copytree(given["support"].parent, scans)
    kind = ValueError if isinstance(error, OSError) else PartlyFailed
    with pytest.raises(kind, match="^2 of 3 queries could not be segmented, each in a line above$"):
        made(given, out, query=scans, labels=[1], probabilities=False)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("not segmented: ")]
    assert [f"{scans / f'image_0{n}.nii.gz'}" in line for n, line in enumerate(lines, start=1)] == [True, True]
    queries = facts(out)["queries"]
    assert ["error" in query for query in queries] == [True, True, False] and load(out / "image_03_labels.nii.gz")
    assert str(tmp_path) not in json.dumps(queries) and "image_01.nii.gz" in queries[0]["error"]


def hold(folder: Path, ready: Any, end: Any) -> None:
    with alone_in_output(folder, "sslmed segment"):
        ready.set()
        end.wait()


def test_one_call_at_a_time_writes_into_a_folder(given: dict[str, Path], tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, end = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path / "a" / "out", ready, end))
    other.start()
    try:
        assert ready.wait(60)
        with pytest.raises(ValueError, match=f"^{tmp_path / 'a' / 'out'}: sslmed segment runs here already$"):
            made(given, tmp_path / "a" / "out", labels=[1])
    finally:
        end.set()
        other.join()
    assert other.exitcode == 0 and not (tmp_path / "a").exists(), "neither lock nor folder is left"


def test_a_lock_whose_file_is_gone_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who opened the file just before its holder removed it locks nothing: it has to lock the file that is there."""
    tried = []

    @contextmanager
    def removed_at_first(folder: Path, what: str) -> Iterator[int]:
        with alone(folder, what) as handle:
            tried.append(handle)
            if len(tried) == 1:
                (folder / ".lock").unlink()
            yield handle

    monkeypatch.setattr(locks, "alone", removed_at_first)
    with locks.alone_in_output(tmp_path / "out", "a call"):
        assert len(tried) == 2 and locks.held(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_dicom_and_folders_beside_nifti_are_not_passed_over_without_a_word(
    given: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "scans"
    voxels, image = load(given["query"])
    write_series(folder / "dicom", voxels[:, :, :4].copy(), image.affine)
    shutil.copy(next((folder / "dicom").iterdir()), folder / "loose")
    shutil.copy(given["query"], folder / "one.nii.gz")
    (folder / "deep" / "er").mkdir(parents=True)
    shutil.copy(given["query"], folder / "deep" / "er" / "two.nii.gz")
    (folder / "notes.txt").write_text("about the scans")
    made(given, tmp_path / "out", query=folder, labels=[1], probabilities=False)
    line = "files of 5 DICOM and 1 NIfTI beside or below its NIfTI files are passed over; they need a --query"
    assert f"note: {folder}: {line}" in capsys.readouterr().err
    assert facts(tmp_path / "out")["notices"] == [line] and listed(tmp_path / "out") == [("one", [1])]
    assert sha256(folder / "one.nii.gz") == sha256(given["query"])
