"""A site's rules over the whole configuration: what they do not know is refused, and nothing of it needs data."""

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sslmed_dist import config
from sslmed_dist.federation import messages, policy, policy_summary, site_file, site_template
from sslmed_dist.federation.policy import Refusal, Spent
from sslmed_dist.federation.site_file import SiteFile
from tests.federation import hospital, tiny

RECIPES = Path(__file__).parents[2] / "configs" / "federated"


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> SiteFile:
    """A site as ``sslmed site init`` makes it."""
    path = tmp_path_factory.mktemp("strict") / "site.yaml"
    path.write_text(site_template.filled("north", "/data/images.npz", "/srv/sslmed"))
    return site_file.read(path)


def tree(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """A recipe of ours as it travels, with ``changes`` by dotted keys."""
    chosen = config.load(RECIPES / "pneumonia_mio_v3.yaml")
    whole = policy.opened(messages.encode(chosen))
    for dotted, value in (changes or {}).items():
        whole = config.merge(whole, config.nested(dotted, value))
    return whole


@pytest.mark.parametrize("recipe", ["pneumonia_mio_v3", "chaos_mio_v3"])
def test_our_recipes_pass_the_strict_rules(strict: SiteFile, recipe: str) -> None:
    whole = policy.opened(messages.encode(config.load(RECIPES / f"{recipe}.yaml")))
    assert policy.objections(whole, strict.policy) == []
    assert len(policy.request(whole, strict.policy).digest) == 64


def test_every_key_of_the_rules_is_one_of_the_program(strict: SiteFile) -> None:
    """A misspelt key would allow nothing, and nobody would notice."""
    import inspect

    from sslmed_dist.data import DATASETS
    from sslmed_dist.downstream import EVALUATORS
    from sslmed_dist.losses import LOSSES
    from sslmed_dist.methods import METHODS
    from sslmed_dist.models import ENCODERS, HEADS, PROTOTYPE_HEADS
    from sslmed_dist.registry import schema
    from sslmed_dist.training.optim import OPTIMIZERS, SCHEDULES
    from sslmed_dist.views import VIEWS

    tables: dict[str, Any] = {"data": DATASETS, "views": VIEWS, "method": METHODS, "method.encoder": ENCODERS}
    tables |= {"method.head": {**HEADS, **PROTOTYPE_HEADS}, "method.predictor": HEADS, "method.loss": LOSSES}
    tables |= {"optim": OPTIMIZERS, "optim.schedule": SCHEDULES, "evaluate.protocols": EVALUATORS}
    default = config.to_tree(config.from_tree({**tree(), "federated": {"secure": {}}}, "test"))
    for key in strict.policy.allow:
        above, _, last = key.rpartition(".")
        if above in tables and last != "name":
            known = {n for constructor in tables[above].values() for n in schema(constructor)[0]}
            assert last in known | {"workers", "schedule", "exclude", "scale", "predictor"}, key
        elif above in tables:
            rule = strict.policy.allow[key]
            assert set(rule) <= set(tables[above]), key
        else:
            assert config.below(default, key.split(".")[:-1]) is not None, key
            assert last in (config.below(default, above.split(".")) if above else default) or last == "name", key
    assert inspect.isfunction(schema)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.root", "/etc"),
        ("data.cache", "/etc"),
        ("data.subset", {"name": "classes", "keep": [1]}),
        ("data.subset", {"name": "listed", "file": "/etc/passwd"}),
        ("data.fold", 1),
        ("data.name", "../x"),
        ("run.start_from", "/etc/passwd"),
        ("run.continue_from", "/etc/passwd"),
        ("run.name", "../../x"),
        ("run.name", "~root"),
        ("run.seed", True),
        ("run.threads", 65),
        ("run.later", 1),
        ("method.encoder.weights", "/etc/passwd"),
        ("method.name", "classify"),
        ("method.loss", "sum"),
        ("method.loss.temperature", float("nan")),
        ("method.loss.temperature", 0.0),
        ("method.loss.temperature", "0.2"),
        ("method.loss.temperature", {"name": "cosine"}),
        ("method.loss.temperature", None),
        ("views.mean", [0.1] * 17),
        ("views.mean", []),
        ("views.mean", [[0.1]]),
        ("views.size", 100000),
        ("optim.lr", float("inf")),
        ("optim.lr", -1.0),
        ("optim.lr", 10**400),
        ("optim.name", "own"),
        ("plan.batch_size", 2),
        ("plan.batch_size", True),
        ("plan.steps_per_epoch", 1),
        ("plan.steps_per_epoch", None),
        ("plan.micro_batch", 1),
        ("plan.compile", True),
        ("federated.share", "all"),
        ("federated.rounds", 100000),
        ("federated.strategy", {"name": "fedavg", "more": 1}),
        ("federated", None),
        ("driver", "ray"),
        ("new_section", {"a": 1}),
        ("a.b", 1),
    ],
)
def test_what_the_rules_do_not_allow_is_refused_by_key(strict: SiteFile, key: str, value: Any) -> None:
    whole = tree()
    if key == "a.b":
        whole[key] = value  # a key with a dot
    else:
        whole = config.merge(whole, config.nested(key, value))
    with pytest.raises(Refusal) as error:
        policy.request(whole, strict.policy)
    assert str(error.value).startswith(key.split(".")[0])
    assert "passwd" not in str(error.value) and "/etc" not in str(error.value)


