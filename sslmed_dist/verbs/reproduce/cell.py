"""One cell of a published table at one seed: what its run folder holds, its training, its figures.

A *figure* is a number of a table.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslmed_dist import config, run_folder
from sslmed_dist.addresses import is_address
from sslmed_dist.config import Config
from sslmed_dist.downstream import ALL_SITES, rows_of, write_rows
from sslmed_dist.downstream.rows import write_cases
from sslmed_dist.drivers import choice
from sslmed_dist.federation.sites import training_settings
from sslmed_dist.json_files import read_object
from sslmed_dist.report.runs import SIMILARITY, read_rows
from sslmed_dist.training import build, pretrained
from sslmed_dist.training.build import AUTO
from sslmed_dist.training.measuring import arm_predictions
from sslmed_dist.training.stopping import finish
from sslmed_dist.verbs import federate
from sslmed_dist.verbs.analyse.hessian import summary
from sslmed_dist.verbs.diagnose import run as diagnosis
from sslmed_dist.verbs.diagnose.run import MODEL, RESULTS
from sslmed_dist.verbs.diagnose.scoring import ENSEMBLE
from sslmed_dist.verbs.evaluate import own_predictions
from sslmed_dist.verbs.measurement import Measurement
from sslmed_dist.verbs.reproduce import read_table, table
from sslmed_dist.verbs.reproduce.table import Metric
from sslmed_dist.verbs.similarities import similarities

METRICS, HESSIAN = "metrics.jsonl", "hessian.json"
INITIAL = "similarity-initial.json"  # as similarity.json, of the run's own initial weights
FINISHED, BEGUN, MISSING = "finished", "begun, not finished", "not run"


@dataclass(frozen=True)
class Cell:
    """One training: a cell of the table at one seed and, where the table has folds, one fold. ``tables`` is the folder
    in which the table's file lies beside those of other tables."""

    row: str
    column: str
    seed: int
    settings: Config
    metrics: Mapping[str, Metric]
    tables: Path
    fold: int | None = None

    def __str__(self) -> str:
        fold = "" if self.fold is None else f" / fold-{self.fold}"
        return f"{self.row} / {self.column}{fold} / seed-{self.seed}"


def state(cell: Cell) -> str:
    """``finished``, ``begun, not finished`` or ``not run``; after a colon, what is missing before it can be run.
    ``ValueError`` where the cell's folder holds another run."""
    folder = cell.settings.folder
    if (folder / "config.yaml").is_file():
        changed = changes(config.load(folder / "config.yaml"), cell.settings)
        if changed:
            raise ValueError(
                f"{folder}: holds another run than {cell} (different: {', '.join(changed)}); choose another run.dir"
            )
        if complete(folder) and all(file.is_file() for file in results(cell)) and answers(cell):
            return FINISHED
    status, missing = BEGUN if (folder / "config.yaml").is_file() else MISSING, needs(cell)
    return status if missing is None else f"{status}: {missing}"


def answers(cell: Cell) -> bool:
    """Whether what was measured in the cell's folder is what the table asks today: another protocol, or another number
    of samples, is another figure. Where the training itself measures, its settings are those of the run."""
    if cell.settings.diagnose is not None or cell.settings.federated is not None:
        return True
    asked = read_object(cell.settings.folder / "evaluate" / "last.json", optional={"question": dict})
    return asked.get("question") == question(cell)


def question(cell: Cell) -> dict[str, Any]:
    """All that is asked of the trained encoder, as JSON keeps it: section ``evaluate``, and what is measured beside."""
    beside = [dict(it.evaluator) for it in cell.metrics.values() if it.evaluator["name"] in table.BESIDE]
    tree = {"evaluate": config.to_tree(cell.settings)["evaluate"], "beside": beside}
    return dict(json.loads(json.dumps(tree)))


