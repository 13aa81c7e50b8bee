"""Drills at the gate: a site or a server that nobody should believe, clocks that are wrong, two runs at once.

The gate's other drills are in tests/drivers/test_tls_federation.py: a key that is not registered, a server of another
authority, a network side that was killed."""

import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sslmed_dist.cli import main
from sslmed_dist.federation import authority
from sslmed_dist.federation.authority import Authority
from tests.drills.conftest import SEEDS
from tests.drills.hospitals import PLAN, Hospitals, Run
from tests.drills.seen import saw
from tests.drivers.tls_federation import joining
from tests.federation import tiny

pytestmark = [pytest.mark.flower, pytest.mark.slow]


def test_two_runs_at_once_give_the_bits_of_two_after_each_other(hospitals: Hospitals, two_runs: dict[str, Run]) -> None:
    for name, done in two_runs.items():
        alone = hospitals.made.in_one_process(f"{name}-alone", plan=PLAN, rounds=2, seed=SEEDS[name])
        assert tiny.same(tiny.arrays(hospitals.made.run_folder(name), 2), tiny.arrays(alone, 2))
        assert "round 2 of 2: 3 of 3 sites" in done.log and "excluded" not in done.log
    hospitals.check_ledgers()
    saw("two runs at once", then=two_runs["second"].log.splitlines()[-1])


def test_the_same_key_twice(hospitals: Hospitals, capsys: pytest.CaptureFixture[str]) -> None:
    """A copy of a site's network side, on another machine while the first is online."""
    made = hospitals.made
    own, twin = made.network("north"), made.folder / "twin"
    twin.mkdir()
    for name in ("node.key", "ca.crt", "trusted.yaml"):
        shutil.copy(own.with_name(name), twin / name)
    text = own.read_text().replace(str(own.parent), str(twin))
    assert str(twin / "flower") in text
    (twin / own.name).write_text(text)
    assert main(["site", "network", str(twin / own.name)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "it is not registered there, or another machine is online with it" in line
    made.online()  # the first one stays
    saw("same key twice", site=line)


@contextmanager
def somebody(tls: Authority) -> Iterator[str]:
    """A server with the certificate of ``tls``, as one that was started before it ended; HOST:PORT."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.certificate, tls.key)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:  # closed
                    return
                try:
                    context.wrap_socket(connection, server_side=True).close()
                except OSError:  # the other side did not believe
                    connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"localhost:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_certificate_that_has_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither starts a server with it, nor does a site believe one."""
    place = tmp_path / "expired"
    assert main(["server", "init", str(place), "--host", "localhost", "--port", "1"]) == 0
    tls = Authority(place / "tls")
    authority.renew(tls, ["localhost"], days=-2)
    assert main(["server", "start", str(place)]) == 2
    at_server = capsys.readouterr().err.splitlines()[-1]
    assert "-2 days" in at_server and f"`sslmed server renew {place}` makes another" in at_server
    with somebody(tls) as address:
        words = ["--name", "new", "--data", str(tmp_path), "--server", address, "--root-certificate", str(tls.root)]
        assert main(["site", "init", str(tmp_path / "new" / "site.yaml"), *words]) == 0
        assert main(["site", "network", str(tmp_path / "new" / "network" / "network.yaml")]) == 2
    at_site = capsys.readouterr().err.splitlines()[-1]
    assert "is not believed: certificate has expired" in at_site
    saw("expired certificate", at_site, at_server)


WRONG = {"+6 s": 6.0, "-306 s": -306.0, "a day ahead": 86400.0, "a day behind": -86400.0}


def test_clocks_that_are_wrong_when_a_site_joins(hospitals: Hospitals) -> None:
    """The whole program's clock is moved (``machine.c``), with that of the programs that it starts."""
    if not hospitals.machines:
        pytest.skip("no C compiler (cc): the clock of a program cannot be moved")
    made = hospitals.made
    joining(made.folder, "late", made.server)
    shared = next(iter(hospitals.machines.values()))
    for number, ahead in enumerate(WRONG.values()):
        machine = type(shared)(made.folder / f"late-{number}.machine", shared.library)
        machine.is_so(ahead=ahead)
        network = made.network("late").with_name(f"network-{number}.yaml")
        home = made.network("late").with_name("flower")
        network.write_text(made.network("late").read_text().replace(str(home), f"{home}-{number}"))
        made.start(f"late-{number}", "site", "network", str(network), env=machine.env)
    for number, (what, ahead) in enumerate(WRONG.items()):
        assert made.programs.pop(f"late-{number}").wait(timeout=300) == 2, made.said(f"late-{number}")
        line = made.said(f"late-{number}").splitlines()[-1]
        if ahead > -3600:
            assert "it refuses sites that are more than 5 s ahead of it or 305 s behind" in line
            told = float(line.split("its clock is ")[1].split(" s ")[0])
            assert abs(told + ahead) <= 2  # whole seconds, and the time of a request
        else:
            assert "certificate is not yet valid" in line and "this machine's clock says" in line
        saw(f"clock {what}", site=line)
