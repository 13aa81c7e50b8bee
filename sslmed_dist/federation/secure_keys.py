"""The cryptography of the secure sum, all of it out of the library ``cryptography``: X25519, HKDF-SHA256,
ChaCha20-Poly1305 and the stream of ChaCha20. Keys and seeds have 32 bytes.
"""

import os
from typing import Any

import numpy as np

from sslmed_dist.federation.fixed_point import Vector
from sslmed_dist.federation.shamir import SHARE

SEED, NONCE, TAG = 32, 12, 16  # bytes
SEALED_SHARES = NONCE + 2 * SHARE + TAG  # bytes of the two shares for one peer
PIECE = 1 << 18  # bytes of a stream that are made at a time
MOST_SITES = 1000  # of one secure sum
ABOUT = "sslmed secure sum"  # begins what every derived key is for


def public_of(private: bytes) -> bytes:
    """The public half of an X25519 key."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agreed(private: bytes, public: bytes) -> bytes:
    """What both holders of a key can compute (X25519), and nobody else. ``ValueError`` for a public key that makes
    everybody agree on 0."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))


def derive(secret: bytes, context: bytes, *purpose: str) -> bytes:
    """A key for one ``purpose`` of one ``context`` out of a secret (HKDF-SHA256)."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), SEED, context, "|".join((ABOUT, *purpose)).encode()).derive(secret)


def seal(key: bytes, plain: bytes, about: bytes) -> bytes:
    """``plain`` for the holder of ``key`` alone, tied to ``about``, which is not in it: nonce, ciphertext, tag."""
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    nonce = os.urandom(NONCE)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, plain, about)


def opened(key: bytes, sealed: bytes, about: bytes) -> bytes:
    """What ``seal`` sealed. ``ValueError`` for anything that was not sealed by this key about this."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    try:
        return ChaCha20Poly1305(key).decrypt(sealed[:NONCE], sealed[NONCE:], about)
    except InvalidTag:
        raise ValueError("not sealed by this key about this") from None


def stream(key: bytes, count: int, kind: np.dtype[Any]) -> Vector:
    """``count`` numbers that nobody without ``key`` can tell from uniform ones: the stream of ChaCha20 as little-endian
    numbers. A key serves for one stream, so the nonce is 0."""
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

    encryptor = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()
    numbers = np.empty(count, kind.newbyteorder("<"))
    view, zeros = numbers.data.cast("B"), bytes(PIECE)
    for start in range(0, len(view), PIECE):  # pieces that stay in the cache: six times as fast as all at once
        piece = view[start : start + PIECE]
        encryptor.update_into(zeros[: len(piece)], piece)
    return numbers.astype(kind, copy=False)