def complete(folder: Path) -> bool:
    """Whether the run in ``folder`` was trained to its end before it was evaluated. ``evaluate`` below notes that in
    its file; ``sslmed evaluate``, which may measure an unfinished run, does not."""
    # The last but the page that a diagnosis writes of its results; what a federation writes of all its arms.
    if (folder / MODEL).is_file() or federate.results(folder).is_file():
        return True
    file = folder / "evaluate" / "last.json"
    return file.is_file() and read_object(file, optional={"complete": bool}).get("complete") is True


def results(cell: Cell) -> set[Path]:
    """The files that the cell's figures are read from."""
    return {file_of(cell, metric) for metric in cell.metrics.values()}


def file_of(cell: Cell, metric: Metric) -> Path:
    """The file that a figure of the cell is read from."""
    if metric.evaluator["name"] == "pretext":
        return cell.settings.folder / METRICS
    if cell.settings.federated is not None:
        return federate.results(cell.settings.folder)
    names = {"similarity": SIMILARITY, "diagnosis": Path(RESULTS).name, "hessian": HESSIAN}
    return cell.settings.folder / "evaluate" / names.get(metric.evaluator["name"], "last.json")


def changes(before: Config, now: Config) -> list[str]:
    """Dotted paths of the keys that make the run ``before``, which a folder holds, another run than ``now``. A value
    that was filled in from the data of ``before`` is no difference where ``now`` leaves it open, and the epochs of a
    federation are those of its rounds."""
    if now.federated is not None:
        now = training_settings(now)
    for section, key in (path.split(".") for path, freedom in config.FREEDOM.items() if freedom.resolved):
        value_now, value_before = getattr(now, section).get(key), getattr(before, section).get(key)
        if value_now is None and value_before is not None:
            now = config.replace(now, **{section: {key: value_before}})
    undecided = [key for key in AUTO if getattr(now.plan, key) == "auto"]
    now = config.replace(now, plan={key: getattr(before.plan, key) for key in undecided})
    if config.fingerprint(before) == config.fingerprint(now):
        return []
    return run_folder.differences(config.essential(before), config.essential(now))


def starts(settings: Config) -> list[str]:
    """The run folders that a cell, or the parts of its diagnosis, start from, each once."""
    parts = settings.diagnose.parts.values() if settings.diagnose is not None else ()
    of_parts = [part.get("run", {}).get("start_from") for part in parts]
    return list(dict.fromkeys(start for start in [settings.run.start_from, *of_parts] if start is not None))


def shortened(cell: Cell, start: str) -> list[str]:
    """For a cell that starts from the encoder of another table's cell, in the run folder ``start``: dotted paths of the
    keys in which that encoder's run differs from the other table as published (fewer epochs, say). Empty where that
    table is not at hand."""
    if not (Path(start) / "config.yaml").is_file():
        return []
    # The run's folder is .../TABLE/ROW/COLUMN/[fold-K/]seed-N.
    folders = [part for part in Path(start).parts[:-1] if not part.startswith("fold-")]
    name, row, column = folders[-3:]
    file = cell.tables / f"{name}.yaml"
    if not file.is_file():
        return []
    published = read_table.load(file).settings(row, column, [f"run.seed={cell.seed}"], fold=cell.fold)
    return changes(config.load(Path(start) / "config.yaml"), published)


def needs(cell: Cell) -> str | None:
    """What is missing before the cell can run, in words; None where nothing is."""
    data, missing = cell.settings.data, [start for start in starts(cell.settings) if not complete(Path(start))]
    if missing:
        return f"needs the finished {'run' if len(missing) == 1 else 'runs'} {', '.join(missing)}"
    if "root" in data and not is_address(str(data["root"])) and not Path(str(data["root"])).expanduser().exists():
        return f"no data at {data['root']} (--root {data['name']}=PATH)"
    return None


def train(cell: Cell) -> None:
    """Train one cell to its end by its own driver; a diagnosis as ``sslmed diagnose`` does and a federation as ``sslmed
    federate`` does, which measure it, too. ``Stopped`` if it was stopped before."""
    settings = cell.settings
    if settings.diagnose is not None:
        diagnosis.run(settings)
        return
    if settings.federated is not None:
        federate.run(settings)
        return
    if not complete(settings.folder):  # else only another question is asked of it
        finish(choice.train(settings) is not None)


