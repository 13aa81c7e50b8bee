"""``sslmed analyse``: one table of analyses. Each is a function of runs, and gives rows, panels and words."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sslmed_dist import registry
from sslmed_dist.atomic_files import write_atomically, write_csv
from sslmed_dist.locks import alone_in_output
from sslmed_dist.outputs import require_folders
from sslmed_dist.report.panels import svg
from sslmed_dist.run_folder import phantom_data
from sslmed_dist.verbs.analyse.gradcam import gradcam
from sslmed_dist.verbs.analyse.hessian import hessian
from sslmed_dist.verbs.analyse.landscape import landscape
from sslmed_dist.verbs.analyse.similarity import similarity
from sslmed_dist.verbs.analyse.subject import FOLDER, Answer, Subject, subjects
from sslmed_dist.verbs.analyse.temperature import temperature

ANALYSES: Mapping[str, Callable[..., Answer]] = {
    "hessian": hessian,
    "landscape": landscape,
    "temperature": temperature,
    "similarity": similarity,
    "gradcam": gradcam,
}
APART = (
    "the runs were shown different batches (another seed, other data or views), which is a difference between them too"
)


def analyse(name: str, folders: Sequence[Path], options: Mapping[str, Any]) -> tuple[list[str], list[Path]]:
    """Ask the analysis ``name`` about the runs in ``folders``. Returns what it says in words, and the files that it
    wrote into ``analysis/`` of the first run: NAME.svg (NAME.png) and NAME.csv.

    ``options`` are the analysis's own arguments, and ``data.root`` where the data has moved. ``ValueError`` for an
    unknown one, and as the analysis says; nothing is written then but what it keeps to go on with.
    """
    function, arguments = ANALYSES[name], dict(options)
    data = arguments.pop("data", {})
    if not isinstance(data, Mapping) or set(data) - {"root"}:
        raise ValueError(f"data: allowed here: data.root, got {data!r}")
    registry.check_arguments(function, arguments, name, ("asked",), ("data.root",))
    asked = [moved(subject, data) for subject in subjects(folders)]
    place = folders[0] / FOLDER
    require_folders(place)
    with alone_in_output(place, "an analysis"):
        return answered(name, function, asked, arguments)


def answered(
    name: str, function: Callable[..., Answer], asked: Sequence[Subject], arguments: Mapping[str, Any]
) -> tuple[list[str], list[Path]]:
    """Ask, write the files, and say what came out."""
    answer = function(asked, **arguments)
    lines = [*answer.lines, *apart(asked, samples_of(function, arguments))]
    phantoms = [subject.label for subject in asked if phantom_data(subject.settings)]
    which = "Phantoms" if len(phantoms) == len(asked) else f"{', '.join(phantoms)}: phantoms"
    heading = f"{f'{which}, no patients. ' if phantoms else ''}{answer.heading}"
    place = asked[0].folder / FOLDER / name
    ending, picture = (".svg", None) if answer.picture is None else (".png", answer.picture)
    files = [place.with_suffix(ending), place.with_suffix(".csv")]
    write_atomically(files[0], svg(answer.panels, heading) if picture is None else picture)
    write_csv(files[1], answer.rows)
    return [f"{heading}.", *lines], files


def samples_of(function: Callable[..., Answer], arguments: Mapping[str, Any]) -> int | None:
    """How many samples an analysis takes of each run; None where it takes them in a way of its own."""
    known = inspect.signature(function).parameters.get("samples")
    return None if known is None else int(arguments.get("samples", known.default))


def apart(asked: Sequence[Subject], samples: int | None) -> list[str]:
    """A line where runs side by side were not shown one and the same batch."""
    if samples is None or len(asked) == 1:
        return []
    shown = {subject.batch_digest(subject.at_most(samples)) for subject in asked}
    return [APART] * (len(shown) > 1)


def moved(subject: Subject, data: Mapping[str, Any]) -> Subject:
    """The run with its data elsewhere, where ``data`` says so."""
    return dataclasses.replace(subject, root=str(data["root"])) if data else subject
