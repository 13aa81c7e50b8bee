"""The proxy before a server: sites reach Flower's Fleet API, and nothing that starts runs or hands out their work."""

import http.client
import http.server
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sslmed_dist.drivers.processes import free_port
from sslmed_dist.federation import authority
from sslmed_dist.federation.authority import Authority

PROXY = Path(__file__).parents[2] / "deploy" / "nginx.conf"
OPEN = {"^~ /v1/fleet/", "= /health"}
# (method, path, what comes of it): 200 is the server's own answer.
ASKED = [
    ("POST", "/v1/fleet/pull-messages", 200),
    ("GET", "/health", 200),
    ("GET", "/v1/fleet/pull-messages", 403),
    ("POST", "/v1/control/start-run", 404),
    ("POST", "/v1/runtime/acquire-task", 404),
    ("POST", "/v1/fleet/../control/start-run", 404),
    ("POST", "/v1/fleet/%2e%2e/control/start-run", 404),
    ("POST", "/v1/fleet%2f..%2fcontrol/start-run", 404),
    ("POST", "//v1/control/start-run", 404),
    ("POST", "/V1/fleet/pull-messages", 404),
    ("GET", "/health/../v1/control/list-runs", 404),
    ("GET", "/docs", 404),
    ("GET", "/", 404),
]


def test_two_places_are_open_and_all_else_is_not_there() -> None:
    text = re.sub(r"#.*", "", PROXY.read_text())
    places = dict(re.findall(r"location (.+?) \{((?:[^{}]|\{[^{}]*\})*)\}", text))
    assert {place for place, said in places.items() if "proxy_pass" in said} == OPEN
    assert places.keys() - OPEN == {"/"} and "return 404" in places["/"]
    assert "proxy_ssl_verify on;" in text and "ssl_protocols TLSv1.2 TLSv1.3;" in text


def test_the_prefixes_are_those_of_the_installed_flower() -> None:
    """All that a SuperNode asks lies below the open prefix; what starts runs and hands out work does not."""
    from flwr.supernode import fleet_http_client

    asked = re.findall(r'path="(/[^"]*)"', Path(fleet_http_client.__file__).read_text())
    assert len(asked) >= 10 and all(path.startswith("/v1/fleet/") for path in asked)
    routers = Path(fleet_http_client.__file__).parents[1]
    sources = {
        name: (routers / "superlink" / "routers" / name / "router.py").read_text() for name in ("fleet", "control")
    }
    assert {name: re.findall(r'prefix="(/[^"]*)"', text) for name, text in sources.items()} == {
        "fleet": ["/v1/fleet"],
        "control": ["/v1/control"],
    }


class Answers(http.server.BaseHTTPRequestHandler):
    """A server behind the proxy that says yes to everything, so that only the proxy can say no."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Read what is sent and say how much it was."""
        length = len(self.rfile.read(int(self.headers.get("content-length", 0))))
        body = str(length).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def date_time_string(self, timestamp: float | None = None) -> str:
        """A clock that is two hours off, as the proxy's is not."""
        return super().date_time_string(time.time() - 7200)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Authority]]:
    """The port of a running proxy, and the authority of the certificate that it shows."""
    nginx = shutil.which("nginx")
    if nginx is None:
        pytest.skip("nginx is not installed")
    folder = tmp_path_factory.mktemp("proxy")
    tls = authority.make(folder / "tls", ["localhost"])
    behind = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.certificate, tls.key)
    behind.socket = context.wrap_socket(behind.socket, server_side=True)
    threading.Thread(target=behind.serve_forever, daemon=True).start()
    port = free_port([behind.server_port])
    text = PROXY.read_text().replace("server superlink:8443;", f"server 127.0.0.1:{behind.server_port};")
    text = text.replace("listen 8443 ssl;", f"listen 127.0.0.1:{port} ssl;").replace("/etc/sslmed/tls", str(tls.folder))
    text = text.replace("/tmp/nginx", f"{folder}/nginx").replace("/dev/std", f"{folder}/std")
    (folder / "nginx.conf").write_text(text)
    with (folder / "said").open("wb") as said:
        command = [nginx, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "stderr")]
        process = subprocess.Popen([*command, "-g", "daemon off;"], stdout=said, stderr=said)
    end = time.monotonic() + 20
    while socket.socket().connect_ex(("127.0.0.1", port)) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    try:
        assert process.poll() is None, (folder / "said").read_text()
        yield port, tls
    finally:
        process.terminate()
        process.wait(20)
        behind.shutdown()


def ask(proxy: tuple[int, Authority], method: str, path: str, body: bytes = b"") -> tuple[int, bytes, str]:
    """(status, body, date) of one request."""
    port, tls = proxy
    connection = http.client.HTTPSConnection("localhost", port, context=authority.context(tls.root), timeout=20)
    try:
        connection.request(method, path, body=body or None)
        answer = connection.getresponse()
        return answer.status, answer.read(), str(answer.getheader("date"))
    finally:
        connection.close()


@pytest.mark.parametrize(("method", "path", "status"), ASKED)
def test_what_passes_a_running_proxy(proxy: tuple[int, Authority], method: str, path: str, status: int) -> None:
    assert ask(proxy, method, path)[0] == status


def test_a_piece_of_a_model_passes_and_the_clock_is_the_servers(proxy: tuple[int, Authority]) -> None:
    from email.utils import parsedate_to_datetime

    status, body, date = ask(proxy, "POST", "/v1/fleet/push-object", b"0" * 6_000_000)
    assert (status, body) == (200, b"6000000")
    assert 7100 < time.time() - parsedate_to_datetime(date).timestamp() < 7300
    assert ask(proxy, "POST", "/v1/fleet/push-object", b"0" * 17_000_000)[0] == 413
