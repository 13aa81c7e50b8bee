"""The report as one HTML page: no script, no external file; light and dark; readable on a phone."""

import base64
from collections.abc import Sequence

from sslmed_dist.outputs import PAGE_BEGIN, RESEARCH
from sslmed_dist.printable import as_html
from sslmed_dist.report import facts, plots, tables, wording
from sslmed_dist.report.plots import Dot
from sslmed_dist.report.results import Results
from sslmed_dist.report.runs import Experiment
from sslmed_dist.report.style import STYLE, arm_class
from sslmed_dist.report.table_html import scrolling, table_html
from sslmed_dist.report.tables import Table
from sslmed_dist.report.wording import Column

CAUTION = f"<p class='banner caution'><strong>{RESEARCH}</strong></p>"  # where a page shows single patients
PHANTOM = (
    "<p class='banner phantom'><strong>Phantom data.</strong> Generated pictures, no patients. "
    "The numbers show that the software works, nothing more.</p>"
)
INTERVAL = "value [5 %, 95 %]: percentile bootstrap over patients, over samples where patients are not known"
OVER_SEEDS = "mean \N{PLUS-MINUS SIGN} standard deviation over runs; small strokes are single runs"


def html(title: str, experiments: Sequence[Experiment], results: Sequence[Results], *, pictures: bool) -> str:
    """The whole page; ``results`` are those of each of the experiments."""
    top = [PHANTOM] if any(experiment.phantom for experiment in experiments) else []
    top.append(f"<nav aria-label='parts of the page'>{navigation(experiments)}</nav>")
    body = [
        section(experiment, found, index, alone=len(experiments) == 1, pictures=pictures)
        for index, (experiment, found) in enumerate(zip(experiments, results, strict=True))
    ]
    return frame(title, "report", top, body)


def frame(title: str, kind: str, top: Sequence[str], body: Sequence[str]) -> str:
    """A whole page; every one says what it is not. ``kind`` is what it is (``report``). ``top`` stands under the title,
    above ``body``; both are HTML."""
    return (
        f"{PAGE_BEGIN}"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        "<meta name='color-scheme' content='light dark'>"
        f"<title>{as_html(title)}</title><style>{STYLE}</style></head>\n<body>"
        f"<header><p class='kicker'>sslmed-dist {kind}</p><h1>{as_html(title)}</h1>{''.join(top)}</header>"
        f"<main>{''.join(body)}</main><footer><p>{RESEARCH}</p></footer></body></html>\n"
    )


def section(experiment: Experiment, results: Results, index: int, *, alone: bool, pictures: bool) -> str:
    """One experiment."""
    heading = "" if alone else f"<h2 class='experiment'>{as_html(experiment.name)}</h2>"
    lines = "".join(f"<dt>{as_html(k)}</dt><dd>{as_html(v)}</dd>" for k, v in facts.facts(experiment))
    several = len(experiment.runs) > 1
    others = "".join(table_html(table) for table in results.others)
    # each part is a block with an anchor for ``navigation``
    parts = {
        "results": headline(results) + evaluation(results, several) + others + similarity(experiment),
        "training": training(experiment),
        "pictures": sheets(experiment, pictures),
        "notes": small_print(experiment, results),
    }
    divided = "".join(f"<div id='{name}-{index}'>{part}</div>" for name, part in parts.items())
    return f"<section id='experiment-{index}'>{heading}<dl class='facts'>{lines}</dl>{divided}</section>"


def navigation(experiments: Sequence[Experiment]) -> str:
    """Links to the parts of the page: of the only experiment, or to each of several experiments."""
    if len(experiments) > 1:
        return "".join(
            f"<a href='#experiment-{i}'>{as_html(experiment.name)}</a>" for i, experiment in enumerate(experiments)
        )
    parts = {"results": "Results", "training": "Training", "pictures": "Pictures", "notes": "Notes and configuration"}
    return "".join(f"<a href='#{name}-0'>{text}</a>" for name, text in parts.items())


