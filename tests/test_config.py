"""Configurations: one parent, overrides, and one exact line for every mistake."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sslmed_dist import config, plain_yaml
from sslmed_dist.cli_answers import options
from sslmed_dist.training.evaluation_data import overridden
from tests import tiny

SECTIONS = "data, views, method, run, optim, plan, driver, ray, evaluate, federated, diagnose"
PLAN = (
    "epochs, batch_size, micro_batch, steps_per_epoch, draws, slices_per_exam, validate, patience, copies, precision, "
    "channels_last, compile, deterministic, clip, log_every, checkpoint_every, keep_last, keep_every, loader_threads, "
    "resident"
)
NUMBERS = "; a number has to be finite in float32, a whole number within 2^53"
COMPONENT = (
    "expected at most 100 letters, digits, spaces and . _ - + @ = , ( ) #, the first a letter, digit or _, the last no "
    "space or full stop;"
)
NO_NAMES = (
    "",
    ".",
    "..",
    "../x",
    "/x",
    "a/b",
    "a\\b",
    "-v",
    " a",
    "a ",
    "a.",
    "a\nb",
    "\x1b[0m",
    "*",
    "\udc80",
    "x" * 101,
)
LEAVES: dict[str, Any] = {
    "data": {"name": "medmnist", "root": "somewhere.npz"},
    "views": {"name": "contrastive", "size": 12},
    "method": {"name": "contrastive", "loss": {"name": "nt_xent", "temperature": 0.2}},
}


def write(path: Path, tree: Any) -> Path:
    """``tree`` as a YAML file."""
    path.write_text(plain_yaml.write(tree))
    return path


def loaded(folder: Path, child: dict[str, Any], *overrides: str, parent: dict[str, Any] | None = None) -> config.Config:
    """The configuration of ``child`` over ``parent`` over the required leaves."""
    write(folder / "parent.yaml", config.merge(LEAVES, parent or {}))
    return config.load(write(folder / "child.yaml", {"base": "parent.yaml", **child}), overrides)


def test_a_file_alone_gets_the_defaults_and_its_own_name(tmp_path: Path) -> None:
    settings = config.load(write(tmp_path / "short.yaml", LEAVES))
    assert settings.run.name == "short" and settings.run.seed == 0 and settings.plan == config.Plan()
    assert settings.optim == {"name": "sgd", "lr": 0.06} and settings.federated is None
    assert settings.folder == Path("runs").resolve() / "short"


def test_a_child_is_laid_over_its_parent(tmp_path: Path) -> None:
    settings = loaded(tmp_path, {"plan": {"epochs": 3}}, parent={"plan": {"epochs": 9, "batch_size": 32}})
    assert (settings.plan.epochs, settings.plan.batch_size, settings.run.name) == (3, 32, "child")


@pytest.mark.parametrize(
    "child, expected",
    [
        ({"name": "sgd", "lr": 0.5}, {"name": "sgd", "lr": 0.5, "momentum": 0.8}),
        ({"lr": 0.5}, {"name": "sgd", "lr": 0.5, "momentum": 0.8}),
        ({"name": "adamw", "lr": 0.5}, {"name": "adamw", "lr": 0.5}),
        ({"name": "adamw"}, {"name": "adamw"}),
        ("adamw", {"name": "adamw"}),
    ],
)
def test_a_leaf_of_another_name_is_another_leaf(tmp_path: Path, child: Any, expected: dict[str, Any]) -> None:
    """The same name merges; another name replaces the whole leaf, with or without arguments of its own."""
    settings = loaded(tmp_path, {"optim": child}, parent={"optim": {"name": "sgd", "lr": 0.1, "momentum": 0.8}})
    assert settings.optim == expected


def test_an_override_of_a_name_alone_only_renames(tmp_path: Path) -> None:
    """In any order with the overrides of its arguments."""
    path = write(tmp_path / "a.yaml", {**LEAVES, "optim": {"name": "sgd", "lr": 0.1, "momentum": 0.8}})
    for overrides in (["optim.name=lars", "optim.lr=0.3"], ["optim.lr=0.3", "optim.name=lars"]):
        assert config.load(path, overrides).optim == {"name": "lars", "lr": 0.3, "momentum": 0.8}
    assert config.load(path, ["optim={name: lars}"]).optim == {"name": "lars"}


def test_leaves_inside_a_leaf_follow_the_same_rule(tmp_path: Path) -> None:
    settings = loaded(tmp_path, {"method": {"loss": {"name": "mio_v3", "bound": 2}}})
    assert settings.method == {"name": "contrastive", "loss": {"name": "mio_v3", "bound": 2}}
    settings = loaded(tmp_path, {"method": {"loss": {"temperature": 0.5}}}, parent={"method": {"loss": "nt_xent"}})
    assert settings.method["loss"] == {"name": "nt_xent", "temperature": 0.5}


def test_the_name_of_a_run_is_not_that_of_a_leaf(tmp_path: Path) -> None:
    settings = loaded(tmp_path, {"run": {"name": "b", "dir": "x"}}, parent={"run": {"name": "a", "seed": 3}})
    assert settings.run == config.Run(name="b", dir="x", seed=3)


def test_a_base_has_no_base(tmp_path: Path) -> None:
    write(tmp_path / "grandparent.yaml", LEAVES)
    write(tmp_path / "parent.yaml", {"base": "grandparent.yaml"})
    child = write(tmp_path / "child.yaml", {"base": "parent.yaml"})
    line = "a base may not have a base itself (grandparent.yaml); one parent keeps a recipe readable"
    refused(child, f"{tmp_path / 'parent.yaml'}: {line}")


def test_overrides_come_last_and_in_any_order(tmp_path: Path) -> None:
    overrides = ["plan.epochs=3", "optim.lr=1e-3", "method.loss.name=mio_v1", "run.seed=4", "plan.clip=null"]
    for order in (overrides, overrides[::-1]):
        settings = loaded(tmp_path, {"plan": {"clip": 1.0, "epochs": 7}}, *order)
        assert (settings.plan.epochs, settings.plan.clip, settings.run.seed) == (3, None, 4)
        assert settings.optim["lr"] == 0.001
        assert settings.method["loss"] == {"name": "mio_v1", "temperature": 0.2}


def test_an_override_may_be_a_whole_leaf(tmp_path: Path) -> None:
    settings = loaded(tmp_path, {}, "optim={name: lars, lr: 0.3}", "evaluate.protocols=[{name: knn, k: 5}]")
    assert settings.optim == {"name": "lars", "lr": 0.3} and settings.evaluate.protocols == ({"name": "knn", "k": 5},)


@pytest.mark.parametrize("text", ["plan.epochs", "=3", "plan..epochs=3", ".epochs=3"])
def test_an_override_without_path_or_value(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        config.parse_override(text)
    assert str(caught.value) == f"override {text!r}: expected section.key=value, such as plan.epochs=3"


def test_an_override_that_is_no_yaml() -> None:
    with pytest.raises(ValueError, match=r"^override 'a=\[1': the value is not valid YAML: line 1, "):
        config.parse_override("a=[1")


def refused(path: Path, message: str) -> None:
    """Loading ``path`` is refused by this very line."""
    with pytest.raises(ValueError) as caught:
        config.load(path)
    assert str(caught.value) == message and "\n" not in message


@pytest.mark.parametrize(
    "tree, message",
    [
        ({"plam": {}}, f"plam: unknown key; allowed: {SECTIONS}"),
        ({"plan": {"epoch": 3}}, f"plan.epoch: unknown key; allowed: {PLAN}"),
        ({"plan": {"epochs": "3"}}, "plan.epochs: expected int, got '3'"),
        ({"plan": {"epochs": True}}, "plan.epochs: expected int, got True"),
        ({"plan": {"epochs": 0}}, "plan.epochs: expected an integer >= 1, got 0"),
        ({"plan": {"clip": -1}}, "plan.clip: expected a norm > 0 or null, got -1"),
        (
            {"plan": {"precision": "half"}},
            "plan.precision: expected one of 'float32', 'bf16', 'fp16', 'float64', 'auto', got 'half'",
        ),
        ({"plan": None}, "plan: expected a mapping, got None"),
        ({"plan": [1]}, "plan: expected a mapping, got [1]"),
        ({"run": {"threads": 0}}, "run.threads: expected an integer from 1 to 1024 or null, got 0"),
        ({"run": {"threads": 10**6}}, "run.threads: expected an integer from 1 to 1024 or null, got 1000000"),
        ({"plan": {"loader_threads": 10**6}}, "plan.loader_threads: expected a number from 0 to 1024, got 1000000"),
        ({"plan": {"loader_threads": -1}}, "plan.loader_threads: expected an integer >= 0, got -1"),
        ({"plan": {"keep_every": -1}}, "plan.keep_every: expected an integer >= 0, got -1"),
        ({"plan": {"clip": math.nan}}, f"plan.clip: expected float or null, got nan{NUMBERS}"),
        ({"plan": {"epochs": 2**53 + 1}}, f"plan.epochs: expected int, got 9007199254740993{NUMBERS}"),
        ({"ray": {"timeout_s": math.inf}}, f"ray.timeout_s: expected float, got inf{NUMBERS}"),
        ({"ray": {"num_workers": -1}}, "ray.num_workers: expected an integer >= 0, got -1"),
        ({"ray": {"cpus_per_worker": -1}}, "ray.cpus_per_worker: expected an integer >= 0, got -1"),
        ({"ray": {"max_failures": -2}}, "ray.max_failures: expected an integer >= -1, got -2"),
        ({"run": {"name": 7}}, "run.name: expected text or null, got 7; write it in quotes"),
        ({"run": {"dir": True}}, "run.dir: expected text, got True; write it in quotes"),
        *(({"run": {"name": name}}, f"run.name: {COMPONENT} got {name[:120]!r}") for name in NO_NAMES),
        ({"federated": {"site_names": ["a", "../b"]}}, f"federated.site_names: {COMPONENT} got '../b'"),
        (
            {"evaluate": {"protocols": [{"name": "knn"}, {"k": 3}]}},
            "evaluate.protocols[1]: expected a mapping with a 'name', such as {name: knn}, got {'k': 3}",
        ),
        (
            {"evaluate": {"protocols": [{"name": None}]}},
            "evaluate.protocols[0]: expected a mapping with a 'name', such as {name: knn}, got {'name': None}",
        ),
        ({"optim": 3}, "optim: expected mapping, got 3"),
        ({"evaluate": {"protocols": 3}}, "evaluate.protocols: expected [mapping, ...], got 3"),
        ({"federated": {"quorum": 0}}, "federated.quorum: expected an integer >= 1, got 0"),
        ({"federated": {"pool": "test"}}, "federated.pool: expected one of 'train', 'all', got 'test'"),
        ({"driver": "slurm"}, "driver: expected one of 'local', 'ray', got 'slurm'"),
    ],
)
def test_mistakes_in_a_section(tmp_path: Path, tree: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "wrong.yaml", {**LEAVES, **tree})
    refused(path, f"{path}: {message}")


@pytest.mark.parametrize("name", ["a", "_", "001", "2026-11-26", "MIOv3@0.2", "Läufe (2) #3, k=1+x", "学习", "x" * 100])
def test_names_of_runs(tmp_path: Path, name: str) -> None:
    settings = config.load(write(tmp_path / "a.yaml", {**LEAVES, "run": {"name": name}}))
    assert settings.run.name == name and settings.folder == Path("runs").resolve() / name


def test_a_tilde_is_the_home_folder_under_every_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    tree = {
        **LEAVES,
        "run": {"dir": "~/runs", "start_from": "~/old"},
        "data": {"name": "episodes", "root": "~/data", "subset": {"name": "listed", "file": "~/list.txt"}},
        "method": {"name": "contrastive", "encoder": {"name": "resnet", "weights": "~/a.pth"}},
        "evaluate": {"data": {"cache": "~/cache"}},
    }
    settings = config.load(write(tmp_path / "a.yaml", tree), ["data.cache=~/c", "ray.address=a~/b"])
    assert (settings.run.dir, settings.run.start_from) == ("/home/me/runs", "/home/me/old")
    assert (settings.data["root"], settings.data["cache"]) == ("/home/me/data", "/home/me/c")
    assert settings.data["subset"]["file"] == "/home/me/list.txt" and settings.ray.address == "a~/b"
    assert settings.method["encoder"]["weights"] == "/home/me/a.pth"
    assert settings.evaluate.data == {"cache": "/home/me/cache"}
    assert config.parse_override("root=~/x") == {"root": "/home/me/x"}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("run.dir=~nobody-here/r", "run.dir: '~nobody-here/r': the home folder of ~nobody-here is not known"),
        ("data.root=~nobody-here", "data.root: '~nobody-here': the home folder of ~nobody-here is not known"),
        ("run.name=a\nb", "'run.name=a\\\\nb': a text of several lines, which YAML would make one"),
        ("run.continue_from=~", "'run.continue_from=~': ~ alone is YAML's null; write null, or the path"),
    ],
)
def test_a_path_or_text_that_yaml_would_quietly_change_is_refused(tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config.load(write(tmp_path / "a.yaml", LEAVES), [override])


def test_a_value_of_several_lines_that_is_no_text_is_read() -> None:
    assert config.parse_override("views.mean=[1,\n 2]\n") == {"views": {"mean": [1, 2]}}


def test_a_folder_in_the_place_of_a_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run: is a folder; expected a configuration file$"):
        (tmp_path / "run").mkdir()
        config.load(tmp_path / "run")
    write(tmp_path / "run" / "config.yaml", LEAVES)
    with pytest.raises(ValueError, match="; to go on with the run in it: sslmed train .*/run/config.yaml$"):
        config.load(tmp_path / "run")


@pytest.mark.parametrize("section", ["data", "views", "method"])
def test_a_required_section_is_missing(tmp_path: Path, section: str) -> None:
    path = write(tmp_path / "wrong.yaml", {key: leaf for key, leaf in LEAVES.items() if key != section})
    refused(path, f"{path}: {section}: missing; it is required")


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    refused(path, f"{path}: no such configuration file")
    write(path, {"base": "gone.yaml"})
    refused(path, f"{tmp_path / 'gone.yaml'}: no such configuration file (the base of {path})")
    write(path, {"base": ["a", "b"]})
    refused(path, f"{path}: base: expected the path of one configuration file, got ['a', 'b']")
    for content, kind in ((b"", "NoneType"), (b"- 1\n", "list")):
        path.write_bytes(content)
        refused(path, f"{path}: expected sections {SECTIONS}, got {kind}")
    for content in (b"plan: [1\n", b"\xff\xfe\x00", b"plan: !!python/object:os.system {}\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError) as caught:
            config.load(path)
        assert str(caught.value).startswith(f"{path}: not valid YAML: ") and "\n" not in str(caught.value)


def test_a_key_that_stands_twice_on_the_command_line_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", LEAVES)
    with pytest.raises(ValueError, match="^plan.epochs: stands on the command line 2 times; give it once$"):
        config.load(path, ["plan.epochs=1", "run.seed=2", "plan.epochs=2"])
    for read in (options, partial(overridden, config.from_tree(LEAVES, "run"))):  # of `data pack`, of `evaluate`
        with pytest.raises(ValueError, match="^data.root: stands on the command line 2 times; give it once$"):
            read(["data.root=a", "data.root=b"])


@pytest.mark.parametrize("words", ["run.track=mlflow", "run.track=[mlflow]", "run.track=[{name: mlflow}]"])
def test_a_list_of_one_leaf_may_be_its_name_alone(words: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(plain_yaml.write(tiny.tree(tmp_path)))
    assert config.load(path, [words]).run.track == ({"name": "mlflow"},)
