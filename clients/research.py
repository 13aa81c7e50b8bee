"""A site of the launcher's own, in the app's process: what it is, and a round of ``federation.local_round``.

For research on one machine: whoever sends the app can read what its process can. A hospital's node has a socket
instead, and its rules hold behind it (``clients.app``, ``federation.door``). Both do the same work.

What leaves the site: the shared tensors, counts, scalars, the site's name, and the class of an error (of a
``SiteError`` its line, too). The exception itself is written to ``errors.log`` on the site's own disk, because its text
may name files or patients.

Where the data lies and where the site keeps its state is never read from a message. A node on loopback is told when it
starts: ``--node-config 'site="north" data-root="/data" state-dir="/var/lib/sslmed"'``. Simulated sites (their
node has a ``partition-id``) read both from the environment that the launcher set; their share of one dataset comes from
``federated.partition``.
"""

import os
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict

from clients.opaque import PAYLOAD, record
from sslmed_dist import __version__
from sslmed_dist.atomic_files import appending
from sslmed_dist.config import Config, fingerprint, replace
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.federation import secure_research, site_figures
from sslmed_dist.federation.figures import Told
from sslmed_dist.federation.local_round import local_update, privately
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
from sslmed_dist.federation.shared import model_digest
from sslmed_dist.federation.sites import (
    Dealt,
    Site,
    dealt_sites,
    expected_sites,
    federated_section,
    has_own_data,
    own_site,
    settings_for,
    site_names,
)

FAILED = 2  # Flower's code for an app that raised


@dataclass(frozen=True)
class LocalSite:
    """One site as this process knows it: its data and its parts, the folder of its own state, and the settings with
    the place of its data."""

    own: Site
    folder: Path
    settings: Config

    @property
    def name(self) -> str:
        """What it is called."""
        return self.own.name

    @property
    def dataset(self) -> Dataset:
        """What it pretrains on."""
        return self.own.pretrain


# A simulation's process serves many rounds of several sites: the data is read and dealt once.
DEALT: dict[tuple[str, str | None], Dealt] = {}


def introduce(message: Message, context: Context) -> RecordDict:
    """The reply to "hello". A server of another version gets an answer too, so that it can name the site; its settings
    are not read, because they may be of another schema."""
    run_settings, node = RunSettings.from_record(context.run_config), node_of(context)
    if run_settings.version != __version__:
        greeting = Greeting(node.name, __version__, channels=0, samples=0)
    else:
        with deadline(node, run_settings.settings):
            site = site_of(run_settings.settings, node)
        greeting = Greeting(site.name, __version__, site.dataset.channels, len(site.dataset))
    return RecordDict({SITE: ConfigRecord(greeting.to_record())})


def update(message: Message, context: Context) -> RecordDict:
    """The reply to "train", and to every step of a secure sum."""
    run_settings, node = RunSettings.from_record(context.run_config), node_of(context)
    if run_settings.version != __version__:
        raise SiteError(f"this site runs sslmed_dist {__version__}, the server {run_settings.version}")
    settings = run_settings.settings
    if PAYLOAD in message.content:
        return secure_step(settings, message, node)
    round_number = Order.from_record(message.content[ORDER]).number
    arrays = message.content[ARRAYS].to_torch_state_dict()
    with deadline(node, settings):
        site = site_of(settings, node)
        shared, scalars = local_update(settings, site.name, site.dataset, round_number, arrays, site.folder)
        shared, samples, scalars = privately(settings, round_number, arrays, shared, len(site.dataset), scalars)
    account = Account(site.name, samples, scalars, round_number, model_digest(arrays))
    return RecordDict(
        {
            ARRAYS: ArrayRecord(torch_state_dict=shared),
            METRICS: MetricRecord(account.to_metrics()),
            SITE: ConfigRecord(account.to_site()),
        }
    )


