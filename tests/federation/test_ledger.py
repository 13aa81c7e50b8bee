"""The outbound ledger: with an anchor no change of it goes unseen; without one it says what it cannot see."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sslmed_dist.federation import ledger, ledger_page
from sslmed_dist.federation.ledger import Anchor, Ledger, canonical, chained, verify
from sslmed_dist.federation.ledger_page import as_csv, page, undelivered, unfinished

LENGTH = 1000
Lines = list[bytes]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lines, Anchor]:
    """A ledger of 1,000 entries as the data side writes it, and the anchor of its last entry."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    kept = Ledger(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)  # a thousand times the disk is not what is tested here
        for number in range(LENGTH // 4):
            kept.append("reserved", run="ab" * 32, round=number, data_set="knee", count=1, size=4096)
            entry = kept.append("answer", run="ab" * 32, round=number, scalars={"loss": 1.5}, tensors=[["a", "f", [2]]])
            kept.append("delivered", answer=entry["number"])
            kept.append("refusal", reason=f"number {number}")
    lines = path.read_bytes().splitlines()
    assert len(lines) == LENGTH
    return lines, kept.head


def seen(folder: Path, lines: Lines, anchor: Anchor | None, tail: bytes = b"\n") -> tuple[str, ...]:
    """The problems that ``verify`` names in a ledger of these lines."""
    path = folder / "changed.jsonl"
    path.write_bytes(b"\n".join(lines) + (tail if lines else b""))
    return verify(path, anchor).problems


def test_an_untouched_ledger_is_in_order(tmp_path: Path, sample: tuple[Lines, Anchor]) -> None:
    lines, anchor = sample
    assert seen(tmp_path, lines, anchor) == () == seen(tmp_path, lines, None)


@pytest.mark.parametrize("what", ["edit", "delete", "swap", "cut", "double", "rewrite"])
def test_every_change_of_every_entry_is_seen(tmp_path: Path, sample: tuple[Lines, Anchor], what: str) -> None:
    """Each change at each of 1,000 places. What stands before the place is in order, so it is read once and the rest of
    the chain is tried from there, as ``verify`` does."""
    lines, anchor = sample
    heads = [ledger.START, *(json.loads(line)["digest"] for line in lines)]
    for place in range(LENGTH):
        rest = CHANGES[what](lines[place:], heads[place], place)
        assert rest != lines[place:]
        assert not chain_ends_at(rest, heads[place], place, anchor), f"{what} at {place}"
    for place in (0, 1, LENGTH // 2, LENGTH - 2, LENGTH - 1):  # and through the file
        changed = lines[:place] + CHANGES[what](lines[place:], heads[place], place)
        assert seen(tmp_path, changed, anchor), f"{what} at {place}"


def chain_ends_at(rest: Lines, head: str, place: int, anchor: Anchor) -> bool:
    """Whether the lines after ``place`` entries are in order and the entry of the anchor is among them."""
    digests = {}
    for number, line in enumerate(rest, place + 1):
        entry, _ = ledger.read_entry(line, number, head)
        if entry is None:
            return False
        head = digests[number] = entry["digest"]
    return digests.get(anchor.number) == anchor.digest


def edited(rest: Lines, head: str, place: int) -> Lines:
    entry = json.loads(rest[0])
    entry["time"] = "2020-01-01T00:00:00Z"
    return [canonical(entry), *rest[1:]]


def rewritten(rest: Lines, head: str, place: int) -> Lines:
    """An entry is changed, and the digests from it on are computed anew."""
    entries = [json.loads(line) for line in rest[:3]]  # a longer rewrite is tried once, below
    entries[0]["time"] = "2020-01-01T00:00:00Z"
    for entry in entries:
        entry["previous"] = head
        head = entry["digest"] = chained(entry)
    return [*map(canonical, entries), *rest[3:]]


CHANGES: dict[str, Callable[[Lines, str, int], Lines]] = {
    "edit": edited,
    "delete": lambda rest, head, place: rest[1:],
    "swap": lambda rest, head, place: [rest[1], rest[0], *rest[2:]] if len(rest) > 1 else [],
    "cut": lambda rest, head, place: [],
    "double": lambda rest, head, place: [rest[0], *rest],
    "rewrite": rewritten,
}


def test_a_second_copy_at_the_end_is_no_entry(tmp_path: Path, sample: tuple[Lines, Anchor]) -> None:
    lines, anchor = sample
    assert "line 1001 bears another number" in seen(tmp_path, [*lines, lines[-1]], anchor)[0]


def test_a_whole_rewrite_is_seen_by_the_anchor_alone(tmp_path: Path, sample: tuple[Lines, Anchor]) -> None:
    lines, anchor = sample
    head, forged = ledger.START, []
    for line in lines:
        entry = json.loads(line) | {"previous": head, "time": "2020-01-01T00:00:00Z"}
        head = entry["digest"] = chained(entry)
        forged.append(canonical(entry))
    assert seen(tmp_path, forged, None) == ()
    assert "entry 1000 has another digest than the anchor" in seen(tmp_path, forged, anchor)[0]
    assert seen(tmp_path, lines[:-5], None) == ()
    assert "entry 1000 of the anchor is missing" in seen(tmp_path, lines[:-5], anchor)[0]


def test_every_changed_byte_of_an_entry_is_seen(tmp_path: Path, sample: tuple[Lines, Anchor]) -> None:
    """Each byte of one line, also where JSON would read the same (blanks, escapes, 1.5 as 15e-1)."""
    lines, anchor = sample
    line, head = lines[1], json.loads(lines[0])["digest"]
    for place in range(len(line)):
        for other in (line[place] ^ 1, 32):
            changed = line[:place] + bytes([other]) + line[place + 1 :]
            if changed != line:
                assert ledger.read_entry(changed, 2, head)[0] is None, changed
    for changed in (line.replace(b"1.5", b"15e-1"), line.replace(b"1.5", b"NaN"), line + b" ", b" " + line):
        assert changed != line and ledger.read_entry(changed, 2, head)[0] is None


def test_verify_says_what_it_cannot_see(tmp_path: Path, sample: tuple[Lines, Anchor]) -> None:
    lines, anchor = sample
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    assert "a cut at the end" in verify(path).blind
    assert "a ledger written anew from the start" in verify(path).blind
    assert f"after entry {LENGTH}" in verify(path, anchor).blind[0]


@pytest.mark.parametrize("text", ["", "12", "0:" + "a" * 64, "x:" + "a" * 64, "1:" + "a" * 63, "1:" + "A" * 64])
def test_an_anchor_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="expected NUMBER:DIGEST"):
        Anchor.parse(text)
    assert Anchor.parse(Anchor(3, "a" * 64).text) == Anchor(3, "a" * 64)


def test_two_writers_continue_one_chain(tmp_path: Path) -> None:
    first, second = Ledger(tmp_path / "l"), Ledger(tmp_path / "l")
    for _ in range(3):
        first.append("opened")
        second.append("refusal", reason="x")
    assert verify(tmp_path / "l", second.head) == ledger.Verdict(6, second.head.digest, (), verify_blind(6))
    assert (tmp_path / "l").stat().st_mode & 0o777 == 0o600


def verify_blind(number: int) -> tuple[str, ...]:
    return (f"what was added or cut after entry {number}, if all of it forms a chain",)


def test_nothing_is_appended_to_a_broken_ledger(tmp_path: Path) -> None:
    kept = Ledger(tmp_path / "l")
    kept.append("opened")
    kept.append("opened")
    content = (tmp_path / "l").read_bytes()
    (tmp_path / "l").write_bytes(content.replace(b'"number":1', b'"number":7'))
    with pytest.raises(ValueError, match="line 1 bears another number; see `sslmed site ledger verify`"):
        Ledger(tmp_path / "l")
    (tmp_path / "l").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="has become shorter"):
        kept.append("opened")


