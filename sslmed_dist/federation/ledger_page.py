"""The outbound ledger for people: lines on a terminal, a table for a spreadsheet, and one page."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Sequence

from sslmed_dist.federation import accountant
from sslmed_dist.federation.ledger import Entry, Verdict
from sslmed_dist.printable import as_markdown, plural, printable

COLUMNS: tuple[str, ...] = (
    *("number", "time", "kind", "run", "round", "sequence", "bytes", "tensors", "scalars", "withheld", "epsilon"),
    *("sha256", "configuration", "model", "message", "reason", "data_set", "count", "size", "answer", "figures"),
    *("attempt", "secrets", "rho", "delta", "previous", "digest"),
)


def undelivered(entries: Sequence[Entry]) -> list[int]:
    """The numbers of answers and refusals of which no delivery is recorded: the process ended between the entry and
    the answer, or nobody took the answer. They may have left, and count as if they had."""
    delivered = {entry["answer"] for entry in entries if entry["kind"] == "delivered"}
    return [e["number"] for e in entries if e["kind"] in ("answer", "refusal") and e["number"] not in delivered]


def unfinished(entries: Sequence[Entry]) -> list[int]:
    """The numbers of reservations after which neither an answer nor a failure stands: the work was cut short. What
    they reserved stays spent."""
    open_numbers: list[int] = []
    for entry in entries:
        if entry["kind"] == "reserved":
            open_numbers.append(entry["number"])
        elif entry["kind"] in ("answer", "refusal") and open_numbers:
            open_numbers.pop()
    return open_numbers


def line(entry: Entry) -> str:
    """One entry as one line of a terminal."""
    text = f"{entry['number']:>6}  {entry['time']}  {entry['kind']:<9}"
    if entry.get("run"):
        text += f"  run {entry['run'][:12]}"
    if entry.get("round") is not None:
        text += f"  round {entry['round']}"
    if entry["kind"] == "answer":
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in sorted(entry.get("scalars", {}).items()))
        told = f", {len(entry['figures'])} figures" if entry.get("figures") else ""
        text += f"  {plural(len(entry.get('tensors', ())), 'tensor')}{told}, {entry.get('bytes', 0):,} bytes; {numbers}"
        text += "" if entry.get("epsilon") is None else f"; epsilon {entry['epsilon']:.3g} spent"
    if entry["kind"] == "reserved":
        text += f"  {plural(entry['count'], 'round')}, {entry['size']:,} bytes of {entry['data_set']}"
    if entry["kind"] == "pruned":
        text += f"  what was kept of {entry['configuration'][:12]}, {entry['bytes']:,} bytes"
    if entry.get("answer") is not None:
        text += f"  of entry {entry['answer']}"
    return printable(text + (f"  {entry['reason']}" if entry.get("reason") else ""))


def as_csv(entries: Sequence[Entry]) -> str:
    """All entries as a table. Lists and mappings stand as JSON. A text that a spreadsheet would take for a formula
    begins with an apostrophe."""
    written = io.StringIO()
    table = csv.writer(written)
    table.writerow(COLUMNS)
    for entry in entries:
        table.writerow([cell(entry.get(column)) for column in COLUMNS])
    return written.getvalue()


def cell(value: object) -> object:
    """A value as it stands in the table."""
    text = json.dumps(value, sort_keys=True) if isinstance(value, (list, dict)) else value
    return f"'{text}" if isinstance(text, str) and text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def page(site: str, entries: Sequence[Entry], verdict: Verdict) -> str:
    """The ledger as one Markdown page that a data protection officer can read: what left, how often, how much."""
    answers = [entry for entry in entries if entry["kind"] == "answer"]
    rounds = [entry for entry in answers if entry["message"] in ("update", "secure_masked")]
    evaluations = [entry for entry in answers if entry["message"] == "figures"]
    refusals = Counter(entry["reason"] for entry in entries if entry["kind"] == "refusal")
    span = f"{entries[0]['time']} to {entries[-1]['time']}" if entries else "nothing yet"
    lines = [
        f"# What left {as_markdown(site)}",
        "",
        f"{span}. {verdict.entries} entries; the last one is {verdict.entries}:{verdict.head}.",
        "",
        *(f"- **Wrong**: {as_markdown(problem)}." for problem in verdict.problems),
        f"- In order: {'no' if verdict.problems else 'yes'}. This check cannot see: {'; '.join(verdict.blind)}.",
        f"- Answers with tensors: {len(rounds)}, with {sum(entry['bytes'] for entry in rounds):,} bytes in all.",
        f"- Answers with figures of the held-out part: {len(evaluations)}, their figures in full below.",
        f"- Other answers (who the site is, number of samples, steps of secure sums): "
        f"{len(answers) - len(rounds) - len(evaluations)}.",
        f"- Refusals: {sum(refusals.values())}.",
        f"- Answers whose delivery is not recorded (they count as delivered): {numbers(undelivered(entries))}.",
        f"- Work that was cut short (what it reserved stays spent): {numbers(unfinished(entries))}.",
        "- Privacy spent: " + epsilon(entries),
        "",
        "## By run",
        "",
        "| run | rounds | bytes | scalars that left |",
        "| --- | --- | --- | --- |",
    ]
    for run in dict.fromkeys(entry["run"] for entry in rounds):
        own = [entry for entry in rounds if entry["run"] == run]
        scalars = sorted({name for entry in own for name in entry["scalars"]})
        size = sum(entry["bytes"] for entry in own)
        lines.append(f"| {run[:16]} | {len(own)} | {size:,} | {as_markdown(', '.join(scalars))} |")
    lines += ["", "## What left in the newest round", ""]
    if rounds:
        lines += ["| tensor | type | shape | bytes | L2 norm |", "| --- | --- | --- | --- | --- |"]
        for name, kind, shape, size, norm in rounds[-1]["tensors"]:
            length = "under masks" if norm is None else f"{norm:.4g}"
            lines.append(f"| {as_markdown(name)} | {kind} | {'x'.join(map(str, shape))} | {size:,} | {length} |")
    lines += figure_lines(evaluations)
    lines += ["", "## Why requests were refused", ""]
    lines += [f"- {count} times: {as_markdown(reason)}" for reason, count in refusals.most_common()] or ["Never."]
    return "\n".join(lines) + "\n"


def figure_lines(evaluations: Sequence[Entry]) -> list[str]:
    """All figures that left, a row each; nothing where none did."""
    if not evaluations:
        return []
    lines = ["", "## Figures that left", ""]
    lines += ["| entry | run | round | arm | protocol | metric | value | low | high | samples | patients |"]
    lines += ["| --- " * 11 + "|"]
    for entry in evaluations:
        for figure in entry["figures"]:
            cells = [entry["number"], entry["run"][:16], entry["round"], *figure]
            texts = (f"{cell:.4g}" if isinstance(cell, float) else "" if cell is None else str(cell) for cell in cells)
            lines.append(f"| {' | '.join(as_markdown(text) for text in texts)} |")
    return lines


def epsilon(entries: Sequence[Entry]) -> str:
    """The privacy spent in words: of all rounds ever, also those before a reset."""
    rounds = [entry for entry in entries if entry["kind"] == "reserved" and entry["count"]]
    noised = [entry["rho"] for entry in rounds if "rho" in entry]
    bare = len(rounds) - len(noised)
    deltas = [entry["delta"] for entry in entries if "delta" in entry]
    if not noised or not deltas:
        return "not bounded; no noise is added to what leaves."
    spent = f"epsilon {accountant.epsilon(math.fsum(noised), deltas[-1]):.3g} at delta {deltas[-1]:g} in {len(noised)} "
    spent += f"rounds, for {accountant.UNIT}"
    return spent + (f"; not bounded in {bare} more rounds, which had no noise." if bare else ".")


def numbers(values: Sequence[int]) -> str:
    """A list of numbers in words, the first twenty of them."""
    listed = ", ".join(map(str, values[:20]))
    return f"{len(values)} (entries {listed}{', ...' if len(values) > 20 else ''})" if values else "none"
