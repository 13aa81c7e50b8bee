"""Checkpoint files: they are written completely or not at all, and read strictly. Only this module writes them.

A checkpoint holds everything needed to go on bit for bit: the method's state dict, the training state (optimiser,
position), the resolved configuration and its fingerprint. It is one ``torch.save`` archive, read with
``weights_only=True``; a torn, foreign or newer file is refused by name.
"""

import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sslmed_dist.atomic_files import ENDING, UNFINISHED, write_atomically, writing
from sslmed_dist.json_files import Fields, checked
from sslmed_dist.printable import plural
from sslmed_dist.state_dicts import misfit, require_held
from sslmed_dist.zip_files import open_zip

FORMAT, VERSION = "sslmed-dist checkpoint", 1
MAGIC = b"PK\x03\x04"  # how every zip archive, and so every torch.save file, starts
KINDS = ("training", "encoder", "site")
NAME = re.compile(r"step_(\d{9,18})\.pt")
ROUND = re.compile(r"(?:state_)?round_(\d{5,18})\.pt")
MOST_INDEX = 2**25  # bytes of an archive's pickle, which names the tensors; as objects it takes 20 times as much
SAMPLES: Fields = {"digest": str, "content": bool, "count": int}  # what a run's checkpoint may know of its samples
# What zipfile raises on a damaged archive: also an encrypted member (RuntimeError) or an impossible place (ValueError).
UNREADABLE = (zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError)


def save(path: Path, *, kind: str, config: Mapping[str, Any], fingerprint: str, **content: Any) -> Path:
    """Write one checkpoint file; returns ``path``. ``kind`` says what it holds: ``training`` (a run), ``encoder`` (the
    shared tensors of a federation) or ``site`` (a site's own state). ``content`` is tensors and plain data.
    ``ValueError`` where it cannot be written; the file before it is then untouched."""
    payload = {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "config": json.dumps(config, sort_keys=True),
        "fingerprint": fingerprint,
        **content,
    }
    try:
        with writing(path) as file:
            torch.save(payload, file)
    except (ValueError, RuntimeError) as error:  # torch's archive writer reports a full disk as RuntimeError
        reason = cause(error) or str(error).removeprefix(f"{path}: could not be written: ").splitlines()[0]
        kept = "; the previous one is kept" if any(path.parent.glob("*.pt")) else ""
        raise ValueError(f"{path}: checkpoint could not be written: {reason}{kept}") from None
    return path


