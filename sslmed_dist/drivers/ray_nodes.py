"""Asks every node of a Ray cluster what it has: one small actor on each, of ``node_probe``."""

import secrets
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslmed_dist import config
from sslmed_dist.drivers import node_probe
from sslmed_dist.drivers.ray_cluster import cluster_address, require_ray
from sslmed_dist.printable import said_lines

ANSWER_S = 90.0  # a node that has not answered by then is not one that a run can use
REACH_S = 10.0  # for the address of a cluster to take a connection
READINGS = 5  # of each node's clock: the quickest answer says most


@dataclass(frozen=True)
class Node:
    """One node and what it said. ``facts`` None: it has not answered, and ``wrong`` says why. ``resources`` as Ray has
    them. ``clock``: seconds that its clock is ahead of this machine's, and how far that may be off. ``unwritten``: why
    it cannot write to the storage. ``unseen``: nodes whose file there it does not see."""

    name: str
    resources: Mapping[str, float]
    facts: Mapping[str, Any] | None
    wrong: str | None = None
    clock: tuple[float, float] = (0.0, 0.0)
    unwritten: str | None = None
    unseen: tuple[str, ...] = ()


@dataclass(frozen=True)
class Averaging:
    """Seconds in which ``world`` processes average a ResNet-50's gradient by ``backend``, or what is wrong."""

    backend: str
    world: int
    seconds: float | None
    wrong: str | None = None


@dataclass(frozen=True)
class Answers:
    """All that was found. ``listed``: the nodes as ``ray.nodes`` lists them; ``storage``: where the files were put."""

    nodes: tuple[Node, ...]
    averaging: Averaging | None
    listed: Sequence[Mapping[str, Any]]
    storage: Path


@contextmanager
def joined(options: config.Ray) -> Iterator[None]:
    """Join the running cluster, and leave it. ``ValueError`` where there is none, or it is not ours to join: another
    version of Ray or Python, too."""
    require_ray()
    import ray

    address = cluster_address(options) or "auto"
    try:
        reach(address)
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())[:300]
        allowed = "RAY_ADDRESS=HOST:6379, ray.address, or a node of the cluster"
        raise ValueError(f"no cluster to join at {address} ({said}); allowed: {allowed}") from None
    # The probe goes to the nodes as it is here, because there it may be missing.
    ray.cloudpickle.register_pickle_by_value(node_probe)
    try:
        yield
    finally:
        ray.shutdown()
        ray.cloudpickle.unregister_pickle_by_value(node_probe)


def reach(address: str) -> None:
    """``OSError`` where nobody listens at HOST:PORT; Ray itself would try for minutes."""
    host, separator, port = address.rpartition(":")
    if separator and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()


def ask(storage: Path, paths: Sequence[str], backend: str) -> Answers:
    """Ask every living node of the joined cluster. ``storage``: a folder that all should see; ``paths``: what a run
    reads. ``backend``: gloo, or nccl on one GPU of each node."""
    import ray

    listed = [node for node in ray.nodes() if node["Alive"]]
    names = names_of(listed)
    actors = {names[node["NodeID"]]: actor(node, {"num_cpus": 0}) for node in listed}
    try:
        facts = {name: answer(one.facts.remote(list(paths))) for name, one in actors.items()}
        there = {name: one for name, one in actors.items() if not isinstance(facts[name], str)}
        clocks = {name: clock(one) for name, one in there.items()}
        unwritten, unseen = share(there, storage)
        nodes = tuple(
            Node(name, node["Resources"], facts[name], None, clocks[name], unwritten.get(name), unseen.get(name, ()))
            if name in there
            else Node(name, node["Resources"], None, str(facts[name]))
            for node in listed
            for name in [names[node["NodeID"]]]
        )
        averaging = average([node for node in listed if names[node["NodeID"]] in there], backend)
    finally:
        for one in actors.values():
            ray.kill(one)
    return Answers(nodes, averaging, listed, storage)


def names_of(listed: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What a node is called, by its id: its address, and a part of its id where two have the same."""
    addresses = [node["NodeManagerAddress"] for node in listed]
    return {
        node["NodeID"]: address if addresses.count(address) == 1 else f"{address} ({node['NodeID'][:6]})"
        for node, address in zip(listed, addresses, strict=True)
    }


def actor(node: Mapping[str, Any], need: Mapping[str, float]) -> Any:
    """A probe on this node and no other."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
    return ray.remote(node_probe.Probe).options(scheduling_strategy=there, **need).remote()


def answer(waiting: Any, patience_s: float = ANSWER_S) -> Any:
    """What a node said; a text that says what is wrong where it says nothing."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    try:
        return ray.get(waiting, timeout=patience_s)
    except GetTimeoutError:
        return f"no answer within {patience_s:g} s"
    except RayError as error:
        return f"{type(error).__name__}: {said_lines(str(error), 'it says no more')[-1]}"


def clock(one: Any) -> tuple[float, float]:
    """Seconds that a node's clock is ahead, and how far that may be off: half of the quickest answer's way."""
    readings = []
    for _ in range(READINGS):
        asked = time.time()
        said = answer(one.now.remote())
        back = time.time()
        if isinstance(said, float):
            readings.append(((back - asked) / 2, said - (asked + back) / 2))
    if not readings:
        return 0.0, ANSWER_S
    off, ahead = min(readings)
    return ahead, off


def share(actors: Mapping[str, Any], storage: Path) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Every node writes a file to the storage and looks for those of the others; they are deleted again. Returns by
    node why it cannot write, and whose files it does not see."""
    token = secrets.token_hex(8)
    files = {name: f".sslmed-doctor-{token}-{number}" for number, name in enumerate(actors)}
    unwritten: dict[str, str] = {}
    unseen: dict[str, tuple[str, ...]] = {}
    try:
        for name, one in actors.items():
            said = answer(one.write.remote(str(storage), files[name], name))
            if said is not None:
                unwritten[name] = said
        wanted = {files[name]: name for name in actors if name not in unwritten}
        for name, one in actors.items():
            seen = answer(one.read.remote(str(storage), list(wanted)))
            missing = [other for file, other in wanted.items() if not isinstance(seen, dict) or seen.get(file) != other]
            if missing:
                unseen[name] = tuple(missing)
    finally:
        for one in actors.values():
            answer(one.clean.remote())
    return unwritten, unseen


def average(listed: Sequence[Mapping[str, Any]], backend: str) -> Averaging | None:
    """Time an average over all nodes, a process on each; on a single node between two. None without a node."""
    import ray

    if not listed:
        return None
    placed = list(listed) if len(listed) > 1 else [listed[0], listed[0]]
    need: dict[str, float] = {"num_cpus": 0, **({"num_gpus": 1} if backend == "nccl" else {})}
    actors = [actor(node, need) for node in placed]
    try:
        port = answer(actors[0].port.remote())
        if isinstance(port, str):
            return Averaging(backend, len(placed), None, port)
        address = f"{placed[0]['NodeManagerAddress']}:{port}"
        waiting = [one.average.remote(backend, address, rank, len(placed)) for rank, one in enumerate(actors)]
        said = [answer(one, ANSWER_S + node_probe.PATIENCE_S) for one in waiting]
    finally:
        for one in actors:
            ray.kill(one)
    wrong = [text for text in said if isinstance(text, str)]
    if wrong:
        return Averaging(backend, len(placed), None, wrong[0])
    return Averaging(backend, len(placed), max(said))


def this_process() -> dict[str, Any]:
    """What a node would say of the process that asks."""
    return node_probe.Probe().facts([])
