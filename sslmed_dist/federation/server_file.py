"""The one file of a server: where it listens, what it is called, where its runs are. Read strictly."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Literal

from sslmed_dist import config, plain_yaml
from sslmed_dist.federation.authority import Authority, require_host
from sslmed_dist.federation.registered import SITES

NAME = "server.yaml"
NOTE = "see the file that `sslmed server init` writes"
TEMPLATE = """\
# One server of a federation. Every line is needed. After a change: stop `sslmed server start` and start it again.

# The one port that sites connect to; nothing else is opened to them.
port: PORT
# 0.0.0.0: on all interfaces; 127.0.0.1: only for a proxy on this machine.
listen: LISTEN
# DNS names and addresses that sites connect to. They stand in the certificate, so after a change: sslmed server renew
hosts: HOSTS
# A folder for each run: checkpoints, log, metrics.
folder: FOLDER
"""


@dataclass(frozen=True)
class ServerFile:
    """The whole file, and the folder that it lies in."""

    port: int
    listen: Literal["0.0.0.0", "127.0.0.1"]
    hosts: tuple[str, ...]
    folder: str

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise ValueError(f"port: expected a number from 1 to 65535, got {self.port}; {NOTE}")
        if not self.hosts:
            raise ValueError(f"hosts: expected the names or addresses that sites connect to; {NOTE}")
        for host in self.hosts:
            require_host(host)
        if not Path(self.folder).is_absolute():
            raise ValueError(f"folder: expected an absolute path; {NOTE}")


@dataclass(frozen=True)
class Server:
    """A server's folder and its file."""

    place: Path
    file: ServerFile

    @property
    def tls(self) -> Authority:
        """Its certificate authority."""
        return Authority(self.place / "tls")

    @property
    def sites(self) -> Path:
        """The list of sites."""
        return self.place / SITES

    @property
    def signature(self) -> Path:
        """The signature of the Flower app, by ``sslmed app sign``; it need not be there."""
        return self.place / "app.signature.json"

    @property
    def programs(self) -> Path:
        """The folder of Flower's own files."""
        return self.place / "flower"

    @property
    def keys(self) -> Path:
        """The folder of the token by which this machine's own commands start runs."""
        return self.place / "keys"


def filled(hosts: Sequence[str], port: int, folder: str, listen: str = "0.0.0.0") -> str:
    """The text of a new file."""
    words = {"PORT": str(port), "LISTEN": listen, "FOLDER": quoted(folder)}
    words["HOSTS"] = "[" + ", ".join(quoted(host) for host in hosts) + "]"
    text = TEMPLATE
    for word, value in words.items():
        text = text.replace(f": {word}", f": {value}", 1)
    return text


def address(host: str, port: int) -> str:
    """HOST:PORT as sites write it, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def quoted(text: str) -> str:
    """A text as YAML takes it, whatever is in it."""
    return "'" + text.replace("'", "''") + "'"


def read(place: Path) -> Server:
    """The server in the folder ``place``. ``ValueError`` names the file, the line's key and what is allowed."""
    path = place.absolute() / NAME
    if not path.is_file():
        raise ValueError(f"{path}: no such file; `sslmed server init {quote(str(place))}` writes one")
    file: ServerFile = config.section(ServerFile, plain_yaml.read(path), str(path), "")
    return Server(place.absolute(), file)
