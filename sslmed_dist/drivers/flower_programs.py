"""Flower's programs as the launcher starts them: which commands, in which environment.

Checked with flwr 1.41. Nothing is sent to Flower's makers, nothing is installed at run time, nothing is kept in the
user's home, and no program starts in the app's folder (Ray's workers would import what lies there in place of the app
that was sent).
"""

import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from subprocess import Popen

from sslmed_dist.config import Config, below
from sslmed_dist.drivers.processes import Processes, check_port, free_port
from sslmed_dist.federation.messages import DATA_CACHE, DATA_LIST, DATA_ROOT, LAUNCHER, SITES_DIR, Node, RunSettings
from sslmed_dist.federation.sites import expected_sites, federated_section, site_names
from sslmed_dist.training.stopping import started_at

PORT = "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "PYTHONUNBUFFERED": "1",
}
# Below RAY_TMPDIR, with the longest process id; and the most bytes that the path of a Unix socket may have on Linux.
RAY_SOCKET, LONGEST_SOCKET = "/ray/session_2026-11-26_00-00-00_000000_4194304/sockets/plasma_store", 107
START_S = 120.0  # a SuperLink on a busy machine


@dataclass
class Workplace:
    """One start of a runtime: the run folder, the app's folder, a private temporary folder, settings, processes."""

    run: Path
    app: Path
    folder: Path
    settings: Config
    processes: Processes
    servers: list[Popen[bytes]] = field(default_factory=list)  # those that have to last as long as the federation

    def home(self, name: str) -> Path:
        """The folder of the program ``name``: its working directory and its FLWR_HOME."""
        home = self.folder / name
        home.mkdir(exist_ok=True)
        return home

    def failed(self) -> bool:
        """Whether a program that has to last has ended."""
        return any(server.poll() is not None for server in self.servers)

    def start(self, name: str, command: list[str], extra: Mapping[str, str] | None = None) -> Popen[bytes]:
        """Start a program of this Python installation, ``extra`` added to its environment. Its output goes to
        ``logs/NAME.log`` of the run folder."""
        home = self.home(name)
        env = self.environment(home) | dict(extra or {})
        return self.processes.start(command, env=env, cwd=home, log=self.run / "logs" / f"{name}.log")

    def environment(self, home: Path) -> dict[str, str]:
        """The environment of every program. The number of threads decides the last bits of the results, so it is the
        same in all runtimes."""
        threads = str(self.settings.run.threads or 1)
        private = {"FLWR_HOME": str(home), "RAY_TMPDIR": str(self.folder), "OMP_NUM_THREADS": threads}
        inherited = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "PYTHONPATH", PORT)}
        launcher = f"{os.getpid()} {started_at(os.getpid())}"
        return {**inherited, **QUIET, **private, "PATH": search_path(), LAUNCHER: launcher}

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


def search_path() -> str:
    """Where programs are looked for: first beside this Python, whose environment need not be the active one."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


def program(name: str) -> str:
    """The path of one of Flower's programs. ``ValueError`` when it is not installed."""
    executable = shutil.which(name, path=search_path())
    if executable is None:
        raise ValueError(f"{name}: no such program; pip install 'sslmed-dist[flower]'")
    return executable


def in_process(workplace: Workplace) -> Popen[bytes]:
    """Server and sites in one Python process."""
    command = [sys.executable, "-m", "server.in_process", "--run-dir", str(workplace.run)]
    return workplace.start("in_process", command, workplace.site_environment() | {"PYTHONPATH": str(workplace.app)})


def simulation(workplace: Workplace) -> Popen[bytes]:
    """A SuperLink whose nodes are Ray actors. A site takes as many CPUs as it has threads. ``ValueError`` where the
    place for temporary files has too long a path for Ray's sockets."""
    require_room_for_sockets(workplace.folder)
    port = superlink(workplace, ["--simulation"], workplace.site_environment())
    cpus = min(workplace.settings.run.threads or 1, len(os.sched_getaffinity(0)))
    sizes = f"num-supernodes={workplace.sites} client-resources-num-cpus={cpus}"
    return submit(workplace, port, ["--federation-config", sizes])


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
    """A SuperLink and a SuperNode per site, as in hospitals but on the loopback interface and without encryption.

    ``data.root`` with ``{site}`` in it is each site's own data; otherwise every node takes its share of one dataset.
    """
    port = superlink(workplace, [], {})
    names = site_names(federated_section(workplace.settings), workplace.sites)
    ports = [port]  # the SuperLink's, then one for each SuperNode
    for site_number, name in enumerate(names):
        ports.append(free_port(ports))
        node = node_config(workplace, site_number, name)
        command = [program("flower-supernode"), "--insecure", "--superlink", f"127.0.0.1:{port}"]
        command += ["--host", "127.0.0.1", "--port", str(ports[-1]), "--node-config", node]
        workplace.start(f"supernode-{site_number}", command)
    return submit(workplace, port, [])


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


def superlink(workplace: Workplace, arguments: list[str], extra: Mapping[str, str]) -> int:
    """Start a SuperLink and wait until it answers; returns its port, which the environment may choose (``PORT``).
    ``ValueError`` for a port in use, ``RuntimeError`` where it does not start within ``START_S`` seconds."""
    asked_port = os.environ.get(PORT)
    if asked_port is not None and not asked_port.isdigit():
        raise ValueError(f"{PORT}={asked_port}: expected a port number")
    port = check_port(int(asked_port), PORT) if asked_port is not None else free_port()
    database = workplace.home("superlink") / "state.db"
    command = [program("flower-superlink"), "--insecure", *arguments, "--host", "127.0.0.1", "--port", str(port)]
    workplace.servers.append(workplace.start("superlink", [*command, "--database", str(database)], extra))
    end = time.monotonic() + START_S
    while not healthy(port):
        if workplace.failed() or time.monotonic() > end:
            raise RuntimeError(f"Flower's SuperLink did not start; see {workplace.run / 'logs' / 'superlink.log'}")
        time.sleep(0.3)
    return port


def healthy(port: int) -> bool:
    """Whether the SuperLink answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def submit(workplace: Workplace, port: int, arguments: list[str]) -> Popen[bytes]:
    """``flwr run``: sends the app (from a copy without other files) to the SuperLink and lasts as long as the run."""
    app = copy_app(workplace.app, workplace.folder / "app")
    home = workplace.home("flwr")
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "own"\n\n[superlink.own]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    values = RunSettings.of(workplace.settings, workplace.run).to_record()
    run_config = home / "run.toml"
    run_config.write_text("".join(f'{key} = "{value}"\n' for key, value in values.items()))
    command = [program("flwr"), "run", str(app), "own", "--stream", "-c", str(run_config), *arguments]
    return workplace.start("flwr", command)


def copy_app(app: Path, copy: Path) -> Path:
    """Copy the app's own files and no others into the new folder ``copy``; returns it. What is packed from it has the
    same bytes whether ``app`` is a checkout or a wheel's."""
    for part in ("server", "clients"):
        shutil.copytree(app / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(app / "pyproject.toml", copy)
    return copy


RUNTIMES: Mapping[str, Callable[[Workplace], subprocess.Popen[bytes]]] = {
    "in_process": in_process,
    "simulation": simulation,
    "deployment": deployment,
}
