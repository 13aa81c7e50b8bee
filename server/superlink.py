"""Flower's SuperLink with a gate before it, and with the nodes of our list of sites registered.

``python -m server.superlink --token FILE [--nodes FILE] ARGUMENTS`` takes Flower's own arguments behind its own two.
Flower has no login of its own for the part of the API that starts runs, and all its parts share one port. So

    /health, /v1/fleet/    anybody; Flower asks the latter for the signature of a registered node
    /v1/runtime/           programs of this machine; Flower asks them for its secret (``--superexec-auth-secret-file``)
    /v1/control/           programs of this machine that know the token in ``FILE``: they may start runs
    all else               nobody

The list of sites is the file that the environment names (``federation.registered.LISTED``). It is looked at every
second, so a site can be added or taken out while the server runs. ``--nodes`` is where the state of every site's node
is written down. Uses two hooks of Flower's module ``superlink.extensions``, and its ``LinkState`` (checked with 1.41).
"""

import argparse
import asyncio
import hmac
import ipaddress
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, NOOP_ACCOUNT_NAME, NOOP_FLWR_AID
from flwr.superlink import extensions

from sslmed_dist.atomic_files import write_atomically
from sslmed_dist.federation import node_key
from sslmed_dist.federation.registered import LISTED, Registered, read

log = logging.getLogger("flwr")

OPEN, HERE, CONTROL = ("/v1/fleet/",), ("/v1/runtime/",), "/v1/control/"
LOOK_S = 1.0  # between two looks at the list of sites and the nodes
UNREGISTERED = "unregistered"  # Flower's word for a node that was taken out
REGISTERED = "registered"  # ... and for one that has not been here yet