def evaluate(cell: Cell) -> None:
    """Write ``evaluate/last.json`` with the encoder's rows, and the similarities where the table asks for them.

    The random encoder and the floors, which ``sslmed evaluate`` adds, are left out: the raw pixels of large images
    would take more memory than the table is worth. The section ``evaluate`` and the data path are those of the cell,
    not those that the checkpoint remembers.
    """
    settings, folder = cell.settings, cell.settings.folder
    if settings.diagnose is not None or settings.federated is not None:
        return  # measured where it was trained
    trained = pretrained.load(folder)
    data_path = {"data": {"root": settings.data["root"]}} if "root" in settings.data else {}
    # Whole, not merged: of the checkpoint's ``evaluate.data`` no key stays that the cell does not have.
    measured_as = dataclasses.replace(config.replace(trained.settings, **data_path), evaluate=settings.evaluate)
    trained = dataclasses.replace(trained, settings=measured_as)
    asked = Measurement(folder, "last", "encoder", trained, trained.settings)
    dataset, parts = asked.data
    predictions = own_predictions(trained, dataset, parts)
    if settings.evaluate.protocols:
        predictions |= arm_predictions(trained.settings, trained.encoder, dataset, parts)
    write_cases(folder / "evaluate" / "last-cases.csv", {"encoder": predictions})
    rows = rows_of(predictions, arm="encoder", site=ALL_SITES, seed=cell.seed)
    source = {"file": trained.file.name, "sha256": trained.sha256, "part": "encoder"}
    if any(metric.evaluator["name"] == "similarity" for metric in cell.metrics.values()):
        similarities(asked, SIMILARITY)
        first = pretrained.first_method(trained.settings).encoder.float().eval()
        similarities(dataclasses.replace(asked, trained=dataclasses.replace(trained, encoder=first)), INITIAL)
    for leaf in (metric.evaluator for metric in cell.metrics.values() if metric.evaluator["name"] == "hessian"):
        options = {key: value for key, value in leaf.items() if key != "name"}
        run_folder.write_json(folder / "evaluate" / HESSIAN, summary(folder, settings.data.get("root"), **options))
    write_rows(folder / "evaluate" / "last.json", rows, encoder=source, complete=True, question=question(cell))


def measured(cell: Cell, metric: Metric) -> float | None:
    """The figure of the encoder, over all sites that of the federated one, or of the diagnosis' arm, in the cell's
    folder, times 100 where it is a per cent; None if not there."""
    file, value = file_of(cell, metric), None
    if not file.is_file():
        return None
    if file.name == METRICS:  # the last line that says it
        values = [line["value"] for line in run_folder.Metrics(file).read() if line["name"] == metric.name]
        value = values[-1] if values else None
    elif file.name in (SIMILARITY, HESSIAN):  # the figure stands at the top of the file; all else is a row
        value = read_object(file, optional={metric.name: float | None}).get(metric.name)
    else:
        asked = (arm_of(cell, metric), ALL_SITES, title_of(cell, metric), metric.name)
        for row in read_rows(file):
            if (row["arm"], row["site"], row["evaluator"], row["metric"]) == asked:
                value = row["value"]
    return None if value is None else float(value) * (100 if metric.percent else 1)


def arm_of(cell: Cell, metric: Metric) -> str:
    """What the metric's encoder, or its part of a diagnosis, is called in the rows."""
    if metric.evaluator["name"] == "diagnosis":
        return str(metric.evaluator.get("arm", ENSEMBLE))
    return "encoder" if cell.settings.federated is None else "federated"


def title_of(cell: Cell, metric: Metric) -> str:
    """What the metric's evaluator is called in the rows; see ``training.build.build_evaluators``."""
    if metric.evaluator["name"] in table.BESIDE:
        return str(metric.evaluator["name"])
    # ``build_evaluators`` keeps the order of the protocols.
    protocols = [dict(leaf) for leaf in cell.settings.evaluate.protocols]
    return list(build.build_evaluators(cell.settings))[protocols.index(dict(metric.evaluator))]
