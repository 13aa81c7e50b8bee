"""Without a table the check calls each examination as a row of a table would name it."""

import shutil
from pathlib import Path

from sslmed_dist.data.check import inspect
from sslmed_dist.data.exams.exam_files import by_study, files_below, find_exams
from sslmed_dist.data.exams.exam_table import read_exam_table
from sslmed_dist.data.phantom import write_knee_exams


def test_names_of_the_check_are_rows_of_a_table(tmp_path: Path) -> None:
    root = write_knee_exams(tmp_path / "exams", exams=4, scanners=1, size=16, slices=(2, 2))
    (root / "labels.csv").unlink()
    mixed = root / "mixed"
    mixed.mkdir()
    for patient in ("P0002", "P0003"):  # two studies in one folder
        for number, path in enumerate(files_below(root / patient)):
            shutil.move(path, mixed / f"{patient}-{number}.dcm")
        shutil.rmtree(root / patient)
    lines, _ = inspect(root)
    named = {line.split(" | ")[0] for line in lines if " | " in line}
    assert named == {"P0000/1", "P0001/1", *by_study(files_below(mixed), mixed)}
    assert any(line.startswith("for a table: labels.csv with the column exam") for line in lines)
    (root / "labels.csv").write_text("exam,acl\n" + "".join(f"{name},1\n" for name in sorted(named)))
    found = find_exams(root, read_exam_table(root / "labels.csv"))
    assert set(found.files) == named and not found.without_row and not found.without_files
