"""Which sites take part: every node is greeted before it is asked to train, so that the log can name it."""

import logging
import math
import time
from collections.abc import Iterable, Mapping

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from server.owners import Owners
from server.sealed import Sealed, SiteRefused
from sslmed_dist import __version__
from sslmed_dist.federation.messages import MARK, ORDER, SITE, Greeting, Hello, Unreadable, only
from sslmed_dist.federation.registered import Registered
from sslmed_dist.federation.site_file import NAME
from sslmed_dist.printable import plural, printable

log = logging.getLogger("sslmed.server")

LIFE_S = 43200.0  # Flower's own time to live of a message
FAILURES = {
    1: "its app could not be loaded",
    3: "the message was lost",
    4: "the reply was lost",
    5: "the node is gone",
    7: "its node does not run this app: no key that it trusts has signed it",
    8: "its app stopped",
}


def failure(reply: Message) -> str:
    """What an error reply says, in one short printable line without anything that names the site's files."""
    reason = str(reply.error.reason or "")
    if reason.startswith(MARK):
        return printable(reason.removeprefix(MARK))[:200]
    return FAILURES.get(reply.error.code, f"its app failed (Flower's code {reply.error.code})")


class Sites:
    """The nodes of a federation and the sites that they are. In the first round all ``expected`` sites are waited for,
    in later rounds ``quorum`` of them. ``channels`` is what the images of every site must have. ``listed``: the sites
    that may take part, and what is registered of them (see ``federation.registered``); None: any."""

    def __init__(
        self,
        expected: int,
        quorum: int,
        timeout_s: float,
        channels: int,
        listed: Mapping[str, Registered] | None = None,
        sealed: Sealed | None = None,
    ) -> None:
        self.sealed = sealed  # for sites of two processes; without it there are none
        self.expected, self.quorum, self.timeout_s, self.channels = expected, quorum, timeout_s, channels
        self.listed = listed
        self.owners = Owners(listed or {})
        self.known: dict[int, Greeting] = {}  # by node, what a site that passed the greeting said
        self.refused: dict[int, str] = {}  # by node, why it may not take part in this round
        self.seen: set[str] = set()  # names of all sites that ever took part, in earlier starts, too
        self.wanted = expected
        if listed is None:
            log.warning("no list of sites (sites.yaml, federated.site_names): whoever greets takes part")

    def ready(self, grid: Grid) -> dict[int, Greeting]:
        """The greetings of the sites that are online and passed it, by node, sorted by name.

        It waits until enough of them are there, until every expected site has answered, or until ``timeout_s`` have
        passed. ``RuntimeError`` if fewer than the quorum are usable then: it says how many were online, how many are
        needed, and why the others are refused. Every site that is missing is named in every round.
        """
        self.refused.clear()  # what was wrong with a site may have been mended since the last round
        end, waits = time.monotonic() + self.timeout_s, False
        while True:
            online = set(grid.get_node_ids())
            present = {node: greeting for node, greeting in self.known.items() if node in online}
            strangers = sorted(online - present.keys() - self.refused.keys())
            if strangers:
                self.greet(grid, strangers, online, max(end - time.monotonic(), 1.0))
                continue
            answered = len(present) + len(self.refused) >= self.expected
            if len(present) >= self.wanted or answered or time.monotonic() >= end:
                break
            if not waits:
                self.say_who_is_waited_for(present)
            waits = True
            time.sleep(0.5)
        self.report(present)
        if len(present) < self.quorum:
            reasons = "".join(f"; {reason}" for reason in self.refused.values())
            raise RuntimeError(
                f"{len(online)} of {self.expected} sites are online and {len(present)} usable, {self.quorum} needed "
                f"(federated.quorum); waited up to {self.timeout_s:g} s{reasons}"
            )
        self.wanted = self.quorum
        self.seen |= {greeting.site for greeting in present.values()}
        return dict(sorted(present.items(), key=lambda item: item[1].site))

    def say_who_is_waited_for(self, present: Mapping[int, Greeting]) -> None:
        """Before minutes without a line: which sites of the list are not there yet, or how many are."""
        there = {greeting.site for greeting in present.values()}
        absent = ", ".join(sorted(set(self.listed or ()) - there))
        whom = f"; not there: {absent}" if absent else ""
        log.info("waiting up to %.0f s: %d of %d sites are there%s", self.timeout_s, len(there), self.wanted, whom)

    def report(self, present: Mapping[int, Greeting]) -> None:
        """Say which nodes are refused and which sites are missing: one that took part before is dead, one that is on
        the list, and is not refused, has not joined."""
        for node, reason in self.refused.items():
            log.warning("node %d is refused: %s", node, reason)
        there = {greeting.site for greeting in present.values()}
        refused = {self.owners.name(node) for node in self.refused}  # said above; it did join
        for name in sorted((self.seen | set(self.listed or ())) - there - refused):
            log.warning("%s %s", name, "is dead: its node is offline" if name in self.seen else "has not joined")
        if self.quorum <= len(present) < self.expected:
            log.warning("going on with %d of %d sites", len(present), self.expected)

    def greet(self, grid: Grid, nodes: Iterable[int], online: set[int], timeout: float) -> None:
        """Send "hello" to ``nodes`` and sort them into known and refused; ``online`` are the ids of all nodes."""
        self.owners.look(grid)
        further = {} if self.sealed is None else self.sealed.hello()
        content = RecordDict({ORDER: ConfigRecord(Hello(__version__).to_record()), **further})
        messages = {node: Message(content, node, "query", ttl=max(timeout, LIFE_S)) for node in nodes}
        received = grid.send_and_receive(list(messages.values()), timeout=timeout)
        replies = by_node(messages, received)
        for node in messages:
            if node not in replies:
                self.refused[node] = f"{self.owners.who(node)} did not answer within {math.ceil(timeout)} s"
            else:
                self.meet(node, replies[node], online)

    def meet(self, node: int, reply: Message, online: set[int]) -> None:
        """Put the node of one answer to "hello" among the known or the refused."""
        if reply.has_error():
            self.refused[node] = f"{self.owners.who(node)}: {failure(reply)}"
            return
        try:
            content = reply.content if self.sealed is None else self.sealed.greeting(reply, node)
            only(content, (SITE,), "the greeting's records")
            greeting = Greeting.from_record(content[SITE])
        except SiteRefused as refusal:
            self.refused[node] = f"{self.owners.who(node)}: {printable(str(refusal))[:400]}"
            return
        except Exception as error:  # bytes of a foreign program: whatever they raise, this node is refused
            why = str(error) if isinstance(error, Unreadable) else type(error).__name__
            self.refused[node] = f"{self.owners.who(node)}: its greeting is not one of this program ({why})"
            return
        reason = self.objection(node, greeting, online)
        if reason is not None:
            self.refused[node] = reason
            return
        for other in self.namesakes(node, greeting.site):  # the site was started again and came back as another node
            del self.known[other]
        self.known[node] = greeting
        log.info("%s has joined with %d samples", greeting.site, greeting.samples)

    def objection(self, node: int, greeting: Greeting, online: set[int]) -> str | None:
        """Why the site that greets so may not take part, or None if it may."""
        name = greeting.site
        if not NAME.fullmatch(name):
            return f"node {node}: its name is not made of letters, digits, '_', '.' and '-'"
        if greeting.version != __version__:
            return f"{name} runs sslmed_dist {printable(greeting.version)[:40]}, the server {__version__}"
        if self.listed is not None and name not in self.listed:
            return f"node {node}: no site of this run is called {name}"
        registered = (self.listed or {}).get(name, Registered())
        if registered.node_key is not None and self.owners.name(node) != name:
            return f"node {node}: says it is {name}, but its key is that of {self.owners.name(node) or 'no site'}"
        if greeting.channels != self.channels:
            images = f"{name} has images of {plural(greeting.channels, 'channel')}"
            return f"{images}, the run's method takes {self.channels}"
        most = registered.samples
        if greeting.samples < 1 or (most is not None and greeting.samples > most):
            allowed = "at least 1" if most is None else f"1 to {most} (sites.yaml)"
            return f"{name} reports {plural(greeting.samples, 'sample')}, allowed {allowed}"
        if any(other in online for other in self.namesakes(node, name)):
            return f"node {node}: its name {name} is another site's"
        return None

    def namesakes(self, node: int, name: str) -> list[int]:
        """Other nodes that are known under a name."""
        return [other for other, known in self.known.items() if known.site == name and other != node]


def by_node(messages: Mapping[int, Message], replies: Iterable[Message]) -> dict[int, Message]:
    """The replies by the node that was asked. They are told apart by the message that they answer: an error that the
    SuperLink itself writes ("the node is gone") names the SuperLink as its source. Of two replies to one message the
    first counts."""
    nodes = {message.metadata.message_id: node for node, message in messages.items()}
    found: dict[int, Message] = {}
    for reply in replies:
        node = nodes.get(reply.metadata.reply_to_message_id)
        if node is not None:
            found.setdefault(node, reply)
    return found