def test_a_value_of_the_wrong_type_is_named(strict: SiteFile) -> None:
    with pytest.raises(Refusal, match="is not valid: configuration: run.seed: expected"):
        policy.request(tree({"run.seed": 1.5}), strict.policy)


def test_what_is_unused_is_taken_out_and_changes_no_digest(strict: SiteFile) -> None:
    hostile = {"federated.site_names": ["../../x"], "run.dir": "/etc", "evaluate": {"data": {"root": "/etc"}}}
    hostile |= {"data.classes": ["a"], "ray": {"address": "evil:1"}}
    plain, changed = (policy.request(tree(changes), strict.policy) for changes in ({}, hostile))
    assert plain.digest == changed.digest
    assert "/etc" not in str(changed.tree) and "../" not in str(changed.tree) and "evil" not in str(changed.tree)
    assert changed.settings.federated is not None and changed.settings.federated.site_names is None
    assert policy.request(tree({"optim.lr": 0.02}), strict.policy).digest != plain.digest


def test_no_figures_leave_a_site_that_adds_noise(strict: SiteFile) -> None:
    spent = Spent(0, 0, 0)
    with pytest.raises(Refusal, match="figures of an evaluation carry none"):
        policy.require_evaluations(strict, spent)
    privacy = replace(strict.policy.privacy, noise_multiplier=0.0)
    policy.require_evaluations(replace(strict, policy=replace(strict.policy, privacy=privacy)), spent)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("evaluate.data.root", "/etc"),
        ("evaluate.protocols", [{"name": "knn"}, {"name": "one_shot"}]),
        ("evaluate.protocols", [{"name": "knn", "k": 0}]),
        ("evaluate.protocols", [{"name": "knn", "more": "/etc"}]),
        ("evaluate.protocols", "/etc"),
        ("federated.compare", ["random", "everything"]),
        ("federated.compare", "random"),
        ("federated.evaluate", 1),
        ("federated.health", 2),
    ],
)
def test_an_evaluation_is_looked_at_key_by_key(strict: SiteFile, key: str, value: Any) -> None:
    asked = {"federated.evaluate": True}
    fine = policy.request(tree({**asked, "evaluate.protocols": [{"name": "linear", "epochs": 5}]}), strict.policy)
    assert fine.settings.evaluate.protocols == ({"name": "linear", "epochs": 5},)
    bare = replace(strict.policy, privacy=replace(strict.policy.privacy, noise_multiplier=0.0))
    assert "by linear on this site's held-out images" in "\n".join(policy_summary.summary(fine, bare))
    assert "an evaluation at the end: refused" in "\n".join(policy_summary.summary(fine, strict.policy))
    with pytest.raises(Refusal, match=f"^{key.split('.')[0]}") as error:
        policy.request(tree({**asked, key: value}), strict.policy)
    assert "/etc" not in str(error.value)


@pytest.mark.parametrize("text", ["", "not base64!", "W10=", "eyI=", "W" * 4000, "A" * (policy.MOST_CONFIG + 4)])
def test_a_configuration_that_is_none(text: str) -> None:
    with pytest.raises(Refusal, match="holds no configuration"):
        policy.opened(text)


def test_a_configuration_that_is_too_deep_or_too_long(strict: SiteFile) -> None:
    deep: dict[str, Any] = {}
    for _ in range(20):
        deep = {"a": deep}
    with pytest.raises(Refusal, match="too deeply"):
        policy.request({**tree(), "b": deep}, strict.policy)
    with pytest.raises(Refusal, match="too many keys"):
        policy.request({**tree(), "b": {str(i): 1 for i in range(3000)}}, strict.policy)


def test_a_refusal_quotes_no_control_characters(strict: SiteFile) -> None:
    with pytest.raises(Refusal) as error:
        policy.request({**tree(), "x\n\x1b[2J" + "y" * 500: 1}, strict.policy)
    assert str(error.value).isprintable() and len(str(error.value)) < 200


def test_the_person_who_accepts_reads_what_would_leave(strict: SiteFile, tmp_path: Path) -> None:
    quiet = hospital.site(tmp_path, tmp_path / "x.npz").policy
    lines = "\n".join(policy_summary.summary(policy.request(tree(), quiet), quiet))
    assert "method contrastive, loss mio_v3" in lines and "10 rounds of 30 optimiser steps" in lines
    assert "the tensors of the encoder, the number of training images" in lines


