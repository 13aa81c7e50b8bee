"""A site's own rules: where its paths come from, what its errors say, what it keeps."""

import base64
import dataclasses
import os
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict

from sslmed_dist import __version__, checkpoint, config
from sslmed_dist.federation import messages
from sslmed_dist.federation.local_round import initial_arrays, local_update, site_states
from sslmed_dist.federation.shared import Arrays
from sslmed_dist.federation.sites import own_site, simulated_sites
from tests.federation import tiny


def ask(kind: str, node: dict[str, Any], chosen: Any, number: int = 0) -> Message:
    """Send one message to the client app as a SuperNode with ``node`` as its configuration would."""
    from clients.app import app
    from server.in_process import InProcessGrid

    run_config = {"config": messages.encode(chosen), "version": __version__, "run-dir": "/nowhere"}
    grid = InProcessGrid(app, 1, run_config)
    grid.contexts[1] = Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config=run_config)
    arrays = ArrayRecord(torch_state_dict=initial_arrays(chosen))
    content = RecordDict({"arrays": arrays, "config": ConfigRecord({"round": number})})
    return next(iter(grid.send_and_receive([Message(content, 1, kind)])))


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hospital's node has no launcher."""
    monkeypatch.delenv("SSLMED_DATA_ROOT", raising=False)
    monkeypatch.delenv("SSLMED_SITES_DIR", raising=False)


def test_a_hospital_trains_on_its_own_data(tmp_path: Path) -> None:
    chosen = tiny.settings(tmp_path)
    node = {"site": "north", "data-root": str(tmp_path / "tiny.npz"), "state-dir": str(tmp_path / "state")}
    hello = ask("query", node, chosen)
    assert dict(hello.content["site"]) == {
        "site": "north",
        "version": __version__,
        "channels": 1,
        "samples": len(own_site(chosen, "north").pretrain),
    }
    reply = ask("train", node, chosen)
    assert reply.content["site"]["site"] == "north"
    assert set(reply.content) == {"arrays", "metrics", "site"}
    assert all(isinstance(value, (int, float)) for value in reply.content["metrics"].values())
    assert list((tmp_path / "state" / "north").glob("*/state_round_00001.pt"))


@pytest.mark.parametrize("missing", ["site", "data-root", "state-dir"])
def test_a_node_without_a_path_of_its_own_says_which(tmp_path: Path, missing: str) -> None:
    chosen = tiny.settings(tmp_path)
    node = {"site": "north", "data-root": str(tmp_path / "tiny.npz"), "state-dir": str(tmp_path / "state")}
    del node[missing]
    assert f"has no {missing}" in str(ask("train", node, chosen).error.reason)


def test_an_error_at_a_hospital_names_no_file(tmp_path: Path) -> None:
    node = {"site": "north", "data-root": str(tmp_path / "jane_doe.npz"), "state-dir": str(tmp_path / "state")}
    reply = ask("train", node, tiny.settings(tmp_path))
    assert reply.error.reason == "sslmed: ValueError"
    assert "jane_doe" in (tmp_path / "state" / "errors.log").read_text()


@pytest.mark.parametrize("deployed", [True, False])
@pytest.mark.parametrize(("kind", "place"), [("query", "site_of"), ("train", "site_of"), ("train", "local_update")])
def test_only_a_deployed_node_is_ended_when_its_work_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, place: str, deployed: bool
) -> None:
    """Whether its disk hangs, for either question, or its training."""
    from clients import research

    ended, codes = threading.Event(), []

    def leave(code: int) -> None:
        codes.append(code)
        ended.set()

    def hang(*_: Any) -> None:
        ended.wait(10.0 if deployed else 0.2)
        raise messages.SiteError("it hung")

    chosen = tiny.settings(tmp_path, federated={"timeout_s": 0.1})
    node = {"site": "north", "data-root": str(tmp_path / "tiny.npz"), "state-dir": str(tmp_path / "state")}
    if not deployed:
        monkeypatch.setenv("SSLMED_SITES_DIR", node.pop("state-dir"))
    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(research, place, hang)
    assert ask(kind, node, chosen).error.reason == "sslmed: it hung"
    assert codes == ([1] if deployed else [])


