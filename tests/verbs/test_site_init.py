"""``sslmed site init``: what it refuses, and the commands that it prints."""

import shlex
from pathlib import Path

import pytest

from sslmed_dist.cli import main

Said = pytest.CaptureFixture[str]


@pytest.mark.parametrize("name", ["server.crt", "ca.key"])
def test_what_is_no_authoritys_certificate_makes_no_site(tmp_path: Path, capsys: Said, name: str) -> None:
    """A site that believed the server's certificate alone would believe nobody after the next one."""
    assert main(["server", "init", str(tmp_path / "fed"), "--host", "fed.example.org"]) == 0
    wrong = tmp_path / "fed" / "tls" / name
    words = ["--name", "a", "--data", str(tmp_path), "--root-certificate", str(wrong)]
    assert main(["site", "init", str(tmp_path / "a" / "site.yaml"), *words]) == 2
    said = capsys.readouterr().err
    kind = "is no authority's certificate (basicConstraints); wanted: the server's tls/ca.crt"
    assert f"{wrong}: {kind if name == 'server.crt' else 'no certificate (PEM) there'}" in said
    assert not (tmp_path / "a").exists()


def test_paths_with_spaces_are_quoted_in_commands(tmp_path: Path, capsys: Said) -> None:
    folder = tmp_path / "two words"
    file = folder / "site.yaml"
    assert main(["site", "init", str(file), "--name", "a", "--data", str(tmp_path)]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert shlex.split(line.partition("then: ")[2]) == ["sslmed", "site", "check", str(file)]
    file.chmod(0o644)
    main(["site", "check", str(file)])
    line = next(line for line in capsys.readouterr().out.splitlines() if "chmod" in line)
    assert shlex.split(line.partition("; ")[2]) == ["chmod", "go=", str(file)]
    main(["server", "status", str(folder)])
    assert shlex.split(capsys.readouterr().err.partition("`")[2].partition("`")[0])[-1] == str(folder)