def headline(results: Results) -> str:
    """One tile per arm with its value in the first measure that is plotted; nothing without one."""
    table = results.own[0] if results.own else None
    columns = tables.plotted_columns(table.columns) if table else ()
    if table is None or not columns:
        return ""
    column = columns[0]
    tiles = []
    for arm in table.arms:
        value, spread = tables.cell_text(table.cells.get((arm, column)), column[1])
        tiles.append(
            f"<li class='{arm_class(arm)}'><span>{as_html(wording.arm_name(arm))}</span>"
            f"<strong>{as_html(value)}</strong><small>{as_html(spread)}</small></li>"
        )
    spread = (
        "mean \N{PLUS-MINUS SIGN} sd over runs"
        if any(c.sd is not None for c in table.cells.values())
        else "[5 %, 95 %]"
    )
    parts = (wording.column_name(column), wording.site_name(table.title).lower(), spread)
    where = " \N{MIDDLE DOT} ".join(parts)
    return f"<h2>At a glance</h2><p class='lead'>{as_html(where)}</p><ul class='tiles'>{''.join(tiles)}</ul>"


def evaluation(results: Results, several: bool) -> str:
    """Forest plots, then the tables, then the differences of arms. ``several``: the runs are more than one."""
    if not results.sites:
        return "<h2>Evaluation</h2><p class='absent'>Evaluation: not run.</p>"
    parts = ["<h2>What the encoders are worth</h2>", "<div class='figures'>"]
    for column in tables.plotted_columns(results.sites[0].columns):
        parts.append(forest(results.sites, column))
    parts.append(f"</div><p class='hint'>{OVER_SEEDS if several else INTERVAL}.</p>")
    parts += [table_html(table) for table in results.own]
    differences = results.differences
    if differences:
        columns = tables.plotted_columns(differences.columns)
        plotted = (forest(results.site_differences, column, zero=True) for column in columns)
        parts.append(f"<div class='figures'>{''.join(plotted)}</div>{table_html(differences)}")
    return "".join(parts)


def forest(sites: Sequence[Table], column: Column, *, zero: bool = False) -> str:
    """One forest plot of a column: a block per site."""
    # shares are plotted in per cent
    scale = 100 if wording.in_percent(column[1]) else 1

    def scaled(value: float | None) -> float | None:
        return None if value is None else scale * value

    blocks = {}
    for table in sites:
        dots = []
        for arm in table.arms:
            cell = table.cells.get((arm, column))
            if cell is None:
                continue
            values = [scale * row["value"] for _, row in cell.each if row["value"] is not None]
            # the bar: the bootstrap interval of a single run, or one standard deviation over several
            low, high = scaled(cell.low), scaled(cell.high)
            if cell.sd is not None and cell.value is not None:
                low, high = scale * (cell.value - cell.sd), scale * (cell.value + cell.sd)
            each = tuple(values) if len(cell.each) > 1 else ()
            dots.append(Dot(wording.arm_name(arm), arm, scaled(cell.value), low, high, each))
        if dots:
            blocks[wording.site_name(table.title)] = dots
    name = wording.column_name(column)
    return figure(
        plots.forest(blocks, zero=zero),
        f"{'Difference in ' if zero else ''}{name}",
        f"forest plot of {name} by site and arm",
    )


def similarity(experiment: Experiment) -> str:
    """Histograms of the cosine similarity of pairs, a picture for each run that has them; nothing where none has."""
    parts, means = [], []
    for label, run in zip(experiment.labels, experiment.runs, strict=True):
        if run.similarity is None:
            continue
        edges, counts = run.similarity["bins"], run.similarity["counts"]
        named = {wording.KIND_NAMES.get(kind, kind): values for kind, values in counts.items()}
        pair = plots.histograms(edges, named, "cosine similarity of features")
        parts.append(figure(pair, f"Similarity of pairs, {label}", "histograms of cosine similarity by kind of pair"))
        means.append(f"<p class='hint'>{as_html(wording.similarity(run.similarity))} ({as_html(label)}).</p>")
    shown = f"<div class='figures'>{''.join(parts)}</div>{''.join(means)}"
    return f"<h2>Similarity of pairs</h2>{shown}" if parts else ""