def cause(error: BaseException) -> str:
    """What the system said of a write (``No space left on device``) that ended in ``error``; "" where it said nothing.
    torch's archive writer reports where it stood in the file, and only by the way what happened."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror:
            return seen.strerror
        seen = seen.__cause__ or seen.__context__
    return ""


def load(path: Path) -> dict[str, Any]:
    """Read one checkpoint file, its tensors to the CPU. ``ValueError`` names the file when it is missing, torn, of
    another program, or of a newer version of this one."""
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint")
    verify(path)
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling reports foreign content in many ways; weights_only refuses code
        raise ValueError(f"{path}: damaged, or not a checkpoint of this program ({type(error).__name__})") from None
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        raise ValueError(f"{path}: not a checkpoint of this program")
    require_fields(payload, path)
    if payload["version"] > VERSION:
        raise ValueError(f"{path}: written by a newer version (format {payload['version']}, this one reads {VERSION})")
    try:
        payload["config"] = json.loads(payload["config"])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: config: not valid JSON: {error}") from None
    require_named(payload, path)
    return payload


def file_name(word: str, number: int) -> str:
    """What the checkpoint of a step, or of a round (``round``, a site's ``state_round``), is called."""
    return f"{word}_{number:0{9 if word == 'step' else 5}d}.pt"


def numbered(folder: Path, word: str) -> dict[int, Path]:
    """The files in ``folder`` that have a ``file_name`` of this word, by their number, ascending. A file of another
    name (a copy that somebody made) is none of them."""
    pattern = NAME if word == "step" else ROUND
    matches = ((pattern.fullmatch(path.name), path) for path in folder.glob(f"{word}_*.pt"))
    found = sorted((int(match[1]), path) for match, path in matches if match)
    return {number: path for number, path in found if path.name == file_name(word, number)}


def require_named(payload: Mapping[str, Any], path: Path) -> None:
    """``ValueError`` where a file holds another step, or another round or none, than its name says."""
    for word, pattern in (("step", NAME), ("round", ROUND)):
        named = pattern.fullmatch(path.name)
        if named is None or (word == "step" and word not in payload):  # a step stands in the training state as well
            continue
        told = payload.get(word)
        if type(told) is not int or told != int(named[1]):
            held = f"{word} {told!r:.40}" if word in payload else f"no {word}"
            raise ValueError(f"{path}: contradicts its name: it holds {held}")


def require_fields(payload: Mapping[str, Any], path: Path) -> None:
    """``ValueError`` naming the first field of a checkpoint that is missing or of another type."""
    expected: dict[str, tuple[type, str]] = {
        "version": (int, "a whole number"),
        "kind": (str, "text"),
        "config": (str, "text"),
        "fingerprint": (str, "text"),
        "method": (Mapping, "tensors by name"),
    }
    if payload.get("kind") != "encoder":
        expected["state"] = (Mapping, "the training state")
    if "best" in payload:  # of a run with plan.validate
        expected["best"] = expected["method"]
    for name, (kind, words) in expected.items():
        if name not in payload or not isinstance(payload[name], kind) or isinstance(payload[name], bool):
            found = type(payload[name]).__name__ if name in payload else "nothing"
            raise ValueError(f"{path}: {name}: expected {words}, got {found}: damaged, or written by another program")
    if payload["kind"] not in KINDS:
        raise ValueError(f"{path}: kind: expected one of {', '.join(KINDS)}, got {payload['kind']!r:.80}")
    if payload.get("samples") is not None:
        checked(payload["samples"], f"{path}: samples", SAMPLES)
    for name in ("method", "best") if "best" in payload else ("method",):
        require_tensors(payload[name], path, name)


def require_tensors(state: Mapping[Any, Any], path: Path, field: str) -> None:
    """``ValueError`` where the ``field`` of a checkpoint holds anything but tensors by name, or far more than it has
    bytes."""
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor) or value.is_meta:
            raise ValueError(f"{path}: {field}: {key!r:.80} is no tensor with a name and values")
    require_held(state, path.stat().st_size, f"{path}: {field}")


def verify(path: Path) -> None:
    """Compare the archive's checksums, which torch itself does not do. ``ValueError`` for a file that is torn, is no
    archive of ``torch.save``, or has an index of more than ``MOST_INDEX`` bytes."""
    with path.open("rb") as file:
        start = file.read(len(MAGIC))
    # An empty file, or the beginning of the mark alone, is a torn archive: it is reported below.
    if start and start != MAGIC[: len(start)]:
        raise ValueError(f"{path}: not a checkpoint of this program")
    try:
        with open_zip(path) as archive:
            # torch stores its members as they are; a member that has to be inflated may be of any size
            members = archive.infolist()
            plain = all(plain_member(member, path) for member in members)
            index = max((member.file_size for member in members if member.filename.endswith("/data.pkl")), default=0)
            damaged = archive.testzip() if plain and index <= MOST_INDEX else None
    except UNREADABLE as error:
        raise ValueError(f"{path}: torn or damaged checkpoint ({str(error) or 'it ends too early'})") from None
    if not plain:
        raise ValueError(f"{path}: not a checkpoint of this program (a compressed archive)")
    if index > MOST_INDEX:
        raise ValueError(f"{path}: an index of {index:,} bytes; allowed: {MOST_INDEX:,}")
    if damaged is not None:
        raise ValueError(f"{path}: torn or damaged checkpoint (checksum of {damaged})")


