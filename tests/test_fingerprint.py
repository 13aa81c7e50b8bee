"""A configuration as a tree and back, and which of its keys make two runs the same."""

import inspect
from pathlib import Path

import pytest

from sslmed_dist import config
from sslmed_dist.data.exams.episodes import Episodes
from sslmed_dist.data.images.packed import Packed
from tests.test_config import loaded


@pytest.fixture
def settings(tmp_path: Path) -> config.Config:
    """A configuration with every section stated."""
    federated = {"rounds": 2, "partition": {"name": "dirichlet", "count": 4, "alpha": 0.5}, "site_names": ["a", "b"]}
    views = {"mean": [0.5], "std": [1e-5]}
    return loaded(tmp_path, {"federated": federated, "views": views, "run": {"name": "1e-3"}, "plan": {"clip": 1.5}})


def test_the_tree_reads_back(settings: config.Config, tmp_path: Path) -> None:
    assert config.from_tree(config.to_tree(settings), "test") == settings
    (tmp_path / "again.yaml").write_text(config.dump(settings))
    again = config.load(tmp_path / "again.yaml")
    assert again == settings and again.run.name == "1e-3"
    assert config.fingerprint(again) == config.fingerprint(settings)


def test_replace_merges_and_leaves_the_original(settings: config.Config) -> None:
    changed = config.replace(settings, plan={"epochs": 3}, run={"name": "other"})
    assert (changed.plan.epochs, changed.plan.clip, changed.run.name, changed.run.seed) == (3, 1.5, "other", 0)
    assert settings.plan.epochs == 200 and settings.run.name == "1e-3"
    with pytest.raises(ValueError, match="^1e-3: plan.epochs: expected an integer >= 1, got 0$"):
        config.replace(settings, plan={"epochs": 0})


@pytest.mark.parametrize(
    "override",
    [
        "data.root=elsewhere",
        "run.name=other",
        "run.dir=elsewhere",
        "run.device=cpu",
        "run.threads=2",
        "driver=ray",
        "ray.num_workers=7",
        "evaluate.protocols=[]",
        "plan.log_every=3",
        "plan.checkpoint_every=3",
        "plan.keep_last=5",
        "plan.keep_every=5",
        "plan.loader_threads=2",
        "plan.resident=false",
        "federated.runtime=in_process",
        "federated.compare=[]",
        "federated.timeout_s=1",
        "federated.quorum=3",
    ],
)
def test_the_fingerprint_is_blind_to_circumstances(settings: config.Config, override: str) -> None:
    changed = config.replace(settings, **config.parse_override(override))
    assert changed != settings and config.fingerprint(changed) == config.fingerprint(settings)


@pytest.mark.parametrize(
    "override",
    [
        "run.seed=1",
        "optim.lr=0.07",
        "method.loss.temperature=0.3",
        "method.loss.name=mio_v3",
        "views.size=13",
        "views.mean=[0.51]",
        "data.deduplicate=false",
        "plan.batch_size=64",
        "plan.epochs=3",
        "plan.precision=bf16",
        "plan.deterministic=true",
        "federated.rounds=3",
        "federated.partition.alpha=1.0",
        "federated.keep_state=false",
    ],
)
def test_the_fingerprint_sees_what_decides_the_numbers(settings: config.Config, override: str) -> None:
    changed = config.replace(settings, **config.parse_override(override))
    assert config.fingerprint(changed) != config.fingerprint(settings)


def test_the_fingerprint_sees_that_there_are_first_weights_but_not_their_path(settings: config.Config) -> None:
    """Ray makes paths absolute and another machine has others; the run is the same."""
    for section, leaf in (("run", "start_from"), ("method", "encoder")):
        trees = [{leaf: path} if section == "run" else {leaf: {"weights": path}} for path in (None, "a", "/b/a")]
        none, relative, absolute = (config.fingerprint(config.replace(settings, **{section: tree})) for tree in trees)
        assert none != relative == absolute


def test_every_free_key_is_a_key(settings: config.Config) -> None:
    """A key that was renamed would silently enter the fingerprint."""
    tree = config.to_tree(settings)
    of_datasets = {"data.root", "data.cache", "data.cache_gib", "data.workers"}  # arguments of leaves
    known = {f"data.{name}" for kind in (Episodes, Packed) for name in inspect.signature(kind).parameters}
    assert known >= of_datasets
    leaves = {path for path, freedom in config.FREEDOM.items() if freedom.resolved}  # arguments of methods and views
    for path in config.FREEDOM.keys() - of_datasets - leaves:
        *sections, last = path.split(".")
        assert last in (tree[sections[0]] if sections else tree), path
