"""What new exams are called: by their folders, never by their studies; or numbered."""

import shutil
from pathlib import Path

import pytest

from sslmed_dist.data.exams.exam_files import by_study, files_below
from sslmed_dist.data.phantom import write_knee_exams
from sslmed_dist.verbs.diagnose.new_exams import names_of_studies, shown_names


@pytest.fixture(scope="module")
def exams(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("new") / "exams"
    write_knee_exams(root, exams=3, scanners=1, size=16, slices=(2, 2))
    (root / "labels.csv").unlink()
    return root


def test_a_study_is_called_by_the_folder_of_its_files(exams: Path) -> None:
    studies = by_study(files_below(exams), exams)
    called = shown_names(exams, list(studies), anonymous=False)
    assert list(called.values()) == ["P0000/1", "P0001/1", "P0002/1"]
    for study, name in called.items():
        assert all(exams / name in path.parents for path in studies[study])
    assert list(shown_names(exams, list(studies), anonymous=True).items()) == [
        (study, f"exam {number}") for number, study in enumerate(called, start=1)
    ]


def test_a_folder_that_is_the_exam_gives_its_own_name(exams: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(names_of_studies(exams / "P0001").values()) == ["P0001"]
    monkeypatch.chdir(exams / "P0001")
    assert list(names_of_studies(Path(".")).values()) == ["P0001"]


def test_studies_of_one_folder_are_told_apart(exams: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for number, path in enumerate(files_below(exams)):
        shutil.copy(path, mixed / f"{number}.dcm")
    assert list(names_of_studies(mixed).values()) == [f"mixed, study {k}" for k in (1, 2, 3)]


def test_names_that_are_no_studies_stay(tmp_path: Path) -> None:
    assert shown_names(tmp_path, ["0014", "0002"], anonymous=False) == {"0002": "0002", "0014": "0014"}
    assert shown_names(tmp_path, ["0014", "0002"], anonymous=True) == {"0002": "exam 1", "0014": "exam 2"}
