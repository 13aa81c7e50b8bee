"""``sslmed federate`` starts here: prepares the run folder, starts the chosen Flower runtime, follows it, stops it.

The Flower apps are in ``server`` and ``clients``, which no package imports; they run in programs of their own:

    in_process   one Python process, no network: ``python -m server.in_process``
    simulation   a SuperLink with Ray behind it, and ``flwr run``
    deployment   a SuperLink and one SuperNode per site on this machine's loopback interface, and ``flwr run``

They exchange files with the launcher in the run folder: ``config.yaml``, ``checkpoints/round_*.pt`` (``round_00000.pt``
holds the first weights), ``federation.log``, and ``federation.json``, which alone says how the federation ended.
"""

import importlib.util
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen

from sslmed_dist import installation
from sslmed_dist.config import Config
from sslmed_dist.drivers import flower_programs
from sslmed_dist.drivers.private_folder import clear_remains, private_folder
from sslmed_dist.endings import Stopped
from sslmed_dist.federation.local_round import initial_arrays
from sslmed_dist.federation.messages import ENDING, Ending, decode, encode
from sslmed_dist.federation.round_files import last_round, save_round
from sslmed_dist.federation.sites import (
    expected_sites,
    federated_section,
    resolve_for_all,
    simulated_sites,
    training_settings,
)
from sslmed_dist.json_files import read_object
from sslmed_dist.printable import plural, say
from sslmed_dist.run_folder import RunFolder
from sslmed_dist.training.stopping import Stop

Runtime = Callable[[flower_programs.Workplace], Popen[bytes]]


AGAIN = "run the same command again"


def run(
    settings: Config,
    resume: str = "auto",
    folder: Path | None = None,
    runtime: Runtime | None = None,
    again: str = AGAIN,
) -> None:
    """Run the federation of ``settings`` to its last round, in ``folder`` (default ``settings.folder``), by ``runtime``
    (default ``federated.runtime``). ``again``: what a person does to go on after a stop, as its line says it.

    Goes on from the last round kept there; ``resume="never"`` refuses a folder that holds a round. ``ValueError`` for
    what the user can mend, ``RuntimeError`` with the reason when the federation failed, ``Stopped`` after a stop by
    SIGTERM, SIGINT or a file ``stop`` in the run folder.
    """
    root = app_folder()
    settings = resolved(settings)
    fed = federated_section(settings)
    expected_sites(fed)
    path = folder or settings.folder
    # The settings as the server reads them, without paths; round files are written and checked under these.
    travelling = decode(encode(settings))
    if resume == "never" and (last_round(path, travelling) or (0,))[0] > 0:
        way = "--resume auto" if again == AGAIN else f"{again} to go on with it"
        raise ValueError(f"{path}: holds a federation already; choose another run.name, or {way}")
    first_weights = initial_arrays(settings)  # before anything is written: it checks the method
    run_folder = RunFolder(path, settings)
    run_folder.open(resume)
    try:
        clear_remains(path)
        last = last_round(path, travelling)
        if last is None:
            save_round(path, 0, first_weights, travelling)
        elif last[0] >= fed.rounds and not figures_wanted(path, settings):
            say(f"all {plural(fed.rounds, 'round')} are done")
            return
        run_folder.describe()
        (path / ENDING).unlink(missing_ok=True)
        with Stop.anew(path) as stop, private_folder(path) as (private, processes):
            workplace = flower_programs.Workplace(path.resolve(), root, private, processes, settings=settings)
            start = runtime or flower_programs.RUNTIMES[fed.runtime]
            follow(workplace, start(workplace), stop, path, again)
    finally:
        run_folder.close()


def figures_wanted(path: Path, settings: Config) -> bool:
    """Whether the sites of a federation whose rounds are done have still to be asked for their figures."""
    if not federated_section(settings).evaluate:
        return False
    ended = path / ENDING
    return not ended.exists() or not Ending.from_tree(read_object(ended, *Ending.fields())).figures


def resolved(settings: Config) -> Config:
    """Training settings in which the values that the data decides are filled in. The data is read only where the
    configuration lacks one of them."""
    settings = training_settings(settings)
    data_values = (settings.views.get("mean"), settings.views.get("std"), settings.method.get("channels"))
    if all(value is not None for value in data_values):
        return settings
    return resolve_for_all(settings, simulated_sites(settings))


def app_folder() -> Path:
    """The folder of the Flower app: ``SSLMED_APP``, or the one that came with the program. ``ValueError`` when there is
    none, or when Flower is not installed."""
    if importlib.util.find_spec("flwr") is None:
        raise ValueError("federated: Flower is not installed: pip install 'sslmed-dist[flower]'")
    app_path = os.environ.get("SSLMED_APP")
    folder = Path(app_path) if app_path else installation.root()
    if all((folder / part).is_file() for part in ("server/app.py", "clients/app.py", "pyproject.toml")):
        return folder.resolve()
    where = f"SSLMED_APP={app_path}" if app_path else str(folder)
    raise ValueError(f"{where}: no Flower app (server/app.py, clients/app.py); set SSLMED_APP to the folder of one")


@dataclass
class Tail:
    """Reads the lines that are appended to a file from now on."""

    path: Path
    offset: int = field(init=False)  # bytes that were read already

    def __post_init__(self) -> None:
        self.offset = self.path.stat().st_size if self.path.exists() else 0

    def lines(self) -> list[str]:
        """The complete lines written since the last call; a line without its end is left for the next call."""
        if not self.path.exists():
            return []
        if self.path.stat().st_size < self.offset:  # it has begun anew (``log_files.keep_small``)
            self.offset = 0
        with self.path.open("rb") as file:
            file.seek(self.offset)
            complete_lines = file.read().rpartition(b"\n")[0]  # up to the last line's end, which is left out
        self.offset += len(complete_lines) + 1 if complete_lines else 0
        return complete_lines.decode(errors="replace").splitlines()


def follow(runtime: flower_programs.Workplace, main: Popen[bytes], stop: Stop, path: Path, again: str) -> None:
    """Show the server's log until the federation has ended. ``main`` is the program that lasts as long as it does.

    ``Stopped`` after a stop. ``RuntimeError`` where ``main`` or the SuperLink ended without a result, or where the
    federation failed; ``ValueError`` where it failed for a mistake that the user can mend.
    """
    tail = Tail(path / "federation.log")
    outcome = path / ENDING
    while True:
        ended = main.poll() is not None  # asked first: what it wrote before it ended is read below
        for line in tail.lines():
            say(line)
        if outcome.exists():  # the server writes it last
            break
        if stop():
            raise Stopped(f"stopped; {again} to go on from the last round")
        if ended or runtime.failed():
            what = "was killed or ended" if ended else "lost its SuperLink"
            code = f" (exit code {main.returncode})" if ended else ""
            raise RuntimeError(f"the federation {what}{code} without a result; see {path / 'logs'}; {again} to go on")
        time.sleep(0.2)
    ending = Ending.from_tree(read_object(outcome, *Ending.fields()))
    if ending.status != "finished":
        error_class = ValueError if ending.kind in ("ValueError", "SiteError") else RuntimeError
        raise error_class(f"the federation failed: {ending.reason} (details at the sites: errors.log)")
