"""Flower's programs as the launcher starts them: which commands for which runtime (``place``, ``superlink``).

Every runtime of this machine keeps others out: a SuperLink starts runs for those alone who know the token in the run's
private folder, and a deployment has TLS and a key for every site, made anew for each start.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from subprocess import Popen

from sslmed_dist.config import Config, below
from sslmed_dist.drivers import app_file, superlink
from sslmed_dist.drivers.place import PORT, Place
from sslmed_dist.drivers.processes import check_port, free_port
from sslmed_dist.federation import app_signature, authority, node_key, site_key
from sslmed_dist.federation.messages import DATA_CACHE, DATA_LIST, DATA_ROOT, SITES_DIR, Node, RunSettings
from sslmed_dist.federation.registered import SITES, Registered, registered, write
from sslmed_dist.federation.sites import expected_sites, federated_section, site_names

# Below RAY_TMPDIR, with the longest process id; and the most bytes that the path of a Unix socket may have on Linux.
RAY_SOCKET, LONGEST_SOCKET = "/ray/session_2026-11-26_00-00-00_000000_4194304/sockets/plasma_store", 107


@dataclass
class Workplace(Place):
    """One start of a runtime: the run folder, the app's folder, a private temporary folder, processes, settings."""

    settings: Config = field(kw_only=True)

    @property
    def threads(self) -> int:
        """How many threads a program may use."""
        return self.settings.run.threads or 1

    def site_environment(self) -> dict[str, str]:
        """Where simulated sites find the data and keep their state: from the launcher, never from a message."""
        paths = {DATA_ROOT: self.root, DATA_CACHE: self.path("cache"), DATA_LIST: self.path("subset.file")}
        return {SITES_DIR: str(self.run / "sites")} | {name: path for name, path in paths.items() if path}

    @property
    def root(self) -> str | None:
        """``data.root``, absolute."""
        return self.path("root")

    def path(self, key: str) -> str | None:
        """The path at ``key`` of the section ``data``, absolute; None where there is none."""
        path = below(self.settings.data, key.split("."))
        return None if path is None else str(Path(str(path)).expanduser().resolve())

    @property
    def sites(self) -> int:
        """How many sites there are."""
        return expected_sites(federated_section(self.settings))


def in_process(workplace: Workplace) -> Popen[bytes]:
    """Server and sites in one Python process."""
    command = [sys.executable, "-m", "server.in_process", "--run-dir", str(workplace.run)]
    return workplace.start("in_process", command, workplace.site_environment() | {"PYTHONPATH": str(workplace.app)})


def simulation(workplace: Workplace) -> Popen[bytes]:
    """A SuperLink whose nodes are Ray actors. A site takes as many CPUs as it has threads. ``ValueError`` where the
    place for temporary files has too long a path for Ray's sockets."""
    require_room_for_sockets(workplace.folder)
    environment = workplace.site_environment()
    access = superlink.start(
        workplace, ["--simulation"], port=chosen_port(), keys=workplace.home("keys"), extra=environment
    )
    cpus = min(workplace.settings.run.threads or 1, len(os.sched_getaffinity(0)))
    sizes = f"num-supernodes={workplace.sites} client-resources-num-cpus={cpus}"
    return submit(workplace, access, ["--federation-config", sizes])


def require_room_for_sockets(folder: Path) -> None:
    """``ValueError`` where a Unix socket of Ray below ``folder`` would have a longer path than Linux takes: Ray ends
    then without a word of it."""
    length = len(os.fsencode(folder)) + len(RAY_SOCKET)
    if length > LONGEST_SOCKET:
        most = LONGEST_SOCKET - len(RAY_SOCKET) - len(folder.name) - 1
        raise ValueError(
            f"{folder.parent}: the path of this place for temporary files is too long for Ray's sockets, by "
            f"{length - LONGEST_SOCKET} bytes; set TMPDIR to one of at most {most}, such as /tmp"
        )


