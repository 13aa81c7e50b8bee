"""Flower's programs in the middle and at the sites, as a server, a site and the launcher start them (flwr 1.41).

Each SuperLink and SuperNode starts its app through a SuperExec, which has to know a secret: without one whoever reaches
the port of this machine's loopback interface could take a task, and with it the model, from them.
"""

import http.client
import secrets
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from subprocess import Popen

from sslmed_dist.atomic_files import write_private
from sslmed_dist.drivers.place import Place, Renewed, program
from sslmed_dist.drivers.processes import free_port
from sslmed_dist.federation import authority
from sslmed_dist.federation.authority import Authority
from sslmed_dist.federation.registered import LISTED

START_S = 120.0  # a SuperLink on a busy machine
TOKEN, SECRET, NODES = "control.token", "superexec.secret", "nodes.json"
HERE = "127.0.0.1"
NOT_TODAY = (9, 10)  # OpenSSL: the certificate is not valid yet, has expired
AHEAD_S, BEHIND_S = 5.0, 305.0  # Flower refuses a node whose clock is further off


class Unreachable(RuntimeError):
    """Nobody answers at an address."""


@dataclass(frozen=True)
class Access:
    """How a program of this machine starts runs: the port, the file of the token, the authority's certificate (None:
    without TLS, as in a simulation, where nothing but the loopback interface is used)."""

    port: int
    token: Path
    root: Path | None

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"{HERE}:{self.port}"


def database(place: Place) -> Path:
    """The SuperLink's database."""
    return place.home("superlink") / "state.db"


def secret(path: Path) -> Path:
    """``path``, where a random secret of this user alone is made unless there is one."""
    if not path.exists():
        write_private(path, secrets.token_hex(32).encode())
    return path


def start(
    place: Place,
    arguments: Sequence[str],
    *,
    port: int,
    listen: str = HERE,
    keys: Path,
    tls: Authority | None = None,
    listed: Path | None = None,
    extra: Mapping[str, str] | None = None,
) -> Access:
    """Start a SuperLink and its SuperExec, and wait until it answers. ``keys`` is the folder of its token and secret,
    ``tls`` its certificate, ``listed`` the list of the sites that may join. ``RuntimeError`` where it does not start
    within ``START_S`` seconds."""
    access = Access(port, secret(keys / TOKEN), None if tls is None else tls.root)
    home, hidden = place.home("superlink"), secret(keys / SECRET)
    own = ["--token", str(access.token), "--nodes", str(home / NODES)]
    encrypted = ["--insecure"]
    if tls is not None:
        encrypted = ["--ssl-ca-certfile", str(tls.root), "--ssl-certfile", str(tls.certificate)]
        encrypted += ["--ssl-keyfile", str(tls.key), "--enable-supernode-auth"]
    isolated = ["--isolation", "process", "--superexec-auth-secret-file", str(hidden)]
    where = ["--host", listen, "--port", str(port), "--database", str(database(place))]
    env = dict(extra or {}) | ({LISTED: str(listed)} if listed is not None else {})
    command = [*own, *encrypted, *arguments, *isolated, *where]
    place.servers["superlink"] = place.module("superlink", "server.superlink", command, env)
    end = time.monotonic() + START_S
    while not answers(access.address, access.root):
        if place.failed() or time.monotonic() > end:
            raise RuntimeError(f"Flower's SuperLink did not start; see {place.run / 'logs' / 'superlink.log'}")
        time.sleep(0.3)
    place.servers["superexec"] = Renewed(
        "superexec",
        place.run / "logs" / "superexec.log",
        partial(superexec, place, "superexec", access.address, hidden, access.root, env),
    )
    return access


def superexec(
    place: Place, name: str, address: str, hidden: Path, root: Path | None, extra: Mapping[str, str] | None = None
) -> Popen[bytes]:
    """Start what starts the app for the SuperLink or SuperNode at ``address`` of this machine."""
    command = [program("flower-superexec"), "--runtime-api-address", address]
    command += ["--insecure"] if root is None else ["--root-certificates", str(root)]
    return place.start(name, [*command, "--superexec-auth-secret-file", str(hidden)], extra)


