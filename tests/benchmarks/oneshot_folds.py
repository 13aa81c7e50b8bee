"""The table of the folds: four organs, every fold whose trainings are done, with floors and intervals over patients.

    python -m tests.benchmarks.oneshot_folds RUNS [RUNS ...] --data PATH [--keep FOLDER] [--seed 0]

RUNS are run folders, or folders of them; a run has its fold and its organs (``data.fold``, ``data.exclude``), and the
runs of a fold together have to cover the organs. The protocol is that of ``one_shot``: the last exam of a fold is the
support. Masks as they come, averaged over neighbouring slices 1 : 2 : 1, and tidied, with the query's true range of
slices and with the estimated one, all of them also with quadrant masking, which published figures of CoWPro have; HD95
of whole volumes; beside them the copied mask and a random encoder. A fold without all of its trainings at their end
is "not run". Inner splits (``data.inner``) and other seeds are passed over.

What a run gave is kept in the folder ``--keep``, by its checkpoint and by the code that scores it: a call goes on where
one before it ended.
"""

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn

from sslmed_dist import registry
from sslmed_dist.atomic_files import write_atomically
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.downstream import EVALUATORS, CopyMask, OneShot, oneshot
from sslmed_dist.downstream.metrics import Score
from sslmed_dist.downstream.predictions import Predictions, compare, measure, pool
from sslmed_dist.models import prototype_heads
from sslmed_dist.training import pretrained
from sslmed_dist.training.build import inherit, load_data

FOLDS = 5
ORGANS = ("right kidney", "left kidney", "liver", "spleen")
PLAIN, SMOOTH, TIDY = "as they come", "1 : 2 : 1", "tidied"
MASKED = "quadrants"  # what the thesis publishes for CoWPro is measured with quadrant masking
WAYS: dict[str, dict[str, bool]] = {PLAIN: {}, SMOOTH: {"neighbours": True}, TIDY: {"tidy": True}}
WAYS |= {MASKED if way == PLAIN else f"{MASKED}, {way}": {"quadrants": True, **leaf} for way, leaf in WAYS.items()}
COPIED, RANDOM, TRAINED = "copied support mask", "random encoder", "encoder"
ROWS = [(COPIED, PLAIN), *((RANDOM, way) for way in WAYS if SMOOTH not in way), *((TRAINED, way) for way in WAYS)]
MEASURES = {
    "dice": "Dice, %, true range",
    "dice_whole": "Dice, %, range estimated",
    "hd95_whole": "HD95, mm, range estimated",
}
Cases = list[dict[str, Any]]


@dataclass(frozen=True)
class Training:
    """A run at its end: its fold, seed and organs, and the encoder."""

    folder: Path
    fold: int
    seed: int
    organs: tuple[str, ...]
    start: pretrained.Pretrained


class Remembered(nn.Module):
    """An encoder that keeps the maps of the images that it has seen: each way of scoring asks for the same."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.known: dict[str, Tensor] = {}

    def maps(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, D, h, w)."""
        key = sha256(images.contiguous().numpy().tobytes()).hexdigest()
        if key not in self.known:
            self.known[key] = self.encoder.maps(images)
        return self.known[key]


def run_folders(paths: Sequence[Path]) -> list[Path]:
    """The run folders that are meant. ``ValueError`` for a path that is none and holds none."""
    found: list[Path] = []
    for path in paths:
        own = [path] if (path / "checkpoints").is_dir() else sorted(each.parent for each in path.glob("*/checkpoints"))
        if not own:
            raise ValueError(f"{path}: neither a run folder nor a folder of them")
        found += own
    return list(dict.fromkeys(found))


def trainings(paths: Sequence[Path], seed: int) -> Iterator[Training]:
    """The trainings at their end, one after another; of every other run a line says why it is passed over."""
    for folder in run_folders(paths):
        try:
            start = pretrained.load(folder)
        except ValueError as error:
            print(f"passed over: {folder.name}: {error}")
            continue
        data, own_seed = start.settings.data, start.settings.run.seed
        if data.get("inner") is not None or data.get("fold") is None or own_seed != seed or start.unfinished:
            facts = f"fold {data.get('fold')}, inner {data.get('inner')}, seed {own_seed}"
            print(f"passed over: {folder.name}: {start.unfinished or facts}")
            continue
        yield Training(folder, data["fold"], own_seed, tuple(str(organ) for organ in data["exclude"]), start)


def code() -> str:
    """The hash of the code that makes masks of maps."""
    folder = Path(oneshot.__file__).parent
    files = [*sorted(folder.glob("*.py")), Path(prototype_heads.__file__), Path(__file__)]
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def judged(of: Training, way: Mapping[str, bool]) -> OneShot:
    """The evaluator of a run's organs, with the run's own head."""
    leaf = {"name": "one_shot", "organs": list(of.organs), "surface": True, **way}
    evaluator = registry.build(EVALUATORS, inherit(leaf, of.start.settings.method), "one_shot")
    assert isinstance(evaluator, OneShot)
    return evaluator


def scored(of: Training, dataset: Dataset) -> dict[str, Cases]:
    """The cases of every row, by ``ARM | WAY``."""
    settings, every = of.start.settings, torch.arange(len(dataset))
    arms = {COPIED: CopyMask(), TRAINED: Remembered(of.start.encoder)}
    arms[RANDOM] = Remembered(pretrained.untrained(settings).eval())
    return {
        f"{arm} | {way}": list(
            judged(of, WAYS[way]).segment(arms[arm], dataset, every, device="cpu", seed=of.seed).cases
        )
        for arm, way in ROWS
    }


