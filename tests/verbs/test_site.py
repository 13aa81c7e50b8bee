"""``sslmed site`` as the people of a hospital use it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sslmed_dist.cli import main
from sslmed_dist.federation import resident, site_file
from sslmed_dist.federation.ledger import Ledger
from sslmed_dist.verbs import site_places
from tests.drills.machine import small_disk
from tests.federation import hospital, tiny

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "configs" / "federated" / "pneumonia_mio_v3.yaml"


def site(folder: Path) -> Path:
    """A site as ``sslmed site init`` makes it; its file."""
    (folder / "data").mkdir(parents=True)
    file = folder / "site.yaml"
    assert main(["site", "init", str(file), "--name", "north", "--data", str(folder / "data")]) == 0
    return file


def test_init_writes_a_strict_file_and_a_key_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = site(tmp_path)
    read = site_file.read(file)
    assert (read.site, read.separation, read.policy.accept) == ("north", "enforced", "each")
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("site.yaml", "state", "state/key")] == [
        0o600,
        0o700,
        0o600,
    ]
    line = capsys.readouterr().out.splitlines()[-1].split()
    assert line[:5] == ["sslmed", "server", "add-site", "DIR", "north"] and line[-2:] == ["--samples", "N"]
    assert len(bytes.fromhex(line[line.index("--data-key") + 1])) == 32
    assert main(["site", "init", str(file), "--name", "north", "--data", str(tmp_path / "data")]) == 2
    assert "a site's rules are never written over" in capsys.readouterr().err
    assert main(["site", "init", str(tmp_path / "b.yaml"), "--name", "../x", "--data", str(tmp_path)]) == 2
    assert main(["site", "init", str(tmp_path / "b.yaml"), "--name", "x", "--data", str(tmp_path / "gone")]) == 2
    assert not (tmp_path / "b.yaml").exists()


def test_check_against_a_recipe_says_what_would_be_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(site(tmp_path))
    capsys.readouterr()
    assert main(["site", "check", file, "--against", str(RECIPE)]) == 2
    said = capsys.readouterr().out
    assert "problem: would be refused: the noise that this site's rules add (norm 5.54e+03) is more than" in said
    text = Path(file).read_text()  # the site decides that nothing hides its data
    Path(file).write_text(text.replace("noise_multiplier: 10.0 ", "noise_multiplier: 0 "))
    assert main(["site", "check", file, "--against", str(RECIPE)]) == 0
    assert "nothing of it is forbidden; it would wait for sslmed site accept" in capsys.readouterr().out
    assert main(["site", "check", file, "--against", str(RECIPE), "plan.batch_size=2", "federated.share=all"]) == 2
    said = capsys.readouterr().out
    assert "problem: would be refused: federated.share: not allowed here; allowed: encoder" in said
    assert "problem: would be refused: plan.batch_size: too small for this site; allowed: at least 16" in said
    assert main(["site", "check", file, "plan.batch_size=2"]) == 2


def test_accept_shows_what_waits_and_takes_a_digest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = tiny.settings(tmp_path)
    own = hospital.site(tmp_path / "north", Path(str(chosen.data["root"])))
    file = str(tmp_path / "north" / "site.yaml")
    assert main(["site", "accept", file]) == 0 and capsys.readouterr().out == "nothing waits\n"
    digest = hospital.asked(own, chosen).digest
    assert main(["site", "accept", file, digest]) == 2
    hospital.door(own).answer(hospital.hello(chosen))
    capsys.readouterr()
    assert main(["site", "accept", file]) == 0
    assert f"digest {digest}" in capsys.readouterr().out
    assert main(["site", "accept", file, digest]) == 0
    assert Ledger(own.ledger).entries[-1]["configuration"] == digest
    assert hospital.said(hospital.door(own).answer(hospital.hello(chosen))).kind == "greeting"
    assert main(["site", "status", file]) == 0
    said = capsys.readouterr().out
    assert "spent of data set north: 0 of 200 rounds, 2 of 2000 messages" in said and "the door is closed" in said
    assert "runs accepted: 1, waiting: 0" in said
    assert main(["site", "reset", file]) == 0 and Ledger(own.ledger).entries[-1]["kind"] == "reset"


def test_the_ledger_is_verified_shown_and_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = tiny.settings(tmp_path)
    own = hospital.site(tmp_path / "north", Path(str(chosen.data["root"])))
    hospital.accept(own, chosen)
    front = hospital.door(own)
    front.answer(hospital.train(chosen))
    file = str(tmp_path / "north" / "site.yaml")
    assert main(["site", "ledger", file, "verify"]) == 0
    said = capsys.readouterr().out
    assert "3 entries in order" in said and "cannot see: a cut at the end" in said
    assert "delivery not recorded (counts as delivered): entries 3" in said
    head = front.ledger.head.text
    assert main(["site", "ledger", file, "verify", "--head", head]) == 0
    lines = own.ledger.read_bytes().splitlines(keepends=True)
    own.ledger.write_bytes(b"".join(lines[:-1]))
    assert main(["site", "ledger", file, "verify"]) == 0  # which says that it cannot see this
    assert main(["site", "ledger", file, "verify", "--head", head]) == 2
    assert "entry 3 of the anchor is missing" in capsys.readouterr().out
    own.ledger.write_bytes(b"".join(lines))
    assert main(["site", "ledger", file, "show"]) == 0
    assert "answer     run" in capsys.readouterr().out
    for name, word in (("a.csv", "number,time,kind"), ("a.md", "# What left north")):
        assert main(["site", "ledger", file, "export", "--out", str(tmp_path / name)]) == 0
        assert (tmp_path / name).read_text().startswith(word)
        assert main(["site", "ledger", file, "export", "--out", str(tmp_path / name)]) == 2
    assert main(["site", "ledger", file, "export", "--out", str(tmp_path / "a.pdf")]) == 2
    assert main(["site", "ledger", file, "export"]) == 2
    assert main(["site", "ledger", file, "show", "--head", head]) == 2


@pytest.mark.parametrize(
    ("files", "line"),
    [
        ([], "no file in it, so there is nothing to train on"),
        ([".DS_Store"], "no file in it, so there is nothing to train on"),
        (["a/one.png"], "1 file, fewer than examinations are asked for; every round would be refused: "),
        ([f"{number}.dcm" for number in range(49)], "49 files, fewer than examinations are asked for"),
        ([f"{number}.dcm" for number in range(50)], "50 files; `sslmed data check` reads them"),
        (["packed.npz"], "1 file; `sslmed data check` reads them"),
    ],
)
def test_check_says_what_lies_at_the_data(tmp_path: Path, files: list[str], line: str) -> None:
    own = site_file.read(site(tmp_path))
    for name in files:
        (Path(own.data) / name).parent.mkdir(exist_ok=True)
        (Path(own.data) / name).touch()
    good, bad = site_places.data(own)
    assert len(good + bad) == 1 and (good + bad)[0].startswith(f"data: {own.data}: {line}")
    assert bool(good) is line.endswith("reads them")


def test_a_folder_counts_once_however_many_links_lead_to_it(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.dcm").touch()
    (tmp_path / "data").mkdir()
    for name in ("one", "two"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "round").symlink_to(tmp_path / "data")
    assert site_places.files_in(tmp_path / "data") == (1, False)


def test_check_and_start_name_a_place_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything starts: no lock, no socket, no entry of the ledger."""
    with small_disk(tmp_path / "state", 1) as mounted:
        file = site(tmp_path)
        file.write_text(file.read_text().replace("separation: enforced", "separation: processes"))
        state = tmp_path / "state"
        if mounted:
            subprocess.run(["mount", "-o", "remount,ro", str(state)], check=True)
        elif os.getuid() != 0:
            state.chmod(0o500)
        else:
            pytest.skip("root may write everywhere, and mounting a tmpfs is not permitted here")
        try:
            for words in (["start"], ["check"]):
                assert main(["site", *words, str(file)]) == 2
                said = capsys.readouterr()
                assert f"state: {state}: cannot be written to" in said.err + said.out
            assert {path.name for path in state.iterdir()} == {"key"} and not (tmp_path / "door").exists()
        finally:
            if not mounted:
                state.chmod(0o700)