def evaluate(message: Message, context: Context) -> RecordDict:
    """The reply to "evaluate": the figures of the arms on this site's held-out part, by the code of a hospital's data
    side."""
    run_settings, node = RunSettings.from_record(context.run_config), node_of(context)
    if run_settings.version != __version__:
        raise SiteError(f"this site runs sslmed_dist {__version__}, the server {run_settings.version}")
    rounds_done = Order.from_record(message.content[ORDER]).number
    arrays = message.content[ARRAYS].to_torch_state_dict()
    settings = run_settings.settings
    with deadline(node, settings, site_figures.rounds_of_work(settings)):
        site = site_of(settings, node)
        found, scalars = site_figures.evaluate(site.settings, site.own, arrays, site.folder)
    told = Told(site.name, rounds_done, model_digest(arrays), found, scalars)
    return RecordDict({SITE: ConfigRecord(told.to_record())})


def secure_step(settings: Config, message: Message, node: Node) -> RecordDict:
    """The reply to one step of a secure sum."""
    request = bytes(message.content[PAYLOAD][PAYLOAD].data)
    with deadline(node, settings):
        site = site_of(settings, node)
        return record(secure_research.answer(settings, site.name, site.dataset, site.folder, request))


def node_of(context: Context) -> Node:
    """What this node was told when it was started."""
    return Node.read(context.node_config, os.environ)


def answer(message: Message, context: Context, work: Callable[[Message, Context], RecordDict]) -> Message:
    """The reply of ``work``. Where it raises, an error reply instead: it says the class of the error, or its text where
    that may travel."""
    try:
        return Message(work(message, context), reply_to=message)
    except Exception as error:  # whatever went wrong here, the server must get an answer and no details
        # A simulated site has nothing to hide from the person who simulates it; of what it is not known counts as real.
        may_travel: type[ValueError] = SiteError
        try:
            node = node_of(context)
            may_travel = SiteError if node.deployed else ValueError
            note(node, error)
        except Exception:  # a malformed node configuration, a full disk: the reply goes out all the same
            traceback.print_exception(error)  # to the log of the site's own SuperNode
        reason = str(error) if isinstance(error, may_travel) else type(error).__name__
        return Message(Error(FAILED, MARK + reason), reply_to=message)


def note(node: Node, error: Exception) -> None:
    """Write the exception to the site's own ``errors.log``. ``ValueError`` or ``OSError`` where that cannot be."""
    if node.state_dir is None:
        return
    with appending(Path(node.state_dir) / "errors.log") as log:
        log.write(f"{node.name}\n{''.join(traceback.format_exception(error))}\n")


def site_of(settings: Config, node: Node) -> LocalSite:
    """The site that this node is. ``SiteError`` names what its node configuration lacks."""
    if node.state_dir is None:
        raise SiteError("this node's configuration has no state-dir, the folder of the site's own state")
    settings = replace(settings, data=node.data(settings.data))
    if node.partition is not None and has_own_data(settings):
        fed = federated_section(settings)
        name = site_names(fed, expected_sites(fed))[node.partition]
        settings = settings_for(settings, name)
        site = own_site(settings, name)
    elif node.partition is not None:
        site = dealt(settings).site(node.partition)
    elif node.site is None:
        raise SiteError("this node's configuration has no site, the name of the site")
    elif node.data_root is None:
        raise SiteError("this node's configuration has no data-root, the place of the site's data")
    else:
        site = own_site(settings, node.site)
    site_folder = Path(node.state_dir) / site.name
    # A hospital's disk may serve several runs; a simulated site's folder belongs to one run already.
    folder = site_folder / fingerprint(settings)[:16] if node.deployed else site_folder
    return LocalSite(site, folder, settings)


def dealt(settings: Config) -> Dealt:
    """The simulated sites, from memory where this process has dealt them before."""
    key = (fingerprint(settings), settings.data.get("root"))
    if key not in DEALT:
        DEALT.clear()
        DEALT[key] = dealt_sites(settings)
    return DEALT[key]


@contextmanager
def deadline(node: Node, settings: Config, rounds: int = 1) -> Iterator[None]:
    """End this process when the work inside takes longer than the server waits: ``federated.timeout_s`` for each of
    the ``rounds`` that the work is like. Reading the data is part of the work: a disk that hangs is as bad as a
    training that does.

    A SuperNode has no time limit of its own: behind an app that hangs it would do nothing more, and still count as
    online. Only the process of a deployed node is ended, which lives for one message; in a simulation other sites live
    in the same process.
    """
    timer = threading.Timer(federated_section(settings).timeout_s * rounds, os._exit, (1,))
    timer.daemon = True
    if node.deployed:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
