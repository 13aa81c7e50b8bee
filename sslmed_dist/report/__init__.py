"""``write_report``: run folders to one self-contained HTML page and its Markdown twin."""

from collections.abc import Sequence
from pathlib import Path

from sslmed_dist import outputs
from sslmed_dist.atomic_files import write_atomically
from sslmed_dist.printable import plural
from sslmed_dist.report import markdown, page
from sslmed_dist.report.results import results_of
from sslmed_dist.report.runs import distinct, group, read_run

__all__ = ["write_report"]
OTHER_PAGES = (".htm", ".md", ".pdf", ".txt")  # endings of files, not of folders


def write_report(
    runs: Sequence[Path], out: Path | None = None, *, pictures: bool = False, force: bool = False
) -> tuple[Path, Path]:
    """Write the report of ``runs`` and return the paths of the HTML page and the Markdown file.

    Runs that differ only in their seed are put together as mean and standard deviation; others stand one under the
    other. ``out`` is the page's path (``.html``) or a folder; by default ``report.html`` in the only run's folder, or
    in the folder that holds all runs. ``pictures`` embeds the run folders' pictures: they hold pixels, so only the
    site that owns the images may ask for it. A report at the default place is written anew; one that ``out`` names only
    with ``force``. ``ValueError`` names a folder that is no run folder and what it lacks, and what is there already and
    must stay (``outputs.require_writable``).
    """
    if not runs:
        raise ValueError("report: name at least one run folder")
    distinct([Path(folder) for folder in runs])  # before anything is read
    read = [read_run(Path(folder), pictures=pictures) for folder in runs]
    target = destination([run.folder for run in read], out)
    experiments = group(read)
    title = ", ".join(dict.fromkeys(experiment.name for experiment in experiments))
    twin = target.with_suffix(".md")
    parts = [(target, outputs.is_page), (twin, outputs.is_text)]
    outputs.require_writable(parts, force=force or out is None)
    results = [results_of(experiment) for experiment in experiments]
    write_atomically(twin, markdown.text(title, experiments, results).encode())
    write_atomically(target, page.html(title, experiments, results, pictures=pictures).encode())
    return target, twin


def destination(folders: Sequence[Path], out: Path | None) -> Path:
    """Where the page goes. ``ValueError`` where several runs lie in different folders and ``out`` does not say, or says
    a file that is no page."""
    if out is not None and out.suffix != ".html" and out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file; --out expects a folder, or a page whose name ends in .html")
    if out is not None and out.suffix.lower() in OTHER_PAGES and not out.is_dir():
        raise ValueError(f"{out}: a report is written as .html, with a .md beside it; give a name that ends in .html")
    if out is not None:
        return out if out.suffix == ".html" else out / "report.html"
    if len(folders) == 1:
        return folders[0] / "report.html"
    parents = {folder.resolve().parent for folder in folders}
    if len(parents) > 1:
        raise ValueError(
            f"report: the runs lie in {plural(len(parents), 'different folder')}; say where the page goes with --out"
        )
    return parents.pop() / "report.html"