def training(experiment: Experiment) -> str:
    """Curves of the loss and of the measures of collapse, folded away those of other arms, and the last values."""
    parts = ["<h2>Training</h2>"]
    # measures that no run recorded are named, so that a reader does not look for them
    drawn, absent = [], []
    for name, title in facts.CURVES.items():
        lines, x_name = facts.curve_lines(experiment, name)
        if lines:
            drawn.append(figure(plots.curves(lines, x_name), title, f"{title} by {x_name}"))
        else:
            absent.append(name)
    if drawn:
        parts.append(f"<div class='figures'>{''.join(drawn)}</div>")
        if len(experiment.runs) > 1:
            parts.append("<p class='hint'>Thin lines are single runs, thick ones their mean.</p>")
    if absent:
        parts.append(f"<p class='absent'>Not run: {', '.join(absent)} (not in metrics.jsonl).</p>")
    for arm in facts.other_arms(experiment):
        name = wording.arm_name(arm)
        others = []
        for measure in ("loss", "effective_rank"):
            lines, x_name = facts.curve_lines(experiment, measure, arm)
            title = f"{facts.CURVES[measure]}, {name}"
            others += [figure(plots.curves(lines, x_name), title, f"{title} by {x_name}")] if lines else []
        parts.append(
            f"<details><summary>Curves: {as_html(name)}</summary><div class='figures'>{''.join(others)}</div></details>"
        )
    last = facts.last_values(experiment)
    if last:
        rows = "".join(
            f"<tr><th scope='row'>{as_html(name)}</th><td>{as_html(value)}</td></tr>" for name, value in last
        )
        table = scrolling(f"<table class='plain'>{rows}</table>", "last values")
        parts.append(f"<details><summary>Last values of all measures</summary>{table}</details>")
    return "".join(parts)


def sheets(experiment: Experiment, pictures: bool) -> str:
    """Views and nearest neighbours, where ``pictures`` asks for them; else how many there are, and where."""
    count = sum(run.pictures_there for run in experiment.runs)
    if not count:
        return f"<h2>Pictures</h2><p class='absent'>{wording.NO_PICTURES}</p>"
    if not pictures:
        return f"<h2>Pictures</h2><p class='absent'>{wording.left_out(count)}</p>"
    shown = [
        f"<figure class='sheet'>{scrolling(image(data, caption), caption)}"
        f"<figcaption>{as_html(caption)}</figcaption></figure>"
        for run in experiment.runs
        for caption, data in run.pictures
    ]
    warning = (
        "<p class='banner caution'>This page holds image pixels. It belongs to the site that made it: "
        "do not send it out. The single files are in the folder pictures/ of each run.</p>"
    )
    return f"<h2>Pictures</h2>{warning}{''.join(shown)}"


def small_print(experiment: Experiment, results: Results) -> str:
    """Notes, remarks and the configuration, folded away."""
    parts = ["<h2>Notes and configuration</h2>"]
    notes = tables.notes(results.noted)
    if notes:
        items = (f"<li><b>{as_html(note)}</b>: {as_html('; '.join(places))}</li>" for note, places in notes.items())
        parts.append(f"<details><summary>Notes of the evaluators</summary><ul>{''.join(items)}</ul></details>")
    remarks = [f"{run.folder.name}: {remark}" for run in experiment.runs for remark in run.remarks]
    parts += [f"<p class='hint'>{as_html(remark)}</p>" for remark in remarks]
    text = keep_lines(facts.config_text(experiment.config))
    parts.append(f"<details><summary>Configuration (paths shortened)</summary><pre>{text}</pre></details>")
    return "".join(parts)


def keep_lines(text: str) -> str:
    """A text of several lines as HTML."""
    return "\n".join(as_html(line) for line in text.splitlines())


def figure(pair: tuple[bytes, bytes], caption: str, alternative: str) -> str:
    """A plot, ``pair`` being its PNG for a light and for a dark page; the reader's colour scheme decides."""
    light, dark = (f"data:image/png;base64,{base64.b64encode(data).decode()}" for data in pair)
    return (
        f"<figure><figcaption>{as_html(caption)}</figcaption><picture>"
        f"<source srcset='{dark}' media='(prefers-color-scheme: dark)'>"
        f"<img src='{light}' alt='{as_html(alternative)}'></picture></figure>"
    )


def image(data: bytes, alternative: str) -> str:
    """An embedded PNG."""
    encoded = base64.b64encode(data).decode()
    return f"<img src='data:image/png;base64,{encoded}' alt='{as_html(alternative)}'>"
