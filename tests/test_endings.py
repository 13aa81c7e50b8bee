"""How a command ends: one line that names what is wrong, and the exit code that the documents promise."""

import errno
import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from sslmed_dist import cli, plain_yaml
from sslmed_dist.endings import Stopped, line_of
from sslmed_dist.printable import printable, say
from sslmed_dist.training.stopping import finish
from tests import tiny

ROOT = Path(__file__).parents[1]
REPORT = "; this is a fault of the program: please report it with what `sslmed --traceback doctor ...` says"
ERRORS: dict[str, tuple[BaseException, str, int]] = {
    "a mistake": (ValueError("run.dir: no\n such  place"), "run.dir: no such  place", 2),
    "a mistake without words": (ValueError(), "ValueError", 2),
    "no file": (
        FileNotFoundError(errno.ENOENT, "No such file or directory", "a b"),
        "a b: No such file or directory",
        2,
    ),
    "a full disk": (
        OSError(errno.ENOSPC, "No space left on device", "x.pt"),
        "x.pt: No space left on device; free some space, then the same command again",
        2,
    ),
    "a full disk without a file": (
        OSError(errno.ENOSPC, "No space left on device"),
        "the-run: No space left on device; free some space, then the same command again",
        2,
    ),
    "not allowed": (
        PermissionError(errno.EACCES, "Permission denied", "x"),
        "x: Permission denied; this user may not; choose another place, or change the permissions",
        2,
    ),
    "read-only": (
        OSError(errno.EROFS, "Read-only file system", "x"),
        "x: Read-only file system; choose another place",
        2,
    ),
    "two files": (
        OSError(errno.EXDEV, "Invalid cross-device link", "a", None, "b"),
        "a -> b: Invalid cross-device link",
        2,
    ),
    "of a library": (ConnectionError("no cluster at 1.2.3.4"), "the-run: no cluster at 1.2.3.4", 2),
    "not text": (
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        "the-run: not UTF-8 text ('utf-8' codec can't decode byte 0xff in position 0: invalid start byte)",
        2,
    ),
    "memory": (
        MemoryError("Unable to allocate 9 TiB"),
        "the-run: out of memory (Unable to allocate 9 TiB); a smaller batch, plan.micro_batch, or smaller inputs",
        1,
    ),
    "recursion": (RecursionError("maximum depth"), "the-run: nested too deeply to be read (maximum depth)", 1),
    "a failure": (RuntimeError("the federation failed"), "RuntimeError: the federation failed", 1),
    "a failed sum": (FloatingPointError("overflow"), "FloatingPointError: overflow", 1),
    "nobody thought of": (KeyError("encoder"), f"the-run: unexpected KeyError: 'encoder'{REPORT}", 1),
    "an assertion": (AssertionError(), f"the-run: unexpected AssertionError{REPORT}", 1),
    "not written yet": (NotImplementedError("x"), f"the-run: unexpected NotImplementedError: x{REPORT}", 1),
    "long": (KeyError("x" * 9000), f"the-run: unexpected KeyError: '{'x' * 499}{REPORT}", 1),
}


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_is_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error, line, code = ERRORS[name]

    def fail(_: object) -> int:
        raise error

    monkeypatch.setitem(cli.VERBS, "doctor", fail)
    monkeypatch.setattr(cli, "subject", lambda _: Path("the-run"))
    assert cli.main(["doctor"]) == code
    assert capsys.readouterr() == ("", f"sslmed doctor: {line}\n")
    with pytest.raises(type(error)):
        cli.main(["--traceback", "doctor"])
    monkeypatch.setenv("SSLMED_TRACEBACK", "1")
    with pytest.raises(type(error)):
        cli.main(["doctor"])


