"""What a bad site can do to a round: nothing but miss it, by name."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord

from sslmed_dist.federation import messages
from sslmed_dist.federation.local_round import initial_arrays, local_update
from sslmed_dist.federation.replies import Reply
from sslmed_dist.federation.round_files import last_round
from sslmed_dist.federation.sites import simulated_sites
from tests.federation import tiny


def tensors(reply: Message) -> dict[str, torch.Tensor]:
    return dict(reply.content["arrays"].to_torch_state_dict())


def with_tensors(reply: Message, state: dict[str, torch.Tensor]) -> None:
    reply.content["arrays"] = ArrayRecord(torch_state_dict=state)


def not_finite(reply: Message) -> None:
    state = tensors(reply)
    state["encoder.conv1.weight"][0, 0, 0, 0] = float("nan")
    with_tensors(reply, state)


def renamed(reply: Message) -> None:
    with_tensors(reply, {key.replace("encoder.", "module."): value for key, value in tensors(reply).items()})


def one_missing(reply: Message) -> None:
    state = tensors(reply)
    del state["encoder.conv1.weight"]
    with_tensors(reply, state)


def misshapen(reply: Message) -> None:
    state = tensors(reply)
    state["encoder.conv1.weight"] = state["encoder.conv1.weight"].flatten()
    with_tensors(reply, state)


def of_another_type(reply: Message) -> None:
    with_tensors(reply, {key: value.double() for key, value in tensors(reply).items()})


def without_samples(reply: Message) -> None:
    reply.content["metrics"]["num-examples"] = 0


def foreign(reply: Message) -> None:
    reply.content["metrics"] = MetricRecord({"loss": 1.0})


def another_name(reply: Message) -> None:
    reply.content["site"]["site"] = "site-0"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (not_finite, "tensor encoder.conv1.weight is not finite"),
        (renamed, "unreadable reply (its tensors: encoder.bn1.bias is missing"),
        (one_missing, "unreadable reply (its tensors: encoder.conv1.weight is missing (1 such))"),
        (misshapen, "tensor encoder.conv1.weight has shape"),
        (of_another_type, "tensor encoder.conv1.weight is torch.float64, expected torch.float32"),
        (without_samples, "it reports 0 samples, allowed 1 to "),
        (foreign, "unreadable reply"),
        (another_name, "its reply bears another site's name"),
    ],
)
def test_a_bad_reply_is_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, reason: str
) -> None:
    chosen = tiny.settings(tmp_path)
    folder = tiny.federate(chosen, monkeypatch, tiny.altered(change))
    log = tiny.log_of(folder)
    assert f"round 1: site-1 is excluded: {reason}" in log
    assert "round 2: site-1" not in log  # for that round only
    assert all(bool(torch.isfinite(value).all()) for value in tiny.arrays(folder, 1).values())


def test_the_average_without_a_bad_site_is_that_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = tiny.settings(tmp_path)
    folder = tiny.federate(chosen, monkeypatch, tiny.altered(not_finite))
    replies = []
    for site in [s for s in simulated_sites(chosen) if s.name != "site-1"]:
        first = initial_arrays(chosen)
        state, _ = local_update(chosen, site.name, site.pretrain, 0, first, tmp_path / site.name)
        replies.append(Reply(site.name, state, len(site.pretrain)))
    assert tiny.same(tiny.arrays(folder, 1), tiny.averaged(replies))


def failing(rounds: tuple[int, ...], names: tuple[str, ...] = ("site-1",)) -> Any:
    """``local_update`` that raises at ``names`` in ``rounds``, with a text that must stay at the site."""
    real = local_update

    def update(settings: Any, site: str, dataset: Any, number: int, *rest: Any) -> Any:
        if site in names and number in rounds:
            raise OSError("/hospital/patients/jane_doe.nii cannot be read")
        return real(settings, site, dataset, number, *rest)

    return update


def test_a_site_that_raises_misses_one_round_and_says_no_more_than_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clients.research.local_update", failing((1,)))
    folder = tiny.federate(tiny.settings(tmp_path, federated={"rounds": 3}), monkeypatch)
    log = tiny.log_of(folder)
    assert "round 2: site-1 is excluded: OSError" in log
    assert "round 3: the own state of site-1 was 1 rounds behind" in log
    assert "round 3 of 3: 3 of 3 sites" in log
    assert "jane_doe" not in log + (folder / "metrics.jsonl").read_text()
    assert "jane_doe" in (folder / "sites" / "errors.log").read_text()


def test_a_site_that_fails_in_the_first_round_may_join_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clients.research.local_update", failing((0,)))
    log = tiny.log_of(tiny.federate(tiny.settings(tmp_path), monkeypatch))
    assert "round 2: the own state of site-1 was 1 rounds behind" in log


def test_below_the_quorum_the_run_stops_and_the_last_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clients.research.local_update", failing((1,), ("site-1", "site-2")))
    chosen = tiny.settings(tmp_path)
    with pytest.raises(RuntimeError, match=r"round 2: 1 good replies, 2 are needed .*site-1: OSError"):
        tiny.federate(chosen, monkeypatch)
    outcome = json.loads((chosen.folder / "federation.json").read_text())
    assert outcome["status"] == "failed" and "site-2: OSError" in outcome["reason"]
    travelling = messages.decode(messages.encode(chosen))
    kept = last_round(chosen.folder, travelling)
    assert kept is not None and kept[0] == 1


def test_no_good_reply_at_all_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clients.research.local_update", failing((0,), ("site-0", "site-1", "site-2")))
    with pytest.raises(RuntimeError, match="round 1: 0 good replies"):
        tiny.federate(tiny.settings(tmp_path, federated={"quorum": 1}), monkeypatch)


def test_sites_that_never_answer_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match=r"3 of 3 sites are online and 0 usable, 2 needed"):
        tiny.federate(tiny.settings(tmp_path, federated={"timeout_s": 1e-9}), monkeypatch, slow_greeting)


def slow_greeting(message: Message, context: Any) -> Message:
    """The client app, slower than the shortest time a greeting is given."""
    from clients.app import app

    time.sleep(1.1)
    reply: Message = app(message, context)
    return reply


def test_too_few_sites_online_ends_at_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from server import in_process

    monkeypatch.setattr(in_process.InProcessGrid, "get_node_ids", lambda grid: [1])
    with pytest.raises(RuntimeError, match=r"1 of 3 sites are online and 1 usable, 2 needed"):
        tiny.federate(tiny.settings(tmp_path, federated={"timeout_s": 3.0}), monkeypatch)


def test_a_late_reply_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = tiny.settings(tmp_path, federated={"timeout_s": 6.0, "rounds": 1})
    folder = tiny.federate(chosen, monkeypatch, tiny.altered(lambda reply: time.sleep(6.1)))
    assert "round 1: site-1 is excluded: no reply within 6 s" in tiny.log_of(folder)


def test_another_version_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import clients.research

    monkeypatch.setattr(clients.research, "__version__", "9.9.9")
    with pytest.raises(RuntimeError, match=r"partition-0 runs sslmed_dist 9.9.9, the server 0"):
        tiny.federate(tiny.settings(tmp_path), monkeypatch)


def test_a_training_site_checks_the_version_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import clients.app

    real = clients.app.app

    def upgraded(message: Message, context: Any) -> Message:
        if message.metadata.message_type == "train" and context.node_id == 1:
            context.run_config["version"] = "0.0.1"
        reply: Message = real(message, context)
        return reply

    folder = tiny.federate(tiny.settings(tmp_path), monkeypatch, upgraded)
    assert "site-0 is excluded: this site runs sslmed_dist" in tiny.log_of(folder)


def test_a_reason_cannot_forge_lines_of_the_log() -> None:
    from types import SimpleNamespace

    from server.roll_call import failure

    reply: Any = SimpleNamespace(error=SimpleNamespace(code=2, reason="sslmed: a\nround 9: all is well"))
    assert failure(reply) == r"a\nround 9: all is well"
    reply.error.reason = "Traceback: /hospital/x.py"
    assert "hospital" not in failure(reply)


def test_settings_travel_without_paths(tmp_path: Path) -> None:
    import base64

    weights = {"encoder": {"name": "resnet", "depth": 9, "width": 4, "stem": "cifar"}}
    chosen = tiny.settings(tmp_path, method=weights)
    text = base64.b64decode(messages.encode(chosen)).decode()
    assert str(tmp_path) not in text
    with pytest.raises(ValueError, match="holds no settings"):
        messages.decode("not base64!")
