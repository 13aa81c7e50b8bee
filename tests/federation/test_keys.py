"""Certificates and keys: what is made, who may read it, and what is refused by name."""

import socket
import ssl
import threading
from pathlib import Path

import pytest

from sslmed_dist.drivers import superlink
from sslmed_dist.federation import authority, node_key, registered
from sslmed_dist.federation.registered import Registered


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> authority.Authority:
    """An authority with a certificate for a name and an address."""
    return authority.make(tmp_path_factory.mktemp("tls") / "tls", ["fed.example.org", "192.0.2.7"])


def answered(tls: authority.Authority, root: Path, name: str) -> str | None:
    """Why a client that believes ``root`` does not believe a server of ``tls`` called ``name``; None: it does."""
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(tls.certificate, tls.key)
    here, there = socket.socketpair()

    def serve() -> None:
        try:
            own.wrap_socket(there, server_side=True).close()
        except (ssl.SSLError, OSError):
            there.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        authority.context(root).wrap_socket(here, server_hostname=name).close()
    except ssl.SSLCertVerificationError as error:
        here.close()
        return error.verify_message
    finally:
        thread.join()
    return None


def test_the_certificate_holds_for_its_names_and_its_authority(tls: authority.Authority, tmp_path: Path) -> None:
    for name in ("fed.example.org", "192.0.2.7", "localhost", "127.0.0.1"):
        assert answered(tls, tls.root, name) is None
    assert "mismatch" in str(answered(tls, tls.root, "other.example.org"))
    other = authority.make(tmp_path / "other", ["fed.example.org"])
    assert answered(tls, other.root, "fed.example.org") is not None
    assert 824 < authority.days_left(tls.certificate) < 826 < authority.days_left(tls.root)
    for path in (tls.key, tls.root_key):
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_certificate_that_ended_is_made_anew_by_the_same_authority(tmp_path: Path) -> None:
    made = authority.make(tmp_path, ["fed.example.org"], days=-1)
    assert authority.days_left(made.certificate) < 0
    assert "expired" in str(answered(made, made.root, "fed.example.org"))
    authority.renew(made, ["new.example.org"])
    assert answered(made, made.root, "new.example.org") is None
    made.root_key.unlink()
    with pytest.raises(ValueError, match=r"ca.key: not here; without it no certificate can be made"):
        authority.renew(made, ["new.example.org"])
    with pytest.raises(ValueError, match="holds a certificate authority already"):
        authority.make(tmp_path, ["fed.example.org"])


@pytest.mark.parametrize("host", ["", "a b", "x..y", "f\N{LATIN SMALL LETTER U WITH DIAERESIS}r"])
def test_a_host_that_is_none(tmp_path: Path, host: str) -> None:
    with pytest.raises(ValueError, match="expected a DNS name or an IP address"):
        authority.make(tmp_path / "tls", [host])
    assert not (tmp_path / "tls").exists()


def test_a_node_key_is_one_word_and_never_written_over(tmp_path: Path) -> None:
    word = node_key.make(tmp_path / "node.key")
    assert node_key.public(tmp_path / "node.key") == word
    assert node_key.word(node_key.parsed(f"ecdsa-sha2-nistp384 {word} somebody@here")) == word
    assert b"BEGIN PUBLIC KEY" in node_key.pem(word) and len(node_key.fingerprint(word)) == 50
    with pytest.raises(ValueError, match=r"node.key: exists; a key is never written over"):
        node_key.make(tmp_path / "node.key")
    (tmp_path / "node.key").chmod(0o640)
    with pytest.raises(ValueError, match="other users may read the key"):
        node_key.public(tmp_path / "node.key")


def test_keys_of_another_kind_are_refused() -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    for text in (
        "",
        "x",
        "AAAA",
        "AAAAE2VjZHNhLXNoYTItbmlzdHAzODQ",
        node_key.word(Ed25519PrivateKey.generate().public_key()),
    ):
        with pytest.raises(ValueError, match="expected the one word that `sslmed site init` prints"):
            node_key.parsed(text)


def test_the_list_of_sites_is_written_as_it_is_read(tmp_path: Path) -> None:
    word = node_key.make(tmp_path / "key")
    sites = {"north": Registered(7, word, "0a" * 32), "south": Registered(None, None, "12" * 32)}
    registered.write(tmp_path / "sites.yaml", sites)
    assert registered.read(tmp_path / "sites.yaml") == sites
    assert registered.read(tmp_path / "none.yaml") == {}


@pytest.mark.parametrize(
    ("ahead", "agree"), [(0.0, True), (-4.9, True), (-5.0, False), (304.0, True), (305.0, False), (86400.0, False)]
)
def test_clocks_that_are_too_far_apart(ahead: float, agree: bool) -> None:
    """``ahead``: of the server. Flower takes no message of a site 5 s ahead of it, or 305 s behind."""
    assert superlink.clocks_agree(ahead) is agree
    assert ("set this machine's clock" in superlink.clock_line(ahead)) is not agree
