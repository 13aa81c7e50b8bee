"""Reading run folders: configuration, environment, metrics, evaluation rows and pictures. No plotting."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sslmed_dist import config, plain_yaml
from sslmed_dist.json_files import Fields, checked, read_object, require_ordinary
from sslmed_dist.report.series import Key, Series, read_series
from sslmed_dist.sections import is_phantom

Row = dict[str, Any]
Tree = Mapping[str, Any]

# The fields of files of a run folder, with their types.
ROW: Fields = {
    **dict.fromkeys(("arm", "site", "evaluator", "metric"), str),
    **dict.fromkeys(("value", "low", "high"), float | None),
    "n": int,
}
ROW_OPTIONAL: Fields = {"groups": int | None, "note": str | None, "difference": bool}
SIMILARITIES: Fields = {
    "bins": list[float],
    "counts": dict[str, list[int]],
    "means": dict[str, float | None],
    "alignment": float,
    "n": int,
}
ENVIRONMENT: Fields = {"packages": dict[str, str | None], "phantom_data": bool}
SECTIONS: Fields = {
    **dict.fromkeys(("run", "plan", "federated"), dict[str, Any] | None),
    **dict.fromkeys(("data", "views", "method", "optim"), dict[str, Any] | str | None),
}
SIMILARITY = "similarity.json"  # a histogram, as similarity-*.json; every other file of evaluate/ holds rows
LARGEST_NOTICES, LARGEST_PICTURE = 2**20, 2**26  # bytes
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Run:
    """What a run folder holds. Where a piece is not there, ``environment`` is None and the lists are empty.
    ``remarks`` says what was left out while reading the data or the folder, ``pictures_there`` how many pictures there
    are, read or not. ``others`` are rows that answer another question than the run's own (another dataset, another k):
    they are in no table beside its own, but each in one that says what was measured."""

    folder: Path
    config: Tree
    environment: Tree | None
    metrics: Mapping[Key, Series]
    rows: list[Row]
    pictures: list[tuple[str, bytes]]
    pictures_there: int
    remarks: list[str] = field(default_factory=list)
    similarity: Tree | None = None
    others: Mapping[str, list[Row]] = field(default_factory=dict)
    measured: Mapping[str, str] = field(default_factory=dict)  # by file of rows, the hash of the samples

    @property
    def name(self) -> str:
        """``run.name`` of the configuration, or the folder's name."""
        return str((self.config.get("run") or {}).get("name") or self.folder.name)

    @property
    def seed(self) -> int | None:
        """``run.seed`` of the configuration."""
        seed = (self.config.get("run") or {}).get("seed")
        return seed if isinstance(seed, int) else None


@dataclass(frozen=True)
class Experiment:
    """Runs whose configurations differ in nothing but the seed (and where they ran), with a label for each."""

    name: str
    runs: tuple[Run, ...]
    labels: tuple[str, ...]

    @property
    def config(self) -> Tree:
        """The configuration of the first run; the others differ only in seed and place."""
        return self.runs[0].config

    @property
    def phantom(self) -> bool:
        """Whether the data of any of its runs were phantoms."""
        return any(is_phantom(run.config, run.environment) for run in self.runs)