@pytest.mark.parametrize(
    ("hours", "at", "fine"),
    [
        ("00:00-24:00", (3, 0), True),
        ("22:00-06:00", (23, 59), True),
        ("22:00-06:00", (5, 59), True),
        ("22:00-06:00", (6, 0), False),
        ("09:00-17:00", (8, 59), False),
        ("09:00-17:00", (9, 0), True),
    ],
)
def test_hours(tmp_path: Path, hours: str, at: tuple[int, int], fine: bool) -> None:
    own = hospital.site(tmp_path, tmp_path / "x.npz", {'hours: "00:00-24:00"': f'hours: "{hours}"'})
    now = time.struct_time((2026, 11, 26, *at, 0, 3, 330, 0))
    if fine:
        policy.require_hour(own.policy, now)
    else:
        with pytest.raises(Refusal, match="works from"):
            policy.require_hour(own.policy, now)


def test_what_is_spent_is_counted_from_the_ledger_alone() -> None:
    reserved = {"kind": "reserved", "data_set": "knee", "count": 1, "size": 100, "rho": 0.5}
    entries: list[Any] = [
        reserved,
        reserved,
        {"kind": "refusal", "data_set": "knee"},
        {**reserved, "data_set": "other"},
    ]
    assert Spent.of(entries, "knee") == Spent(2, 1, 200, 0, 1.0)
    assert Spent.of([*entries, {"kind": "reset", "data_set": "other"}], "knee") == Spent(2, 1, 200, 0, 1.0)
    assert Spent.of([*entries, {"kind": "reset", "data_set": "knee"}, reserved], "knee") == Spent(1, 0, 100, 0, 0.5)
    bare = {"kind": "reserved", "data_set": "knee", "count": 1, "size": 100}  # a round without noise
    assert Spent.of([reserved, bare], "knee").rho == math.inf
    measured = {**bare, "count": 0, "message": "evaluate"}
    assert Spent.of([reserved, measured, measured], "knee") == Spent(1, 0, 300, 2, 0.5)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("site: ", "site: ../x #", "site: expected up to 64 letters"),
        ("data_cache: null", "data_cache: cache", "data_cache: expected an absolute path"),
        ("    patients: 50 ", "    patients: 0 ", "policy.figures.patients: expected an integer >= 1"),
        (
            "federated.compare: {each: [",
            "federated.compare: {each: [{from: 1, to: 2}, ",
            "policy.allow.federated.compare",
        ),
        ('hours: "00:00-24:00"', 'hours: "00:00-25:00"', "policy.hours"),
        ('hours: "00:00-24:00"', 'hours: "03:00-03:00"', "policy.hours"),
        ("    batch: 16 ", "    batch: 0 ", "policy.least.batch: expected an integer >= 1"),
        (
            "noise_multiplier: 0 ",
            "noise_multiplier: 0.001 ",
            "policy.privacy.noise_multiplier: expected 0, or a number from",
        ),
        (
            "noise_multiplier: 0 ",
            "noise_multiplier: 1 ",
            "policy.privacy.clip: expected a number > 0, which noise needs",
        ),
        ("    clip: null ", "    clip: 0 ", "policy.privacy.clip: expected a number > 0, or null"),
        ("    delta: 0.000001 ", "    delta: 0.1 ", "policy.privacy.delta: expected a number above 0, at most 0.01"),
        ("    epsilon: 8.0 ", "    epsilon: 0 ", "policy.privacy.epsilon: expected a number > 0"),
        ("    samples: 1 ", "    samples: 0 ", "policy.privacy.samples: expected an integer >= 1"),
        ("accept: each", "accept: all", "policy.accept"),
        ("digests: []", "digests: [abc]", "policy.digests"),
        ("optim.lr: {from: 0.000001, to: 1}", "optim.lr: {from: 1, to: 0}", "policy.allow.optim.lr"),
        ("optim.lr: {from: 0.000001, to: 1}", "optim.lr: any", "policy.allow.optim.lr"),
        ("optim.lr: {from: 0.000001, to: 1}", "optim.lr: {from: 0, to: 1, step: 2}", "policy.allow.optim.lr"),
        ("  memory_gb: 8 ", "  memory_gb: 0.1 ", "resources.memory_gb"),
        ("  threads: 2 ", "  threats: 2 ", "resources.threats: unknown key"),
        ("  message_mb: 512 ", "  #", "resources.message_mb: missing"),
    ],
)
def test_a_mistake_in_the_sites_own_file_is_named(tmp_path: Path, old: str, new: str, line: str) -> None:
    with pytest.raises(ValueError, match=f"site.yaml: {line}"):
        hospital.site(tmp_path, tmp_path / "x.npz", {old: new})


def test_the_tiny_run_of_the_other_tests_passes(tmp_path: Path) -> None:
    own = hospital.site(tmp_path / "north", tmp_path / "tiny.npz")
    assert hospital.asked(own, tiny.settings(tmp_path)).settings.run.name == "tiny"
