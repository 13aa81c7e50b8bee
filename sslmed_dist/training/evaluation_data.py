"""What a run is evaluated on: its own data, or another set that the command line names."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sslmed_dist import config, randomness
from sslmed_dist.config import PATHS, Config, from_tree, may, merge, to_tree
from sslmed_dist.data.joined import Joined
from sslmed_dist.data.partition import hold_out
from sslmed_dist.data.samples import Samples, describe
from sslmed_dist.downstream.features import check
from sslmed_dist.downstream.predictions import Demanding, Evaluator, Masking
from sslmed_dist.printable import plural
from sslmed_dist.run_folder import differences
from sslmed_dist.training import build

FREE = ("data", "evaluate", "run.device", "run.threads")  # what an evaluation may set otherwise than the run


def evaluation_splits(settings: Config) -> tuple[Joined, dict[str, Tensor]]:
    """The evaluation data of a run that is no federation, and the int64 positions in it of train, val and test.
    ``evaluate.val_fraction`` of the train split is held out as val; test is the split ``evaluate.test``. ``ValueError``
    where its images have another number of channels than the run's method takes."""
    train = build.load_data(settings, "train", settings.evaluate.data)
    test = build.load_data(settings, settings.evaluate.test, settings.evaluate.data)
    taken = settings.method.get("channels")
    if taken is not None and train.channels != taken:
        raise ValueError(
            f"data: {train.name} has images of {plural(train.channels, 'channel')}, the encoder takes {taken}"
        )
    dataset = Joined([train, test])  # train comes first, so its positions are those in ``dataset`` too
    try:
        rest, val = hold_out(
            labels=train.labels,
            groups=train.groups,
            ids=train.ids,
            fraction=settings.evaluate.val_fraction,
            seed=randomness.key(settings.run.seed, "validation"),
        )
    except ValueError as error:
        raise ValueError(f"evaluate.val_fraction: {train.name}: {error}") from None
    return dataset, {"train": rest, "val": val, "test": dataset.positions(1)}


def overridden(settings: Config, overrides: Sequence[str]) -> Config:
    """The settings of a run with ``SECTION.KEY=VALUE`` overrides of what an evaluation may set. A ``data.name`` that
    names another dataset replaces the whole section. ``ValueError`` for a key that the checkpoint decides."""
    asked = config.overridden({}, overrides)
    tree = to_tree(settings)
    if config.below(asked, ("data", "name")) not in (None, settings.data["name"]):
        asked["data"] = dict(asked["data"])  # no longer a name alone, which would keep the arguments of the other set
    changed = from_tree(merge(tree, asked), "evaluate")
    for path in differences(tree, to_tree(changed)):
        if not any(path == key or path.startswith(f"{key}.") for key in FREE):
            raise ValueError(f"{path}: is decided by the checkpoint; an evaluation may set {', '.join(FREE)}")
    return changed


def measured_on(settings: Config, samples: Samples, parts: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a result was measured on: the data's settings, the last name of its path, how many samples each part has,
    and the hash of all its ``samples``."""
    leaf = {key: value for key, value in merge(settings.data, settings.evaluate.data).items() if key != "subset"}
    return {
        "data": {key: leaf[key] for key in leaf if not may(f"data.{key}", "run") and f"data.{key}" not in PATHS},
        "folder": Path(str(leaf.get("root", ""))).expanduser().name or None,
        "samples": {name: len(positions) for name, positions in parts.items()},
        "sha256": samples.digest,
    }


def suffix(
    run: Config,
    now: Config,
    known: Mapping[str, Any] | None,
    measured: Mapping[str, Any],
    dataset: Joined,
    samples: Samples,
) -> str:
    """What the name of a result gets: nothing where ``now`` measures what the settings of the ``run`` say, on whatever
    device; else ``@`` and a hash of what it measures, so that no result overwrites the answer to another question.
    ``dataset`` is that of ``evaluation_splits(now)``, ``samples`` are its own.

    The data may have moved, if its training samples are those that the checkpoint has ``known``. Where it lies in its
    place and holds others, that is another question, too.
    """
    differing = differences(to_tree(run), to_tree(now))
    changed = [path for path in differing if path == "data.root" or not (may(path, "run") and may(path, "experiment"))]
    if known is None and not changed:
        return ""
    # The training samples are looked at only where the answer depends on them: elsewhere they need not be at hand.
    in_question = changed in ([], ["data.root"])
    if known is not None and in_question and digest_of_train(now, dataset, samples, known) == known["digest"]:
        return ""
    said = json.dumps([{**measured, "folder": None}, to_tree(now)["evaluate"]], sort_keys=True)
    return f"@{hashlib.sha256(said.encode()).hexdigest()[:12]}"


def digest_of_train(settings: Config, dataset: Joined, samples: Samples, known: Mapping[str, Any]) -> str:
    """The hash of the training samples, made as the one that the checkpoint has ``known``. They are the first part of
    the evaluation's ``dataset`` and are not read again, unless ``evaluate.data`` makes that another one."""
    content = bool(known["content"])
    if not settings.evaluate.data and samples.content == content:
        return samples.part(set(dataset.parts[0].ids.tolist())).digest
    train = build.load_data(settings, "train") if settings.evaluate.data else dataset.parts[0]
    return describe(train, content).digest


def check_evaluation(settings: Config) -> list[str]:
    """Build everything that evaluating the run will need; returns a line that says what it is. ``ValueError`` for what
    would end the evaluation: a split that is not there, unlabelled samples, more neighbours than samples."""
    evaluators = build.build_evaluators(settings)
    if not evaluators:
        return ["evaluate  nothing (evaluate.protocols is empty)"]
    dataset, parts = evaluation_splits(settings)
    if any(isinstance(evaluator, Evaluator) for evaluator in evaluators.values()):
        check(dataset, parts, all(isinstance(evaluator, Masking) for evaluator in evaluators.values()))
    for title, evaluator in evaluators.items():
        if isinstance(evaluator, Demanding):
            try:
                evaluator.require(len(parts["train"]), len(parts["val"]))
            except ValueError as error:
                held = f"{len(parts['val'])} of {len(parts['train']) + len(parts['val'])} training images are held out"
                raise ValueError(f"evaluate.protocols: {title}: {error} ({held})") from None
    sizes = ", ".join(f"{len(positions)} {name}" for name, positions in parts.items())
    return [f"evaluate  {', '.join(evaluators)}: {sizes}"]