def read_run(folder: Path, *, pictures: bool = False) -> Run:
    """Read one run folder. ``ValueError`` names the folder and what is missing, or the file that cannot be read.

    A configuration and either metrics or evaluation rows must be there; everything else may be missing. Pictures hold
    pixels: they are only read when ``pictures`` says so.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: {'is a file; expected a run folder' if folder.exists() else 'no such run folder'}")
    # a run writes into its own folder, a federation also into one folder per site and per arm
    evaluations = sorted([*folder.glob("evaluate/*.json"), *folder.glob("sites/*/evaluate/*.json")])
    evaluations = [path for path in evaluations if not is_similarity(path)]
    metrics = sorted([*folder.glob("metrics.jsonl"), *folder.glob("sites/*/metrics.jsonl")])
    metrics += sorted([*folder.glob("arms/*/metrics.jsonl"), *folder.glob("sites/*/local/metrics.jsonl")])
    missing = [] if (folder / "config.yaml").is_file() else ["config.yaml"]
    if not metrics and not evaluations:
        missing.append("metrics.jsonl or evaluate/*.json")
    if missing:
        raise ValueError(f"{folder}: not a run folder: it has no {' and no '.join(missing)}{runs_inside(folder)}")
    remarks = read_notices(folder / "notices.txt") + read_verdicts(folder)
    drawn = sorted(folder.glob("pictures/*.png"))
    environment = folder / "environment.json"
    results = {path: read_object(path) for path in evaluations}
    own = {path: tree for path, tree in results.items() if not is_other(path)}
    remarks += [
        f"{path.stem} was measured at {tree['unfinished']}"
        for path, tree in results.items()
        if checked(tree, str(path), {}, {"unfinished": str}).get("unfinished")
    ]
    return Run(
        folder=folder,
        config=read_config(folder / "config.yaml"),
        environment=read_object(environment, optional=ENVIRONMENT) if environment.is_file() else None,
        metrics=read_series(metrics, remarks),
        rows=[row for path, tree in own.items() for row in rows_in(tree, path)],
        pictures=read_pictures(folder / "pictures", drawn) if pictures else [],
        pictures_there=len(drawn),
        remarks=remarks,
        similarity=read_similarity(folder / "evaluate" / SIMILARITY),
        measured={path.stem: hash_of_samples(tree) for path, tree in own.items()},
        others={other_title(tree, path): rows_in(tree, path) for path, tree in results.items() if path not in own},
    )


PROBE = "probe-"  # begins the names of the files of ``sslmed probe``


def runs_inside(folder: Path) -> str:
    """What a message adds where a folder of runs was named in place of a run; empty where it is none."""
    inside = sorted(file.parent.name for file in folder.glob("*/config.yaml"))
    return f"; runs in it: {', '.join(inside[:5])}{' ...' if len(inside) > 5 else ''}" if inside else ""


def hash_of_samples(tree: Tree) -> str:
    """The hash of the samples that a file of rows was measured on; empty in files from before it was there."""
    measured = tree.get("measured_on")
    return str(measured.get("sha256", "")) if isinstance(measured, dict) else ""


def is_similarity(path: Path) -> bool:
    """Whether a file of results holds a histogram: that of the run, or of another question."""
    return path.name == SIMILARITY or path.name.startswith(f"{Path(SIMILARITY).stem}-")


def is_other(path: Path) -> bool:
    """Whether a file of results answers another question than the run's own settings ask: ``sslmed evaluate RUN
    KEY=VALUE``, or ``sslmed probe``."""
    return "@" in path.stem or path.stem.startswith(PROBE)


def other_title(tree: Tree, path: Path) -> str:
    """What such a file was measured on, as the title of a table."""
    if path.stem.startswith(PROBE):
        phantom = " (phantom data)" if tree.get("phantom_data") is True else ""
        return f"what the encoder gives away{phantom}: {path.name}"
    measured = checked(tree, str(path), {"measured_on": dict[str, Any]})["measured_on"]
    where = f"{path}: measured_on"
    data = checked(measured.get("data"), f"{where}: data", {"name": str})
    samples = checked(measured.get("samples"), f"{where}: samples", {"test": int})
    phantom = ", phantom data" if tree.get("phantom_data") is True else ""
    return f"measured otherwise, on {data['name']}{phantom} ({samples['test']} test samples): {path.name}"


def read_notices(path: Path) -> list[str]:
    """What reading the data left aside, guessed or replaced, as the run wrote it down; nothing where it did not.
    ``ValueError`` for a file of more than ``LARGEST_NOTICES`` bytes."""
    if not path.is_file():
        return []
    require_ordinary(path, LARGEST_NOTICES)
    return [f"data: {line}" for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]


def read_verdicts(folder: Path) -> list[str]:
    """What ``sslmed verdict`` found of the run, and how far it was. ``ValueError`` names the file and the field."""
    found = []
    for path in sorted(folder.glob("verdict/*.json")):
        tree = checked(read_object(path), str(path), {"words": str, "done": str})
        found.append(f"verdict after {tree['done']}: {tree['words']}")
    return found


def read_config(path: Path) -> Tree:
    """The resolved configuration as a tree."""
    tree = plain_yaml.read(path)
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: expected the sections of a configuration, got {type(tree).__name__}")
    return checked(tree, str(path), {}, SECTIONS)


def read_rows(path: Path) -> list[Row]:
    """The rows of one evaluation file, each with the file's name; ``ValueError`` names a row and its field."""
    return rows_in(read_object(path), path)


