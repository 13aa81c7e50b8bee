"""The programs of ``sslmed site network``: Flower's SuperNode, with TLS, the node's key and the socket, and no more."""

import re
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from subprocess import Popen

from sslmed_dist.drivers import superlink
from sslmed_dist.drivers.launcher import Tail, app_folder
from sslmed_dist.drivers.place import Place
from sslmed_dist.drivers.private_folder import clear_remains, private_folder
from sslmed_dist.federation import node_key
from sslmed_dist.federation.housekeeping import MINUTE_S, Every
from sslmed_dist.federation.network_file import NetworkFile
from sslmed_dist.locks import alone
from sslmed_dist.log_files import keep_all_small
from sslmed_dist.printable import say
from sslmed_dist.training.stopping import Stop

# Flower's SuperLink keeps a node online for two heartbeats of 30 s after the last one; until then it refuses the same
# key a second time. Some seconds more, because both sides look only now and then.
EXPIRED_S, AGAIN_S, LOOK_S = 75.0, 5.0, 0.3
JOINED = re.compile(r"SuperNode ID: (\d+)")
REFUSED = "[code: 2004]"  # Flower: this key may not join, for whichever reason
SESSION = "session"  # in the side's home while the server counts it as online: left there by a kill alone

RUNS_SIGNED = "runs apps that a key of trusted_apps has signed, and no others"


class NotNow(RuntimeError):
    """The server refuses the key."""


def keep(side: NetworkFile, path: Path) -> None:
    """Connect to the server and stay until SIGTERM or SIGINT. ``ValueError`` for a server that cannot prove who it is,
    for a key that it does not know, for a clock that is too far off; a server that does not answer is waited for."""
    if side.server is None:
        raise ValueError(f"{path}: server: null; write the HOST:PORT that the server's people gave you")
    trusted = trusted_apps(side)
    fingerprint = node_key.fingerprint(node_key.public(Path(side.node_key)))
    home = Path(side.home)
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with alone(home, "a network side"):
        clear_remains(home)
        with Stop(home) as stop:
            told(side, "runs whatever app the server sends (trusted_apps: null)" if trusted is None else RUNS_SIGNED)
            again_and_again(side, home, stop, fingerprint)
    told(side, "the network side has stopped")


def trusted_apps(side: NetworkFile) -> Path | None:
    """The file of the keys whose apps run here, None for any app. ``ValueError`` where it is missing."""
    if side.trusted_apps is None:
        return None
    if not Path(side.trusted_apps).is_file():
        raise ValueError(f"trusted_apps: {side.trusted_apps}: no such file; `sslmed app trust` writes one")
    return Path(side.trusted_apps)


def again_and_again(side: NetworkFile, home: Path, stop: Stop, fingerprint: str) -> None:
    """One SuperNode after another until a stop. ``ValueError`` as of ``keep``."""
    assert side.server is not None
    said = ""
    until = time.monotonic() + (EXPIRED_S if (home / SESSION).exists() else 0.0)
    while (line := proof(side, side.server, stop)) is not None:
        proved = line.partition(";")[0]  # without the clock
        if proved != said:
            told(side, line)
        said = proved
        try:
            once(side, side.server, home, stop)
            until = time.monotonic() + EXPIRED_S  # it was online, and may be counted as such
        except NotNow:
            left = until - time.monotonic()
            if left <= 0:
                raise ValueError(unknown(side.server, fingerprint)) from None
            ending = f"waiting for its end, up to {left:.0f} s"
            told(side, f"the server still counts the session before, which ended without a word; {ending}")
        pause(stop, AGAIN_S)


def unknown(server: str, fingerprint: str) -> str:
    """The line of a key that may not join."""
    return (
        f"{server}: refuses this side's key {fingerprint}: it is not registered there, or another machine is online "
        "with it; send the server's people the line that `sslmed site status` shows"
    )


def told(side: NetworkFile, line: str) -> None:
    """A line of the network side's log."""
    say(f"{time.strftime('%H:%M:%S')} {side.site}: {line}")


def pause(stop: Stop, seconds: float) -> None:
    """Wait, but not longer than until a stop is asked for."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not stop():
        time.sleep(LOOK_S)


def proof(side: NetworkFile, server: str, stop: Stop) -> str | None:
    """Wait until the server answers and has proved who it is; returns what to say of it, None after a stop.
    ``ValueError`` where it cannot prove it, or the clocks are too far apart."""
    before = ""
    while not stop():
        try:
            ahead = superlink.clock(server, Path(side.root_certificate))
        except superlink.Unreachable as error:
            if str(error) != before:
                told(side, f"{error}; trying again every {AGAIN_S:g} s")
            before = str(error)
            pause(stop, AGAIN_S)
            continue
        line = superlink.clock_line(ahead)
        if not superlink.clocks_agree(ahead):
            raise ValueError(f"{server}: {line}")
        return f"{server} has proved who it is; {line}"
    return None


def once(side: NetworkFile, server: str, home: Path, stop: Stop) -> None:
    """One life of a SuperNode: until a stop, or until it ends by itself, which is said. ``NotNow`` where the server
    refuses its key."""
    session, joined = home / SESSION, False
    with private_folder(home) as (_, processes):
        place = Place(home, app_folder(), home, processes)
        tail, said = Tail(home / "logs" / "supernode.log"), ""
        programs, _ = superlink.supernode(
            place,
            "supernode",
            server=server,
            root=Path(side.root_certificate),
            key=Path(side.node_key),
            node_config=f'socket="{side.socket}"',
            trusted=trusted_apps(side),
        )
        tidy = Every(MINUTE_S, partial(keep_all_small, home / "logs"))
        while not stop():
            tidy()
            ended = any(
                program.poll() is not None for program in programs
            )  # asked first: what it wrote before it ended is read below
            for line in tail.lines():
                said = f"{said}\n{line}"[-4000:]
                match = JOINED.search(line)
                if match:
                    session.touch()
                    joined = True
                    told(side, f"has joined the federation at {server} as node {match[1]}")
            if ended:
                break
            time.sleep(LOOK_S)
    if stop():
        if joined and superlink.answers(server, Path(side.root_certificate)):
            session.unlink(missing_ok=True)  # the SuperNode was told to end, and could tell the server so
        return
    if REFUSED in said:
        raise NotNow
    told(side, f"one of Flower's programs ended by itself (exit codes {codes(programs)}); see {home / 'logs'}")


def codes(programs: Sequence[Popen[bytes]]) -> str:
    """The exit codes of programs that have all ended."""
    return ", ".join(str(program.returncode) for program in programs)
