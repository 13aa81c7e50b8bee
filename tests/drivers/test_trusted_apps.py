"""Both ends of a signature: what a server does with the one in its folder, and a network side with its keys."""

from pathlib import Path

import pytest

from sslmed_dist.drivers import app_file, launcher, network_side, server_side
from sslmed_dist.drivers.place import Place
from sslmed_dist.drivers.processes import Processes
from sslmed_dist.federation import app_signature, network_file, site_key
from sslmed_dist.federation.server_file import Server, ServerFile


def test_a_server_signs_with_the_signature_in_its_folder_and_no_other_apps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server(tmp_path, ServerFile(8443, "127.0.0.1", ("localhost",), str(tmp_path / "runs")))
    place = Place(tmp_path, launcher.app_folder(), tmp_path, Processes("token-of-this-test"))
    assert server_side.signature(server, place) == {}
    assert "the app is not signed: sites with trusted_apps will refuse it" in capsys.readouterr().err
    site_key.make(tmp_path / "key")
    key = site_key.load(tmp_path / "key")
    server.signature.write_text(app_signature.sign(key, "ab" * 32).text())
    with pytest.raises(
        ValueError, match=f"signs the app {'ab' * 32}, this program's is [0-9a-f]{{64}}; sslmed app sign"
    ):
        server_side.signature(server, place)
    server.signature.write_text(app_signature.sign(key, app_file.digest(place.app)).text())
    asked = {
        app_signature.DATABASE: str(tmp_path / "superlink" / "state.db"),
        app_signature.SIGNATURE: str(server.signature),
    }
    assert server_side.signature(server, place) == asked
    assert f"is signed by the key {key.public[:12]}" in capsys.readouterr().err


def test_a_network_side_reads_where_its_keys_are(tmp_path: Path) -> None:
    text = network_file.filled("north", "localhost:8443", tmp_path, str(tmp_path / "data.sock"))
    file, keys = tmp_path / "network.yaml", tmp_path / "trusted.yaml"
    file.write_text(text)
    assert network_side.trusted_apps(network_file.read(file)) is None
    file.write_text(text.replace("trusted_apps: null", f"trusted_apps: {keys}"))
    with pytest.raises(ValueError, match=f"trusted_apps: {keys}: no such file; `sslmed app trust` writes one"):
        network_side.trusted_apps(network_file.read(file))
    keys.write_text(app_signature.trusted(["ab" * 32]))
    assert network_side.trusted_apps(network_file.read(file)) == keys
    file.write_text(text.replace("trusted_apps: null", "trusted_apps: trusted.yaml"))
    with pytest.raises(ValueError, match="trusted_apps: expected an absolute path"):
        network_file.read(file)
