"""``sslmed server``: what the people of the server do."""

from collections.abc import Sequence
from pathlib import Path

from sslmed_dist import config
from sslmed_dist.atomic_files import all_or_none, refuse_links, write_atomically
from sslmed_dist.drivers import server_side, superlink
from sslmed_dist.federation import authority, node_key, registered, server_file
from sslmed_dist.federation.registered import Registered
from sslmed_dist.federation.server_file import Server
from sslmed_dist.federation.site_file import NAME
from sslmed_dist.printable import plural
from sslmed_dist.run_folder import read_metrics

Lines = list[str]


def init(place: Path, hosts: Sequence[str], port: int, listen: str = "0.0.0.0") -> Lines:
    """Make a server's folder: a certificate authority of its own, a certificate for ``hosts``, and ``server.yaml``,
    each line explained. ``ValueError`` where there is one already."""
    place = place.absolute()
    file = place / server_file.NAME
    if file.exists():
        raise ValueError(f"{file}: exists; a server is never written over")
    if not 1 <= port <= 65535:
        raise ValueError(f"port: expected a number from 1 to 65535, got {port}")
    authority.alternative_names(hosts)  # names what is none before anything is written
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    tls = authority.Authority(place / "tls")
    with all_or_none(file, tls.root, tls.root_key, tls.certificate, tls.key):
        authority.make(tls.folder, hosts)
        write_atomically(file, server_file.filled(hosts, port, str(place / "runs"), listen).encode())
        server_file.read(place)
    return [
        f"{file}: read it, line by line",
        authority.ending(tls.root),
        authority.ending(tls.certificate),
        f"every site gets a copy of {tls.root} (no secret) and the address {server_file.address(hosts[0], port)}",
        f"{tls.root_key}: makes certificates that all sites believe; keep it elsewhere, `sslmed server renew` needs it",
    ]


def renew(place: Path) -> Lines:
    """Another certificate of the same authority for the hosts in ``server.yaml``; sites need nothing new."""
    server = server_file.read(place)
    authority.renew(server.tls, server.file.hosts)
    again = "; stop the server and start it again" if server_side.is_up(server) else ""
    return [authority.ending(server.tls.certificate) + again]


def add_site(place: Path, name: str, node: str, data: str, samples: int) -> Lines:
    """Register a site: the public keys of its two sides, and the most images that it may count. A running server takes
    it over within seconds. ``ValueError`` for a name or a key that is registered already."""
    server = server_file.read(place)
    if not NAME.fullmatch(name):
        raise ValueError(f"name {name!r:.80}: expected up to 64 letters, digits, '_', '.' and '-'")
    if not registered.is_key(data):
        raise ValueError(f"data key {data!r:.20}: expected the 64 hexadecimal digits that `sslmed site init` prints")
    site = Registered(samples, node_key.word(node_key.parsed(node)), data)
    with registered.changing(server.sites) as listed:
        if name in listed:
            taken = f"has a {name} already; what stands there can be changed or deleted by hand"
            raise ValueError(f"{server.sites}: {taken}")
        same = [other for other, known in listed.items() if {known.node_key, known.data_key} & {site.node_key, data}]
        if same:
            raise ValueError(f"{name}: has a key of {same[0]}; every site makes its own with `sslmed site init`")
        listed[name] = site
    return [
        f"{name}: registered with up to {plural(samples, 'sample')} in {server.sites}",
        "compare with what the site's people read out from `sslmed site status`:",
        *fingerprints(site),
    ]


def fingerprints(site: Registered) -> Lines:
    """The keys of a site as people compare them."""
    return [
        f"  {side} side's key: {node_key.fingerprint(key)}"
        for side, key in (("network", site.node_key), ("data", site.data_key))
        if key is not None
    ]


def start(place: Path) -> Lines:
    """The server, in the foreground until SIGTERM or SIGINT."""
    server = server_file.read(place)
    refuse_links(server.place / "logs")
    server_side.serve(server)
    return []


def run(place: Path, recipe: Path, overrides: Sequence[str]) -> Path:
    """A new federation on the running server; returns its folder."""
    return server_side.run(server_file.read(place), config.load(recipe, list(overrides)), "never")


def resume(place: Path, name: str) -> Path:
    """Go on with the run called ``name`` where it stopped; returns its folder. ``ValueError`` where there is none."""
    server = server_file.read(place)
    path = Path(server.file.folder) / name / "config.yaml"
    if not path.exists():
        raise ValueError(f"{path.parent}: no run there; runs here: {', '.join(runs(server)) or 'none'}")
    return server_side.run(server, config.load(path), "auto")


def runs(server: Server) -> Lines:
    """The names of the runs, the newest first."""
    found = Path(server.file.folder).glob("*/config.yaml")
    return [path.parent.name for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)]


def status(place: Path) -> Lines:
    """The server, its certificates, its sites: registered, online, their last round, the fingerprints of their keys."""
    server = server_file.read(place)
    up = server_side.is_up(server)
    lines = [f"the server {'runs' if up else 'does not run'}; port {server.file.port}, {', '.join(server.file.hosts)}"]
    if up:
        try:
            ahead = superlink.clock(server_side.access(server).address, server.tls.root)
            lines.append(f"it answers; {superlink.clock_line(ahead)}; a site's may be 5 s ahead of it or 305 s behind")
        except (superlink.Unreachable, ValueError) as error:
            lines.append(f"problem: {error}")
    lines += [authority.ending(path) for path in (server.tls.root, server.tls.certificate)]
    nodes, names = server_side.nodes(server), runs(server)
    last = last_rounds(Path(server.file.folder) / names[0]) if names else {}
    lines.append(f"runs: {', '.join(names) or 'none'}")
    for name, site in registered.read(server.sites).items():
        known = nodes.get(name, {})
        now = str(known.get("status", "not registered yet")) if up else "the server does not run"
        since = f" since {known['online_since'][:19]}" if up and known.get("online_since") else ""
        round_ = f"; round {last[name]} of {names[0]}" if name in last else "; no round yet"
        lines += [f"{name}: {now}{since}; up to {site.samples} samples{round_}", *fingerprints(site)]
    return lines


def last_rounds(folder: Path) -> dict[str, int]:
    """By site, the last round of a run that counted it."""
    path = folder / "metrics.jsonl"
    rows = [row for _, row in read_metrics(path)] if path.exists() else []
    found: dict[str, int] = {}
    for row in rows:
        if row.get("site") and row.get("round"):
            found[str(row["site"])] = max(found.get(str(row["site"]), 0), int(row["round"]))
    return found
