"""A federation of three sites on this machine's loopback interface, by the commands that people use: TLS, registered
keys, a network side of its own for each site. The data sides are threads of the test, whose doors are real sockets, or
programs, as in hospitals."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sslmed_dist import config
from sslmed_dist.cli import main
from sslmed_dist.drivers import launcher, server_side
from sslmed_dist.drivers.processes import free_port
from sslmed_dist.federation import server_file, site_file, site_key
from sslmed_dist.federation.server_file import Server
from sslmed_dist.federation.site_file import SiteFile
from sslmed_dist.verbs.site_init import add_site_line
from tests.clients.test_relay import open_doors
from tests.federation import hospital, tiny

ROOT = Path(__file__).parents[2]
NAMES = ("north", "east", "south")


@dataclass
class Federation:
    """The folder of all of it, its server, its sites, and the programs that run."""

    folder: Path
    server: Server
    sites: dict[str, SiteFile] = field(default_factory=dict)
    programs: dict[str, "subprocess.Popen[str]"] = field(default_factory=dict)

    def start(self, name: str, *words: str, env: Mapping[str, str] | None = None) -> None:
        """A command of ours in a process of its own; what it says is in ``NAME.out``. All that it writes for a while
        only is in ``tmp``. A session of its own, as services have, so that the machine's time is shared among them."""
        temporary = self.folder / "tmp"
        temporary.mkdir(exist_ok=True)
        with (self.folder / f"{name}.out").open("a") as out:
            command = [sys.executable, "-m", "sslmed_dist.cli", *words]
            own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}
            env = os.environ | own | dict(env or {})
            self.programs[name] = subprocess.Popen(
                command, env=env, text=True, stdout=out, stderr=out, start_new_session=True
            )

    def start_data(self, name: str, env: Mapping[str, str] | None = None) -> None:
        """The data side of a site in a process of its own, called ``NAME-data``."""
        self.start(f"{name}-data", "site", "start", str(self.folder / name / "site.yaml"), env=env)

    def said(self, name: str) -> str:
        """What a command has said."""
        path = self.folder / f"{name}.out"
        return path.read_text() if path.exists() else ""

    def stop(self, name: str) -> int:
        """SIGTERM to a command; its exit code."""
        program = self.programs.pop(name)
        program.send_signal(signal.SIGTERM)
        return program.wait(timeout=120)

    def network(self, name: str) -> Path:
        """The file of a site's network side."""
        return self.folder / name / "network" / "network.yaml"

    def wait_for(self, what: str, name: str, seconds: float = 300.0, more_than: int = 0) -> None:
        """Until a command has said ``what``, more often than ``more_than`` times."""
        end = time.monotonic() + seconds
        while self.said(name).count(what) <= more_than:
            assert time.monotonic() < end, f"{name} has not said {what!r}: {self.said(name)}"
            time.sleep(0.1)

    def online(self, names: tuple[str, ...] = NAMES, seconds: float = 300.0) -> None:
        """Wait until these sites are online."""
        end = time.monotonic() + seconds
        while {name for name, node in server_side.nodes(self.server).items() if node["status"] == "online"} < set(
            names
        ):
            assert time.monotonic() < end, {name: self.said(name) for name in self.programs}
            time.sleep(0.1)

    def recipe(self, name: str, plan: Mapping[str, Any] | None = None, **federated: Any) -> Path:
        """A recipe that all sites have accepted."""
        chosen = tiny.settings(self.folder, name=name, plan=plan or {}, federated={"quorum": 3, **federated})
        path = self.folder / f"{name}.yaml"
        path.write_text(config.dump(chosen))
        asked = launcher.resolved(server_side.for_sites(self.server, chosen))
        for own in self.sites.values():
            hospital.accept(own, asked)
        return path

    def in_one_process(self, name: str, plan: Mapping[str, Any] | None = None, **federated: Any) -> Path:
        """The same federation as research runs it; its run folder."""
        from tests.clients.test_relay import federate

        asked = {"quorum": 3, "site_names": list(NAMES), **federated}
        chosen = tiny.settings(self.folder, name, plan=plan or {}, federated=asked)
        root, state = str(chosen.data["root"]), str(self.folder / name / "state")
        return federate(chosen, [{"site": site, "data-root": root, "state-dir": state} for site in NAMES])

    def run_folder(self, name: str) -> Path:
        """Where a run on the server is."""
        return Path(self.server.file.folder) / name


def relaxed(path: Path, changes: Mapping[str, str]) -> SiteFile:
    """A site whose rules let a run of two steps on random images pass."""
    text = path.read_text()
    for old, new in changes.items():
        assert text.count(old) >= 1, old
        text = text.replace(old, new)
    path.write_text(text)
    return site_file.read(path)


def joining(folder: Path, name: str, server: Server, root: Path | None = None) -> Path:
    """``sslmed site init`` for a site of this machine; its file."""
    path = folder / name / "site.yaml"
    words = ["--name", name, "--data", str(folder / "tiny.npz"), "--server", f"localhost:{server.file.port}"]
    assert main(["site", "init", str(path), *words, "--root-certificate", str(root or server.tls.root)]) == 0
    return path


def signed(folder: Path, place: Path) -> str:
    """Sign the app for a server; the public half of the key."""
    key = folder / "release.key"
    assert main(["app", "key", str(key)]) == 0
    assert main(["app", "sign", str(key), "--out", str(place / "app.signature.json")]) == 0
    return site_key.load(key).public


def trusting(network: Path, key: str) -> None:
    """Let a site's node run the app that a key has signed, and no other."""
    keys = network.with_name("trusted.yaml")
    assert main(["app", "trust", key, "--out", str(keys)]) == 0
    text = network.read_text()
    assert text.count("trusted_apps: null") == 1
    network.write_text(text.replace("trusted_apps: null", f"trusted_apps: {keys}"))


@contextmanager
def federation(
    folder: Path,
    data_side: Callable[[Federation, str], None] | None = None,
    env: Mapping[str, Mapping[str, str]] | None = None,
) -> Iterator[Federation]:
    """A running one; at the end every program is stopped. ``data_side`` starts that of one site; None: threads of the
    test are the data sides. ``env``: by site, what its network side has in its environment beside the test's own."""
    chosen = tiny.settings(folder)
    assert chosen.data["root"] == str(folder / "tiny.npz")
    place = folder / "server"
    assert main(["server", "init", str(place), "--host", "localhost", "--port", str(free_port())]) == 0
    made = Federation(folder, server_file.read(place))
    with ExitStack() as stack:
        try:
            key = signed(folder, place)
            made.start("server", "server", "start", str(place))
            for name in NAMES:
                path = joining(folder, name, made.server)
                made.sites[name] = relaxed(path, {**hospital.SMALL, "    rounds: 200": "    rounds: 1000"})
                trusting(made.network(name), key)
                line = add_site_line(path).replace("DIR", str(place)).replace("--samples N", "--samples 96")
                assert main(line.split()[1:]) == 0
            if data_side is None:
                stack.enter_context(open_doors(list(made.sites.values())))
            else:
                for name in NAMES:
                    data_side(made, name)
                for name in NAMES:
                    made.wait_for("the door is open", f"{name}-data")
            made.wait_for("the server is ready", "server")
            for name in NAMES:
                made.start(name, "site", "network", str(made.network(name)), env=(env or {}).get(name))
            made.online()
            yield made
        finally:
            for name in list(made.programs):
                made.stop(name)
