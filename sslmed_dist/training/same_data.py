"""A run goes on with the samples it began with, or not at all.

The checkpoint holds a hash of the samples, ``samples.jsonl`` in the run folder the list behind it. The data may have
moved; it may not have changed, because the epochs and the learning rates of a run follow from its samples.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sslmed_dist import checkpoint
from sslmed_dist.atomic_files import write_atomically, writing
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.data.samples import Samples, describe, first_difference, listed
from sslmed_dist.data.text_files import read_text
from sslmed_dist.printable import note
from sslmed_dist.run_folder import OtherData, RunFolder

LIST, NOTICES = "samples.jsonl", "notices.txt"


def recognise(folder: Path, dataset: Dataset, known: Mapping[str, Any] | None) -> Samples:
    """The samples of ``dataset``. ``known`` is what the checkpoint that training goes on from holds of its own (see
    ``Samples.known``), None where there is nothing to compare with. ``ValueError`` where they are other samples: it
    says how many there were and are, and which is the first that differs."""
    samples = describe(dataset, None if known is None else bool(known["content"]))
    if known is None or samples.digest == known["digest"]:
        return samples
    counts = f"{known['count']} then, {len(samples.lines)} now"
    before = read_list(folder / LIST)
    if listed(before, samples.content).digest == known["digest"]:
        first = first_difference(before, samples.lines)
    else:
        first = f"in which sample they differ is not known: {LIST} is missing, or not that of the run"
    raise ValueError(
        f"data: {dataset.name} holds other samples than {folder} was trained on ({counts}; {first}); "
        "allowed: the same data, or another run.name to start a new run"
    )


def open_folder(run: RunFolder, dataset: Dataset, resume: str) -> None:
    """``run.open(resume)``. Where the folder's run differs only in what came from its data, the ``ValueError`` says in
    which samples, if its newest checkpoint knows them."""
    try:
        run.open(resume)
    except OtherData:
        recognise(run.path, dataset, known_of(run))
        raise


def known_of(run: RunFolder) -> Mapping[str, Any] | None:
    """What the newest checkpoint of ``run`` holds of its samples; None where there is none, or it is of before."""
    latest = run.checkpoints.latest()
    return None if latest is None else checkpoint.load(latest).get("samples")


def read_list(path: Path) -> Sequence[str]:
    """The lines of a list of samples; none where it is missing, too long, or no text: it only serves to say what
    differs."""
    try:
        return read_text(path).splitlines()
    except ValueError:
        return []


def write_down(folder: Path, samples: Samples, notices: Sequence[str], told: bool = False) -> None:
    """Keep the list of the samples and what reading them left aside, guessed or replaced in the run folder, and,
    unless they were ``told`` already, print the latter. ``ValueError`` where a file cannot be written."""
    with writing(folder / LIST) as file:
        file.writelines(f"{line}\n".encode() for line in samples.lines)
    if notices:
        write_atomically(folder / NOTICES, "".join(f"{line}\n" for line in notices).encode())
    else:
        (folder / NOTICES).unlink(missing_ok=True)
    for line in () if told else notices:
        note(f"data: {line}")
