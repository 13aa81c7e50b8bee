"""The programs of ``sslmed server start``, and a run on them."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shlex import quote
from subprocess import Popen
from typing import Any

from sslmed_dist.config import Config, replace
from sslmed_dist.drivers import app_file, launcher, superlink
from sslmed_dist.drivers.flower_programs import Workplace, submit
from sslmed_dist.drivers.place import Place
from sslmed_dist.drivers.private_folder import clear_remains, private_folder
from sslmed_dist.drivers.processes import check_port
from sslmed_dist.federation import app_signature, authority, registered
from sslmed_dist.federation.housekeeping import MINUTE_S, Every
from sslmed_dist.federation.server_file import NAME, Server
from sslmed_dist.federation.sites import federated_section
from sslmed_dist.locks import alone, held
from sslmed_dist.log_files import keep_all_small
from sslmed_dist.printable import say
from sslmed_dist.training.stopping import Stop

ANSWER_S = 60.0  # a server on a busy machine
# What a run on data at hand reads from them, as it can be said instead: pixels are numbers from 0 to 1.
FROM_DATA = {
    "views.mean": "views.mean=[0.5]",
    "views.std": "views.std=[0.25]",
    "method.channels": "method.channels=1",
}


@dataclass(frozen=True)
class Elsewhere:
    """A server that another command runs."""

    server: Server

    def poll(self) -> int | None:
        """None as long as it runs."""
        return None if is_up(self.server) else 1


def access(server: Server) -> superlink.Access:
    """How this machine's own commands start runs."""
    return superlink.Access(server.file.port, server.keys / superlink.TOKEN, server.tls.root)


def serve(server: Server) -> None:
    """Start the server's programs and wait until SIGTERM or SIGINT; what joins and leaves is said. ``ValueError`` for a
    certificate that has ended, a port in use, or a server that runs already; ``RuntimeError`` where one of the programs
    ended by itself."""
    for path in (server.tls.root, server.tls.certificate):
        left = authority.days_left(path)
        if left < 0:
            renew = f"sslmed server renew {quote(str(server.place))}"
            raise ValueError(f"{authority.ending(path)}; `{renew}` makes another")
        if left < authority.SOON_DAYS:
            say(f"warning: {authority.ending(path)}")
    registered.read(server.sites)  # a mistake in it should end this here
    server.programs.mkdir(exist_ok=True, mode=0o700)
    with alone(server.place, "a server"):
        clear_remains(server.place)
        check_port(server.file.port, f"{server.place / NAME}: port")
        with Stop(server.place) as stop, private_folder(server.place) as (_, processes):
            place = Place(server.place, launcher.app_folder(), server.programs, processes)
            signed = signature(server, place)
            superlink.start(
                place,
                [],
                port=server.file.port,
                listen=server.file.listen,
                keys=server.keys,
                tls=server.tls,
                listed=server.sites,
                extra=signed,
            )
            say(f"{stamp()} the server is ready: {', '.join(server.file.hosts)}, port {server.file.port}")
            watch(server, place, stop)
    say(f"{stamp()} the server has stopped")


def signature(server: Server, place: Place) -> dict[str, str]:
    """What the ServerApps of all runs have to know to sign the app, which is said; empty without a signature.
    ``ValueError`` for a signature of another app than the one that came with this program."""
    if not server.signature.exists():
        say(f"the app is not signed: sites with trusted_apps will refuse it (no {server.signature})")
        return {}
    signed, own = app_signature.Signature.read(server.signature), app_file.digest(place.app)
    if signed.app != own:
        raise ValueError(f"{server.signature}: signs the app {signed.app}, this program's is {own}; sslmed app sign")
    say(f"the app {own[:12]} is signed by the key {signed.key[:12]}")
    return app_signature.asking(superlink.database(place), server.signature)


def watch(server: Server, place: Place, stop: Stop) -> None:
    """Say which sites come and go until a stop is asked for."""
    before: dict[str, str] = {}
    tidy = Every(MINUTE_S, partial(keep_all_small, server.place / "logs"))
    while not stop():
        tidy()
        for name in place.failed():
            log = server.place / "logs" / f"{name}.log"
            raise RuntimeError(f"a program of the server has ended: {name}; see {log}; start the server again")
        now = {name: str(node["status"]) for name, node in nodes(server).items()}
        for name in sorted(now.keys() | before.keys()):
            if now.get(name) != before.get(name):
                say(f"{stamp()} {name}: {now.get(name, 'taken out of the list')}")
        before = now
        time.sleep(0.3)


def stamp() -> str:
    """The time of a line."""
    return time.strftime("%H:%M:%S")


def nodes(server: Server) -> dict[str, dict[str, Any]]:
    """By site, what the running server knows of its node; none where it never ran."""
    path = server.programs / "superlink" / superlink.NODES
    found: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    return found


def is_up(server: Server) -> bool:
    """Whether `sslmed server start` runs."""
    return held(server.place)


def run(server: Server, settings: Config, resume: str) -> Path:
    """Run the federation of ``settings`` on the running server to its last round; returns its folder. Errors as of
    ``launcher.run``; ``ValueError`` where the server does not run, or the recipe lacks what no data here can tell."""
    settings = for_sites(server, settings)
    folder = settings.folder
    if (folder / registered.SITES).exists():
        raise ValueError(f"{folder / registered.SITES}: a server has one list of sites, {server.sites}; move this away")
    known = access(server)
    if not is_up(server):
        raise ValueError(f"{server.place}: the server does not run; `sslmed server start {quote(str(server.place))}`")
    if not superlink.answers_within(known.address, known.root, ANSWER_S):
        raise ValueError(
            f"{server.place}: the server runs and does not answer at {known.address} within {ANSWER_S:g} s; see "
            f"{server.place / 'logs'}"
        )

    def on_server(workplace: Workplace) -> Popen[bytes]:
        workplace.servers["server"] = Elsewhere(server)
        return submit(workplace, known, [])

    again = f"run `sslmed server resume {quote(str(server.place))} {folder.name}`"
    launcher.run(settings, resume, folder, on_server, again)
    return folder


def for_sites(server: Server, settings: Config) -> Config:
    """``settings`` as they run here: in the server's folder, with the sites of its list where the recipe names none.
    ``ValueError`` for sites that are not on it, and for values that the recipe has to say because no data are here."""
    listed = registered.read(server.sites)
    names = federated_section(settings).site_names or tuple(listed)
    strangers = sorted(set(names) - listed.keys())
    if not names or strangers:
        what = f"federated.site_names: {', '.join(strangers)} not registered" if strangers else "no site is registered"
        raise ValueError(f"{server.sites}: {what}; `sslmed server add-site`")
    sections: Mapping[str, Mapping[str, Any]] = {"views": settings.views, "method": settings.method}
    lacking = [key for key in FROM_DATA if sections[key.split(".")[0]].get(key.split(".")[1]) is None]
    if lacking:
        such = " ".join(FROM_DATA[key] for key in lacking)
        agreed = f"no data are at the server, so the recipe says what the sites agree on, such as {such}"
        raise ValueError(f"{', '.join(lacking)}: missing; {agreed}")
    return replace(settings, run={"dir": server.file.folder}, federated={"site_names": list(names)})
