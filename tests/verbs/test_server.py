"""``sslmed server`` and the network side of ``sslmed site`` as people use them, without any program of Flower's."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sslmed_dist import config, locks
from sslmed_dist.cli import main
from sslmed_dist.drivers import flower_programs, launcher, server_side
from sslmed_dist.federation import network_file, node_key, registered, server_file
from sslmed_dist.verbs import server as verbs_server
from sslmed_dist.verbs import site_init
from tests.federation import tiny

Said = pytest.CaptureFixture[str]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A server's folder."""
    assert main(["server", "init", str(tmp_path / "fed"), "--host", "fed.example.org", "192.0.2.7"]) == 0
    return tmp_path / "fed"


def site(folder: Path, name: str, *words: str) -> Path:
    """A new site; its file."""
    (folder / "data").mkdir(exist_ok=True)
    path = folder / name / "site.yaml"
    assert main(["site", "init", str(path), "--name", name, "--data", str(folder / "data"), *words]) == 0
    return path


def test_init_makes_private_files_and_says_when_they_end(tmp_path: Path, capsys: Said) -> None:
    place = tmp_path / "fed"
    assert main(["server", "init", str(place), "--host", "fed.example.org", "192.0.2.7"]) == 0
    said = capsys.readouterr().out
    assert "3650 days" in said and "825 days" in said and "fed.example.org:8443" in said
    read = server_file.read(place)
    assert (read.file.port, read.file.hosts, read.file.listen) == (8443, ("fed.example.org", "192.0.2.7"), "0.0.0.0")
    assert place.stat().st_mode & 0o777 == 0o700 == (place / "tls").stat().st_mode & 0o777
    assert main(["server", "init", str(place), "--host", "x.org"]) == 2
    assert "a server is never written over" in capsys.readouterr().err
    for host in ("a b", "http://a", "a.org:8443", "a/b", "-a.org", "a..org", "a.org.", "999.1.2.3", "ü.org", ""):
        assert main(["server", "init", str(place.with_name("b")), f"--host={host}"]) == 2
        assert f"host {host!r}: expected a DNS name or an IP address" in capsys.readouterr().err
    assert main(["server", "init", str(place.with_name("b")), "--host", "a", "--port", "0"]) == 2
    assert not place.with_name("b").exists()
    assert main(["server", "renew", str(place)]) == 0


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("port: 8443", "port: 70000", "port: expected a number from 1 to 65535, got 70000"),
        ("listen: 0.0.0.0", "listen: everywhere", "listen: "),
        ("hosts: ['fed.example.org', '192.0.2.7']", "hosts: []", "hosts: expected the names or addresses"),
        ("folder: '/", "folder: './", "folder: expected an absolute path"),
        ("port: 8443", "prot: 8443", "prot: unknown key"),
        ("'fed.example.org'", "'https://fed.example.org'", "host 'https://fed.example.org': expected a DNS name"),
    ],
)
def test_a_server_file_that_is_wrong(place: Path, capsys: Said, old: str, new: str, line: str) -> None:
    text = (place / "server.yaml").read_text()
    assert old in text
    (place / "server.yaml").write_text(text.replace(old, new))
    assert main(["server", "status", str(place)]) == 2
    assert line in capsys.readouterr().err


def test_the_line_that_a_site_prints_registers_it(place: Path, capsys: Said) -> None:
    path = site(place.parent, "north", "--server", "fed.example.org:8443", "--root-certificate", f"{place}/tls/ca.crt")
    line = capsys.readouterr().out.splitlines()[-1]
    words = line.replace("DIR", str(place)).replace("--samples N", "--samples 1200").split()[1:]
    assert main(words) == 0
    said = capsys.readouterr().out
    read = registered.read(place / "sites.yaml")["north"]
    assert read.samples == 1200 and read.node_key in line and str(read.data_key) in line
    assert main(["site", "status", str(path)]) == 0
    at_site = capsys.readouterr().out
    for key in (read.node_key, read.data_key):
        assert node_key.fingerprint(str(key)) in said and node_key.fingerprint(str(key)) in at_site
    assert main(words) == 2
    assert "has a north already" in capsys.readouterr().err
    words[words.index("north")] = "south"
    assert main(words) == 2
    assert "south: has a key of north; every site makes its own" in capsys.readouterr().err
    assert main(["server", "status", str(place)]) == 0
    said = capsys.readouterr().out
    assert "the server does not run; port 8443" in said and "up to 1200 samples; no round yet" in said


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("ca.key", "ca.key: is not the key of"),
        ("ca.crt", "ca.key: is not the key of"),
        ("server.key", None),
    ],
)
def test_files_of_another_authority_make_no_certificate(place: Path, capsys: Said, name: str, line: str | None) -> None:
    assert main(["server", "init", str(place.with_name("other")), "--host", "b.org"]) == 0
    tls, before = place / "tls", (place / "tls" / "server.crt").read_bytes()
    (tls / name).write_bytes((place.with_name("other") / "tls" / name).read_bytes())
    assert main(["server", "renew", str(place)]) == (0 if line is None else 2)
    assert (line or "") in capsys.readouterr().err
    (tls / name).write_bytes(b"")
    made = (tls / "server.crt").read_bytes()
    assert main(["server", "renew", str(place)]) == 2
    assert f"{name}: no " in capsys.readouterr().err and (tls / "server.crt").read_bytes() == made
    assert (made == before) is (line is not None)


