"""Configurations with random mistakes: each can run or is one line on stderr with exit code 2; nothing is written."""

import copy
import math
import random
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from sslmed_dist import cli, config, plain_yaml
from sslmed_dist.config import NameAlone
from tests import tiny

SMOKE = Path(__file__).parents[1] / "configs" / "smoke"
RECIPES = sorted(SMOKE.glob("*.yaml"))
CASES, SECONDS, MEMORY = 500, 20, 24 << 30
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 64, 10**9, 2**31, 2**53, 2**62, 2**63, -(2**63), 10**19),
    *(0.0, -0.0, 0.5, -0.5, 1.0, 1.5, 1e-3, 1e-30, 5e-324, 1e9, 1e30, 1.7e308, math.nan, math.inf, -math.inf),
    *(
        "",
        " ",
        "no",
        "010",
        "1e3",
        ".nan",
        "name",
        "knn",
        "läuft",
        "学习",
        "\x00",
        "\x1b[2J",
        "a\nb",
        "\udc80",
        "x" * 5000,
    ),
    *("../x", "/", "/dev/null", "~", "~/x", "a/b", "-v", "{}", "=", "<<"),
    *([], [[]], [None], [1], [0.5, 0.5], [math.nan] * 2, [1, 2, 3], ["a"], [[[[1]]]], [-1, -1], [2, 1]),
    *(
        {},
        {"a": 1},
        {"name": None},
        {"name": "x"},
        {"name": ["a"]},
        {"name": "resnet"},
        {1: 2},
        {"name": {"name": "x"}},
    ),
)
# What may end with exit code 1: a loss that is not finite, and more memory than there is or than can be counted.
NAMED = ("not finite", "can't allocate memory", "MemoryError", "Storage size calculation overflowed")
NUMBERS = {kind: [value for value in VALUES if type(value) is kind] for kind in (bool, int, float)}
TEXTS: tuple[tuple[str, str], ...] = (
    ("plan:", "plan: &p"),
    ("plan:", "plan: *p"),
    ("plan:", "plan: !!set"),
    ("plan:", "plan:\nplan:"),
    ("  ", "\t"),
    (":", ""),
    ("name", "na\x01me"),
    ("\n", "\n- "),
    ("a", "\ud7ff"),
    ("[", ""),
    ("]", "]]"),
)


def small(path: Path, folder: Path) -> dict[str, Any]:
    """The recipe as a tree of its own, so small that ``--check`` takes a blink."""
    tree = config.merge(
        config.read(path), {"data": {"name": "medmnist", "root": str(folder / "tiny.npz")}, "driver": "local"}
    )
    tree = config.merge(tree, {"plan": {"batch_size": 8, "steps_per_epoch": 2, "log_every": 1}})
    tree = config.merge(tree, {"run": {"dir": str(folder / "runs"), "device": "cpu", "start_from": None}})
    width = 4 if tree["method"]["encoder"]["name"] == "resnet" else 1 / 128
    tree = config.merge(tree, {"method": {"encoder": {"width": width}}})
    return config.merge(tree, {"federated": {"partition": NameAlone(name="iid")}} if "federated" in tree else {})


def branches(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of a tree, but its root."""
    if path:
        yield path
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in pairs:
        yield from branches(value, (*path, key))


def mutated(tree: dict[str, Any], draw: random.Random) -> str:
    """The YAML of the tree with one to three mistakes."""
    tree = copy.deepcopy(tree)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        *above, last = draw.choice(list(branches(tree)))
        parent: Any = tree
        for key in above:
            parent = parent[key]
        kind = draw.random()
        if kind < 0.5 and type(parent[last]) in NUMBERS:
            parent[last] = draw.choice(NUMBERS[type(parent[last])])
        elif kind < 0.7:
            parent[last] = copy.deepcopy(draw.choice(VALUES))
        elif kind < 0.8:
            del parent[last]
        elif kind < 0.9 and isinstance(parent, dict):
            parent[draw.choice(("nmae", "", "a.b", "läuft", 3, last))] = copy.deepcopy(draw.choice(VALUES))
        else:
            parent[last] = [parent[last]]
    text = plain_yaml.write(tree)
    if draw.random() < 0.1:
        old, new = draw.choice(TEXTS)
        text = text.replace(old, new, 1)
    return text[: draw.randrange(len(text) + 1)] if draw.random() < 0.05 else text


@pytest.fixture
def bounded() -> Iterator[None]:
    """A bound on the memory of this process, and on the time of each case, which ends by a ``TimeoutError``."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    limits, handler = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, limits[1]))
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, handler)
    resource.setrlimit(resource.RLIMIT_AS, limits)


def fault(run: Callable[[], int], capsys: pytest.CaptureFixture[str]) -> str:
    """What is wrong about how ``run`` ended; "" where nothing is."""
    capsys.readouterr()
    signal.alarm(SECONDS)
    try:
        code = run()
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("sslmed ")]
    named = code == 1 and any(words in err for words in NAMED)
    if code not in (0, 2) and not named or "TimeoutError" in err:
        return f"code {code}: {err}"
    if code and (len(lines) != 1 or out or not lines[0].isprintable()):
        return f"code {code}, not one line: {out!r} {err!r}"
    return ""


@pytest.mark.slow
def test_random_mistakes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, bounded: None
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write_images(tmp_path / "tiny.npz", size=32)
    trees = {path.stem: small(path, tmp_path) for path in RECIPES}
    path = tmp_path / "case.yaml"
    for tree in trees.values():  # as they are, they run
        path.write_text(plain_yaml.write(tree))
        verb = "federate" if "federated" in tree else "train"
        assert fault(lambda verb=verb: cli.main([verb, str(path), "--check"]), capsys) == ""  # type: ignore[misc]
        assert config.load(path)
    faults = {}
    for case in range(CASES):
        draw = random.Random(case)
        tree = trees[draw.choice(sorted(trees))]
        text, verb = mutated(tree, draw), "federate" if "federated" in tree else "train"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        found = fault(lambda verb=verb: cli.main([verb, str(path), "--check"]), capsys)  # type: ignore[misc]
        left = sorted(file.name for file in tmp_path.iterdir() if file.name not in ("tiny.npz", "case.yaml"))
        if found or left:
            faults[case] = (found[:400], left)
    assert not faults, "\n".join(f"{case}: {what}" for case, what in faults.items())
