"""``sslmed doctor --cluster``: every fault is a line that names the node and the mend; two real nodes have none."""

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sslmed_dist import cli, config
from sslmed_dist.drivers import node_probe, ray_nodes
from sslmed_dist.drivers.ray_nodes import Answers, Averaging, Node
from sslmed_dist.verbs import doctor_cluster
from tests import tiny
from tests.drivers.ray_nodes import ROOT, Nodes, environment, started_nodes

GIB = 2**30
OWN = ray_nodes.this_process()


def node(name: str = "10.0.0.1", **changes: Any) -> Node:
    """A node without a fault, but for the ``changes``: of its facts, or of the node."""
    facts: dict[str, Any] = OWN | {"machine": name, "interfaces": {"lo": "127.0.0.1", "eth0": name}, "named": {}}
    facts |= {"shm": [8 * GIB, 8 * GIB], "there": {"/data": True}}
    own = {field.name for field in dataclasses.fields(Node)}
    facts |= {key: value for key, value in changes.items() if key not in own}
    resources = {"CPU": 8.0, "GPU": 1.0, "object_store_memory": 2.0 * GIB}
    return Node(
        **{"name": name, "resources": resources, "facts": facts} | {k: v for k, v in changes.items() if k in own}
    )


def answers(*nodes: Node, seconds: float | None = 0.1, wrong: str | None = None) -> Answers:
    """Those of a cluster of these nodes."""
    listed = [{"Alive": True, "Resources": one.resources, "NodeManagerAddress": one.name} for one in nodes]
    return Answers(nodes, Averaging("gloo", 2, seconds, wrong), listed, Path("/shared"))


def problems(found: Answers) -> list[str]:
    """All that is wrong without a recipe."""
    return [
        *doctor_cluster.versions(found.nodes),
        *doctor_cluster.machines(found),
        *doctor_cluster.averaging(found.averaging),
    ]


def test_a_cluster_without_a_fault_has_a_line_a_node_and_no_problem() -> None:
    found = answers(node(), node("10.0.0.2", clock=(1.5, 1.0)))
    first, second, storage, average = doctor_cluster.described(found)
    assert first.startswith("node 10.0.0.1: 8 CPUs, 1 GPUs; Python ") and "interface eth0" in second
    assert storage.endswith("2 of 2 nodes") and average.endswith("0.100 s, 1.02 GB/s a process")
    assert problems(found) == []