def test_a_field_or_number_that_no_entry_has(tmp_path: Path) -> None:
    kept = Ledger(tmp_path / "l")
    with pytest.raises(ValueError, match="patient: unknown field"):
        kept.append("answer", patient="x")
    with pytest.raises(ValueError, match="not JSON compliant"):
        kept.append("answer", scalars={"loss": float("nan")})
    assert kept.entries == [] and verify(tmp_path / "l").entries == 0


def test_a_full_disk_leaves_no_part_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Ledger(tmp_path / "l")
    kept.append("opened")
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, line: real(handle, line[:7]))
    with pytest.raises(OSError, match="no space left"):
        kept.append("answer", reason="x")
    monkeypatch.undo()
    kept.append("opened")
    assert verify(tmp_path / "l", kept.head).problems == ()


def test_a_torn_line_of_a_crash_is_cut_off_and_recorded(tmp_path: Path) -> None:
    path = tmp_path / "l"
    Ledger(path).append("opened")
    with path.open("ab") as file:
        file.write(b'{"number":2,"ki')
    assert "the last line is not whole" in verify(path).problems[0]
    kept = Ledger(path)
    assert [entry["kind"] for entry in kept.entries] == ["opened", "torn"] and kept.entries[-1]["bytes"] == 15
    assert verify(path, kept.head).problems == ()


