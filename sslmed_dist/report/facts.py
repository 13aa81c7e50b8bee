"""What was run, in words: the lines under the title, and the curves that the metrics hold."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sslmed_dist import plain_yaml
from sslmed_dist.printable import without_folders
from sslmed_dist.report.plots import Curve
from sslmed_dist.report.runs import Experiment, Tree
from sslmed_dist.report.series import AXES, Series

CURVES = {
    "loss": "Training loss",
    "embedding_std": "Embedding spread (0 collapsed, 1 isotropic)",
    "effective_rank": "Effective rank of the embeddings",
    "uniformity": "Uniformity (0 collapsed, lower is better)",
    "alignment": "Alignment of the two views (lower is closer)",
    "knn_accuracy": "Nearest neighbours while training (accuracy on training images: a guide)",
}
POINTS = 300  # the most points of a curve; more cannot be told apart at its size


def facts(experiment: Experiment) -> list[tuple[str, str]]:
    """(name, value) lines: method, data, encoder, training, federation, seeds, machine, software, date."""
    config = experiment.config
    method = leaf(config.get("method"))
    environment = next((run.environment for run in experiment.runs if run.environment), None)
    lines = [
        ("Method", words({key: value for key, value in method.items() if key not in ("encoder", "head")})),
        ("Data", words({key: value for key, value in leaf(config.get("data")).items() if key != "root"})),
        ("Encoder", words(method.get("encoder")) or "the method's own"),
        ("Training", training(config)),
    ]
    federated = config.get("federated")
    if isinstance(federated, Mapping):
        shown = f"{federated.get('rounds')} rounds of {federated.get('local_epochs', 1)} local epochs"
        noise = f"; noise: {words(federated['privacy'])}" if federated.get("privacy") else ""
        lines.append(("Federation", f"{shown}, {words(federated.get('strategy'))}; {sites(federated)}{noise}"))
    lines.append(("Runs", ", ".join(experiment.labels)))
    files = {name for run in experiment.runs for name in run.measured}
    known = {name: {run.measured[name] for run in experiment.runs if run.measured.get(name)} for name in files}
    if any(len(hashes) > 1 for hashes in known.values()):
        lines.append(("Caution", "the runs were measured on different samples: a mean over them answers no question"))
    if environment is None:
        return [*lines, ("Machine", "not recorded (no environment.json)")]
    lines.append(("Machine", machine(environment)))
    lines.append(("Software", software(environment)))
    dates = sorted({str(run.environment.get("date")) for run in experiment.runs if run.environment})
    return [*lines, ("Date", ", ".join(date for date in dates if date != "None") or "not recorded")]


def sites(federated: Mapping[str, Any]) -> str:
    """Where the sites' samples are from: their own, where the sites have names, else the parts of one set."""
    names = federated.get("site_names")
    if names:
        return f"sites with data of their own: {', '.join(map(str, names))}"
    return f"simulated sites: {words(federated.get('partition'))}"


def leaf(value: Any) -> Mapping[str, Any]:
    """A leaf as a mapping, whether it was written out or only named."""
    return value if isinstance(value, Mapping) else ({} if value is None else {"name": value})


def words(value: Any) -> str:
    """A leaf in words: ``resnet (depth 18, width 64)``; paths lose their folders."""
    if isinstance(value, Mapping):
        name = value.get("name")
        rest = [f"{key} {words(item)}" for key, item in value.items() if key != "name" and item is not None]
        return f"{name} ({', '.join(rest)})" if name and rest else str(name or ", ".join(rest))
    if isinstance(value, (list, tuple)):
        return "-".join(words(item) for item in value)
    return "" if value is None else str(without_folders(value))


def training(config: Tree) -> str:
    """Epochs, batch, optimiser, precision."""
    plan, parts = leaf(config.get("plan")), []
    if not isinstance(config.get("federated"), Mapping) and "epochs" in plan:
        parts.append(f"{plan['epochs']} epochs")
    if plan.get("steps_per_epoch"):
        parts.append(f"{plan['steps_per_epoch']} steps an epoch")
    if "batch_size" in plan:
        parts.append(f"batch {plan['batch_size']}")
    if config.get("optim") is not None:
        parts.append(words(config["optim"]))
    return ", ".join([*parts, str(plan["precision"])] if "precision" in plan else parts) or "not stated"


def machine(environment: Tree) -> str:
    """Processor, cores and GPU."""
    cores = environment.get("cores")
    parts = [environment.get("gpu"), environment.get("processor"), f"{cores} cores" if cores else None]
    return ", ".join(str(part) for part in parts if part) or "not recorded"


def software(environment: Tree) -> str:
    """Versions of this package, Python and the packages underneath."""
    packages = environment.get("packages") or {}
    versions = {"sslmed_dist": environment.get("sslmed_dist"), "Python": environment.get("python"), **packages}
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version) or "not recorded"


def config_text(config: Tree) -> str:
    """The configuration as YAML, with paths shortened."""
    return plain_yaml.write(without_folders(config))


def curve_lines(experiment: Experiment, name: str, arm: str | None = None) -> tuple[list[Curve], str]:
    """(curves, x name): the curves of one measure of one arm (None: the run itself), one for each site, and what x is:
    ``step``, ``round`` or ``epoch``."""
    wanted = [
        {key: series for key, series in run.metrics.items() if (key.name, key.arm) == (name, arm)}
        for run in experiment.runs
    ]
    x_name = abscissa([series for of_run in wanted for series in of_run.values()])
    if x_name is None:
        return [], "step"
    # by the curve's label: the points of each run
    curves: dict[str, list[tuple[list[float], list[float]]]] = {}
    for of_run in wanted:
        for key, series in of_run.items():
            label = ", ".join(part for part in (key.site, key.split) if part) or "run"
            curves.setdefault(label, []).append(thinned(series.axes[x_name], series.values))
    return [Curve(label, tuple(runs)) for label, runs in curves.items()], x_name


def other_arms(experiment: Experiment) -> list[str]:
    """The arms besides the run itself that have curves of their own."""
    return list(dict.fromkeys(key.arm for run in experiment.runs for key in run.metrics if key.arm))


def abscissa(series: Sequence[Series]) -> str | None:
    """The finest of ``AXES`` that every series has; None if there is none."""
    return next((name for name in AXES if series and all(name in one.axes for one in series)), None)


def thinned(xs: Sequence[float], ys: Sequence[float]) -> tuple[list[float], list[float]]:
    """(xs, ys) in the order of x: at most ``POINTS`` points, each the mean of as many neighbouring points."""
    x, y = np.asarray(xs, dtype=np.float64), np.asarray(ys, dtype=np.float64)
    order = np.lexsort((y, x))
    starts = np.arange(0, len(x), -(-len(x) // POINTS))  # a series has a value at least
    counts = np.diff(starts, append=len(x))
    mean_x, mean_y = ((np.add.reduceat(one[order], starts) / counts).tolist() for one in (x, y))
    return mean_x, mean_y


def last_values(experiment: Experiment) -> list[tuple[str, str]]:
    """The last value of every measure of the run itself, for each of the runs: (name, text)."""
    lasts: dict[str, dict[int, Series]] = {}  # by measure and run, the series that was written to last
    for run_index, run in enumerate(experiment.runs):
        for key, series in run.metrics.items():
            if key.arm is None:
                of_name = lasts.setdefault(key.name, {})
                of_name[run_index] = max(of_name.get(run_index, series), series, key=lambda one: one.last_row)
    return [(name, ", ".join(f"{series.values[-1]:.4g}" for series in of.values())) for name, of in lasts.items()]