def test_an_ipv6_address_is_shown_as_sites_write_it(tmp_path: Path, capsys: Said) -> None:
    assert main(["server", "init", str(tmp_path / "fed"), "--host", "2001:db8::1"]) == 0
    assert "the address [2001:db8::1]:8443" in capsys.readouterr().out


def test_sites_that_are_registered_at_once_are_all_listed(place: Path) -> None:
    server = server_file.read(place)
    names = [f"site-{number}" for number in range(6)]
    keys = {name: node_key.make(place / name) for name in names}
    with ThreadPoolExecutor(len(names)) as pool:
        told = [
            pool.submit(verbs_server.add_site, place, name, keys[name], f"{number:064x}", 5)
            for number, name in enumerate(names)
        ]
    assert all(name in one.result()[0] for name, one in zip(names, told, strict=True))
    assert sorted(registered.read(server.sites)) == names


@pytest.mark.parametrize(
    ("number", "value", "line"),
    [
        (3, "../north", "expected up to 64 letters"),
        (5, "AAAAC3NzaC1lZDI1NTE5", "expected the one word that `sslmed site init` prints"),
        (7, "0F" * 32, "expected the 64 hexadecimal digits"),
        (9, "0", "samples: expected a whole number >= 1"),
        (
            9,
            "1" + 23 * "0",
            f"samples: expected a whole number >= 1, got 1{23 * '0'} (at most 2^53)",
        ),
    ],
)
def test_what_cannot_be_registered(place: Path, capsys: Said, number: int, value: str, line: str) -> None:
    key = node_key.make(place / "key")
    words = ["server", "add-site", str(place), "north", "--node-key", key, "--data-key", "0f" * 32, "--samples", "9"]
    words[number + (number > 3) - (number > 3)] = value
    assert main(words) == 2
    assert line in capsys.readouterr().err and not (place / "sites.yaml").exists()


def test_the_network_side_knows_no_path_of_the_data(tmp_path: Path) -> None:
    path = site(tmp_path, "north", "--server", "[2001:db8::1]:8443")
    own = site_init.network_of(path)
    read = network_file.read(own)
    assert read.server == "[2001:db8::1]:8443" and str(tmp_path / "data") not in own.read_text()
    assert own.parent.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in own.parent.iterdir()} == {0o600}
    assert node_key.public(Path(read.node_key)) in site_init.add_site_line(path)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--server", "fed.example.org"], "expected HOST:PORT"),
        (["--server", "fed.example.org:0"], "expected HOST:PORT"),
        (["--server", "https://fed.example.org:8443"], "host 'https://fed.example.org': expected a DNS name"),
        (["--server", "fed.example.org/:8443"], "host 'fed.example.org/': expected a DNS name"),
        (["--server", "2001:db8::1:8443"], "expected an IPv6 address in brackets"),
        (["--server", "[fed.example.org]:8443"], "expected an IPv6 address in brackets"),
        (["--root-certificate", "gone.crt"], "gone.crt: no certificate"),
        (["--network-user", "no such user"], "no user of this machine"),
    ],
)
def test_a_site_that_cannot_be_made(tmp_path: Path, capsys: Said, words: list[str], line: str) -> None:
    assert main(["site", "init", str(tmp_path / "a" / "b.yaml"), "--name", "a", "--data", str(tmp_path), *words]) == 2
    assert line in capsys.readouterr().err and not (tmp_path / "a").exists()


