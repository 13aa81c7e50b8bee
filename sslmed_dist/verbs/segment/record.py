"""``run.json`` and ``volumes.csv`` of an output folder: what was written there, by this call and by those before it."""

import csv
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sslmed_dist import outputs
from sslmed_dist.atomic_files import write_csv
from sslmed_dist.run_folder import write_json
from sslmed_dist.verbs.segment.naming import EARLIER, RECORD, calls_of, written_here

VOLUMES = "volumes.csv"
COLUMNS = (
    *("query", "label", "slices", "voxels", "volume_ml", "mean_margin", "name"),
    *("note", "reliability", "copied", "call"),
)
OLDEST = COLUMNS[:6]  # of the first version, whose tables are still known as ours
Rows = list[dict[str, Any]]  # lines of volumes.csv
CALL = "call"  # the mark of all that was done alike, in both files: model, support, options, program
VARIES = ("queries", EARLIER, "environment", CALL)  # what two calls that did the same may differ in


@dataclass
class Report:
    """What the two files say. ``facts`` is ``run.json`` of this call without its queries; ``calls`` are those of calls
    before it into the same folder, and ``before`` their lines of ``volumes.csv``."""

    facts: Mapping[str, Any]
    calls: Sequence[Mapping[str, Any]] = ()
    before: Sequence[Mapping[str, Any]] = ()
    queries: list[dict[str, Any]] = field(default_factory=list)
    rows: Rows = field(default_factory=list)
    written: list[str] = field(default_factory=list)

    def elsewhere(self) -> list[str]:
        """Queries of the folder that an earlier call has segmented and this one has not (so far)."""
        names = {str(row["query"]): None for row in self.before if row["query"] not in self.written}
        return list(names)

    def write(self, out: Path) -> None:
        """Both files, as a whole. A query that this call has written is no longer one of an earlier call; one that it
        has not reached, or could not segment, still has the files of the earlier one and stays with it."""
        calls = [without(call, self.written) for call in self.calls]
        same = [call for call in calls if alike(call, self.facts)]
        queries = [query for call in same for query in call["queries"]] + self.queries
        others = [call for call in calls if call not in same and call["queries"]]
        mark = {CALL: mark_of(self.facts)}
        rows = [row for row in self.before if row["query"] not in self.written] + [{**row, **mark} for row in self.rows]
        write_csv(out / VOLUMES, rows, COLUMNS)
        earlier = {EARLIER: others} if others else {}
        write_json(out / RECORD, {**self.facts, **mark, "queries": queries, **earlier})


def opened(out: Path, facts: Mapping[str, Any]) -> Report:
    """The report of a call with these ``facts`` on what is to be written into ``out``, after what stands there."""
    plain = json.loads(json.dumps(facts))  # as it is read again, to be compared
    return Report(plain, calls_of(written_here(out)), read_volumes(out / VOLUMES))


def without(call: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """An earlier call's record without the queries of these names."""
    kept = [query for query in call["queries"] if query.get("query") not in names]
    return {**{key: value for key, value in call.items() if key != EARLIER}, "queries": kept}


def alike(call: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    """Whether an earlier call did the same with other queries: its record differs in these and in the date alone."""
    first, second = ({key: value for key, value in one.items() if key not in VARIES} for one in (call, facts))
    return first == second and outcome(call) == outcome(facts)


def mark_of(facts: Mapping[str, Any]) -> str:
    """Eight characters that calls share where they did the same (``alike``), and only there."""
    same = {key: value for key, value in facts.items() if key not in VARIES}
    return hashlib.sha256(json.dumps([same, outcome(facts)], sort_keys=True).encode()).hexdigest()[:8]


def outcome(call: Mapping[str, Any]) -> dict[str, Any]:
    """The environment of a call, but not its date."""
    environment = call.get("environment")
    return {key: value for key, value in environment.items() if key != "date"} if isinstance(environment, dict) else {}


def read_volumes(path: Path) -> Rows:
    """The lines of ``volumes.csv``; none where there is no such file of ours."""
    if not (path.is_file() and outputs.known(path, is_volumes)):
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [{column: row.get(column) or "" for column in COLUMNS} for row in csv.DictReader(file)]


def is_volumes(path: Path) -> bool:
    """A table that this command wrote."""
    return path.read_text(encoding="utf-8").startswith(",".join(OLDEST))
