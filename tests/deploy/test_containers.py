"""Compose files, Dockerfile and seccomp profile: who has what, and that no command in them is unknown."""

import ctypes.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from sslmed_dist.cli_parser import parse

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = {name: yaml.safe_load((DEPLOY / f"compose.{name}.yaml").read_text()) for name in ("site", "server")}
SERVICES = [(name, service) for name, tree in COMPOSE.items() for service in tree["services"]]
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()


def mounts(service: dict[str, Any]) -> dict[str, bool]:
    """By its path inside, whether a mount is read-only."""
    return {mount["target"]: mount.get("read_only", False) for mount in service["volumes"]}


@pytest.mark.parametrize(("name", "service"), SERVICES)
def test_every_container_is_confined(name: str, service: str) -> None:
    tree = COMPOSE[name]["services"][service]
    user, group = map(int, tree["user"].split(":"))
    assert user >= 10000 and group >= 10000 and f"--uid {user}" in DOCKERFILE and f"--gid {group}" in DOCKERFILE
    assert tree["read_only"] is True and tree["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in tree["security_opt"]
    assert not tree.keys() & {"privileged", "cap_add", "devices", "pid", "ipc", "userns_mode", "env_file"}
    assert all("docker.sock" not in target for target in mounts(tree))
    assert tree["logging"]["options"] == {"max-size": "10m", "max-file": "5"}, "logs do not grow for ever"
    assert tree["mem_limit"] and tree["pids_limit"]


@pytest.mark.parametrize(("name", "service"), [pair for pair in SERVICES if pair[1] != "proxy"])
def test_every_command_is_one_of_this_program(name: str, service: str) -> None:
    tree = COMPOSE[name]["services"][service]
    assert parse(tree["command"]).action in ("start", "network")
    target = tree["build"]["target"]
    stage = re.search(rf"^FROM \w+ AS {target}\n(.*?)(?=^FROM|\Z)", DOCKERFILE, flags=re.M | re.S)
    assert stage is not None
    (command,) = re.findall(r"^CMD (.*)$", stage[1], flags=re.M)
    (user,) = re.findall(r"^USER (.*)$", stage[1], flags=re.M)
    assert json.loads(command) == tree["command"] and user == tree["user"], "the image alone does the same"
    assert (DEPLOY / tree["build"]["context"] / tree["build"]["dockerfile"]).resolve() == DEPLOY / "Dockerfile"


def test_the_data_side_has_no_network_and_alone_has_the_data() -> None:
    data, network = (COMPOSE["site"]["services"][name] for name in ("data", "network"))
    assert data["network_mode"] == "none" and "networks" not in data and "ports" not in data
    assert "seccomp:./seccomp-data.json" in data["security_opt"]
    assert mounts(data) == {
        "${SSLMED_DATA}": True,
        "/srv/sslmed/site.yaml": True,
        "/srv/sslmed/state": False,
        "/srv/sslmed/door": False,
    }
    assert mounts(network) == {"/srv/sslmed/network": False, "/srv/sslmed/door": True}
    assert "ports" not in network, "connections go out alone"
    shared = {m["source"] for m in data["volumes"]} & {m["source"] for m in network["volumes"]}
    assert shared == {"door"} == COMPOSE["site"]["volumes"].keys()


def test_the_image_of_the_data_side_has_no_flower_and_none_has_a_second_server() -> None:
    installed = dict(re.findall(r"^FROM (?:\w+) AS (\w+)\nRUN .*\[(.*?)\]", DOCKERFILE, flags=re.M))
    assert installed == {"data": "site,medical", "flower": "site,flower"}
    assert DOCKERFILE.index('ENTRYPOINT ["sslmed"]') < DOCKERFILE.index("AS data")


def test_what_docker_builds_from_is_what_the_wheel_is_made_of() -> None:
    copied = {word for line in re.findall(r"^COPY (?!--)(.*)$", DOCKERFILE, flags=re.M) for word in line.split()[:-1]}
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied
    assert "*" in ignored and all((ROOT / name).exists() for name in copied)


def test_only_the_proxy_of_a_server_can_be_reached() -> None:
    services = COMPOSE["server"]["services"]
    assert COMPOSE["server"]["networks"]["inside"] == {"internal": True}
    assert list(services["server"]["networks"]) == ["inside"] and "ports" not in services["server"]
    assert services["proxy"]["ports"] == ["8443:8443"]
    assert services["server"]["networks"]["inside"]["aliases"] == ["superlink"]
    assert "server superlink:8443;" in (DEPLOY / "nginx.conf").read_text()


@pytest.mark.parametrize("name", COMPOSE)
def test_docker_itself_finds_nothing_wrong(name: str) -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("docker compose is not installed")
    command = [docker, "compose", "--file", str(DEPLOY / f"compose.{name}.yaml"), "config", "--quiet"]
    done = subprocess.run(command, env={"SSLMED_DATA": "/data", "PATH": "/usr/bin"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_under_the_profile_there_is_no_socket_but_unix_ones_and_training_goes_on() -> None:
    """The profile is loaded by libseccomp, which containers are started with, too."""
    if ctypes.util.find_library("seccomp") is None:
        pytest.skip("libseccomp is not installed")
    command = [sys.executable, "-m", "tests.deploy.confined", str(DEPLOY / "seccomp-data.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    families = dict.fromkeys(("AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET"), 97)
    expected = {"refused": families, "unix": 0, "reachable": None, "namespace": -1, "trained": True}
    assert json.loads(done.stdout) == expected
