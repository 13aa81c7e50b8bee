"""``sslmed doctor --cluster``: what the nodes of a cluster have, and what a recipe asks of them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from sslmed_dist import config
from sslmed_dist.drivers import ray_nodes
from sslmed_dist.drivers.node_probe import FLOATS, PACKAGES
from sslmed_dist.drivers.ray_nodes import Answers, Averaging, Node
from sslmed_dist.drivers.ray_room import too_little
from sslmed_dist.printable import plural
from sslmed_dist.training.check import require_even
from sslmed_dist.verbs.doctor import SHARED_MEMORY

CLOCK_S = 2.0  # clocks that differ by more make logs and ages of files hard to read
SLOW = 50e6  # bytes a second: below, averaging takes longer than a step of a ResNet-50


def examine(settings: config.Config | None) -> tuple[list[str], list[str]]:
    """(what the cluster has, what will not work on it and the mend), one line each. ``settings`` is the recipe that is
    to run there, if any. ``ValueError`` where there is no cluster to join."""
    options = config.Ray() if settings is None else settings.ray
    storage = Path("runs").resolve() if settings is None else settings.folder.parent
    paths = [] if settings is None else local_paths(settings)
    backend = "nccl" if settings is not None and options.gpus_per_worker else "gloo"
    with ray_nodes.joined(options):
        answers = ray_nodes.ask(existing(storage), paths, backend)
    lines = list(described(answers))
    problems = [*versions(answers.nodes), *machines(answers), *averaging(answers.averaging)]
    if settings is not None:
        problems += asked(settings, answers, paths)
        lines.append(recipe_line(settings))
    return lines, problems


def local_paths(settings: config.Config) -> list[str]:
    """The paths that the workers of a run read, absolute; what lies in an object store is none of them
    (``config.paths``)."""
    named = config.paths(config.to_tree(settings)).values()
    return sorted({str(Path(path).expanduser().resolve()) for path in named})


def existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there: nothing is made."""
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def described(answers: Answers) -> Iterator[str]:
    """A line a node, then what joins them."""
    for node in answers.nodes:
        facts = node.facts
        has = ", ".join(f"{node.resources.get(key, 0):g} {key}s" for key in ("CPU", "GPU"))
        if facts is None:
            yield f"node {node.name}: {has}"
            continue
        shm = "no /dev/shm" if facts["shm"] is None else f"/dev/shm {facts['shm'][1] / 2**30:.1f} GiB free"
        there = facts["packages"]
        packages = ", ".join(f"{name} {there[name] or 'missing'}" for name in PACKAGES if name != "torchvision")
        ahead, off = node.clock
        yield (
            f"node {node.name}: {has}; Python {facts['python']}, {packages}, "
            f"package {(facts['digest'] or 'none')[:12]}; "
            f"{shm}; interface {interface(node) or 'unknown'}; clock {1e3 * ahead:+.0f} ms (within {1e3 * off:.0f} ms)"
        )
    whole = sum(node.facts is not None and node.unwritten is None and not node.unseen for node in answers.nodes)
    yield f"storage {answers.storage}: written and read by {whole} of {plural(len(answers.nodes), 'node')}"
    found = answers.averaging
    if found is not None and found.seconds is not None:
        yield (
            f"averaging {4 * FLOATS / 1e6:.0f} MB (a ResNet-50's gradient) over {found.world} processes by "
            f"{found.backend}: {found.seconds:.3f} s, {rate(found) / 1e9:.2f} GB/s a process"
        )


def rate(found: Averaging) -> float:
    """Bytes a second that each process sends and receives while it averages: 2 (n - 1) / n of the tensor."""
    assert found.seconds is not None
    return 4 * FLOATS * 2 * (found.world - 1) / found.world / max(found.seconds, 1e-9)


def interface(node: Node) -> str | None:
    """The interface that has the node's address in the cluster; None where none has. 127.0.0.2 is one of lo's."""
    assert node.facts is not None
    address = node.name.split(" ")[0]
    found = {held: name for name, held in node.facts["interfaces"].items()}
    return found.get(address) or ("lo" if address.startswith("127.") else None)


