"""The ClientApp: "hello" says who the site is, "train" does a round of ``federation.local_update``.

What leaves the site: the shared tensors, counts, scalars, the site's name, and for an error its class. The exception
itself is written to ``errors.log`` on the site's own disk, because its text may name files or patients.

Where the data lies and where the site keeps its state is never read from a message. A hospital says it when it starts
its SuperNode: ``--node-config 'site="north" data-root="/data" state-dir="/var/lib/sslmed"'``. Simulated sites (the
node has a ``partition-id``) take it from the environment that the launcher set, and their share of one dataset from
``federated.partition``.
"""

import os
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from sslmed_dist import __version__, envelope, federation
from sslmed_dist.config import Config, fingerprint, replace
from sslmed_dist.data.dataset import Dataset

FAILED = 2  # Flower's code for an app that raised
MARK = "sslmed: "  # begins the reasons that this app wrote itself: the server shows no others
DATA_ROOT, SITES_DIR = "SSLMED_DATA_ROOT", "SSLMED_SITES_DIR"

app = ClientApp()


@dataclass(frozen=True)
class Place:
    """One site as this process knows it: its name, what it pretrains on, and the folder of its own state."""

    name: str
    dataset: Dataset
    folder: Path


# A simulation's process serves many rounds of several sites: the data is read and dealt once.
DEALT: dict[tuple[str, str | None], list[federation.Site]] = {}


@app.query()  # type: ignore[untyped-decorator]
def hello(message: Message, context: Context) -> Message:
    """Who this site is: name, version of the program, number of samples, channels of its images."""
    return answer(message, context, introduce)


@app.train()  # type: ignore[untyped-decorator]
def train(message: Message, context: Context) -> Message:
    """One round: the updated shared tensors, the number of samples they come from, and the means of the scalars."""
    return answer(message, context, update)


def introduce(message: Message, context: Context) -> RecordDict:
    """The reply to "hello". A server of another version gets an answer too, so that it can name the site; its settings
    are not read, they may be of another schema."""
    if context.run_config["version"] != __version__:
        name = context.node_config.get("site") or f"partition-{context.node_config.get('partition-id')}"
        facts = {"site": str(name), "version": __version__, "channels": 0, "samples": 0}
        return RecordDict({"site": ConfigRecord(facts)})
    place = settle(envelope.decode(str(context.run_config["config"])), context)
    facts = {"site": place.name, "version": __version__, "channels": place.dataset.channels}
    return RecordDict({"site": ConfigRecord({**facts, "samples": len(place.dataset)})})


def update(message: Message, context: Context) -> RecordDict:
    """The reply to "train"."""
    if context.run_config["version"] != __version__:
        raise envelope.SiteError(
            f"this site runs sslmed_dist {__version__}, the server {context.run_config['version']}"
        )
    settings = envelope.decode(str(context.run_config["config"]))
    number = int(message.content["config"]["round"])
    arrays = message.content["arrays"].to_torch_state_dict()
    place = settle(settings, context)
    with Deadline(context, federation.section(settings).timeout_s):
        shared, scalars = federation.local_update(settings, place.name, place.dataset, number, arrays, place.folder)
    return RecordDict(
        {
            "arrays": ArrayRecord(torch_state_dict=shared),
            "metrics": MetricRecord({"num-examples": len(place.dataset), **scalars}),
            "site": ConfigRecord({"site": place.name}),
        }
    )


def answer(message: Message, context: Context, work: Callable[[Message, Context], RecordDict]) -> Message:
    """``work``'s reply, or an error reply that says no more than it may."""
    try:
        return Message(work(message, context), reply_to=message)
    except Exception as error:  # whatever went wrong here, the server must get an answer and no details
        note(context)
        # A simulated site has nothing to hide from the person who simulates it.
        told = envelope.SiteError if context.node_config.get("state-dir") else ValueError
        reason = str(error) if isinstance(error, told) else type(error).__name__
        return Message(Error(FAILED, MARK + reason), reply_to=message)


def note(context: Context) -> None:
    """Write the exception being handled to the site's own ``errors.log``."""
    folder = context.node_config.get("state-dir") or os.environ.get(SITES_DIR)
    if folder is None:
        return
    name = context.node_config.get("site") or f"partition-{context.node_config.get('partition-id')}"
    Path(folder).mkdir(parents=True, exist_ok=True)
    with (Path(folder) / "errors.log").open("a", encoding="utf-8") as log:
        log.write(f"{name}\n{traceback.format_exc()}\n")


def settle(settings: Config, context: Context) -> Place:
    """The site that this node is. ``SiteError`` names what its node configuration lacks."""
    node = context.node_config
    root = node.get("data-root") or os.environ.get(DATA_ROOT) or None
    folder = node.get("state-dir") or os.environ.get(SITES_DIR)
    if not folder:
        raise envelope.SiteError("this node's configuration has no state-dir, the folder of the site's own state")
    if root is not None:
        settings = replace(settings, data={"root": str(root)})
    if "partition-id" in node:
        site = dealt(settings)[int(node["partition-id"])]
    elif not node.get("site"):
        raise envelope.SiteError("this node's configuration has no site, the name of the site")
    elif root is None:
        raise envelope.SiteError("this node's configuration has no data-root, the place of the site's data")
    else:
        site = federation.own_site(settings, str(node["site"]))
    own = Path(str(folder)) / site.name
    # A hospital's disk may serve several runs; a simulated site's folder belongs to one run already.
    return Place(site.name, site.pretrain, own / fingerprint(settings)[:16] if node.get("state-dir") else own)


def dealt(settings: Config) -> list[federation.Site]:
    """The simulated sites, from memory where this process has dealt them before."""
    key = (fingerprint(settings), settings.data.get("root"))
    if key not in DEALT:
        DEALT.clear()
        DEALT[key] = federation.simulated_sites(settings)
    return DEALT[key]


class Deadline:
    """End this process when a round takes longer than the server waits: a SuperNode has no time limit of its own, and
    would stay wedged behind a hung app while it still counts as online. Only a deployed node's process is ended; it
    lives for one message. In a simulation other sites live in the same process."""

    def __init__(self, context: Context, seconds: float) -> None:
        self.timer = threading.Timer(seconds, os._exit, (1,)) if context.node_config.get("state-dir") else None

    def __enter__(self) -> None:
        if self.timer is not None:
            self.timer.daemon = True
            self.timer.start()

    def __exit__(self, *_: Any) -> None:
        if self.timer is not None:
            self.timer.cancel()
