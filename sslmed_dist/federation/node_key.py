"""The key of a site's network side (elliptic curve P-384, as Flower wants it): by it, and by nothing that a site says
of itself, the server knows which node is which site.

The public half is one word: the base64 part of an OpenSSH public key. The private half is an OpenSSH file.
"""

import base64
import binascii
import hashlib
from pathlib import Path
from typing import Any

from sslmed_dist.atomic_files import read_private, write_private

FORM = "expected the one word that `sslmed site init` prints (an OpenSSH public key, ecdsa-sha2-nistp384)"


def make(path: Path) -> str:
    """Write a new private key, readable by this user alone; returns the public half. ``ValueError`` where one is there
    already: the server would not know this site any more."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = ec.generate_private_key(ec.SECP384R1())
    write_private(path, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    return word(key.public_key())


def public(path: Path) -> str:
    """The public half of the private key in ``path``. ``ValueError`` where there is none, or others may read it."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    if not path.exists():
        raise ValueError(f"{path}: no key of the network side; `sslmed site init` makes one")
    content = read_private(path, 1 << 14)
    try:
        return word(serialization.load_ssh_private_key(content, None).public_key())
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(f"{path}: is no private key in OpenSSH's form") from None


def word(key: Any) -> str:
    """A public key as one word."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    line: bytes = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return line.split()[1].decode()


def parsed(text: str) -> Any:
    """The public key that a word (or a whole line of OpenSSH) says. ``ValueError`` for anything but a NIST curve."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    words = text.split()
    body = next((item for item in words if item.startswith("AAAA")), "")
    try:
        kind = base64.b64decode(body, validate=True)[4:].split(b"\0", 1)[0].decode("ascii")
        key = serialization.load_ssh_public_key(f"{kind} {body}".encode())
    except (ValueError, UnsupportedAlgorithm, binascii.Error):
        raise ValueError(f"node key {text!r:.40}: {FORM}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError(f"node key {text!r:.40}: {FORM}")
    return key


def pem(text: str) -> bytes:
    """A public word as Flower keeps it."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    written: bytes = parsed(text).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return written


def fingerprint(text: str) -> str:
    """What two people compare on the telephone: of a node's word that of ``ssh-keygen -l``, of the 64 hexadecimal
    digits of a data side's key the same way."""
    try:
        content = bytes.fromhex(text)
    except ValueError:
        content = base64.b64decode(word(parsed(text)))
    return "SHA256:" + base64.b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