def plain_member(member: zipfile.ZipInfo, path: Path) -> bool:
    """Whether a member of the archive ``path`` is stored as it is, and so no larger than the archive."""
    return member.compress_type == zipfile.ZIP_STORED and member.file_size <= path.stat().st_size


def load_method(method: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load a state dict into ``method`` (any module). ``ValueError`` as ``require_fit``."""
    require_fit(method, state, path)
    method.load_state_dict(state)


def require_fit(method: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """``ValueError`` names the file ``path`` and what of its ``state`` does not fit ``method``: keys, shapes, types of
    number, numbers that are not finite (``state_dicts.misfit``)."""
    problem = misfit(method.state_dict(), state)
    if problem:
        raise ValueError(f"{path}: does not fit this architecture: {problem}")


@contextmanager
def state_of(path: Path) -> Iterator[None]:
    """For a block that takes over the training state of the checkpoint ``path``: ``ValueError`` names the file where
    the state lacks something, or holds something of another kind."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, RuntimeError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: its training state is damaged: {type(error).__name__}: {reason}") from None


def require_step(saved: Mapping[str, Any], path: Path, most: int | None) -> None:
    """``ValueError`` unless the checkpoint of a run says one step, and one that a run of ``most`` steps (None: not
    known) can have done. A run that is taken for finished would otherwise stand at a step it never reached."""
    if saved["kind"] != "training":
        return
    told = saved.get("step")
    done = saved["state"].get("step", told)
    if type(done) is not int or done < 0 or told not in (done, None):
        raise ValueError(f"{path}: contradicts itself: step {told!r} of the file, {done!r} of the training state")
    if most is not None and done > most:
        raise ValueError(f"{path}: contradicts its plan: step {done} of a run of {plural(most, 'step')}")


class Checkpoints:
    """The ``checkpoints`` folder of a run: ``step_*.pt`` files, of which old ones are deleted, and ``latest.json``."""

    def __init__(self, folder: Path, keep_last: int = 2, keep_every: int | None = None) -> None:
        self.folder, self.keep_last, self.keep_every = folder, keep_last, keep_every

    def path(self, step: int) -> Path:
        """Where the checkpoint of ``step`` is."""
        return self.folder / file_name("step", step)

    def steps(self) -> list[int]:
        """Steps that have a checkpoint file, ascending."""
        return list(numbered(self.folder, "step"))

    def save(self, step: int, **content: Any) -> Path:
        """Write the checkpoint of ``step``, name it in ``latest.json``, and delete older ones (``prune``).
        ``ValueError`` where it cannot be written, or the run's folder has gone."""
        if not self.folder.parent.is_dir():  # written anew below a mount point it would be hidden when that comes back
            raise ValueError(f"{self.folder.parent}: the run folder has gone; is its storage there?")
        path = save(self.path(step), kind="training", step=step, **content)
        latest = {"file": path.name, "step": step}
        write_atomically(self.folder / "latest.json", (json.dumps(latest) + "\n").encode())
        self.prune(step)
        return path

    def prune(self, written: int) -> None:
        """Delete all checkpoints before that of step ``written`` but the newest and those of every ``keep_every``-th
        step; ``keep_last`` are left, that of ``written`` among them."""
        for step in [step for step in self.steps() if step <= written][: -self.keep_last]:
            if not (self.keep_every and step % self.keep_every == 0):
                self.path(step).unlink(missing_ok=True)
        for unfinished in self.folder.glob(f".*{ENDING}"):
            if UNFINISHED.fullmatch(unfinished.name):
                unfinished.unlink(missing_ok=True)  # left by a process that was killed while writing

    def latest(self) -> Path | None:
        """The newest checkpoint, or None. It may be newer than the one that ``latest.json`` names, if the process died
        between the two writes. It is complete all the same: a file gets its name only when it is written."""
        steps = self.steps()
        return self.path(steps[-1]) if steps else None
