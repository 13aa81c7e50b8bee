"""The signature of the app, as Flower's own SuperLink stores it and its own SuperNode looks at it."""

import dataclasses
import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from sslmed_dist import cli
from sslmed_dist.federation import app_signature, site_key
from sslmed_dist.federation.app_signature import Signature
from sslmed_dist.federation.site_key import SiteKey

CONTENT = b"an app"
APP = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> list[SiteKey]:
    """Two keys."""
    folder = tmp_path_factory.mktemp("keys")
    for name in "ab":
        site_key.make(folder / name)
    return [site_key.load(folder / name) for name in "ab"]


@pytest.fixture
def superlink(tmp_path: Path) -> Any:
    """The state of a SuperLink to which the app was submitted, in ``tmp_path/state.db``."""
    from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
    from flwr.supercore.fab import Fab
    from flwr.supercore.object_store import ObjectStoreFactory

    state = SqlLinkState(str(tmp_path / "state.db"), SimpleNamespace(), ObjectStoreFactory().store())
    state.initialize()
    state.store_fab(Fab(APP, CONTENT, {"valid_license": ""}))
    return state


def believed(fab: Any, trusted: str) -> bool:
    """Whether Flower's SuperNode runs the app, with this file of ``--trusted-entities``."""
    from flwr.supernode.cli.flower_supernode import _validate_public_keys_ed25519
    from flwr.supernode.start_client_internal import _verify_fab

    entities = yaml.safe_load(trusted)
    _validate_public_keys_ed25519(entities)
    return bool(fab.verifications.get("valid_license", "")) and _verify_fab(fab, entities)


def test_flowers_node_believes_the_app_that_a_trusted_key_signed(
    superlink: Any, keys: list[SiteKey], tmp_path: Path
) -> None:
    mine, other = keys
    trusted = app_signature.trusted([other.public, mine.public])
    assert not believed(superlink.get_fab(APP), trusted)
    path = tmp_path / "app.signature.json"
    path.write_text(app_signature.sign(mine, APP).text())
    app_signature.as_asked(app_signature.asking(tmp_path / "state.db", path), APP)
    assert believed(superlink.get_fab(APP), trusted)
    assert not believed(superlink.get_fab(APP), app_signature.trusted([other.public]))
    forged = dataclasses.replace(superlink.get_fab(APP), content=b"another app")
    assert not believed(forged, trusted)


def test_a_new_submission_takes_the_signature_away(superlink: Any, keys: list[SiteKey], tmp_path: Path) -> None:
    """So it has to be written after each, by the ServerApp that was started by it."""
    from flwr.supercore.fab import Fab

    app_signature.attach(tmp_path / "state.db", app_signature.sign(keys[0], APP))
    superlink.store_fab(Fab(APP, CONTENT, {"valid_license": ""}))
    assert not believed(superlink.get_fab(APP), app_signature.trusted([keys[0].public]))


def test_flower_signs_the_same_bytes() -> None:
    from flwr.supercore.primitives.asymmetric_ed25519 import create_message_to_sign

    assert app_signature.signed_bytes(APP, 1 << 33) == create_message_to_sign(bytes.fromhex(APP), 1 << 33)


def test_a_run_of_another_app_is_not_begun(superlink: Any, keys: list[SiteKey], tmp_path: Path) -> None:
    path, database = tmp_path / "app.signature.json", tmp_path / "state.db"
    path.write_text(app_signature.sign(keys[0], "ab" * 32).text())
    with pytest.raises(ValueError, match=f"signs the app {'ab' * 32}, this run's is {APP}; sign that one"):
        app_signature.as_asked(app_signature.asking(database, path), APP)
    with pytest.raises(RuntimeError, match="which the SuperLink does not have"):
        app_signature.as_asked(app_signature.asking(database, path), "ab" * 32)
    assert superlink.get_fab(APP).verifications == {"valid_license": ""}
    with pytest.raises(ValueError, match="gone.json: no such file; `sslmed app sign` writes one"):
        app_signature.as_asked(app_signature.asking(database, tmp_path / "gone.json"), APP)


def test_a_database_of_another_form_is_named_and_none_is_made(keys: list[SiteKey], tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    for name in ("gone.db", "empty.db"):
        with pytest.raises(RuntimeError, match="cannot be written to Flower's database"):
            app_signature.attach(tmp_path / name, app_signature.sign(keys[0], APP))
    assert [path.name for path in tmp_path.iterdir()] == ["empty.db"]


@pytest.mark.parametrize(
    "changed", [{"app": "cd" * 32}, {"signed_at": 5}, {"key": "ab" * 32}, {"signature": "ab"}, {"signature": "no hex"}]
)
def test_a_signature_that_was_changed_is_none(keys: list[SiteKey], tmp_path: Path, changed: dict[str, object]) -> None:
    tree = json.loads(app_signature.sign(keys[0], APP).text())
    (tmp_path / "file").write_text(json.dumps(tree | changed))
    with pytest.raises(ValueError, match="file: is no signature of the app by the key that it names"):
        Signature.read(tmp_path / "file")


def test_from_a_key_to_the_files_of_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["app", "key", "release.key"]) == 0
    public = capsys.readouterr().out.split()[-1]
    assert (tmp_path / "release.key").stat().st_mode & 0o777 == 0o600
    assert cli.main(["app", "sign", "release.key"]) == 0 and cli.main(["app", "digest"]) == 0
    *_, app = capsys.readouterr().out.split()
    assert Signature.read(tmp_path / "app.signature.json") == app_signature.sign(
        site_key.load(tmp_path / "release.key"), app, Signature.read(tmp_path / "app.signature.json").signed_at
    )
    assert cli.main(["app", "check", "app.signature.json"]) == 0
    assert cli.main(["app", "trust", public]) == 0
    assert yaml.safe_load((tmp_path / "trusted.yaml").read_text()) == {f"fpk_{public}": app_signature.openssh(public)}
    capsys.readouterr()
    assert cli.main(["app", "sign", "release.key", "--digest", "ab" * 32]) == 2, "nothing is written over"
    assert cli.main(["app", "sign", "release.key", "--digest", "ab" * 32, "--out", "other.json"]) == 0
    assert cli.main(["app", "check", "other.json"]) == 2
    assert f"problem: the app that came with this program is another: {app}" in capsys.readouterr().out
    assert cli.main(["app", "trust", public, public, "--out", "twice.yaml"]) == 2
    assert "a key is named twice" in capsys.readouterr().err and not Path("twice.yaml").exists()
    for wrong in (["app", "trust", "nokey", "--out", "x"], ["app", "sign", "gone.key", "--out", "x"]):
        assert cli.main(wrong) == 2
    assert not (tmp_path / "x").exists()