def versions(nodes: Sequence[Node]) -> Iterator[str]:
    """Every node must have what this process has: workers load what it sends them."""
    own = ray_nodes.this_process()
    for node in nodes:
        facts = node.facts
        if facts is None:
            yield f"{node.name}: {node.wrong}; look at its raylet's log, or take it out of the cluster"
            continue
        if facts["digest"] is None:
            yield f"{node.name}: sslmed_dist is not installed for {facts['executable']}; pip install 'sslmed-dist[ray]'"
        elif facts["digest"] != own["digest"]:
            yield (
                f"{node.name}: its sslmed_dist is {facts['digest'][:12]}, this one {own['digest'][:12]}; "
                "install the same on every node"
            )
        ours = {"Python": own["python"], **own["packages"]}
        theirs = {"Python": facts["python"], **facts["packages"]}
        for name, version in ours.items():
            if theirs.get(name) != version and name != "sslmed-dist":  # the digest says that better
                there, here = theirs.get(name) or "missing", version or "missing"
                yield f"{node.name}: {name} {there}, here {here}; install the same"


def machines(answers: Answers) -> Iterator[str]:
    """Storage, shared memory, clocks, interfaces."""
    nodes = [node for node in answers.nodes if node.facts is not None]
    hosts = Counter(node.facts["machine"] for node in nodes if node.facts is not None)
    for node in nodes:
        assert node.facts is not None
        yield from storage(node, answers.storage)
        shm = node.facts["shm"]
        if shm is None or shm[0] <= SHARED_MEMORY:
            size = "no /dev/shm" if shm is None else f"/dev/shm has {shm[0] / 2**20:.0f} MiB"
            yield f"{node.name}: {size}; give the container more (--shm-size=8g; Kubernetes: an emptyDir in memory)"
        elif node.resources.get("object_store_memory", 0) > shm[0]:
            objects = node.resources["object_store_memory"] / 2**30
            yield (
                f"{node.name}: Ray's objects may take {objects:.1f} GiB, /dev/shm has {shm[0] / 2**30:.1f}; "
                "ray start --object-store-memory=BYTES, or more shared memory"
            )
        ahead, off = node.clock
        if abs(ahead) - off > CLOCK_S:
            yield f"{node.name}: its clock is {ahead:+.1f} s off this machine's; let NTP set both"
        for name, chosen in node.facts["named"].items():
            if chosen.split(",")[0].lstrip("=^") not in node.facts["interfaces"] and not chosen.startswith("^"):
                there = ", ".join(node.facts["interfaces"])
                yield f"{node.name}: {name}={chosen} is no interface with an address there; allowed: {there}"
        if interface(node) == "lo" and len(hosts) > 1:
            yield (
                f"{node.name}: joined by a loopback address, which other machines cannot reach; "
                "ray start --node-ip-address=ADDRESS of the network that joins them"
            )


def storage(node: Node, folder: Path) -> Iterator[str]:
    """What is wrong with the common folder as a node sees it."""
    if node.unwritten is not None:
        yield f"{node.name}: cannot write to {folder}: {node.unwritten}; run.dir=FOLDER that every node can write to"
    elif node.unseen:
        yield (
            f"{node.name}: does not see in {folder} what {', '.join(node.unseen)} wrote there: not one storage; "
            "run.dir=FOLDER on a network disk that all nodes mount in the same place"
        )


def averaging(found: Averaging | None) -> Iterator[str]:
    """What is wrong between the nodes."""
    if found is None:
        return
    if found.seconds is None:
        yield (
            f"averaging by {found.backend} over {found.world} processes failed: {found.wrong}; open the ports between "
            "the nodes, and name their interface: GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME"
        )
    elif rate(found) < SLOW:
        yield (
            f"averaging is slow, {rate(found) / 1e6:.0f} MB/s: a gradient takes {found.seconds:.1f} s; name the fast "
            "interface: GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME"
        )


def recipe_line(settings: config.Config) -> str:
    """What a recipe asks for."""
    options = settings.ray
    each = f"{options.cpus_per_worker} CPUs and {options.gpus_per_worker:g} GPUs"
    return f"recipe {settings.run.name}: {options.num_workers} workers of {each}, batch {settings.plan.batch_size}"


def asked(settings: config.Config, answers: Answers, paths: Sequence[str]) -> Iterator[str]:
    """What a recipe asks for and the cluster has not."""
    if settings.driver != "ray":
        yield f"driver: {settings.driver}; a cluster is used by driver=ray"
    short = too_little(settings.ray, answers.listed)
    if short is not None:
        yield f"{short}; smaller numbers, or more nodes"
    try:
        require_even(settings)
    except ValueError as error:
        yield f"{error}; a batch that is"
    for node in answers.nodes:
        for path in paths if node.facts is not None else ():
            if not node.facts["there"].get(path, False):  # type: ignore[index]
                yield f"{node.name}: {path} is not there; put it on a disk that all nodes mount in the same place"