ENDS: dict[str, tuple[BaseException, str, int]] = {
    "stopped": (Stopped("stopped; run again"), "stopped; run again\n", 0),
    "interrupted": (KeyboardInterrupt(), "interrupted\n", 130),
    "reader gone": (BrokenPipeError(errno.EPIPE, "Broken pipe"), "", 141),
}


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("words", [["doctor"], ["--traceback", "doctor"]])
def test_other_ends(
    name: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error, said, code = ENDS[name]

    def end(_: object) -> int:
        raise error

    monkeypatch.setitem(cli.VERBS, "doctor", end)
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    assert cli.main(words) == code
    assert capsys.readouterr() == ("", said)


def test_a_training_that_others_wait_for_ends_them_too() -> None:
    finish(False)
    with pytest.raises(Stopped, match="^stopped; run the same command again to go on$"):
        finish(True)


PRINTED = {
    "plain name_0.png": "plain name_0.png",
    "Größe 患者 é\xa0x": "Größe 患者 é\xa0x",
    "a\x1b[31mb": r"a\x1b[31mb",
    "a\nsslmed: forged": r"a\nsslmed: forged",
    "a\r\x00\x7f\x85\u2028": r"a\r\x00\x7f\x85\u2028",
    "left\u202eright": r"left\u202eright",
    "byte\udcff": r"byte\udcff",
}


@pytest.mark.parametrize("text", PRINTED)
def test_control_characters_are_escaped(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert printable(text) == PRINTED[text]
    cli.show(text)
    say(text)
    assert capsys.readouterr() == (PRINTED[text] + "\n", PRINTED[text] + "\n")
    line = line_of(OSError(errno.ENOENT, "gone", text), "train")[0]
    assert line == f"sslmed train: {PRINTED[text]}: gone"


def test_the_shell_sees_the_same(tmp_path: Path) -> None:
    """A name of control characters and bytes that are no text; a closed pipe; an unwritable answer."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    verb = "from sslmed_dist import cli; cli.VERBS['doctor'] = lambda _: cli.show('a line') or 0; "
    command = [sys.executable, "-c", f"{verb}import sys; sys.exit(cli.main(sys.argv[1:]))"]
    done = subprocess.run([*command, "train", b"\x1b[2Jno\xff.yaml"], env=env, cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"sslmed train: \\x1b[2Jno\\udcff.yaml: no such configuration file\n"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*command, "doctor"], env=env, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")
    with open("/dev/full", "w") as full:
        done = subprocess.run([*command, "doctor"], env=env, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert done.stderr.startswith(b"sslmed doctor: No space left on device; ") and done.stderr.count(b"\n") == 1


def test_more_threads_than_cores_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(plain_yaml.write(tiny.tree(tmp_path)))
    arguments = cli.parse(["train", str(file), "run.threads=1024"])
    assert cli.configured(arguments).run.threads == 1024
    cores = len(os.sched_getaffinity(0))
    line = f"warning: run.threads: 1024 threads on {cores} cores take turns, which is slower than {cores}\n"
    assert capsys.readouterr().err == line
    cli.configured(cli.parse(["train", str(file), f"run.threads={cores}"]))
    assert capsys.readouterr().err == ""


def test_no_test_ends_processes_by_a_pattern() -> None:
    pattern = re.compile(r"[\"']p?kill(?:all)?[\"']|\b(?:pkill|killall|pgrep)\b")
    words = {
        path: pattern.findall(path.read_text()) for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)
    }
    assert not {str(path): found for path, found in words.items() if found}


def test_exit_codes_stand_in_the_documents() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    rows = re.findall(r"^\| (\d+) \|", text, flags=re.MULTILINE)
    assert rows == ["0", "1", "2", str(128 + signal.SIGINT), str(128 + signal.SIGPIPE)]


def test_a_warning_of_a_library_is_one_line_without_control_characters(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def warns(arguments: object) -> int:
        warnings.warn("unknown encoding\n  '\x1b[31mred'", UserWarning, stacklevel=1)
        return 0

    monkeypatch.setitem(cli.VERBS, "doctor", warns)
    shown = warnings.showwarning
    assert cli.main(["doctor"]) == 0 and warnings.showwarning is shown
    assert capsys.readouterr().err == "warning: unknown encoding '\\x1b[31mred'\n"
