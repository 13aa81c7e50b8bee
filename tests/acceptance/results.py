"""What was measured, as one JSON file and one table; written after each part, so that a cut-off loses nothing."""

import hashlib
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sslmed_dist.atomic_files import write_atomically
from sslmed_dist.json_files import Fields, checked, read_object
from sslmed_dist.printable import as_markdown
from sslmed_dist.run_folder import environment, write_json

ROOT = Path(__file__).parents[2]
KIND = "sslmed acceptance"
FILE, BEFORE, TABLE, LOG = "results.json", "results.before.json", "table.md", "log.txt"  # all that is written
DONE = ("passed", "failed", "missed")  # a part that ended in one of these is not run again
SAME = ("source", "card", "device", "rehearsal", "disturb")  # facts under which results belong together

VALUES = list[dict[str, Any]]
PART: Fields = {"name": str, "state": str, "seconds": float, "limit": float, "allowed": float, "values": VALUES}
VALUE: Fields = {"name": str, "value": float | None, "unit": str, "held": bool | None}


def source_digest() -> str:
    """A hash of all that decides a result: the package, its recipes, and the tests."""
    digest = hashlib.sha256()
    files = [path for part in ("sslmed_dist", "configs", "tests") for path in (ROOT / part).rglob("*")]
    for path in sorted(path for path in files if path.suffix in (".py", ".yaml")):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def output_of(*command: str) -> str | None:
    """What a command prints, None where it fails or is not there."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def facts(device: str, rehearsal: bool, disturb: str | None) -> dict[str, Any]:
    """What the results are of. ``commit`` is null where git does not know; ``source`` is always there."""
    import torch

    known = environment()
    on_gpu = device == "cuda"
    driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if on_gpu else None
    changed = output_of("git", "status", "--porcelain", "--untracked-files=no")
    return {
        "kind": KIND,
        "version": known["sslmed_dist"],
        "commit": output_of("git", "rev-parse", "HEAD"),
        "changed": None if output_of("git", "rev-parse", "HEAD") is None else changed is not None,
        "source": source_digest(),
        "device": device,
        "card": known["gpu"] if on_gpu else None,
        "driver": driver.splitlines()[0] if driver else None,
        "cuda": torch.version.cuda if on_gpu else None,
        "torch": torch.__version__,
        "python": known["python"],
        "processor": known["processor"],
        "cores": known["cores"],
        "date": known["date"],
        "rehearsal": rehearsal,
        "disturb": disturb,
    }


class Results:
    """The results in the folder ``out``. Those of the same source, card and sizes are kept, and gone on with."""

    def __init__(self, out: Path, now: Mapping[str, Any]) -> None:
        """Makes the folder. ``ValueError`` where that cannot be, or it holds a file of that name that is none of ours
        or was damaged."""
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"--out: {out}: cannot be a folder for results: {error.strerror}") from None
        self.out, self.facts = out, dict(now)
        self.parts: dict[str, dict[str, Any]] = {}
        self.note: str | None = None
        if (out / FILE).exists():
            before = read_object(out / FILE, optional={"kind": str, "parts": list[Any]})
            if before.get("kind") != KIND:
                raise ValueError(f"{out / FILE}: not a result of this command; give another --out")
            other = [name for name in SAME if before.get(name) != self.facts[name]]
            if other:
                write_json(out / BEFORE, before)
                self.note = f"{FILE} is of another {', '.join(other)}; it is kept as {BEFORE}, and all parts run anew"
            else:
                self.parts = {part["name"]: part for part in read_parts(before, out / FILE)}

    def has(self, name: str) -> bool:
        """Whether a part need not run again. One that was cut off at its own limit would be again; one that the end of
        a call cut off runs again."""
        part = self.parts.get(name)
        if part is None:
            return False
        return part["state"] in DONE or (part["state"] == "cut off" and part["allowed"] >= part["limit"])

    def put(self, order: Sequence[str], name: str, result: Mapping[str, Any]) -> None:
        """Take over a part's result and write both files. ``order``: the names of all parts."""
        self.parts[name] = {"name": name, **result, "at": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())}
        self.parts = {part: self.parts[part] for part in sorted(self.parts, key=[*order, *self.parts].index)}
        write_json(self.out / FILE, self.facts | {"parts": list(self.parts.values())})
        write_atomically(self.out / TABLE, self.table().encode())

    def table(self) -> str:
        """The results as Markdown, one line for each value."""
        said = ("card", "driver", "torch", "cuda", "processor", "cores", "date", "version", "commit", "source")
        head = ", ".join(f"{name} {self.facts[name]}" for name in said if self.facts[name] is not None)
        if self.facts["rehearsal"]:
            head = f"**Rehearsal at tiny sizes, on phantoms unless data was given: no figure means anything.** {head}"
        if self.facts["disturb"]:
            head = f"**Disturbed on purpose: comparisons have to fail.** {head}"
        lines = [f"{head}\n", "| part | state | what | measured | goal or tolerance | s |", "| --- " * 6 + "|"]
        for part in self.parts.values():
            first = [part["name"], part["state"]]
            if not part["values"]:
                lines.append(row([*first, part["error"] or "", "", "", f"{part['seconds']:.0f}"]))
            for value in part["values"]:
                said_by = [value["name"], shown(value), bound_of(value)]
                lines.append(row([*first, *said_by, f"{part['seconds']:.0f}"]))
                first = ["", ""]
        return "\n".join(lines) + "\n"


def read_parts(tree: Mapping[str, Any], path: Path) -> list[dict[str, Any]]:
    """The parts of a file of results. ``ValueError`` names the one that lacks a field."""
    parts: list[dict[str, Any]] = checked(tree, str(path), {"parts": list[dict[str, Any]]})["parts"]
    for number, part in enumerate(parts):
        where = f"{path}: parts[{number}]"
        for position, value in enumerate(checked(part, where, PART)["values"]):
            checked(value, f"{where}: values[{position}]", VALUE)
    return parts


def row(cells: Sequence[str]) -> str:
    """A line of a table."""
    return "| " + " | ".join(as_markdown(cell) for cell in cells) + " |"


def shown(value: Mapping[str, Any]) -> str:
    """A value with its unit."""
    number = "not finite" if value["value"] is None else f"{value['value']:.4g}"
    return f"{number} {value['unit']}".strip()


def bound_of(value: Mapping[str, Any]) -> str:
    """The bound, and whether it was kept."""
    kind = "goal" if "goal" in value else "tolerance"
    words = {"most": "at most", "least": "at least"}
    bounds = " and ".join(f"{words[word]} {bound:g}" for word, bound in value.get(kind, {}).items())
    broken = "" if value["held"] is not False else (": missed" if kind == "goal" else ": broken")
    return bounds + broken
