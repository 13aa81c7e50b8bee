"""What an export says of itself: ``description`` for programs, ``card_text`` (a model card) for people.

No path is in either: of a file of first weights only its name.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sslmed_dist import config, outputs
from sslmed_dist.downstream.rows import ALL_SITES
from sslmed_dist.json_files import read_object
from sslmed_dist.printable import as_markdown, plural, without_folders
from sslmed_dist.report.page import INTERVAL
from sslmed_dist.report.plain import PHANTOM
from sslmed_dist.run_folder import phantom_data
from sslmed_dist.sections import is_phantom
from sslmed_dist.training.pretrained import SCALE, Part, Pretrained

NOT_STATED = "not stated; ask whoever holds the rights before you pass this on"
LIMITS = (
    "The figures hold for the data that they were measured on, as named above, and for no other scanner, hospital, "
    "population or image size. Measure again on your own.",
    "Features are no diagnosis. Nothing here was tested on the people whom a decision would concern.",
    "An encoder remembers something of its training images: `sslmed probe` measures how well membership can be told.",
    "Images must be prepared as under Input. Another size or scale gives other features, without an error.",
)


def description(trained: Pretrained, part: Part, licence: str | None, data_licence: str | None) -> dict[str, Any]:
    """The JSON file of an export: what ``training.pretrained.load_described`` reads, where the weights come from, on
    what they were trained (``data``: name, count and digest of the samples, licence) and what was measured
    (``figures``, see ``figure_rows``). A licence that nobody stated is null."""
    settings, views = trained.settings, trained.settings.views
    scale = {"size": views["size"], "mean": views["mean"], "std": views["std"], "scale": SCALE}
    if views.get("pixel_mm") is not None:
        scale["pixel_mm"] = views["pixel_mm"]
    samples = dict(trained.samples or {})
    return {
        outputs.MARK: outputs.EXPORT,
        "architecture": without_folders(settings.method["encoder"]),
        "channels": settings.method["channels"],
        "feature_dim": trained.encoder.feature_dim,
        "input": scale,
        "method": without_folders(settings.method),
        "part": part,
        "source_sha256": trained.sha256,
        "unfinished": trained.unfinished,
        "licence": licence,
        "data": {
            "name": settings.data.get("name"),
            "samples": samples.get("count"),
            "digest": samples.get("digest"),
            "digest_covers_content": samples.get("content"),
            "phantoms": phantoms(trained),
            "licence": data_licence,
        },
        "figures": figure_rows(trained),
        "use": outputs.RESEARCH,
    }


def phantoms(trained: Pretrained) -> bool | None:
    """Whether the training data was generated: from the run's ``environment.json``, its settings or its data. None
    where nothing says so: of weights without a run."""
    file = run_of(trained) / "environment.json"
    environment = read_object(file) if file.is_file() else {}
    if not trained.settings.data:
        return None
    return is_phantom(config.to_tree(trained.settings), environment) or phantom_data(trained.settings)


def run_of(trained: Pretrained) -> Path:
    """The run folder that a checkpoint lies in; another folder, which is none, for any other file."""
    return trained.file.parent.parent


def figure_files(trained: Pretrained) -> list[Path]:
    """The results of ``evaluate`` on this very checkpoint: their SHA-256 says so, not their names."""
    found = []
    for file in sorted((run_of(trained) / "evaluate").glob("*.json")):
        tree = read_object(file)
        if isinstance(tree.get("rows"), list) and (tree.get("encoder") or {}).get("sha256") == trained.sha256:
            found.append(file)
    return found


def card_text(name: str, facts: Mapping[str, Any], trained: Pretrained, loading: Sequence[str]) -> str:
    """The model card as Markdown. Its head is YAML, as model hubs read it. ``loading``: lines of code that load it."""
    data, scale = facts["data"], facts["input"]
    head = {
        outputs.MARK: outputs.EXPORT,
        "license": facts["licence"] or "unknown",
        "library_name": "sslmed-dist",
        "tags": ["self-supervised", "image-feature-extraction", str(facts["method"].get("name"))],
    }
    digest = "not known" if data["digest"] is None else f"SHA-256 {data['digest']}"
    covers = {True: "content included", False: "names and sizes of files, not their content", None: "unknown"}
    lines = [
        "---",
        *(f"{key}: {json.dumps(value)}" for key, value in head.items()),
        "---",
        "",
        f"# {as_markdown(name)}",
    ]
    lines += ["", f"**{outputs.RESEARCH}**"]
    lines += ["", f"**{PHANTOM}**"] if data["phantoms"] else []
    lines += ["", f"**Not finished: {trained.unfinished}.**"] if trained.unfinished else []
    lines += ["", "## What it is", ""]
    lines += [
        f"- encoder: `{json.dumps(facts['architecture'])}`, {facts['feature_dim']} features, part `{facts['part']}`",
        f"- method: `{json.dumps(named(facts['method']))}`",
        f"- made from the checkpoint with SHA-256 `{facts['source_sha256']}`",
        f"- licence of the weights: {as_markdown(facts['licence'] or NOT_STATED)}",
    ]
    lines += ["", "## Training data", ""]
    count = "an unknown number of samples" if data["samples"] is None else plural(data["samples"], "sample")
    lines += [
        f"- dataset `{data['name']}`, {count}",
        f"- digest of ids, labels and files: {digest} ({covers[data['digest_covers_content']]})",
        f"- licence of the data: {as_markdown(data['licence'] or NOT_STATED)}",
    ]
    lines += ["", "## Input", "", f"Channels: {facts['channels']}; {scale['size']} x {scale['size']} pixels, "]
    lines[-1] += f"values scaled to [0, 1], then (x - mean) / std with mean {scale['mean']} and std {scale['std']}."
    lines += ["", "## Loading", "", *(f"    {line}" for line in loading)]
    lines += ["", "## Figures", "", *figures(trained)]
    lines += ["", "## Limits", "", *(f"- {limit}" for limit in LIMITS), ""]
    return "\n".join(lines)


def named(method: Mapping[str, Any]) -> dict[str, Any]:
    """The method's leaf without its encoder, which the card has in a line of its own."""
    return {key: value for key, value in method.items() if key != "encoder"}


