"""Logs begin anew, also under a program that has them open."""

from pathlib import Path

from sslmed_dist.atomic_files import appending
from sslmed_dist.drivers.launcher import Tail
from sslmed_dist.log_files import keep_all_small, keep_small


def test_a_long_log_begins_anew_and_its_writer_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "node.log"
    with appending(log) as writer:
        for number in range(4):
            tail = Tail(log)
            print(f"{number} first", file=writer, flush=True)
            assert not keep_small(log, most=len("0 first\n"), kept=2)
            assert tail.lines() == [f"{number} first"]
            print(f"{number} second", file=writer, flush=True)
            assert keep_small(log, most=len("0 first\n"), kept=2)
            assert log.read_text() == ""
            print(f"{number} new", file=writer, flush=True)
            assert tail.lines() == [f"{number} new"], "who follows it sees what is new"
            log.write_text("")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["node.log", "node.log.1", "node.log.2"]
    assert (tmp_path / "node.log.1").read_text() == "3 first\n3 second\n"
    assert (tmp_path / "node.log.2").read_text() == "2 first\n2 second\n"
    assert (tmp_path / "node.log.1").stat().st_mode & 0o777 == 0o600


def test_links_and_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("long enough")
    (tmp_path / "link.log").symlink_to(tmp_path / "target")
    (tmp_path / "folder.log").mkdir()
    (tmp_path / "data.bin").write_text("long enough")
    (tmp_path / "real.log").write_text("long enough")
    keep_all_small(tmp_path, most=1)
    keep_all_small(tmp_path / "gone", most=1)
    assert (tmp_path / "target").read_text() == (tmp_path / "data.bin").read_text() == "long enough"
    assert (tmp_path / "real.log").read_text() == "" and (tmp_path / "real.log.1").read_text() == "long enough"