def cases_of(of: Training, data: str, keep: Path) -> dict[str, Cases]:
    """What a training gave, from ``keep`` where it stands there."""
    key = {"checkpoint": of.start.sha256, "code": code(), "organs": list(of.organs), "data": data}
    named = sha256(json.dumps(key).encode()).hexdigest()[:12]
    file = keep / f"fold-{of.fold}-seed-{of.seed}-{named}.json"
    if file.exists():
        cases: dict[str, Cases] = json.loads(file.read_text())["cases"]
        return cases
    began = time.monotonic()
    dataset = load_data(of.start.settings, "test", {"masks": "organs", "root": data})
    cases = scored(of, dataset)
    keep.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps({**key, "run": of.folder.name, "cases": cases}).encode())
    print(f"scored: {of.folder.name} in {time.monotonic() - began:.0f} s", flush=True)
    return cases


def folds_done(paths: Sequence[Path], data: str, keep: Path, seed: int) -> dict[int, dict[str, Predictions]]:
    """Of every fold whose runs cover the organs, the predictions of every row. ``ValueError`` for two runs of one fold
    and organ."""
    found: dict[int, dict[str, Cases]] = {}
    known: dict[tuple[int, str], str] = {}
    for each in trainings(paths, seed):
        for organ in each.organs:
            if (each.fold, organ) in known:
                raise ValueError(f"{each.folder}: {organ} of fold {each.fold} is in {known[each.fold, organ]} already")
            known[each.fold, organ] = str(each.folder)
        rows = found.setdefault(each.fold, {})
        for row, cases in cases_of(each, data, keep).items():
            rows.setdefault(row, []).extend(case for case in cases if case["organ"] in ORGANS)
    return {
        fold: {row: together(cases) for row, cases in rows.items()}
        for fold, rows in sorted(found.items())
        if all((fold, organ) in known for organ in ORGANS)
    }


def together(cases: Cases) -> Predictions:
    """The cases of the runs of one fold, pair by pair and in each the organs in their order."""
    ordered = sorted(cases, key=lambda case: (case["query"], ORGANS.index(case["organ"])))
    return OneShot(ORGANS, surface=True).predictions(ordered, ordered[0]["support"])


def text(score: Score, family: str, *, signed: bool = False) -> str:
    """Value and 5-95 % interval, and how many masks are empty."""
    if score.value is None:
        return "undefined"
    scale = 100 if "dice" in family else 1
    ends = [score.value] if score.low is None or score.high is None else [score.value, score.low, score.high]
    values = [f"{scale * end:{'+' if signed else ''}.1f}" for end in ends]
    empty = score.note.partition("undefined in ")[2].partition(":")[0]  # "1 of 4: a mask is empty"
    interval = f" [{values[1]}, {values[2]}]" if len(values) == 3 else ""
    return f"{values[0]}{interval}{f' ({empty} empty)' if empty else ''}"


def line(title: str, scores: Sequence[Score], family: str, *, signed: bool = False) -> str:
    """One row of the table."""
    by_name = {score.metric: score for score in scores}
    names = [*(f"{family}/{organ}" for organ in ORGANS), family]
    return f"| {title} | {' | '.join(text(by_name[name], family, signed=signed) for name in names)} |"


def show(folds: Mapping[int, Mapping[str, Predictions]]) -> None:
    """Print the tables."""
    rows = {row: pool([fold[row] for fold in folds.values()]) for row in next(iter(folds.values()))}
    patients = len(rows[f"{TRAINED} | {PLAIN}"].groups.unique())
    print(f"\nFolds {', '.join(map(str, folds))} of {FOLDS}; {patients} query patients; [5 %, 95 %] over patients")
    scores = {row: measure(predictions, "one_shot", seed=0) for row, predictions in rows.items()}
    pairs = [(way, PLAIN) for way in WAYS if way != PLAIN]
    for family, title in MEASURES.items():
        print(f"\n| {title} | {' | '.join(ORGANS)} | mean |\n|{' --- |' * (len(ORGANS) + 2)}")
        for row, own in scores.items():
            print(line(row.replace(" | ", ", "), own, family))
        for one, other in pairs:
            paired = compare(rows[f"{TRAINED} | {one}"], rows[f"{TRAINED} | {other}"], "one_shot", seed=0)
            print(line(f"{TRAINED}, {one} less {other}, paired", paired, family, signed=True))
    each_fold(folds)


def each_fold(folds: Mapping[int, Mapping[str, Predictions]]) -> None:
    """Print the mean of the organs by fold."""
    print(f"\n| mean of the organs | {' | '.join(f'fold {fold}' for fold in range(FOLDS))} | mean ± sd of folds |")
    print(f"|{' --- |' * (FOLDS + 2)}")
    for family, title in MEASURES.items():
        scale = 100 if "dice" in family else 1
        for arm, way in ROWS:
            values: dict[int, float] = {}
            for fold, rows in folds.items():
                found = {score.metric: score.value for score in measure(rows[f"{arm} | {way}"], "one_shot", seed=0)}
                values[fold] = float("nan") if found[family] is None else scale * float(found[family] or 0.0)
            cells = [f"{values[fold]:.1f}" if fold in values else "not run" for fold in range(FOLDS)]
            spread = f" ± {stdev(values.values()):.1f}" if len(values) > 1 else ""
            print(f"| {title}: {arm}, {way} | {' | '.join(cells)} | {mean(values.values()):.1f}{spread} |")


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("runs", nargs="+", type=Path)
    arguments.add_argument("--data", required=True)
    arguments.add_argument("--keep", type=Path, default=Path("runs/oneshot-folds"), help="a folder for what runs gave")
    arguments.add_argument("--seed", type=int, default=0, help="the seed of the runs")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    folds = folds_done(options.runs, options.data, options.keep, options.seed)
    if not folds:
        arguments.exit(2, "no fold has all of its trainings at their end\n")
    show(folds)


if __name__ == "__main__":
    main()