def test_a_subset_that_no_site_would_be_dealt_from_is_refused(tmp_path: Path) -> None:
    subset = {"subset": {"name": "label_fraction", "fraction": 0.75}}
    with pytest.raises(ValueError, match=r"^data\.subset: is a part of the split train, and federated\.pool deals"):
        tiny.settings(tmp_path, data=subset, federated={"pool": "all"})
    dealt = simulated_sites(tiny.settings(tmp_path, data=subset, federated={"pool": "train"}))
    whole = simulated_sites(tiny.settings(tmp_path, federated={"pool": "train"}))
    assert sum(len(site.train) for site in dealt) < sum(len(site.train) for site in whole)


def test_a_site_never_computes_its_own_normalisation(tmp_path: Path) -> None:
    chosen = tiny.settings(tmp_path)
    tree = dict(chosen.views)
    del tree["mean"]
    node = {"site": "north", "data-root": str(tmp_path / "tiny.npz"), "state-dir": str(tmp_path / "state")}
    reply = ask("train", node, dataclasses.replace(chosen, views=tree))
    assert "views.mean and views.std: missing" in str(reply.error.reason)


def test_shared_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    chosen = tiny.settings(tmp_path)
    site = simulated_sites(chosen)[0]
    arrays = initial_arrays(chosen)
    arrays["encoder.conv1.weight"] = arrays["encoder.conv1.weight"][:1]
    with pytest.raises(messages.SiteError, match="shared tensor encoder.conv1.weight"):
        local_update(chosen, "north", site.pretrain, 0, arrays, tmp_path / "state")


def test_a_repeated_round_gives_the_same_reply_and_two_states_are_kept(tmp_path: Path) -> None:
    chosen = tiny.settings(tmp_path, federated={"rounds": 4})
    site = simulated_sites(chosen)[0]
    folder = tmp_path / "state"
    arrays = initial_arrays(chosen)
    replies: list[Arrays] = []
    for number in (0, 1, 2, 2):
        before = arrays if number < 2 else replies[1]
        shared, _ = local_update(chosen, site.name, site.pretrain, number, before, folder)
        replies.append(shared)
        arrays = shared
    assert tiny.same(replies[2], replies[3])
    assert sorted(site_states(folder)) == [2, 3]
    local_update(chosen, site.name, site.pretrain, 0, initial_arrays(chosen), folder)
    assert sorted(site_states(folder)) == [1]


def test_a_damaged_state_of_a_site_is_named(tmp_path: Path) -> None:
    chosen = tiny.settings(tmp_path)
    site = simulated_sites(chosen)[0]
    arrays, _ = local_update(chosen, site.name, site.pretrain, 0, initial_arrays(chosen), tmp_path / "state")
    path = site_states(tmp_path / "state")[1]
    saved = checkpoint.load(path)
    del saved["state"]["optimizer"]
    content = {key: value for key, value in saved.items() if key not in ("format", "version")}
    checkpoint.save(path, **content)
    with pytest.raises(
        ValueError, match=f"^{re.escape(str(path))}: its training state is damaged: KeyError: 'optimizer'$"
    ):
        local_update(chosen, site.name, site.pretrain, 1, arrays, tmp_path / "state")


def test_no_path_of_the_server_travels(tmp_path: Path) -> None:
    """Not of data, cache, list or weights; what is no path does, also where its key has the same name."""
    secret = str(tmp_path / "jane_doe")
    data = {"root": secret, "cache": secret, "subset": {"name": "listed", "file": secret}}
    tree = config.to_tree(tiny.settings(tmp_path))
    changes = {
        "run": {"dir": secret, "start_from": secret},
        "data": data,
        "method": {"encoder": {"weights": secret}, "loss": {"name": "macl", "weights": "local"}},
        "evaluate": {"data": {**data, "unit": "slice"}},
    }
    chosen = config.from_tree(config.merge(tree, changes), "test")
    text = base64.b64decode(messages.encode(chosen)).decode()
    assert "jane_doe" not in text and str(tmp_path) not in text
    there = messages.decode(messages.encode(chosen))
    assert there.data == {"name": "medmnist", "subset": {"name": "listed"}}
    assert there.method["loss"] == {"name": "macl", "weights": "local"} and there.evaluate.data["unit"] == "slice"