FAULTS: dict[str, tuple[Answers, str, str]] = {
    "no answer": (answers(node(facts=None, wrong="no answer within 90 s")), "no answer within 90 s", "raylet's log"),
    "no package": (answers(node(digest=None)), "sslmed_dist is not installed", "pip install"),
    "another package": (answers(node(digest="0" * 64)), "its sslmed_dist is 000000000000", "the same on every node"),
    "another Python": (answers(node(python="3.9.1")), "Python 3.9.1, here ", "install the same"),
    "another torch": (answers(node(packages=OWN["packages"] | {"torch": "1.0"})), "torch 1.0, here ", "the same"),
    "no ray": (answers(node(packages=OWN["packages"] | {"ray": None})), "ray missing, here ", "the same"),
    "not writable": (
        answers(node(unwritten="Read-only file system")),
        "cannot write to /shared: Read-only",
        "run.dir=",
    ),
    "two storages": (answers(node(unseen=("10.0.0.2",))), "does not see in /shared what 10.0.0.2", "all nodes mount"),
    "small shm": (answers(node(shm=[64 * 2**20, 0])), "/dev/shm has 64 MiB", "--shm-size"),
    "no shm": (answers(node(shm=None)), "no /dev/shm", "--shm-size"),
    "objects": (answers(node(shm=[GIB, GIB])), "may take 2.0 GiB, /dev/shm has 1.0", "--object-store-memory"),
    "clock": (answers(node(clock=(-7.0, 0.5))), "its clock is -7.0 s off", "NTP"),
    "interface": (answers(node(named={"GLOO_SOCKET_IFNAME": "ib0"})), "=ib0 is no interface", "allowed: lo, eth0"),
    "loopback": (
        answers(node("127.0.0.1", interfaces={"lo": "127.0.0.1"}), node()),
        "joined by a loopback address",
        "--node-ip-address",
    ),
    "unreachable": (answers(node(), seconds=None, wrong="timed out"), "failed: timed out", "open the ports"),
    "slow": (answers(node(), seconds=4.0), "averaging is slow, 26 MB/s", "name the fast interface"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_one_line_with_its_mend(name: str) -> None:
    found, words, mend = FAULTS[name]
    (line,) = problems(found)
    assert words in line and mend in line


@pytest.mark.parametrize("chosen", ["eth0", "=eth0", "^docker0", "eth0,lo"])
def test_the_forms_in_which_an_interface_is_named(chosen: str) -> None:
    assert problems(answers(node(named={"NCCL_SOCKET_IFNAME": chosen}))) == []


def test_what_a_recipe_asks_against_what_is_there(tmp_path: Path) -> None:
    settings = config.replace(tiny.settings(tmp_path), driver="ray", ray={"num_workers": 2, "gpus_per_worker": 1})
    two = answers(node(), node("10.0.0.2", there={"/data": False}))
    (line,) = doctor_cluster.asked(settings, two, ["/data"])
    assert line.startswith("10.0.0.2: /data is not there")
    more = config.replace(settings, ray={"num_workers": 3})
    short, odd = doctor_cluster.asked(more, two, [])
    assert "3 workers of 1 CPUs and 1 GPUs" in short and "is not a multiple of 3" in odd
    (driver,) = doctor_cluster.asked(config.replace(settings, driver="local"), two, [])
    assert "driver=ray" in driver


class Away:
    """An actor that is no process: a probe whose storage is in a folder of its own, or is broken."""

    def __init__(self, folder: Path) -> None:
        self.probe, self.folder = node_probe.Probe(), folder
        self.write, self.read, self.clean = map(self.remote, ("write", "read", "clean"))

    def remote(self, name: str) -> Any:
        """A method as Ray gives it."""
        method, folder = getattr(self.probe, name), self.folder

        class Method:
            @staticmethod
            def remote(*arguments: Any) -> Any:
                return method(*([str(folder), *arguments[1:]] if arguments else []))

        return Method


def test_nodes_write_and_read_one_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nodes see one folder, the third another one, the fourth none; nothing is left behind."""
    monkeypatch.setattr(ray_nodes, "answer", lambda said: said)
    monkeypatch.setattr(node_probe.time, "sleep", lambda _: None)
    monkeypatch.setattr(node_probe.time, "monotonic", iter(range(10_000)).__next__)
    for name in ("shared", "own"):
        (tmp_path / name).mkdir()
    folders = {"a": "shared", "b": "shared", "c": "own", "d": "gone"}
    actors = {name: Away(tmp_path / folder) for name, folder in folders.items()}
    unwritten, unseen = ray_nodes.share(actors, Path("/shared"))
    assert unwritten == {"d": "No such file or directory"}
    assert unseen == {"a": ("c",), "b": ("c",), "c": ("a", "b"), "d": ("a", "b", "c")}
    assert not list(tmp_path.rglob(".sslmed*"))


def test_a_digest_knows_another_package_and_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert node_probe.digest("no_such_package") is None and node_probe.digest() == OWN["digest"]
    (tmp_path / "some_package").mkdir()
    (tmp_path / "some_package" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = node_probe.digest("some_package")
    (tmp_path / "some_package" / "__init__.pyc").write_text("x")
    assert node_probe.digest("some_package") == before
    (tmp_path / "some_package" / "__init__.py").write_text("x = 1")
    assert node_probe.digest("some_package") != before


def test_a_recipe_is_for_the_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "imagenet_simclr"]) == 2
    assert "allowed: --cluster" in capsys.readouterr().err


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Two nodes."""
    pytest.importorskip("ray")
    with started_nodes(tmp_path_factory.mktemp("nodes")) as started:
        yield started


def doctor(cluster: Nodes, *words: str) -> "subprocess.CompletedProcess[str]":
    """``sslmed doctor --cluster`` in a process of its own."""
    command = [sys.executable, "-m", "sslmed_dist.cli", "doctor", "--cluster", *words]
    return subprocess.run(command, env=environment(**cluster.env), cwd=cluster.folder, capture_output=True, text=True)


@pytest.mark.ray
@pytest.mark.slow
def test_two_nodes_and_then_a_third_with_another_package(cluster: Nodes, tmp_path: Path) -> None:
    """The first two have no fault; the third has a changed package, and names an interface that it has not."""
    tiny.settings(tmp_path)
    data = next(tmp_path.glob("*.npz"))
    recipe = ["demo_ray", f"data.root={data}", f"run.dir={tmp_path}"]
    said = doctor(cluster, *recipe)
    assert said.returncode == 0, said.stdout + said.stderr
    assert said.stdout.count("node 127.0.0.") == 2 and "2 of 2 nodes" in said.stdout and "by gloo: " in said.stdout
    assert "recipe demo-ray: 2 workers" in said.stdout and not list(tmp_path.glob(".sslmed*"))
    shutil.copytree(ROOT / "sslmed_dist", tmp_path / "edited" / "sslmed_dist")
    with (tmp_path / "edited" / "sslmed_dist" / "config.py").open("a") as file:
        file.write("\n# edited\n")
    cluster.join(4, env={"PYTHONPATH": str(tmp_path / "edited"), "NCCL_SOCKET_IFNAME": "ib7"})
    said = doctor(cluster, *recipe, "ray.num_workers=8")
    found = [line for line in said.stdout.splitlines() if line.startswith("problem: ")]
    assert said.returncode == 2 and len(found) == 3, said.stdout + said.stderr
    assert found[0].startswith("problem: 127.0.0.4: its sslmed_dist is ") and "=ib7 is no interface" in found[1]
    assert "8 workers of 1 CPUs and 0 GPUs each; there are 6 CPUs" in found[2]


def test_without_a_cluster_it_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert cli.main(["doctor", "--cluster"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sslmed doctor: no cluster to join at 127.0.0.1:1 (") and "allowed: RAY_ADDRESS" in line