def figure_rows(trained: Pretrained) -> list[dict[str, Any]]:
    """The rows of ``evaluate`` on this checkpoint, each with what it was measured on. Those of single sites are left
    out: their names are the sites' own affair."""
    rows = []
    for file in figure_files(trained):
        tree = read_object(file)
        measured = tree.get("measured_on") or {}
        on = {"measured_on": (measured.get("data") or {}).get("name"), "samples": measured.get("samples")}
        rows += [{**row, **on} for row in tree["rows"] if row.get("site") == ALL_SITES]
    return rows


def figures(trained: Pretrained) -> list[str]:
    """What was measured, with intervals and the floors beside it, as a table; or that nothing was."""
    rows = figure_rows(trained)
    if not rows:
        return ["Not measured: `sslmed evaluate` has no results of this checkpoint."]
    lines = [
        "| measured on | evaluator | measure | of | value [5 %, 95 %] | n | patients | remarks |",
        "|" + " --- |" * 8,
    ]
    for row in rows:
        low, high = row.get("low"), row.get("high")
        interval = "" if low is None or high is None else f" [{low:.4g}, {high:.4g}]"
        value = "not defined" if row.get("value") is None else f"{row['value']:.4g}{interval}"
        of = [as_markdown(str(row[key])) for key in ("measured_on", "evaluator", "metric", "arm")]
        cells = (*of, value, str(row.get("n")), str(row.get("groups")), as_markdown(row.get("note") or ""))
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"{INTERVAL}. `random` and `raw_pixels` are floors: what the same evaluator makes of an untrained"]
    lines[-1] += " encoder, and of the pixels themselves. A difference is paired."
    return lines
