"""``sslmed init``: look, choose, try, write. Nothing is asked, and what is written passes ``sslmed train --check``."""

import os
import re
from pathlib import Path
from shlex import quote
from typing import Any

import torch

from sslmed_dist import config, outputs, randomness
from sslmed_dist.atomic_files import write_atomically
from sslmed_dist.config import Config
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.data.images import walk
from sslmed_dist.data.partition import hold_out
from sslmed_dist.plain_yaml import parse
from sslmed_dist.printable import plural, say
from sslmed_dist.training import evaluation_data
from sslmed_dist.verbs import federate
from sslmed_dist.verbs.init import choices, lacking, layout, length, pixels, text

VALIDATION = (0.1, 0.25, 0.5)  # shares of the training split that choose hyper-parameters; the first that gives some
SITES = 64  # of a simulated federation on one machine
MOST_MINUTES = 60 * 24 * 30


def init(
    path: Path,
    out: Path | None = None,
    *,
    minutes: float = 20.0,
    medical: bool = False,
    sites: int = 0,
    ray: bool = False,
    force: bool = False,
) -> tuple[Path, list[str]]:
    """Write a recipe for the data in ``path`` to ``out`` (default: the data's name with .yaml, here). Returns the file
    and lines that say what to do with it. ``ValueError`` where the data cannot be read or trained on, for an option out
    of range, and where a file is in the way; nothing is written then."""
    if not 0 < minutes <= MOST_MINUTES:
        raise ValueError(f"--minutes: expected more than 0 and at most {MOST_MINUTES}, got {minutes:g}")
    if sites and not 2 <= sites <= SITES:
        raise ValueError(f"--federated: expected 2 to {SITES} sites, got {sites}")
    if sites and ray:
        raise ValueError("--ray: a federation has a runtime of its own; allowed: --ray or --federated")
    target = Path(f"{plain_name(path)}.yaml") if out is None else out
    if target.suffix not in (".yaml", ".yml"):
        raise ValueError(f"{target}: a recipe's name ends in .yaml")
    outputs.require_writable([(target, is_ours)], force=force)
    asked = machine(minutes, medical, sites, ray)
    try:
        return compose(path, target, asked)
    except ValueError as error:
        # The first of several damaged images, met in a step that was tried or on the way there: all are named.
        line = pixels.damaged(walk.walk(path).files) if path.is_dir() else ""
        if line:
            raise ValueError(f"{path}: {line}") from error
        raise


def compose(path: Path, target: Path, asked: choices.Asked) -> tuple[Path, list[str]]:
    """Look, choose, try, and write the recipe: what ``init`` returns."""
    seen = layout.look(path, choices.SIDE[asked.device])
    dataset = layout.build(seen.data, "train")
    say(f"looked at: {seen.title}, {plural(len(dataset), 'training sample')}; now some steps are tried")
    slices = "unit" in seen.measured  # evaluation sees other samples, not only more of each
    measured = layout.build({**seen.data, **seen.measured}, "train") if slices else dataset
    made = choices.sections(seen, dataset, measured, asked)
    if asked.sites:
        made["federated"] = choices.federation(layout.build({**seen.data, **seen.measured}, "all"), asked)
    name = plain_name(target.with_suffix(""))
    choose_validation(made, measured)
    tree, words = complete(made, dataset, measured, asked, name)
    content = recipe(made, tree, words, target, asked)
    assert parse(content) == tree, "the recipe that is written is the one that was tried"
    write_atomically(target, content.encode())
    return target, instructions(target, tree, words)