class Gate:
    """Answers 401 or 404 in Flower's place to whoever may not ask."""

    def __init__(self, app: Any, token: str) -> None:
        self.app, self.token = app, f"Bearer {token}".encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request, or the start and end of the server, which pass."""
        status = 0 if scope["type"] == "lifespan" else self.refusal(scope)
        if not status:
            await self.app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    def refusal(self, scope: Any) -> int:
        """The status that a request is refused with, 0 where it passes."""
        path = str(scope.get("path", ""))
        if scope["type"] != "http":
            return 404
        if path == "/health" or path.startswith(OPEN):
            return 0
        if not is_here(scope.get("client")) or not path.startswith((*HERE, CONTROL)):
            return 404
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        known = len(given) == 1 and hmac.compare_digest(given[0], self.token)
        return 401 if path.startswith(CONTROL) and not known else 0


def is_here(client: Any) -> bool:
    """Whether the other end of a connection is this machine."""
    try:
        return ipaddress.ip_address(client[0]).is_loopback
    except (TypeError, ValueError, IndexError):
        return False


def register(state: Any, listed: dict[str, Registered]) -> None:
    """Register the nodes of the list that Flower does not know, and take out those that are not on it any more. One
    that was taken out and is on it again is the node that it was."""
    wanted = {node_key.pem(site.node_key): name for name, site in listed.items() if site.node_key is not None}
    ever = {bytes(node.public_key): node for node in state.get_node_info()}
    there = {key: node for key, node in ever.items() if node.status != UNREGISTERED}
    for key, node in there.items():
        if key not in wanted:
            state.delete_node(NOOP_FLWR_AID, node.node_id)
            log.info("sites: %s is taken out", node.name or node.node_id)
    for key, name in wanted.items():
        if key in there:
            continue
        if key in ever:
            bring_back(state, key, name)
        else:
            state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, HEARTBEAT_DEFAULT_INTERVAL, name=name)
        log.info("sites: %s is registered", name)


def bring_back(state: Any, key: bytes, name: str) -> None:
    """Register a node again that was taken out. Flower keeps its key for ever, refuses to make a node of it, and has no
    call for this; read in its source: such a node differs from a new one by its state alone."""
    from flwr.supercore.state.schema.linkstate_models import Node
    from sqlalchemy import update

    new = {"status": REGISTERED, "unregistered_at": None, "online_until": None, "name": name}
    with state.session() as session:
        session.execute(update(Node).where(Node.public_key == key, Node.status == UNREGISTERED).values(**new))


def seen(state: Any, listed: dict[str, Registered]) -> dict[str, dict[str, Any]]:
    """By site, what Flower knows of its node."""
    names = {node_key.pem(site.node_key): name for name, site in listed.items() if site.node_key is not None}
    return {
        names[bytes(node.public_key)]: {
            "node": str(node.node_id),
            "status": node.status,
            "online_since": node.last_activated_at if node.status == "online" else None,
        }
        for node in state.get_node_info()
        if bytes(node.public_key) in names and node.status != UNREGISTERED
    }


Stamp = tuple[int, int, int] | None  # which file a list is, when it was written and its size; None: there is none


def stamped(path: Path) -> Stamp:
    """What tells one state of a file from another."""
    try:
        state = path.stat()
    except FileNotFoundError:
        return None
    return state.st_ino, state.st_mtime_ns, state.st_size


class Watch:
    """Looks at the list and the nodes, and writes down what changed."""

    def __init__(self, factory: Any, nodes: Path | None) -> None:
        self.factory, self.nodes = factory, nodes
        self.listed: dict[str, Registered] = {}
        self.looked: Stamp = None  # of the list that was read last
        self.changing: Stamp = None  # of the list at the last look
        self.first = True
        self.written: dict[str, dict[str, Any]] | None = None

    def look(self) -> None:
        """Once. A list that cannot be read is said and changes nothing. A list that has changed counts once it was the
        same at two looks: an editor empties a file before it writes it, and a site that is taken out for a moment
        comes back as another node, which no run that goes on knows."""
        path = Path(os.environ[LISTED])
        state = self.factory.state()
        stamp = stamped(path)
        settled, self.changing = self.first or stamp == self.changing, stamp
        if settled and (self.first or stamp != self.looked):
            self.looked, self.first = stamp, False
            try:
                self.listed = read(path)
                register(state, self.listed)
            except ValueError as error:
                log.error("sites: %s; what was registered before stays", error)
        now = seen(state, self.listed)
        if self.nodes is not None and now != self.written:
            write_atomically(self.nodes, json.dumps(now, indent=1, sort_keys=True).encode())
            self.written = now

    @asynccontextmanager
    async def during(self, app: Any) -> AsyncIterator[None]:
        """Look every second as long as the server runs; the first time before it answers anybody."""
        self.factory = app.state.linkstate_factory
        await asyncio.to_thread(self.look)
        task = asyncio.create_task(self.keep())
        try:
            yield None
        finally:
            task.cancel()

    async def keep(self) -> None:
        """Look again and again; what goes wrong once is said."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await asyncio.to_thread(self.look)
            except Exception as error:
                log.error("sites: %s", error)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="server.superlink", allow_abbrev=False)
    parser.add_argument("--token", type=Path, required=True)
    parser.add_argument("--nodes", type=Path)
    own, others = parser.parse_known_args()
    token = own.token.read_text().strip()
    os.environ.pop("PYTHONPATH", None)  # the app that is sent must not be found beside this program
    contexts: tuple[Callable[..., Any], ...] = (Watch(None, own.nodes).during,) if LISTED in os.environ else ()
    for hook in ("get_middleware", "get_lifespan_contexts"):
        if not hasattr(extensions, hook):
            raise SystemExit(f"this version of Flower has no hook {hook}; nothing would keep strangers from the port")
    from starlette.middleware import Middleware

    extensions.get_middleware = lambda: (Middleware(Gate, token=token),)
    extensions.get_lifespan_contexts = lambda: contexts
    from flwr.superlink.cli import flower_superlink

    sys.argv = ["flower-superlink", *others]
    flower_superlink()


if __name__ == "__main__":
    main()