def test_start_refuses_where_the_separation_is_not_enforced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = site(tmp_path)
    assert main(["site", "start", str(file)]) == 2
    assert "separation: enforced, but " in capsys.readouterr().err


@pytest.mark.slow
def test_a_started_site_answers_and_closes_on_sigterm(tmp_path: Path) -> None:
    """The real command: resident worker, child process, socket, ledger."""
    chosen = tiny.settings(tmp_path)
    own = hospital.site(tmp_path / "north", Path(str(chosen.data["root"])))
    digest = hospital.accept(own, chosen)
    process = subprocess.Popen(
        [sys.executable, "-m", "sslmed_dist.cli", "site", "start", str(tmp_path / "north" / "site.yaml")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        from tests.clients.test_relay import talk

        end = time.monotonic() + 60
        while not Path(own.socket).exists() and time.monotonic() < end:
            time.sleep(0.1)
        request = hospital.train(chosen)
        answer = talk(own, resident.LENGTH.pack(len(request)) + request)
        assert hospital.said(answer[8:]).kind == "update"
        process.send_signal(signal.SIGTERM)
        said, warned = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0 and "the door is closed" in said
    assert "only processes keep the two sides apart here" in warned
    kinds = [entry["kind"] for entry in Ledger(own.ledger).entries]
    assert kinds == ["accepted", "opened", "reserved", "answer", "delivered"] and len(digest) == 64


def test_what_check_says_of_a_laptop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = site(tmp_path)
    assert main(["site", "check", str(file)]) == 2
    said = capsys.readouterr().out
    assert "problem: network_user: null, so both sides are one user" in said
    assert "problem: the data side can open connections" in said or "no network can be reached" in said
    file.chmod(0o644)
    assert main(["site", "check", str(file)]) == 2
    assert f"problem: {file}: other users may look at it" in capsys.readouterr().out
