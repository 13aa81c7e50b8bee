"""Flower's own runtimes, once each: the same bits as in one process, and nothing left running."""

import tempfile
from pathlib import Path

import pytest

from sslmed_dist.drivers import launcher, private_folder, processes
from tests.federation import tiny

pytestmark = [pytest.mark.flower, pytest.mark.slow]
TWO_SITES = {"partition": {"name": "iid", "count": 2}, "timeout_s": 150.0}


class Seen:
    """What a launcher started: its tokens and private folders, noted as it makes them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens: list[str] = []
        self.folders: list[Path] = []
        made = tempfile.mkdtemp

        def folder(**options: str) -> str:
            self.folders.append(Path(made(**options)))
            return str(self.folders[-1])

        def marked(token: str, since: int) -> processes.Processes:
            self.tokens.append(token)
            return processes.Processes(token, since)

        monkeypatch.setattr(tempfile, "mkdtemp", folder)
        monkeypatch.setattr(private_folder, "Processes", marked)

    def left(self) -> list[int]:
        """Processes that carry a token or have a private folder on their command line."""
        found = []
        for pid in processes.process_ids():
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            items = processes.environment(pid)
            if any(f"{processes.TOKEN}={token}".encode() in items for token in self.tokens) or any(
                str(folder).encode() in command for folder in self.folders
            ):
                found.append(pid)
        return found


@pytest.mark.parametrize(("runtime", "rounds"), [("simulation", 2), ("deployment", 1)])
def test_a_runtime_gives_the_bits_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str, rounds: int
) -> None:
    changes = {**TWO_SITES, "rounds": rounds}
    plain = tiny.federate(tiny.settings(tmp_path, "plain", federated=changes), monkeypatch)
    monkeypatch.delenv("SSLMED_DATA_ROOT")
    monkeypatch.delenv("SSLMED_SITES_DIR")
    chosen = tiny.settings(tmp_path, runtime, federated={**changes, "runtime": runtime})
    seen = Seen(monkeypatch)
    launcher.run(chosen)
    assert seen.tokens and len(seen.folders) == 1
    assert seen.left() == []
    assert not seen.folders[0].exists()
    assert tiny.same(tiny.arrays(chosen.folder, rounds), tiny.arrays(plain, rounds))
    assert f"round {rounds} of {rounds}: 2 of 2 sites" in tiny.log_of(chosen.folder)
    assert not (chosen.folder / ".runtime.json").exists()
