"""The ClientApp: "hello" says who the site is, "train" does a round of ``federation.local_round``.

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

from sslmed_dist import __version__
from sslmed_dist.config import Config, fingerprint, replace
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.federation.local_round import local_update
from sslmed_dist.federation.messages import (
    ARRAYS,
    MARK,
    METRICS,
    ORDER,
    SITE,
    Account,
    Greeting,
    Node,
    Order,
    RunSettings,
    SiteError,
)
from sslmed_dist.federation.sites import Site, federated_section, own_site, simulated_sites

FAILED = 2  # Flower's code for an app that raised

app = ClientApp()


@dataclass(frozen=True)
class LocalSite:
    """One site as this process knows it: its name, what it pretrains on, and the folder of its own state."""

    name: str
    dataset: Dataset
    folder: Path


# A simulation's process serves many rounds of several sites: the data is read and dealt once.
DEALT: dict[tuple[str, str | None], list[Site]] = {}


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
    asked, node = RunSettings.from_record(context.run_config), node_of(context)
    if asked.version != __version__:
        greeting = Greeting(node.name, __version__, channels=0, samples=0)
    else:
        place = site_of(asked.settings, node)
        greeting = Greeting(place.name, __version__, place.dataset.channels, len(place.dataset))
    return RecordDict({SITE: ConfigRecord(greeting.to_record())})


def update(message: Message, context: Context) -> RecordDict:
    """The reply to "train"."""
    asked, node = RunSettings.from_record(context.run_config), node_of(context)
    if asked.version != __version__:
        raise SiteError(f"this site runs sslmed_dist {__version__}, the server {asked.version}")
    settings = asked.settings
    number = Order.from_record(message.content[ORDER]).number
    arrays = message.content[ARRAYS].to_torch_state_dict()
    place = site_of(settings, node)
    with Deadline(node, federated_section(settings).timeout_s):
        shared, scalars = local_update(settings, place.name, place.dataset, number, arrays, place.folder)
    account = Account(place.name, len(place.dataset), scalars)
    return RecordDict(
        {
            ARRAYS: ArrayRecord(torch_state_dict=shared),
            METRICS: MetricRecord(account.to_metrics()),
            SITE: ConfigRecord(account.to_site()),
        }
    )


def node_of(context: Context) -> Node:
    """What this node was told when it was started."""
    return Node.read(context.node_config, os.environ)


def answer(message: Message, context: Context, work: Callable[[Message, Context], RecordDict]) -> Message:
    """``work``'s reply, or an error reply that says no more than it may."""
    try:
        return Message(work(message, context), reply_to=message)
    except Exception as error:  # whatever went wrong here, the server must get an answer and no details
        node = node_of(context)
        note(node)
        # A simulated site has nothing to hide from the person who simulates it.
        told = SiteError if node.deployed else ValueError
        reason = str(error) if isinstance(error, told) else type(error).__name__
        return Message(Error(FAILED, MARK + reason), reply_to=message)


def note(node: Node) -> None:
    """Write the exception being handled to the site's own ``errors.log``."""
    if node.state_dir is None:
        return
    folder = Path(node.state_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "errors.log").open("a", encoding="utf-8") as log:
        log.write(f"{node.name}\n{traceback.format_exc()}\n")


def site_of(settings: Config, node: Node) -> LocalSite:
    """The site that this node is. ``SiteError`` names what its node configuration lacks."""
    if node.state_dir is None:
        raise SiteError("this node's configuration has no state-dir, the folder of the site's own state")
    if node.data_root is not None:
        settings = replace(settings, data={"root": node.data_root})
    if node.partition is not None:
        site = dealt(settings)[node.partition]
    elif node.site is None:
        raise SiteError("this node's configuration has no site, the name of the site")
    elif node.data_root is None:
        raise SiteError("this node's configuration has no data-root, the place of the site's data")
    else:
        site = own_site(settings, node.site)
    own = Path(node.state_dir) / site.name
    # A hospital's disk may serve several runs; a simulated site's folder belongs to one run already.
    return LocalSite(site.name, site.pretrain, own / fingerprint(settings)[:16] if node.deployed else own)


def dealt(settings: Config) -> list[Site]:
    """The simulated sites, from memory where this process has dealt them before."""
    key = (fingerprint(settings), settings.data.get("root"))
    if key not in DEALT:
        DEALT.clear()
        DEALT[key] = simulated_sites(settings)
    return DEALT[key]


class Deadline:
    """End this process when a round takes longer than the server waits: a SuperNode has no time limit of its own, and
    would stay wedged behind a hung app while it still counts as online. Only a deployed node's process is ended; it
    lives for one message. In a simulation other sites live in the same process."""

    def __init__(self, node: Node, seconds: float) -> None:
        self.timer = threading.Timer(seconds, os._exit, (1,)) if node.deployed else None

    def __enter__(self) -> None:
        if self.timer is not None:
            self.timer.daemon = True
            self.timer.start()

    def __exit__(self, *_: Any) -> None:
        if self.timer is not None:
            self.timer.cancel()
