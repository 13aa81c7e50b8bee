"""The units: what they call exists, what they say is known to systemd, and the data side's has what keeps it apart."""

import gzip
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from sslmed_dist.cli_parser import parse

UNITS = sorted((Path(__file__).parents[2] / "deploy" / "systemd").glob("*.service"))
# What the units may say, out of the manuals systemd.unit, systemd.service, systemd.exec, systemd.kill and
# systemd.resource-control (252). Where those are installed, they are asked as well.
KNOWN = {
    "Unit": "Description After Wants",
    "Service": """AmbientCapabilities CapabilityBoundingSet ExecStart Group InaccessiblePaths KillMode LimitCORE
        LockPersonality MemoryMax NoNewPrivileges PrivateDevices PrivateNetwork PrivateTmp ProtectClock
        ProtectControlGroups ProtectHome ProtectHostname ProtectKernelLogs ProtectKernelModules ProtectKernelTunables
        ProtectProc ProtectSystem ReadOnlyPaths ReadWritePaths RemoveIPC Restart RestartSec RestrictAddressFamilies
        RestrictNamespaces RestrictRealtime RestrictSUIDSGID SystemCallArchitectures SystemCallFilter TasksMax
        TimeoutStopSec Type UMask User""",
    "Install": "WantedBy",
}
HARDENED = [
    "NoNewPrivileges=yes",
    "ProtectSystem=strict",
    "PrivateTmp=yes",
    "PrivateDevices=yes",
    "CapabilityBoundingSet=",
    "LimitCORE=0",
    "RestrictNamespaces=yes",
    "ProtectHome=yes",
    "UMask=0077",
    "KillMode=mixed",
]
APART = ["PrivateNetwork=yes", "RestrictAddressFamilies=AF_UNIX", "ReadOnlyPaths=/data"]
APART += ["ReadWritePaths=/srv/sslmed/state /srv/sslmed/door"]


def lines(unit: Path) -> list[tuple[str, str, str]]:
    """(section, key, value) of every line."""
    found, section = [], ""
    for line in unit.read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            assert equals, line
            found.append((section, key, value))
    return found


def said(unit: Path) -> set[str]:
    """The lines of a unit as they stand."""
    return {f"{key}={value}" for _, key, value in lines(unit)}


def unit(name: str) -> Path:
    """The unit of a side."""
    return next(path for path in UNITS if path.stem == f"sslmed-{name}")


def test_there_is_a_unit_for_each_side() -> None:
    assert [path.stem for path in UNITS] == ["sslmed-data", "sslmed-network", "sslmed-server"]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_every_directive_is_systemds_and_stands_once(path: Path) -> None:
    keys = [(section, key) for section, key, _ in lines(path)]
    assert len(keys) == len(set(keys)), "a second line would add to the first or take its place"
    for section, key in keys:
        assert key in KNOWN[section].split(), f"[{section}] {key}"


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_what_a_unit_starts_is_a_command_of_this_program(path: Path) -> None:
    (command,) = [value for _, key, value in lines(path) if key == "ExecStart"]
    program, *words = shlex.split(command)
    assert program == "/opt/sslmed/bin/sslmed"
    assert parse(words).action in ("start", "network")


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_no_side_is_root_or_may_become_it(path: Path) -> None:
    there = said(path)
    assert not set(HARDENED) - there and "User=root" not in there and any(line.startswith("User=") for line in there)


def test_the_data_side_has_no_network_and_the_network_side_no_data() -> None:
    data, network = said(unit("data")), said(unit("network"))
    assert not set(APART) - data
    assert "SystemCallFilter=~io_uring_setup io_uring_enter io_uring_register" in data, "its sockets ask no filter"
    assert not any(line.startswith(("PrivateUsers", "MemoryDenyWriteExecute")) for line in data), "see the comments"
    assert "InaccessiblePaths=-/data -/srv/sslmed/state -/srv/sslmed/site.yaml" in network
    users = [next(line for line in there if line.startswith("User=")) for there in (data, network)]
    assert users == ["User=sslmed", "User=sslmed-net"]
    assert {line for line in data | network if line.startswith("Group=")} == {"Group=sslmed-net"}, "for the socket"


PAGES = ("systemd.exec", "systemd.kill", "systemd.resource-control", "systemd.service", "systemd.unit")  # of its manual


def test_the_manual_of_systemd_knows_every_directive() -> None:
    folders = [Path("/usr/share/man/man5")]
    pages = [page for folder in folders for page in folder.glob("systemd.*.5.gz")]
    names = {page.split(".")[1] for page in PAGES}
    if not names <= {page.name.split(".")[1] for page in pages}:
        pytest.skip("systemd's manual is not installed")
    text = "".join(gzip.decompress(page.read_bytes()).decode(errors="replace") for page in pages)
    text = re.sub(r"\\f[A-Z]", "", text).replace("\\-", "-")  # without the marks of bold and italic letters
    for section in KNOWN.values():
        for key in section.split():
            assert re.search(rf"\b{key}=", text), key


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_systemd_itself_finds_nothing_wrong(path: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    program = tmp_path / "sslmed"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = tmp_path / path.name
    copy.write_text(path.read_text().replace("/opt/sslmed/bin/sslmed", str(program)))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True)
    assert done.returncode == 0 and str(copy) not in done.stderr and path.name not in done.stderr, done.stderr
