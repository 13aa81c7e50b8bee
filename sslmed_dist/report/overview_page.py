"""The page over all runs as HTML: a table that is whole without its script, which only sorts and filters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sslmed_dist.printable import as_html, plural
from sslmed_dist.report.page import PHANTOM, frame

WIDE, HIGH = 96, 28  # pixels of a curve of the loss
MOST_POINTS = 60

# Rows keep the values that they are sorted by in data-key; the button of a column's head says by aria-sort how it is
# sorted now. What the filter leaves is said to screen readers by the line above the table.
SCRIPT = """<script>
(() => {
  const table = document.getElementById('runs'), body = table.tBodies[0], rows = [...body.rows];
  const said = document.getElementById('count'), field = document.getElementById('filter');
  const filter = () => {
    const words = field.value.toLowerCase().split(/\\s+/).filter(Boolean);
    let left = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every(word => text.includes(word));
      left += !row.hidden;
    }
    said.textContent = left + ' of ' + rows.length + ' runs';
  };
  const sort = button => {
    const head = button.closest('th'), column = head.cellIndex;
    const down = head.getAttribute('aria-sort') === 'ascending';
    for (const other of table.tHead.rows[0].cells) other.removeAttribute('aria-sort');
    head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
    const key = row => row.cells[column].dataset.key ?? row.cells[column].textContent;
    const numeric = button.dataset.kind === 'number';
    const compare = (a, b) => {
      if (key(a) === '' || key(b) === '') return (key(a) === '') - (key(b) === '');
      const order = numeric ? key(a) - key(b) : key(a).localeCompare(key(b), undefined, {numeric: true});
      return down ? -order : order;
    };
    body.append(...rows.sort(compare));
  };
  for (const button of table.tHead.querySelectorAll('button')) {
    button.disabled = false;
    button.addEventListener('click', () => sort(button));
  }
  document.getElementById('tools').hidden = false;
  field.addEventListener('input', filter);
  filter();
})();
</script>"""


@dataclass(frozen=True)
class Figure:
    """A run's figure: the ``value`` that it is sorted by, its text, its interval, and the floors beside it."""

    value: float
    text: str
    spread: str
    floors: Sequence[str]


@dataclass(frozen=True)
class Line:
    """A run on the page. ``link``: of its report, None where it has none. ``loss``: its values in order. ``figures``:
    one for each measure, None where it was not measured. ``related``: (what it is to this run, name) of other runs."""

    name: str
    link: str | None
    phantom: bool
    method: str
    data: str
    encoder: str
    training: str
    date: str
    loss: Sequence[float]
    figures: Sequence[Figure | None]
    arms: Sequence[str]
    related: Sequence[tuple[str, str]]


def html(title: str, measures: Sequence[str], lines: Sequence[Line], unread: Mapping[str, str]) -> str:
    """The whole page. ``unread``: by the name of a run that cannot be read, why."""
    top = [PHANTOM] if any(line.phantom for line in lines) else []
    tools = (
        "<p id='tools' class='tools' hidden><label for='filter'>Filter</label> "
        "<input id='filter' type='search' placeholder='words of a row'></p>"
        f"<p id='count' class='lead' role='status'>{plural(len(lines), 'run')}</p>"
    )
    heads = [("run", "text"), ("method", "text"), ("data", "text"), ("loss, last", "number")]
    heads += [(name, "number") for name in measures] + [("date", "text"), ("training", "text")]
    cells = "".join(
        f"<th scope='col'><button type='button' data-kind='{kind}' disabled>{as_html(name)}</button></th>"
        for name, kind in heads
    )
    body = "".join(row(line, index, lines) for index, line in enumerate(lines))
    table = (
        "<div class='scroll' role='region' aria-label='table of runs' tabindex='0'><table id='runs' class='plain runs'>"
        f"<thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>"
    )
    hint = (
        "<p class='hint'>Below a figure: its 5-95 % interval, then the floors (a random encoder, raw pixels). Brackets "
        "that overlap, or fewer than three seeds, call no difference one. A name leads to its report, where there is "
        "one: <code>sslmed report RUN</code>.</p>"
    )
    return frame(title, "runs", top, [tools, table, hint, not_read(unread), SCRIPT])


def row(line: Line, index: int, lines: Sequence[Line]) -> str:
    """One run."""
    name = as_html(line.name)
    shown = name if line.link is None else f"<a href='{as_html(line.link)}'>{name}</a>"
    notes = ["<small>phantom data</small>"] if line.phantom else []
    anchors = {other.name: number for number, other in enumerate(lines)}
    for words in dict.fromkeys(words for words, _ in line.related):
        links = (
            f"<a href='#run-{anchors[other]}'>{as_html(other)}</a>" for said, other in line.related if said == words
        )
        notes.append(f"<small>{as_html(words)}: {', '.join(links)}</small>")
    if len(line.arms) > 1:
        notes.append(f"<small>arms: {as_html(', '.join(line.arms))}</small>")
    last = line.loss[-1] if line.loss else None
    cells = [
        f"<td class='long'>{as_html(line.method)}<small>{as_html(line.encoder)}</small></td>",
        f"<td>{as_html(line.data)}</td>",
        f"<td data-key='{'' if last is None else repr(float(last))}'>{curve(line.loss, line.name)}</td>",
        *(figure_cell(figure) for figure in line.figures),
        f"<td>{as_html(line.date)}</td>",
        f"<td class='long'>{as_html(line.training)}</td>",
    ]
    head = f"<th scope='row' data-key='{name}'>{shown}{''.join(notes)}</th>"
    return f"<tr id='run-{index}'>{head}{''.join(cells)}</tr>"


def figure_cell(figure: Figure | None) -> str:
    """A figure with its interval and its floors."""
    if figure is None:
        return "<td class='absent' data-key=''>not run</td>"
    below = "".join(f"<small>{as_html(words)}</small>" for words in (figure.spread, *figure.floors) if words)
    return f"<td data-key='{figure.value!r}'>{as_html(figure.text)}{below}</td>"


def curve(values: Sequence[float], name: str) -> str:
    """The values as a small line, from the first to the last, and the last in words; "not run" without any."""
    if not values:
        return "<span class='absent'>not run</span>"
    step = -(-len(values) // MOST_POINTS)
    shown = [*values[::step], values[-1]]
    low, span = min(shown), (max(shown) - min(shown)) or 1.0
    across = max(len(shown) - 1, 1)
    points = " ".join(
        f"{2 + (WIDE - 4) * number / across:.1f},{HIGH - 2 - (HIGH - 4) * (value - low) / span:.1f}"
        for number, value in enumerate(shown)
    )
    words = f"loss of {name}, from {values[0]:.4g} to {values[-1]:.4g}"
    return (
        f"<svg class='curve' role='img' aria-label='{as_html(words)}' width='{WIDE}' height='{HIGH}' "
        f"viewBox='0 0 {WIDE} {HIGH}'><polyline points='{points}'/></svg><small>{values[-1]:.4g}</small>"
    )


def not_read(unread: Mapping[str, str]) -> str:
    """The runs that cannot be read, and why."""
    items = "".join(f"<li><b>{as_html(name)}</b>: {as_html(why)}</li>" for name, why in unread.items())
    return f"<h2>Not read</h2><ul>{items}</ul>" if unread else ""
