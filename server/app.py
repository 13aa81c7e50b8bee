"""The ServerApp: it runs the rounds that are missing in the run folder, and writes down how the federation ended.

The run configuration is ``federation.messages.RunSettings``. ``federation.json`` in the run folder says how the
federation ended, because Flower calls a run without a single reply a success.
"""

import logging
import os
import threading
import time
from pathlib import Path

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from server import at_sites
from server.brisk_grid import brisk
from server.guarded import Guarded
from server.roll_call import Sites
from server.sealed import Sealed
from sslmed_dist import __version__, config
from sslmed_dist.atomic_files import appending, refuse_links
from sslmed_dist.federation import app_signature
from sslmed_dist.federation.messages import ENDING, LAUNCHER, Ending, RunSettings
from sslmed_dist.federation.registered import LISTED, registered
from sslmed_dist.federation.round_files import last_round
from sslmed_dist.federation.sites import expected_sites, federated_section
from sslmed_dist.locks import held
from sslmed_dist.run_folder import Metrics, write_json
from sslmed_dist.trackers import followers
from sslmed_dist.training.stopping import started_at

log = logging.getLogger("sslmed.server")

app = ServerApp()


def own_settings(folder: Path, sent: config.Config) -> config.Config:
    """The settings as they stand in the run folder, with what does not travel to the sites: trackers. ``sent`` where
    nothing stands there."""
    file = folder / "config.yaml"
    return config.load(file) if file.is_file() else sent


@app.main()  # type: ignore[untyped-decorator]
def main(grid: Grid, context: Context) -> None:
    """Run the federation. Whatever ends it early is written to ``federation.json`` and raised."""
    run_settings = RunSettings.from_record(context.run_config)
    folder = Path(run_settings.run_dir)
    if not folder.is_absolute():
        raise ValueError("run-dir: expected the absolute path of the run folder; start with `sslmed federate`")
    refuse_links(folder)
    stay_with(os.environ.get(LAUNCHER))
    if LISTED in os.environ:  # a SuperLink that lasts longer than this run
        stay_with_writer(folder)
    handler = open_log(folder / "federation.log")
    try:
        if app_signature.SIGNATURE in os.environ:
            app_signature.as_asked(os.environ, grid.run.fab_hash)
            log.info("the app is signed")
        rounds, told = serve(grid, run_settings, folder)
        write_json(folder / ENDING, Ending("finished", rounds, figures=told).to_tree())
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        log.error("stopped: %s", reason)
        write_json(folder / ENDING, Ending("failed", reason=reason, kind=type(error).__name__).to_tree())
        raise
    finally:
        log.removeHandler(handler)
        handler.close()


def stay_with(launcher: str | None) -> None:
    """End this process when the launcher is gone: it held the run folder's lock, and a server that went on alone would
    write beside the next one. ``launcher``: its process id and start time, "ID TIME", as ``LAUNCHER`` carries it."""
    if launcher is None:
        return
    pid, started = map(int, launcher.split())

    def watch() -> None:
        while started_at(pid) == started:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="launcher-watch", daemon=True).start()


def stay_with_writer(folder: Path) -> None:
    """End this process when nobody holds the run folder's lock any more: the command that started the run is gone, and
    the next one would write beside this. ``RuntimeError`` where nobody holds it now."""
    if not held(folder):
        raise RuntimeError(f"{folder}: nobody waits for this run any more")

    def watch() -> None:
        while held(folder):
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, name="writer-watch", daemon=True).start()


def open_log(path: Path) -> logging.Handler:
    """Let the server's lines go to ``path``; the launcher shows them."""
    handler = logging.FileHandler(path, delay=True)  # opened by our own function, which follows no link
    handler.setStream(appending(path))
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    return handler


def serve(grid: Grid, run_settings: RunSettings, folder: Path) -> tuple[int, int]:
    """Run all rounds that are still to be done, then ask for figures where the run wants them; returns the number of
    rounds in all and of sites that gave figures. ``ValueError`` for settings that do not fit, ``RuntimeError`` when too
    few sites are usable."""
    if run_settings.version != __version__:
        raise ValueError(f"the server runs sslmed_dist {__version__}, the launcher {run_settings.version}")
    settings = run_settings.settings
    fed = federated_section(settings)
    expected = expected_sites(fed)
    last = last_round(folder, settings)
    if last is None:
        raise ValueError(
            "the run folder has no first weights (checkpoints/round_00000.pt); start with `sslmed federate`"
        )
    metrics = Metrics(folder / "metrics.jsonl", followers(own_settings(folder, settings), folder))
    # A round that was interrupted is run again, so what it has written goes.
    metrics.cut(last.number * fed.local_epochs * (settings.plan.steps_per_epoch or 0))
    listed = registered(folder, fed)
    pinned = {name: site.data_key for name, site in (listed or {}).items() if site.data_key is not None}
    sealed = Sealed(run_settings.config, folder, pinned)
    sites = Sites(expected, fed.quorum, fed.timeout_s, settings.method["channels"], listed, sealed)
    strategy = Guarded(settings=settings, sites=sites, folder=folder, metrics=metrics, begun=last)
    grid = brisk(grid)
    try:
        if last.number < fed.rounds:
            strategy.start(grid, ArrayRecord(), fed.rounds - last.number, fed.timeout_s)
        told = at_sites.measure(grid, strategy, settings, folder) if fed.evaluate else 0
    finally:
        metrics.close()
    return fed.rounds, told