def machine(minutes: float, medical: bool, sites: int, ray: bool) -> choices.Asked:
    """What was asked for, on this machine."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    cores = len(os.sched_getaffinity(0))
    return choices.Asked(minutes, medical, sites, ray, "cuda" if gpus else "cpu", cores, gpus)


def plain_name(path: Path) -> str:
    """The last part of a path as a run may be called."""
    last = path.resolve().name.removesuffix(".npz")
    return re.sub(r"[^A-Za-z0-9_-]+", "-", last).strip("-")[:60] or "run"


def is_ours(path: Path) -> bool:
    """A recipe that ``sslmed init`` wrote."""
    with path.open("rb") as file:
        return file.read(len(text.MARK)) == text.MARK.encode()


def choose_validation(made: choices.Sections, measured: Dataset) -> None:
    """Set ``evaluate.val_fraction`` to the first share that leaves some samples for validation. Where none does,
    nothing is measured, and the recipe says why."""
    remarks, keys = made["evaluate"]
    reason = ""
    for share in VALIDATION if keys["protocols"] else ():
        seed = randomness.key(0, "validation")  # the recipe's seed; another one holds out as many
        try:
            hold_out(measured.labels, measured.groups, measured.ids, fraction=share, seed=seed)
        except ValueError as error:
            reason = str(error)
            continue
        keys["val_fraction"] = share
        return
    if keys["protocols"]:
        keys["protocols"] = []
        remarks[:] = [f"nothing is measured, since no samples can be kept to choose by: {reason}"]


def complete(
    made: choices.Sections, dataset: Dataset, measured: Dataset, asked: choices.Asked, name: str
) -> tuple[dict[str, Any], str]:
    """The recipe's tree with its length, tried in all that ``--check`` tries, and what is said of its length.
    ``dataset`` is the training split, ``measured`` the same as an evaluation reads it."""
    tree: dict[str, Any] = {"run": {"name": name, "seed": 0}} | {key: keys for key, (_, keys) in made.items()}
    if asked.ray:
        tree["driver"] = "ray"
    check_measured(made, tree, name)
    arms = 2 * asked.sites + 1 if asked.sites else 1  # at the sites together, at each alone, and on all data
    found = length.fit(settings_of(tree, name), dataset, asked.minutes, arms)
    plan = made["plan"][1]
    remarks, keys = made["evaluate"]
    if asked.sites:
        # the steps of all epochs are those of all rounds, of one local epoch each
        plan["steps_per_epoch"] = max(found.epochs * found.steps // choices.ROUNDS, 1)
        plan["epochs"] = choices.ROUNDS
        _, sites = federate.prepare(settings_of(tree, name))
        remarks += lacking.at_sites(sites) if keys["protocols"] else []
    else:
        plan["epochs"] = found.epochs
        remarks += lacking.in_one_set(made["data"][1], keys, measured) if keys["protocols"] else []
    made["plan"][0].append(found.line)
    return tree, found.line


def check_measured(made: choices.Sections, tree: dict[str, Any], name: str) -> None:
    """Try what the evaluation will need. Where that cannot be, nothing is measured, and the recipe says why."""
    remarks, keys = made["evaluate"]
    try:
        evaluation_data.check_evaluation(settings_of(tree, name))
    except ValueError as error:
        keys["protocols"] = []
        remarks[:] = [f"nothing is measured, since this cannot be: {error}"]


def settings_of(tree: dict[str, Any], name: str) -> Config:
    """The recipe as the program reads it."""
    return config.from_tree(config.overridden(tree, []), f"{name}.yaml")


def recipe(made: choices.Sections, tree: dict[str, Any], words: str, target: Path, asked: choices.Asked) -> str:
    """The recipe's text."""
    lines = header(tree, words, target)
    lines += text.section("run", [], tree["run"])
    for name, (remarks, keys) in made.items():
        lines += ["", *text.section(name, remarks, "ray" if name == "driver" else keys)]
    return "\n".join(lines) + "\n"


def header(tree: dict[str, Any], words: str, target: Path) -> list[str]:
    """What stands at the top: the commands, the time, and what is not known."""
    verb = "federate" if "federated" in tree else "train"
    file, run = quote(str(target)), quote(f"runs/{tree['run']['name']}")
    lines = text.comment(f"{text.MARK[2:]} for {Path(tree['data']['root']).name}. Every value may be changed.")
    commands = [f"sslmed {verb} {file} --check", f"sslmed {verb} {file}", f"sslmed verdict {run}"]
    if tree["evaluate"]["protocols"] and verb == "train":
        commands.append(f"sslmed evaluate {run}")
    lines += [text.command(line) for line in commands]
    lines += text.comment(f"Time: {words}.")
    if tree["evaluate"]["protocols"]:
        lines += text.comment(
            "Whether it beats a random encoder on this data is not known before it is measured: both stand in the "
            "result of the last command, with the interval of their difference. Recipes written so beat it in 12 of 12 "
            "runs on three public sets by nearest neighbours and in 9 of 12 by a linear probe (docs/init.md)."
        )
    return lines


def instructions(target: Path, tree: dict[str, Any], words: str) -> list[str]:
    """What is printed: the file, the time, the next command."""
    verb = "federate" if "federated" in tree else "train"
    return [f"{target}: read it, then: sslmed {verb} {quote(str(target))}", f"time: {words}"]