@pytest.mark.parametrize("number", range(1, 7))
@pytest.mark.parametrize("side", ["site", "server"])
def test_an_init_that_fails_half_way_leaves_nothing_in_its_own_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said, side: str, number: int
) -> None:
    """The disk is full at the file ``number``; then there is room."""
    words = ["server", "init", str(tmp_path / "a"), "--host", "a.org"]
    if side == "site":
        words = ["site", "init", str(tmp_path / "a" / "site.yaml"), "--name", "a", "--data", str(tmp_path)]
    synced, true = [0], os.fsync

    def full(handle: int) -> None:
        if stat.S_ISREG(os.fstat(handle).st_mode):
            synced[0] += 1
            if synced[0] == number:
                raise OSError(28, "No space left on device")
        true(handle)

    monkeypatch.setattr(os, "fsync", full)
    code = main(words)
    monkeypatch.setattr(os, "fsync", true)
    assert code == (2 if synced[0] >= number else 0)
    if code:
        assert "No space left" in capsys.readouterr().err
        assert [path.name for path in (tmp_path / "a").rglob("*") if path.is_file()] == []
        assert main(words) == 0
    assert synced[0] >= min(number, 4)


def test_a_path_that_is_too_long_for_a_socket_leaves_no_site(tmp_path: Path, capsys: Said) -> None:
    folder = tmp_path / ("x" * 100)
    assert main(["site", "init", str(folder / "site.yaml"), "--name", "a", "--data", str(tmp_path)]) == 2
    assert "socket: a Unix socket's path has at most 107 bytes" in capsys.readouterr().err
    assert [path for path in folder.rglob("*") if path.is_file()] == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files to other users")
def test_files_are_given_to_their_users(tmp_path: Path) -> None:
    path = site(tmp_path, "north", "--user", "daemon", "--network-user", "nobody")
    import pwd

    data, net = (pwd.getpwnam(name).pw_uid for name in ("daemon", "nobody"))
    own = site_init.network_of(path).parent
    assert {file.stat().st_uid for file in (path, path.parent / "state", path.parent / "state" / "key")} == {data}
    assert {file.stat().st_uid for file in (own, *own.iterdir())} == {net}
    assert "network_user: nobody" in path.read_text()


def test_a_network_side_without_a_server_or_a_key(tmp_path: Path, capsys: Said) -> None:
    own = site_init.network_of(site(tmp_path, "north"))
    assert main(["site", "network", str(own)]) == 2
    assert "server: null; write the HOST:PORT" in capsys.readouterr().err
    own.write_text(own.read_text().replace("server: null", "server: localhost:1"))
    (own.parent / "node.key").unlink()
    assert main(["site", "network", str(own)]) == 2
    assert "no key of the network side" in capsys.readouterr().err


def test_a_run_needs_a_server_its_sites_and_what_no_data_can_tell(
    place: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = tiny.settings(place.parent)
    recipe = place.parent / "recipe.yaml"
    recipe.write_text(config.dump(chosen))
    words = ["server", "run", str(place), str(recipe)]
    assert main(words) == 2
    assert "sites.yaml: no site is registered; `sslmed server add-site`" in capsys.readouterr().err
    names = ("north", "east", "south")
    registered.write(
        place / "sites.yaml", {name: registered.Registered(9, node_key.make(place / name)) for name in names}
    )
    assert main(words) == 2
    assert "the server does not run; `sslmed server start" in capsys.readouterr().err
    monkeypatch.setattr(server_side, "ANSWER_S", 0.1)
    with locks.alone(place, "a server"):
        assert main(words) == 2
        assert "the server runs and does not answer at 127.0.0.1:" in capsys.readouterr().err
    assert main([*words, "federated.site_names=[north, west]"]) == 2
    assert "federated.site_names: west not registered" in capsys.readouterr().err
    assert main([*words, "views.mean=null", "views.std=null"]) == 2
    said = capsys.readouterr().err
    assert "views.mean, views.std: missing; no data are at the server" in said
    assert said.endswith("such as views.mean=[0.5] views.std=[0.25]\n")
    assert main(["server", "resume", str(place), "tiny"]) == 2
    assert "no run there; runs here: none" in capsys.readouterr().err
    settings = server_side.for_sites(server_file.read(place), chosen)
    assert settings.folder == place / "runs" / "tiny" and settings.federated is not None
    assert settings.federated.site_names == names


def test_a_run_that_lost_its_server_is_told_so(place: Path) -> None:
    gone = server_side.Elsewhere(server_file.read(place))
    assert gone.poll() == 1
    from sslmed_dist.drivers.processes import Processes
    from sslmed_dist.locks import alone

    with alone(place, "a server"):
        assert gone.poll() is None
        with pytest.raises(ValueError, match="a server runs here already"), alone(place, "a server"):
            pass
    workplace = flower_programs.Workplace(
        place, launcher.app_folder(), place, Processes("t"), settings=tiny.settings(place.parent)
    )
    workplace.servers["superexec"] = gone
    assert workplace.failed() == ["superexec"]
