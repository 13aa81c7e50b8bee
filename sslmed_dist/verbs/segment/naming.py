"""What the files of a query are called, and that none of them is ever taken for a query.

File and folder names are often those of patients. With ``anonymous`` names nothing that is written into the output
folder holds a name of a file or folder that was read; which query is which is said on the terminal alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sslmed_dist import outputs
from sslmed_dist.data.exams.studies import Source
from sslmed_dist.data.scans.nifti import INTENT_LABEL, MADE_BY, SUFFIXES, read_intent
from sslmed_dist.data.scans.scan import stem
from sslmed_dist.printable import note, printable

Names = Literal["file", "anonymous"]
RECORD, WRITER = "run.json", "sslmed segment"  # the file that says what stands in its folder, and its mark
EARLIER = "earlier"  # its key with the records of calls before it, which did something else
HIDDEN = "(name not written)"


@dataclass(frozen=True)
class Naming:
    """The name of each query's files (``names``), and whether names that were read may be written."""

    names: Mapping[Source, str]
    anonymous: bool

    def of(self, source: Source) -> str:
        """What a query is called in the output folder."""
        return self.names[source]

    def shown(self, path: Path, role: str) -> str:
        """What the file ``path`` is called in ``run.json``: its own name, or the ``role`` that it has."""
        return role if self.anonymous else path.name

    def clean(self, path: Path, text: str, own: str = HIDDEN) -> str:
        """A line about ``path`` as it may be written: without the folders above it, and where names are anonymous
        without any name of ``path``, which is called ``own``, or of a file below it."""
        if not self.anonymous:
            return text.replace(str(path), path.name)
        entries = list(path.rglob("*")) if path.is_dir() else []
        # a series of NIfTI is called after its file, without the suffix
        below = [name for entry in entries for name in (entry.name, stem(entry)) if len(name) > 2]
        for name in sorted({str(path), path.name, stem(path), *below}, key=len, reverse=True):
            for form in (name, printable(name)):
                text = text.replace(form, own if name in (str(path), path.name, stem(path)) else HIDDEN)
        return text


def name_queries(sources: Sequence[Source], names: Names) -> Naming:
    """The names of the queries: their own, or query_01, query_02, ... in the order of ``sources``; then a line
    on standard error says which is which. ``ValueError`` for another way to name them."""
    if names not in ("file", "anonymous"):
        raise ValueError(f"names: expected one of file, anonymous, got {names!r}")
    if names == "file":
        return Naming({source: source.name for source in sources}, False)
    width = max(2, len(str(len(sources))))
    naming = Naming({source: f"query_{number:0{width}d}" for number, source in enumerate(sources, start=1)}, True)
    for source in sources:
        note(f"{source.path}: written as {naming.of(source)}")
    return naming


def require_apart(out: Path, read: Sequence[Path]) -> None:
    """``ValueError`` where the output folder is one of the folders that are ``read``, or lies in one: its files would
    be scans of the next run."""
    for folder in read:
        if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{out}: lies in {folder}, which is read; give --out a folder outside it")


def is_output(path: Path) -> bool:
    """Whether a file or folder in a folder of queries is no scan but what ``sslmed segment`` wrote, or a label map by
    its own header. A file is known by its header, or by ``run.json`` beside it, which keeps its name when a person has
    changed the file; a folder by the ``run.json`` in it."""
    if path.is_dir():
        return bool(written_here(path))
    if path.name.lower().endswith(SUFFIXES):
        code, maker = read_intent(path)
        if code == INTENT_LABEL or maker == MADE_BY:
            return True
    return path.name in files_of(written_here(path.parent))


def written_here(folder: Path) -> Mapping[str, Any]:
    """The ``run.json`` of a folder that this command wrote; empty where there is none."""
    try:
        record = outputs.read_mapping(folder / RECORD)
    except (OSError, ValueError, RecursionError):
        return {}
    return record if record.get(outputs.MARK) == WRITER and isinstance(record.get("queries"), list) else {}


def calls_of(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The calls that a ``run.json`` tells of, each a record with ``queries``: earlier ones, then its own."""
    earlier = record.get(EARLIER)
    calls = [*(earlier if isinstance(earlier, list) else []), record]
    return [call for call in calls if isinstance(call, dict) and isinstance(call.get("queries"), list)]


def files_of(record: Mapping[str, Any]) -> dict[str, str]:
    """Name -> SHA-256 of every file that a ``run.json`` lists."""
    queries = [query for call in calls_of(record) for query in call["queries"]]
    return {name: digest for query in queries for name, digest in query.get("files", {}).items()}


def without_outputs(paths: Sequence[Path], folder: Path) -> list[Path]:
    """The scans among the ``paths`` of a folder of queries. What is none is counted on standard error."""
    scans = [path for path in paths if not is_output(path)]
    if len(scans) < len(paths):
        left = len(paths) - len(scans)
        note(f"{folder}: {left} of {len(paths)} files or folders are label maps or outputs of {WRITER}: left aside")
    return scans