def supernode(
    place: Place,
    name: str,
    *,
    server: str,
    root: Path,
    key: Path,
    node_config: str,
    taken: Sequence[int] = (),
    trusted: Path | None = None,
) -> tuple[tuple[Popen[bytes], Popen[bytes]], int]:
    """Start a SuperNode and its SuperExec: outbound connections to ``server`` (HOST:PORT), whose certificate must be of
    the authority ``root``, signed with ``key``; returns both and the port of the loopback interface that they have for
    the app. ``taken``: ports that are used already; ``trusted``: the file of the keys whose apps it runs, None: any."""
    port, hidden = free_port(taken), secret(place.home(name) / SECRET)
    arguments = ["--superlink", server, "--root-certificates", str(root), "--auth-supernode-private-key", str(key)]
    arguments += ["--isolation", "process", "--superexec-auth-secret-file", str(hidden)]
    arguments += ["--host", HERE, "--port", str(port), "--node-config", node_config]
    arguments += [] if trusted is None else ["--trusted-entities", str(trusted)]
    node = place.module(name, "clients.supernode", arguments)
    return (node, superexec(place, f"{name}-superexec", f"{HERE}:{port}", hidden, None)), port


def answers(server: str, root: Path | None) -> bool:
    """Whether the server at HOST:PORT answers and is believed."""
    try:
        clock(server, root)
    except (Unreachable, ValueError):
        return False
    return True


def answers_within(server: str, root: Path | None, seconds: float) -> bool:
    """Whether the server answers before so many seconds have passed: a busy one may take its time, or just be
    starting."""
    end = time.monotonic() + seconds
    while not answers(server, root):
        if time.monotonic() > end:
            return False
        time.sleep(0.5)
    return True


def clock(server: str, root: Path | None) -> float:
    """How many seconds the clock of the server at HOST:PORT is ahead of this one. ``Unreachable`` where nobody answers,
    ``ValueError`` where it cannot prove with a certificate of the authority ``root`` that it is the server."""
    host, _, port = server.rpartition(":")
    host = host.strip("[]")
    if root is None:
        connection = http.client.HTTPConnection(host, int(port), timeout=5)
    else:
        connection = http.client.HTTPSConnection(host, int(port), timeout=5, context=authority.context(root))
    try:
        connection.request("GET", "/health")
        answer = connection.getresponse()
        date = answer.getheader("date")
        if answer.status != 200 or date is None:
            raise Unreachable(f"{server}: what answers there is no server of a federation (status {answer.status})")
        return parsedate_to_datetime(date).timestamp() - int(time.time())
    except ssl.SSLCertVerificationError as error:
        believed = f"{root} names whom this side believes"
        raise ValueError(f"{server}: is not believed: {error.verify_message}{today(error)}; {believed}") from None
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(f"{server}: cannot be reached: {' '.join(str(error).split())}") from None
    finally:
        connection.close()


def today(error: ssl.SSLCertVerificationError) -> str:
    """For a certificate that is not valid today: which day that is here, since the clock may be what is wrong."""
    if error.verify_code not in NOT_TODAY:
        return ""
    return f" (this machine's clock says {time.strftime('%Y-%m-%d %H:%M')})"


def clocks_agree(ahead: float) -> bool:
    """Whether Flower takes a site's messages whose server's clock is so many seconds ahead."""
    return -AHEAD_S < ahead < BEHIND_S


def clock_line(ahead: float) -> str:
    """What to say of the server's clock."""
    line = f"its clock is {ahead:+.0f} s from this one"
    if clocks_agree(ahead):
        return line
    return (
        f"{line}; it refuses sites that are more than {AHEAD_S:g} s ahead of it or {BEHIND_S:g} s behind; set this "
        "machine's clock (NTP)"
    )
