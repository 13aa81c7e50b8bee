"""Noise at the server: on the mean, before the round's file; counted over a resume; nothing of single sites is kept."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from sslmed_dist import checkpoint, config
from sslmed_dist.federation import accountant, strategies
from sslmed_dist.federation.averages import Round, shares
from sslmed_dist.federation.central_noise import NoisedMean
from sslmed_dist.federation.local_round import initial_arrays
from sslmed_dist.federation.replies import Reply
from sslmed_dist.federation.shared import Arrays
from tests.federation import tiny

RULES = {"clip": 1.0, "noise_multiplier": 0.01, "delta": 1e-5}
KEYS = {"w": (40, 3), "b": (4,)}
FEDBN = {"strategy": {"name": "fedbn"}, "rounds": 3}


def fake(sites: int = 3, scale: float = 1.0) -> list[Reply]:
    """Replies of very different numbers of samples, seeded."""
    generator = torch.Generator().manual_seed(3)
    return [
        Reply(f"s{i}", {k: scale * torch.rand(v, generator=generator).double() for k, v in KEYS.items()}, 10**i)
        for i in range(sites)
    ]


def built(leaf: dict[str, Any], noise: float = 1.0, clip: float = 0.5) -> NoisedMean:
    """The server's half of a strategy under noise."""
    fed = config.from_tree(
        {
            "data": {"name": "medmnist"},
            "views": {"name": "contrastive"},
            "method": {"name": "contrastive"},
            "federated": {"strategy": leaf, "privacy": {**RULES, "noise_multiplier": noise, "clip": clip}},
        },
        "test",
    ).federated
    assert fed is not None
    average = strategies.build(fed).noise
    assert average is not None
    return average


def combined(average: NoisedMean, replies: list[Reply], sites: int = 3) -> Arrays:
    """The next tensors from zeros."""
    reference = {key: torch.zeros(shape, dtype=torch.float64) for key, shape in KEYS.items()}
    return average.combine(Round(replies, shares(replies), reference, sites, lambda: 1.0))


def flat(arrays: Arrays) -> torch.Tensor:
    return torch.cat([arrays[key].reshape(-1) for key in KEYS])