def rows_in(tree: Tree, path: Path) -> list[Row]:
    """``read_rows`` of what the file at ``path`` holds."""
    rows = checked(tree, str(path), {"rows": list[dict[str, Any]]})["rows"]
    for row_number, row in enumerate(rows):
        checked(row, f"{path}: rows[{row_number}]", ROW, ROW_OPTIONAL)
    return [{**row, "file": path.stem} for row in rows]


def read_similarity(path: Path) -> Tree | None:
    """``evaluate/similarity.json``, None where it is not there; ``ValueError`` names the file and the field."""
    if not path.is_file():
        return None
    value = read_object(path, SIMILARITIES)
    for kind, counts in value["counts"].items():
        if len(counts) + 1 != len(value["bins"]):
            raise ValueError(f"{path}: counts.{kind}: {len(counts)} numbers for {len(value['bins'])} edges")
    return value


def read_pictures(folder: Path, drawn: Sequence[Path]) -> list[tuple[str, bytes]]:
    """(caption, PNG bytes) of each picture, in the order of ``captions.json``, then by name."""
    captions = read_captions(folder)
    caption_order = {name: position for position, name in enumerate(captions)}
    pictures = []
    for path in sorted(drawn, key=lambda path: (caption_order.get(path.name, len(caption_order)), path.name)):
        require_ordinary(path, LARGEST_PICTURE)
        data = path.read_bytes()
        if not data.startswith(PNG):
            raise ValueError(f"{path}: not a PNG file")
        pictures.append((str(captions.get(path.name, path.stem)), data))
    return pictures


def read_captions(folder: Path) -> dict[str, str]:
    """``captions.json``: what each picture of the folder shows, by its file name; empty where it is not there."""
    file = folder / "captions.json"
    captions = read_object(file) if file.is_file() else {}
    return checked(captions, str(file), {}, dict.fromkeys(captions, str))


def distinct(folders: Sequence[Path]) -> list[Path]:
    """What each folder of runs is called: its name, and before it as many of the folders above as tell all of them
    apart (``seed-0`` of two tables). ``ValueError`` for a folder that is given twice."""
    parts = [folder.resolve().parts for folder in folders]
    for folder, own in zip(folders, parts, strict=True):
        if parts.count(own) > 1:
            raise ValueError(f"{folder}: this run is named twice; each may be named once")
    depth = 1
    while len({own[-depth:] for own in parts}) < len(parts):
        depth += 1
    return [Path(*own[-depth:]) for own in parts]


def group(runs: Sequence[Run]) -> list[Experiment]:
    """Put runs together that differ only in their seed, in the order given. A run's label is its seed, or its folder
    (``distinct``) where two runs have the same seed or one has none. ``ValueError`` for a run that is there twice."""
    names = {run.folder: str(name) for run, name in zip(runs, distinct([run.folder for run in runs]), strict=True)}
    experiments: dict[str, list[Run]] = {}  # by the configuration without seed and place, as text
    for run in runs:
        shared = config.without(run.config, "experiment")
        experiments.setdefault(json.dumps(shared, sort_keys=True, default=str), []).append(run)
    grouped = []
    for members in experiments.values():
        seeds = [run.seed for run in members]
        seeds_differ = None not in seeds and len(set(seeds)) == len(seeds)
        labels = tuple(f"seed {run.seed}" if seeds_differ else names[run.folder] for run in members)
        grouped.append(Experiment(members[0].name, tuple(members), labels))
    return grouped