def test_a_node_adds_its_own_paths() -> None:
    launcher = {"ROOT": "/r", "CACHE": "/c", "LIST": "/l"}
    environment = {f"SSLMED_DATA_{name}": path for name, path in launcher.items()}
    listed = {"name": "image_folder", "subset": {"name": "listed"}}
    simulated = messages.Node.read({"partition-id": 1}, environment)
    assert simulated.data(listed) == {"root": "/r", "cache": "/c", "subset": {"file": "/l"}}
    own = {"site": "north", "data-root": "/a", "data-cache": "/b", "data-list": "/d", "state-dir": "/e"}
    node = messages.Node.read(own, environment)
    assert node.data(listed) == {"root": "/a", "cache": "/b", "subset": {"file": "/d"}}
    assert node.data({"name": "cifar10", "subset": {"name": "long_tail"}}) == {"root": "/a", "cache": "/b"}
    assert dict(re.findall(r'(\S+)="([^"]*)"', node.text())) == own
    with pytest.raises(messages.SiteError, match="has no data-list, the file of the run's subset"):
        messages.Node.read({"site": "north", "data-root": "/a"}, {}).data(listed)


NO_ROOT = "this node's configuration has no data-root, the place of the site's data"


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ({"partition-id": "two", "state-dir": "state"}, "ValueError"),
        ({"site": "north", "data-root": "gone", "state-dir": "/dev/full"}, "ValueError"),
        ({"site": "north", "data-root": "gone", "state-dir": "a-file/below"}, "ValueError"),
        ({"site": "north", "state-dir": "/dev/full"}, NO_ROOT),
    ],
)
def test_an_error_reply_gets_out_whatever_is_wrong_here(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    node: dict[str, str],
    reason: str,
) -> None:
    """A malformed node configuration, or a place that cannot be written: the server gets our own reply."""
    chosen = tiny.settings(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_text("")
    reply = ask("train", node, chosen)
    assert reply.has_error() and reply.error.reason == f"sslmed: {reason}"
    assert "Error: " in capsys.readouterr().err


def test_errors_log_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "outside").write_text("kept")
    (tmp_path / "state" / "errors.log").symlink_to(tmp_path / "outside")
    node = {"site": "north", "data-root": str(tmp_path / "gone"), "state-dir": str(tmp_path / "state")}
    assert ask("train", node, tiny.settings(tmp_path)).error.reason == "sslmed: ValueError"
    assert (tmp_path / "outside").read_text() == "kept"


def test_simulated_sites_find_the_list_and_the_cache_of_the_launcher(tmp_path: Path) -> None:
    from sslmed_dist.drivers import flower_programs
    from sslmed_dist.drivers.processes import Processes

    data = {"cache": "cached", "subset": {"name": "listed", "file": "list.txt"}}
    chosen = config.replace(tiny.settings(tmp_path), data=data)
    place = flower_programs.Workplace(tmp_path, tmp_path, tmp_path, Processes("t"), settings=chosen)
    wanted = {"root": str(tmp_path / "tiny.npz"), "cache": str(Path("cached").resolve())}
    wanted["subset"] = {"file": str(Path("list.txt").resolve())}  # type: ignore[assignment]
    travelled = messages.decode(messages.encode(chosen)).data
    assert messages.Node.read({"partition-id": 0}, place.site_environment()).data(travelled) == wanted
    text = flower_programs.node_config(place, 0, "north")
    node = dict(re.findall(r'(\S+)="([^"]*)"', text))
    assert messages.Node.read(node, {}).data(travelled) == wanted


def test_what_a_server_in_one_process_prints_obeys_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from server import in_process

    monkeypatch.setattr("sys.argv", ["server.in_process", "--run-dir", f"{tmp_path}/\x1b[2J"])
    assert in_process.main() == 1
    said = capsys.readouterr().err
    assert "\\x1b[2J" in said and said.rstrip("\n").isprintable()