def test_what_append_returned_from_survives_kill(tmp_path: Path) -> None:
    """A process that is killed after ``append`` and before anything else has its line in the ledger."""
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from sslmed_dist.federation.ledger import Ledger\n"
        "Ledger(Path(sys.argv[1])).append('answer', reason='about to leave')\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "l")], cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL
    assert [entry["reason"] for entry in Ledger(tmp_path / "l").entries] == ["about to leave"]


def test_the_ledger_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("")
    (tmp_path / "l").symlink_to(tmp_path / "target")
    with pytest.raises(ValueError, match="is a link"):
        Ledger(tmp_path / "l")


def small(path: Path) -> Ledger:
    """One round that was delivered, one that was cut short, one answer of which nobody knows whether it left."""
    kept = Ledger(path)
    run = "ab" * 32
    answer = {"run": run, "message": "update", "bytes": 64, "scalars": {"loss": 0.5}, "epsilon": None}
    answer |= {"tensors": [["encoder.w", "float32", [2, 2], 16, 1.0]]}
    kept.append("reserved", run=run, round=0, data_set="knee", count=1, size=64)
    number = kept.append("answer", round=0, **answer)["number"]
    kept.append("delivered", answer=number)
    kept.append("reserved", run=run, round=1, data_set="knee", count=1, size=64)
    kept.append("refusal", reason="=HYPERLINK(1)|x", run=run)
    kept.append("reserved", run=run, round=2, data_set="knee", count=1, size=64)
    kept.append("reserved", run=run, round=2, data_set="knee", count=1, size=64)
    kept.append("answer", round=2, **answer)
    return kept


def test_a_crash_between_entry_and_answer_shows(tmp_path: Path) -> None:
    kept = small(tmp_path / "l")
    assert undelivered(kept.entries) == [5, 8]
    assert unfinished(kept.entries) == [6]
    written = page("north", kept.entries, verify(tmp_path / "l"))
    assert "delivery is not recorded (they count as delivered): 2 (entries 5, 8)." in written
    assert "cut short (what it reserved stays spent): 1 (entries 6)." in written


def test_the_page_and_the_table_say_what_left(tmp_path: Path) -> None:
    kept = small(tmp_path / "l")
    written = page("no|rth", kept.entries, verify(tmp_path / "l", kept.head))
    assert "# What left no\\|rth" in written and "with 128 bytes in all" in written
    assert "| abababababababab | 2 | 128 | loss |" in written
    assert "| encoder.w | float32 | 2x2 | 16 | 1 |" in written and "- 1 times: =HYPERLINK(1)\\|x" in written
    assert "Privacy spent: not bounded" in written
    rows = list(csv.DictReader(io.StringIO(as_csv(kept.entries))))
    assert [int(row["number"]) for row in rows] == list(range(1, 9))
    assert rows[4]["reason"] == "'=HYPERLINK(1)|x" and json.loads(rows[1]["scalars"]) == {"loss": 0.5}
    assert "1 tensor, 64 bytes; loss 0.5" in ledger_page.line(kept.entries[1])
    assert "\n" not in ledger_page.line({**kept.entries[4], "reason": "a\nb"})