def without_noise(average: NoisedMean, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mechanism with a noise of 0."""
    monkeypatch.setattr(type(average.mechanism), "noised", lambda self, steps: steps)


@pytest.mark.parametrize("sites", [3, 5])
def test_the_mean_is_that_of_shortened_updates_over_all_sites(monkeypatch: pytest.MonkeyPatch, sites: int) -> None:
    average, replies = built({"name": "fedavg"}), fake()
    without_noise(average, monkeypatch)
    expected = sum(0.5 * flat(dict(r.arrays)) / flat(dict(r.arrays)).norm() for r in replies)
    found = flat(combined(average, replies, sites))
    assert torch.allclose(found, torch.as_tensor(expected) / sites, rtol=0, atol=3 * average.mechanism.step)


@pytest.mark.parametrize(("leaf", "times"), [({"name": "fedavg"}, 1.0), ({"name": "fedavgm", "lr": 2.0}, 2.0)])
def test_the_noise_on_the_mean_has_the_said_size(leaf: dict[str, Any], times: float) -> None:
    average = built(leaf, noise=2.0)
    average.begin({key: torch.zeros(shape, dtype=torch.float64) for key, shape in KEYS.items()})
    numbers = [combined(average, fake(scale=0.0)) for _ in range(1)]
    values = flat(numbers[0])
    wanted = times * 2.0 * 0.5 / 3
    assert abs(float(values.norm()) / math.sqrt(len(values)) / wanted - 1) < 6.5 / math.sqrt(2 * len(values)) * 1.2


def test_what_is_spent_is_in_the_state() -> None:
    average = built({"name": "fedadam"}, noise=2.0)
    reference = {key: torch.zeros(shape, dtype=torch.float64) for key, shape in KEYS.items()}
    average.begin(reference)
    for _ in range(3):
        combined(average, fake())
    assert average.epsilon() == accountant.epsilon(3 * accountant.rho(2.0), 1e-5)
    again = built({"name": "fedadam"}, noise=2.0)
    again.load(average.state(), reference)
    assert again.epsilon() == average.epsilon()
    assert tiny.same(again.state()["first"], average.state()["first"])
    with pytest.raises(ValueError, match="the strategy's state privacy does not fit"):
        again.load({key: value for key, value in average.state().items() if key != "privacy"}, reference)


@pytest.mark.parametrize(
    "leaf", ["median", "trimmed_mean", "krum", "scaffold", "fedema", {"name": "fedu", "threshold": 1}]
)
def test_strategies_that_need_more_than_the_mean_are_refused(leaf: Any) -> None:
    name = leaf if isinstance(leaf, str) else leaf["name"]
    with pytest.raises(
        ValueError, match=f"federated.strategy: {name} looks at single updates.*allowed: fedavg, fedprox"
    ):
        built({"name": leaf} if isinstance(leaf, str) else leaf)


@pytest.mark.parametrize(
    ("rules", "line"),
    [
        ({"clip": 0.0}, "federated.privacy.clip"),
        ({"noise_multiplier": 0.0}, "federated.privacy.noise_multiplier"),
        ({"noise_multiplier": 2000.0}, "federated.privacy.noise_multiplier"),
        ({"delta": 0.5}, "federated.privacy.delta"),
        ({"delta": 0.0}, "federated.privacy.delta"),
        ({"epsilon": 1.0}, "federated.privacy.epsilon: unknown key"),
    ],
)
def test_a_mistake_in_the_section_is_named(tmp_path: Path, rules: dict[str, float], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        tiny.settings(tmp_path, federated={**FEDBN, "privacy": {**RULES, **rules}})


def test_statistics_that_nobody_may_send_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = tiny.settings(tmp_path, federated={"privacy": RULES})
    with pytest.raises(ValueError, match=r"federated.privacy: encoder.*running_mean .* allowed: .*fedbn"):
        tiny.federate(chosen, monkeypatch)
    assert not (chosen.folder / "checkpoints" / "round_00001.pt").exists()


def test_without_the_key_a_run_is_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits, file and fingerprint whether the key is missing or null."""
    folders = []
    for name, federated in (("missing", {}), ("null", {"privacy": None})):
        chosen = tiny.settings(tmp_path, name, federated={**federated, "rounds": 1})
        folders.append(tiny.federate(chosen, monkeypatch))
    assert tiny.same(tiny.arrays(folders[0], 1), tiny.arrays(folders[1], 1))
    prints = [checkpoint.load(folder / "checkpoints/round_00001.pt")["fingerprint"] for folder in folders]
    assert prints[0] == prints[1]
    noised = config.fingerprint(tiny.settings(tmp_path, "null", federated={"privacy": RULES, "rounds": 1}))
    assert noised != prints[0]


def test_a_federation_with_noise_counts_over_a_resume_and_keeps_nothing_of_single_sites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = tiny.settings(tmp_path, federated={**FEDBN, "privacy": RULES})
    real = NoisedMean.combine

    def stops(self: NoisedMean, done: Round) -> Arrays:
        if self.spent > 1.5 * accountant.rho(0.01):
            raise RuntimeError("power cut")
        return real(self, done)

    with monkeypatch.context() as patch:
        patch.setattr(NoisedMean, "combine", stops)
        with pytest.raises(RuntimeError, match="power cut"):
            tiny.federate(chosen, patch)
    folder = tiny.goes_on(chosen, monkeypatch)
    saved = checkpoint.load(folder / "checkpoints" / "round_00003.pt")
    assert float(saved["server"]["strategy"]["privacy"]["rho"]) == pytest.approx(3 * accountant.rho(0.01))
    # Beside the strategy's state there are names of sites, and sizes of the noised average alone.
    assert saved["server"].keys() == {"strategy", "sizes", "seen"} and saved["server"]["strategy"].keys() == {"privacy"}
    assert saved["server"]["sizes"].keys() == {"(average)"}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {row["name"] for row in rows} == {"sites", "epsilon", "seconds"} and {row.get("site") for row in rows} == {
        None
    }
    epsilons = [row["value"] for row in rows if row["name"] == "epsilon"]
    assert epsilons == [accountant.epsilon(n * accountant.rho(0.01), 1e-5) for n in (1, 2, 3)]
    log = tiny.log_of(folder)
    assert f"epsilon {epsilons[-1]:.3g} at delta 1e-05, for a site's whole data set against any other" in log
    assert "loss" not in log


def test_sites_of_research_add_noise_as_hospitals_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = {**RULES, "noise_multiplier": 0.05, "at": "sites"}
    federated = {"strategy": {"name": "fedbn"}, "rounds": 1, "privacy": rules}
    chosen, reported = tiny.settings(tmp_path, federated=federated), []
    before = initial_arrays(chosen)

    def look(reply: Any) -> None:
        arrays = reply.content["arrays"].to_torch_state_dict()
        square = sum(float((arrays[k].double() - before[k].double()).square().sum()) for k in arrays)
        numbers = sum(value.numel() for value in arrays.values())
        reported.append((math.sqrt(square / numbers), dict(reply.content["metrics"])))

    folder = tiny.federate(chosen, monkeypatch, tiny.altered(look))
    (size, metrics), spent = reported[0], accountant.epsilon(accountant.rho(0.05), 1e-5)
    assert metrics == {"num-examples": 1, "epsilon": spent}
    assert size == pytest.approx(0.05, rel=0.3)  # the noise; the update itself adds 1 / sqrt(numbers)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {row["name"] for row in rows} == {"sites", "samples", "epsilon", "seconds", "missed_rounds"}


def test_an_average_that_noise_has_drowned_stops_the_run_and_its_numbers_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = tiny.settings(tmp_path, federated={**FEDBN, "privacy": {**RULES, "noise_multiplier": 900.0}})
    with pytest.raises(
        RuntimeError, match=r"the average is refused: the screen's numbers are withheld; the noise alone"
    ):
        tiny.federate(chosen, monkeypatch)
    assert not (chosen.folder / "checkpoints" / "round_00001.pt").exists()


@pytest.mark.parametrize(("key", "value"), [("evaluate", True), ("health", 64)])
def test_figures_of_single_sites_and_noise_at_the_server_exclude_each_other(
    tmp_path: Path, key: str, value: object
) -> None:
    with pytest.raises(ValueError, match=f"federated.{key}: with federated.privacy no figure of a single site"):
        tiny.settings(tmp_path, federated={**FEDBN, "privacy": RULES, key: value})
