"""Parts of files over HTTP, from a server that gives them, one that does not, and one that breaks off."""

import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sslmed_dist.data import stores

pytest.importorskip("aiohttp")
CONTENT = bytes(range(256)) * 20


class Server(SimpleHTTPRequestHandler):
    """Gives parts of files (RFC 9110, Range). ``whole``: it gives none; ``breaks``: so many answers are cut off."""

    whole, breaks = False, 0

    def do_GET(self) -> None:
        path = Path(self.directory) / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        asked, status = self.headers.get("Range"), 200
        if asked and not type(self).whole:
            first, last = asked.removeprefix("bytes=").split("-")
            total, data, status = len(data), data[int(first) : int(last) + 1], 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(data) - 1}/{total}")
        self.end_headers()
        if type(self).breaks:
            type(self).breaks -= 1
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing is logged."""


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of a server on this machine, for a folder with the file ``a.bin``."""
    monkeypatch.setattr(stores, "PART", 1000)
    monkeypatch.setattr(stores, "PAUSE_S", 0.001)
    (tmp_path / "a.bin").write_bytes(CONTENT)
    monkeypatch.setattr(Server, "whole", False)
    monkeypatch.setattr(Server, "breaks", 0)
    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *given: Server(*given, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_file_comes_part_by_part_from_where_it_is_asked(address: str) -> None:
    store = stores.open_store(address)
    parts = list(stores.blocks(store, "a.bin", 1500))
    assert b"".join(parts) == CONTENT[1500:] and [len(part) for part in parts] == [1000, 1000, 1000, 620]


def test_an_answer_that_breaks_off_is_asked_for_again(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "breaks", 3)
    assert b"".join(stores.blocks(stores.open_store(address), "a.bin")) == CONTENT and Server.breaks == 0


def test_a_server_without_parts_and_a_file_that_is_not_there_are_one_line(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = stores.open_store(address)
    with pytest.raises(ValueError, match=rf"^{address}/gone: cannot be read: FileNotFoundError: {address}/gone$"):
        list(stores.blocks(store, "gone"))
    monkeypatch.setattr(Server, "whole", True)
    with pytest.raises(
        ValueError, match="cannot be read: WholeOnly: it answers with more than the part that was asked"
    ):
        list(stores.blocks(store, "a.bin"))
