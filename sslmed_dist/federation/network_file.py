"""The file of a site's network side: which server, whom to believe, which key, which socket. Nothing of the data."""

from dataclasses import dataclass
from pathlib import Path

from sslmed_dist import config, plain_yaml
from sslmed_dist.federation.authority import require_host
from sslmed_dist.federation.server_file import quoted

NAME = "network.yaml"
TEMPLATE = """\
# The network side of one site (`sslmed site network`). It knows no path of the data, no rule and no ledger: what it may
# ask of the data side is decided behind the socket. Every line is needed.

# For the lines of its log; the server knows this site by its key.
site: SITE
# HOST:PORT, the one address that this side connects to; null until it is known.
server: SERVER
# The certificate of the server's authority (ca.crt); no other server is believed.
root_certificate: ROOT
# This side's private key; its public half was registered at the server.
node_key: KEY
# The door of the data side.
socket: SOCKET
# Flower's own files and the logs; writable by this side alone.
home: HOME
# The file of the keys whose apps run here, as `sslmed app trust` writes it. null: whatever app the server sends; it
# reaches no data, but the network and this side's key.
trusted_apps: null
"""


@dataclass(frozen=True)
class NetworkFile:
    """The whole file."""

    site: str
    server: str | None
    root_certificate: str
    node_key: str
    socket: str
    home: str
    trusted_apps: str | None = None

    def __post_init__(self) -> None:
        if self.server is not None:
            require_server(self.server)
        for field in ("root_certificate", "node_key", "socket", "home", "trusted_apps"):
            value = getattr(self, field)
            if value is not None and not Path(value).is_absolute():
                raise ValueError(f"{field}: expected an absolute path; see the file that `sslmed site init` writes")
        if '"' in self.socket or "\\" in self.socket:
            raise ValueError("socket: expected a path without quotation marks and backslashes")


def require_server(server: str) -> str:
    """``server`` where it is HOST:PORT, else ``ValueError``."""
    host, colon, port = server.rpartition(":")
    if not host or not colon or not (port.isdigit() and 1 <= int(port) <= 65535):
        raise ValueError(f"server {server!r:.80}: expected HOST:PORT, such as federation.example.org:8443")
    bracketed = host.startswith("[") and host.endswith("]")
    require_host(host[1:-1] if bracketed else host)
    if bracketed is not (":" in host):
        raise ValueError(f"server {server!r:.80}: expected an IPv6 address in brackets, such as [2001:db8::1]:8443")
    return server


def filled(site: str, server: str | None, folder: Path, socket: str) -> str:
    """The text of a new file for the network side in ``folder``."""
    words = {"SITE": site, "SERVER": server, "ROOT": str(folder / "ca.crt"), "KEY": str(folder / "node.key")}
    words |= {"SOCKET": socket, "HOME": str(folder / "flower")}
    text = TEMPLATE
    for word, value in words.items():
        text = text.replace(f": {word}\n", f": {'null' if value is None else quoted(value)}\n", 1)
    return text


def read(path: Path) -> NetworkFile:
    """The file of a network side. ``ValueError`` names the file, the line's key and what is allowed."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; `sslmed site init` writes it, network/{NAME} beside the site's file")
    side: NetworkFile = config.section(NetworkFile, plain_yaml.read(path), str(path), "")
    return side