def deployment(workplace: Workplace) -> Popen[bytes]:
    """A SuperLink and a SuperNode per site, as in hospitals but on the loopback interface: with TLS and with a
    registered key for each site, made for this start alone. The nodes run this start's own app and no other.

    ``data.root`` with ``{site}`` in it is each site's own data; otherwise every node takes its share of one dataset.
    """
    fed, keys = federated_section(workplace.settings), workplace.home("keys")
    names = site_names(fed, workplace.sites)
    tls = authority.make(keys, ["localhost"], days=30)
    listed = registered(workplace.run, fed) or dict.fromkeys(names, Registered())
    own = {name: keys / f"node-{number}" for number, name in enumerate(names)}
    made = {name: replace(listed[name], node_key=node_key.make(own[name])) for name in names if name in listed}
    write(keys / SITES, {**listed, **made})
    signed, trusted = sign_app(workplace)
    access = superlink.start(workplace, [], port=chosen_port(), keys=keys, tls=tls, listed=keys / SITES, extra=signed)
    ports = [access.port]  # the SuperLink's, then one for each SuperNode
    for number, name in enumerate(names):
        if name not in made:
            continue  # the list of sites leaves it out
        node = node_config(workplace, number, name)
        ports.append(
            superlink.supernode(
                workplace,
                f"supernode-{number}",
                server=access.address,
                root=tls.root,
                key=own[name],
                node_config=node,
                taken=ports,
                trusted=trusted,
            )[1]
        )
    return submit(workplace, access, [])


def node_config(workplace: Workplace, site_number: int, name: str) -> str:
    """What a site's node is told when it is started: its name, where its data lies and where it keeps its state; and
    its share of the dataset (number ``site_number``) where the sites have no data of their own."""
    root = workplace.root
    has_own_data = root is not None and "{site}" in root
    data_root = root.replace("{site}", name) if root is not None else None
    node = Node(
        site=name,
        data_root=data_root,
        state_dir=str(workplace.run / "sites"),
        data_cache=workplace.path("cache"),
        data_list=workplace.path("subset.file"),
    )
    return (node if has_own_data else replace(node, partition=site_number, partitions=workplace.sites)).text()


def sign_app(workplace: Workplace) -> tuple[Mapping[str, str], Path]:
    """Sign the app by a key that is used for this start alone; returns what the SuperLink's environment needs, and the
    file of the keys that the nodes trust."""
    folder = workplace.home("signing")
    site_key.make(folder / "key")
    key = site_key.load(folder / "key")
    (folder / "key").unlink()
    signature, trusted = folder / "app.signature.json", folder / "trusted.yaml"
    signature.write_text(app_signature.sign(key, app_file.digest(workplace.app, folder)).text())
    trusted.write_text(app_signature.trusted([key.public]))
    return app_signature.asking(superlink.database(workplace), signature), trusted


def chosen_port() -> int:
    """The port of a SuperLink of this machine, which the environment may choose (``PORT``). ``ValueError`` for one that
    is in use."""
    asked = os.environ.get(PORT)
    if asked is not None and not asked.isdigit():
        raise ValueError(f"{PORT}={asked}: expected a port number")
    return check_port(int(asked), PORT) if asked is not None else free_port()


def submit(workplace: Workplace, access: superlink.Access, arguments: list[str]) -> Popen[bytes]:
    """Send the app (from a copy without other files) to the SuperLink and start the run; the program lasts as long."""
    app = app_file.copy_app(workplace.app, workplace.folder / "app")
    values = RunSettings.of(workplace.settings, workplace.run).to_record()
    run_config = workplace.home("submit") / "run.toml"
    run_config.write_text("".join(f'{key} = "{value}"\n' for key, value in values.items()))
    command = [str(app), "--superlink", access.address, "--token", str(access.token), "--run-config", str(run_config)]
    command += [] if access.root is None else ["--root-certificates", str(access.root)]
    return workplace.module("submit", "server.submit", [*command, *arguments])


RUNTIMES: Mapping[str, Callable[[Workplace], subprocess.Popen[bytes]]] = {
    "in_process": in_process,
    "simulation": simulation,
    "deployment": deployment,
}
