"""Signatures of the Flower app, so that a site's node runs the app that its people trust and no other.

Flower's SuperNode refuses an app without a signature of a key in its file of ``--trusted-entities``. It gets signatures
with the app from the SuperLink, which reads them in its database and in Flower's open version has no command that
writes them there; every submission of a run takes them away again. So the ServerApp writes them (``attach``) when it
starts, which is after the submission and before it sends anything. Read in the source of flwr 1.41: signed are 8 bytes
of time (seconds, big-endian) and the app's SHA-256; the time is not looked at, so a signature holds for ever. What is
signed is the app alone, not a run's configuration: that is the business of the site's rules.

The key that signs is in a file of the same form as a site's (``site_key``), on a machine that no network reaches.
"""

import base64
import json
import sqlite3
import struct
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from sslmed_dist import plain_yaml
from sslmed_dist.federation.ledger import is_digest
from sslmed_dist.federation.site_key import SiteKey, is_signed
from sslmed_dist.json_files import read_object

# In the environment of a SuperLink, which the ServerApp inherits: its database, and the file of the signature.
DATABASE, SIGNATURE = "SSLMED_APP_DATABASE", "SSLMED_APP_SIGNATURE"
LOCKED_S = 30.0  # so long another process may hold the database


@dataclass(frozen=True)
class Signature:
    """``app`` is the SHA-256 of the app as Flower packs it, ``key`` the public half of the key (64 hexadecimal digits
    both), ``signed_at`` seconds since 1970, ``signature`` 128 hexadecimal digits. ``ValueError`` where the key did not
    sign this."""

    app: str
    key: str
    signed_at: int
    signature: str

    def __post_init__(self) -> None:
        fine = is_digest(self.app) and is_digest(self.key) and 0 <= self.signed_at < 1 << 62
        signature = bytes.fromhex(self.signature) if set(self.signature) <= set("0123456789abcdef") else b""
        if not fine or not is_signed(signed_bytes(self.app, self.signed_at), signature, bytes.fromhex(self.key)):
            raise ValueError("is no signature of the app by the key that it names")

    @classmethod
    def read(cls, path: Path) -> "Signature":
        """The signature in a file. ``ValueError`` names the file."""
        if not path.is_file():
            raise ValueError(f"{path}: no such file; `sslmed app sign` writes one")
        tree = read_object(path, {"app": str, "key": str, "signed_at": int, "signature": str})
        try:
            return cls(tree["app"], tree["key"], tree["signed_at"], tree["signature"])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def text(self) -> str:
        """As it is written to a file."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def verifications(self) -> str:
        """As Flower's database and its SuperNode have it."""
        signature = base64.urlsafe_b64encode(bytes.fromhex(self.signature)).decode().rstrip("=")
        entry = json.dumps({"signed_at": self.signed_at, "signature": signature})
        return json.dumps({"valid_license": "Valid", entity(self.key): entry})


def signed_bytes(app: str, signed_at: int) -> bytes:
    """What is signed."""
    return struct.pack(">Q", signed_at) + bytes.fromhex(app)


def sign(key: SiteKey, app: str, signed_at: int | None = None) -> Signature:
    """Sign the app of this SHA-256. ``ValueError`` for what is no SHA-256."""
    if not is_digest(app):
        raise ValueError(f"{app[:80]!r}: expected the SHA-256 of an app, 64 hexadecimal digits")
    at = int(time.time()) if signed_at is None else signed_at
    return Signature(app, key.public, at, key.sign(signed_bytes(app, at)).hex())


def entity(key: str) -> str:
    """Flower's name for a key."""
    return f"fpk_{key}"


def trusted(keys: Sequence[str]) -> str:
    """The file for ``flower-supernode --trusted-entities``. ``ValueError`` for what is no public key, and for one that
    is named twice."""
    for key in keys:
        if not is_digest(key):
            raise ValueError(f"{key[:80]!r}: expected the public half of a signing key, 64 hexadecimal digits")
    if len(set(keys)) < len(keys):
        raise ValueError("a key is named twice; every key counts once")
    return plain_yaml.write({entity(key): openssh(key) for key in keys})


def openssh(key: str) -> str:
    """A public key as OpenSSH writes it: name and key, each after its length (RFC 4253, 6.6; RFC 8709)."""
    name, content = b"ssh-ed25519", bytes.fromhex(key)
    packed = struct.pack(">I", len(name)) + name + struct.pack(">I", len(content)) + content
    return f"{name.decode()} {base64.b64encode(packed).decode()}"


def attach(database: Path, signature: Signature) -> None:
    """Write the signature beside its app into the database of a SuperLink. ``RuntimeError`` where there is no such app,
    or the database is not as flwr 1.41 makes it."""
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=rw", uri=True, timeout=LOCKED_S)) as connection:
            values = (signature.verifications(), signature.app)
            changed = connection.execute("UPDATE fab SET verifications = ? WHERE fab_hash = ?", values).rowcount
            connection.commit()
    except sqlite3.Error as error:
        raise RuntimeError(f"the signature of the app cannot be written to Flower's database: {error}") from None
    if changed != 1:
        raise RuntimeError(f"the signature is for the app {signature.app}, which the SuperLink does not have")


def as_asked(environment: Mapping[str, str], app: str) -> None:
    """Attach the signature that the environment names (``asking``) to the app of this SHA-256. ``ValueError`` for a
    signature of another app, ``RuntimeError`` as ``attach``: nothing must be sent then, because every site would refuse
    it."""
    named = environment[SIGNATURE]
    signature = Signature.read(Path(named))
    if signature.app != app:
        raise ValueError(f"{named}: signs the app {signature.app}, this run's is {app}; sign that one: sslmed app sign")
    attach(Path(environment[DATABASE]), signature)


def asking(database: Path, signature: Path) -> dict[str, str]:
    """The environment of a SuperLink whose runs are to be signed."""
    return {DATABASE: str(database), SIGNATURE: str(signature)}
