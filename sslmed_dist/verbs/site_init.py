"""``sslmed site init`` and ``sslmed site network``: the two sides of a site are made, and the network side is run."""

import os
import pwd
from collections.abc import Iterable, Sequence
from pathlib import Path
from shlex import quote

from sslmed_dist.atomic_files import all_or_none, write_atomically
from sslmed_dist.drivers import network_side
from sslmed_dist.federation import authority, network_file, node_key, site_file, site_key, site_template

Lines = list[str]
FOLDER = "network"  # beside the site's file: all that belongs to the network side


def network_of(path: Path) -> Path:
    """Where the network side's file is, for the site's file ``path``."""
    return path.absolute().parent / FOLDER / network_file.NAME


def init(
    path: Path,
    name: str,
    data: Path,
    server: str | None = None,
    root: Path | None = None,
    users: tuple[str | None, str | None] = (None, None),
) -> Lines:
    """Write the site's file, strict and with each line explained, and that of its network side, and make both keys.

    ``server``: HOST:PORT; ``root``: the certificate of its authority. ``users``: those of the data side and of the
    network side, to whom the files are given, which root alone can; None: who runs this. ``ValueError`` where there is
    a file already, the data are not there, or a user is none of this machine."""
    check_new(path, name, data)
    if server is not None:
        network_file.require_server(server)
    if root is not None:
        authority.context(root)
    owners = [owner(user) for user in users]
    path, network = path.absolute(), network_of(path).parent
    keys = (path.parent / "state" / "key", network / "node.key")
    with all_or_none(path, network_of(path), network / "ca.crt", *keys):
        return written(path, name, data, server, root, users[1], owners)


def written(
    path: Path,
    name: str,
    data: Path,
    server: str | None,
    root: Path | None,
    network_user: str | None,
    owners: Sequence[tuple[int, int] | None],
) -> Lines:
    """``init`` of what has been checked; ``owners``: user and group id of the data side and of the network side."""
    write_atomically(path, site_template.filled(name, str(data.absolute()), str(path.parent)).encode())
    if network_user is not None:
        told = path.read_text().replace("network_user: null ", f"network_user: {network_user} ", 1)
        write_atomically(path, told.encode())
    path.chmod(0o600)
    site = site_file.read(path)
    state, network = Path(site.state), network_of(path).parent
    for folder in (state, network):
        folder.mkdir(mode=0o700, exist_ok=True)
    if not site.key.exists():
        site_key.make(site.key)
    own = network_file.filled(name, server, network, site.socket)
    write_atomically(network_of(path), own.encode())
    network_of(path).chmod(0o600)
    if root is not None:
        write_atomically(network / "ca.crt", root.read_bytes())
    if not (network / "node.key").exists():
        node_key.make(network / "node.key")
    give([path, state, *state.iterdir()], owners[0])
    give([network, *network.iterdir()], owners[1])
    return [
        f"{path}: read it, line by line, then: sslmed site check {quote(str(path))}",
        f"{network_of(path)}: the network side" + ("" if server else "; write the server's HOST:PORT into it"),
        f"for the people of sites that it adds up with (peers): {site_key.load(site.key).peer}",
        "for the server's people, with the number of images that this site may count in place of N:",
        add_site_line(path),
    ]


def check_new(path: Path, name: str, data: Path) -> None:
    """``ValueError`` where no site can be made so; nothing is written then."""
    for file in (path, network_of(path)):
        if file.exists():
            raise ValueError(f"{file}: exists; a site's rules are never written over")
    if not data.exists():
        raise ValueError(f"{data}: no such data")
    if not site_file.NAME.fullmatch(name):
        raise ValueError(f"name {name!r:.80}: expected up to 64 letters, digits, '_', '.' and '-'")


def owner(user: str | None) -> tuple[int, int] | None:
    """User and group id of a user to whom files are to be given. ``ValueError`` for one who is none of this machine,
    and where this process may not give anything away."""
    if user is None:
        return None
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise ValueError(f"user {user!r:.80}: no user of this machine") from None
    if os.getuid() not in (0, entry.pw_uid):
        raise ValueError(f"user {user}: only root can give files to another user; run this with sudo")
    return entry.pw_uid, entry.pw_gid


def give(paths: Iterable[Path], to: tuple[int, int] | None) -> None:
    """Files and folders to their owner."""
    for path in paths:
        if to is not None:
            os.chown(path, *to, follow_symlinks=False)


def add_site_line(path: Path) -> str:
    """The command by which the server's people register this site. ``ValueError`` where a key is missing, or belongs to
    another user."""
    site, network = site_file.read(path), network_file.read(network_of(path))
    node, data = node_key.public(Path(network.node_key)), site_key.load(site.key).public
    return f"sslmed server add-site DIR {site.site} --node-key {node} --data-key {data} --samples N"


def network(path: Path) -> Lines:
    """The network side: connect to the server and stay until SIGTERM. ``path`` is its own file."""
    network_side.keep(network_file.read(path), path)
    return []
