"""The server's own certificate authority and the certificate that it gives to the server. Files in PEM.

    ca.crt      the authority: every site gets a copy, and believes no other
    ca.key      its private key: needed only to make another certificate; keep it off the server where you can
    server.crt  the server's certificate, with the names and addresses that sites connect to
    server.key  its private key

Keys are elliptic curve keys (P-256) of the operating system's generator. Private files are 0600.
"""

import datetime
import ipaddress
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslmed_dist.atomic_files import write_atomically, write_private

AUTHORITY_DAYS, SERVER_DAYS = 3650, 825
SOON_DAYS = 30.0  # before its end a certificate is warned of
HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")  # one part of a DNS name
LOOPBACK = ("localhost", "127.0.0.1", "::1")  # the server's own programs connect to it by these


@dataclass(frozen=True)
class Authority:
    """The files of an authority in ``folder``."""

    folder: Path

    @property
    def root(self) -> Path:
        """The authority's certificate."""
        return self.folder / "ca.crt"

    @property
    def certificate(self) -> Path:
        """The server's certificate."""
        return self.folder / "server.crt"

    @property
    def key(self) -> Path:
        """The server's private key."""
        return self.folder / "server.key"

    @property
    def root_key(self) -> Path:
        """The authority's private key."""
        return self.folder / "ca.key"


def make(folder: Path, hosts: Sequence[str], days: int = SERVER_DAYS) -> Authority:
    """Make an authority and a certificate of ``days`` days for ``hosts`` (names or IP addresses) and the loopback
    interface. ``ValueError`` for what is no name or address, and where there is an authority already."""
    authority = Authority(folder)
    if authority.root.exists() or authority.root_key.exists():
        raise ValueError(f"{folder}: holds a certificate authority already; sites believe it and no other")
    from cryptography.hazmat.primitives.asymmetric import ec

    names = alternative_names(hosts)
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = certificate("sslmed federation", root_key, AUTHORITY_DAYS)
    own = certificate(hosts[0] if hosts else "localhost", key, days, (root, root_key), names)
    write_private(authority.root_key, private_pem(root_key))
    write_private(authority.key, private_pem(key))
    write_atomically(authority.root, public_pem(root))
    write_atomically(authority.certificate, public_pem(own))
    return authority


def renew(authority: Authority, hosts: Sequence[str], days: int = SERVER_DAYS) -> None:
    """Give the server another certificate of the same authority; sites need nothing new. ``ValueError`` as of
    ``make``, and where a file of the authority is missing, damaged or of another one."""
    if not authority.root_key.exists():
        raise ValueError(f"{authority.root_key}: not here; without it no certificate can be made that sites believe")
    from cryptography import x509

    expiry(authority.root)  # names what is wrong
    root = x509.load_pem_x509_certificate(authority.root.read_bytes())
    root_key, key = private_key(authority.root_key), private_key(authority.key)
    if root_key.public_key() != root.public_key():
        raise ValueError(f"{authority.root_key}: is not the key of {authority.root}; no site would believe it")
    own = certificate(hosts[0] if hosts else "localhost", key, days, (root, root_key), alternative_names(hosts))
    write_atomically(authority.certificate, public_pem(own))


def certificate(name: str, key: Any, days: int, issuer: tuple[Any, Any] | None = None, names: Any = ()) -> Any:
    """A certificate for the public half of ``key``, of ``issuer`` (certificate, private key) for a server called
    ``names``; without an issuer that of an authority, which signs for itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    begin = end - datetime.timedelta(days=max(days, 0), hours=1)  # an hour, because clocks differ
    signing = key if issuer is None else issuer[1]
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
        False,
    ) | {"encipher_only": False, "decipher_only": False}
    usage |= {"digital_signature": issuer is not None, "key_cert_sign": issuer is None, "crl_sign": issuer is None}
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer[0].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(issuer is None, 0 if issuer is None else None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()),
            critical=False,
        )
    )
    if issuer is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        server = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        builder = builder.add_extension(server, critical=False)
    return builder.sign(signing, hashes.SHA256())


def alternative_names(hosts: Sequence[str]) -> list[Any]:
    """``hosts`` and the loopback interface as a certificate has them. ``ValueError`` for what is none."""
    from cryptography import x509

    found: list[Any] = []
    for host in dict.fromkeys([*hosts, *LOOPBACK]):
        address = require_host(host)
        found.append(x509.DNSName(host) if address is None else x509.IPAddress(address))
    return found


def require_host(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that ``host`` is, None for a DNS name. ``ValueError`` for what is neither, such as a URL, a path or a
    name with its port: a certificate for it would be believed by nobody."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        if not all(map(HOST.fullmatch, host.split("."))) or len(host) > 253 or host.rpartition(".")[2].isdigit():
            what = "a DNS name or an IP address, with neither https:// nor a port"
            raise ValueError(f"host {host!r:.80}: expected {what}") from None
    return None


def private_pem(key: Any) -> bytes:
    """A private key as PEM, not encrypted: the server starts without anybody there."""
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    written: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return written


def private_key(path: Path) -> Any:
    """The private key in a PEM file. ``ValueError`` where there is none."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        return load_pem_private_key(path.read_bytes(), None)
    except (OSError, TypeError, ValueError):  # TypeError: it wants a password
        raise ValueError(f"{path}: no private key (PEM, not encrypted) there") from None


def public_pem(made: Any) -> bytes:
    """A certificate as PEM."""
    from cryptography.hazmat.primitives.serialization import Encoding

    written: bytes = made.public_bytes(Encoding.PEM)
    return written


def expiry(path: Path) -> datetime.datetime:
    """When a certificate ends (UTC). ``ValueError`` where there is none."""
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    except (OSError, ValueError):
        raise ValueError(f"{path}: no certificate (PEM) there") from None


def require_authority(path: Path) -> None:
    """``ValueError`` unless ``path`` is the certificate of an authority. By that of a server alone no server can prove
    who it is, now or after its next certificate."""
    from cryptography import x509

    expiry(path)  # names what is wrong
    try:
        extensions = x509.load_pem_x509_certificate(path.read_bytes()).extensions
        signs = extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ValueError, x509.ExtensionNotFound):
        signs = False
    if not signs:
        raise ValueError(f"{path}: is no authority's certificate (basicConstraints); wanted: the server's tls/ca.crt")


def days_left(path: Path) -> float:
    """Days until a certificate ends; negative afterwards."""
    return (expiry(path) - datetime.datetime.now(datetime.UTC)).total_seconds() / 86400


def ending(path: Path) -> str:
    """A line on when a certificate ends."""
    return f"{path}: valid until {expiry(path):%Y-%m-%d}, {days_left(path):.0f} days"


def context(root: Path) -> ssl.SSLContext:
    """What believes this authority and no other. ``ValueError`` where ``root`` is no authority's certificate."""
    require_authority(root)
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.load_verify_locations(cafile=str(root))
    return made
