"""Which sites take part: every node is greeted before it is asked to train, so that the log can name it."""

import logging
import math
import re
import time
from collections.abc import Iterable

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from server.sealed import Sealed, SiteRefused
from sslmed_dist import __version__
from sslmed_dist.federation.messages import MARK, ORDER, SITE, Greeting, Hello
from sslmed_dist.printable import printable

log = logging.getLogger("sslmed.server")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
LIFE_S = 43200.0  # Flower's own time to live of a message
FAILURES = {
    1: "its app could not be loaded",
    3: "the message was lost",
    4: "the reply was lost",
    5: "the node is gone",
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
    in later rounds ``quorum`` of them. ``channels`` is what the images of every site must have."""

    def __init__(
        self, expected: int, quorum: int, timeout_s: float, channels: int, sealed: Sealed | None = None
    ) -> None:
        self.sealed = sealed  # for sites of two processes; without it there are none
        self.expected, self.quorum, self.timeout_s, self.channels = expected, quorum, timeout_s, channels
        self.known: dict[int, str] = {}  # by node, the name of a site that passed the greeting
        self.refused: dict[int, str] = {}  # by node, why it may not take part in this round
        self.wanted = expected

    def ready(self, grid: Grid) -> dict[int, str]:
        """The names of the sites that are online and passed the greeting, by node, sorted by name.

        It waits until enough of them are there, until every expected site has answered, or until ``timeout_s`` have
        passed. ``RuntimeError`` if fewer than the quorum are usable then: it says how many were online, how many are
        needed, and why the others are refused.
        """
        self.refused.clear()  # what was wrong with a site may have been mended since the last round
        end = time.monotonic() + self.timeout_s
        while True:
            online = set(grid.get_node_ids())
            present = {node: name for node, name in self.known.items() if node in online}
            strangers = sorted(online - present.keys() - self.refused.keys())
            if strangers:
                self.greet(grid, strangers, online, max(end - time.monotonic(), 1.0))
                continue
            answered = len(present) + len(self.refused) >= self.expected
            if len(present) >= self.wanted or answered or time.monotonic() >= end:
                break
            time.sleep(0.5)
        for node, reason in self.refused.items():
            log.warning("node %d is refused: %s", node, reason)
        if len(present) < self.quorum:
            reasons = "".join(f"; {reason}" for reason in self.refused.values())
            raise RuntimeError(
                f"{len(online)} of {self.expected} sites are online and {len(present)} usable, {self.quorum} needed "
                f"(federated.quorum); waited up to {self.timeout_s:g} s{reasons}"
            )
        if self.wanted == self.expected and len(present) < self.expected:
            log.warning("going on with %d of %d sites", len(present), self.expected)
        self.wanted = self.quorum
        return dict(sorted(present.items(), key=lambda item: item[1]))

    def greet(self, grid: Grid, nodes: Iterable[int], online: set[int], timeout: float) -> None:
        """Send "hello" to ``nodes`` and sort them into known and refused; ``online`` are the ids of all nodes."""
        nodes = list(nodes)
        further = {} if self.sealed is None else self.sealed.hello()
        content = RecordDict({ORDER: ConfigRecord(Hello(__version__).to_record()), **further})
        messages = [Message(content, node, "query", ttl=max(timeout, LIFE_S)) for node in nodes]
        replies = {reply.metadata.src_node_id: reply for reply in grid.send_and_receive(messages, timeout=timeout)}
        for node in nodes:
            if node not in replies:
                self.refused[node] = f"node {node} did not answer within {math.ceil(timeout)} s"
            else:
                self.meet(node, replies[node], online)

    def meet(self, node: int, reply: Message, online: set[int]) -> None:
        """Put the node of one answer to "hello" among the known or the refused."""
        if reply.has_error():
            self.refused[node] = f"node {node}: {failure(reply)}"
            return
        try:
            content = reply.content if self.sealed is None else self.sealed.greeting(reply, node)
            greeting = Greeting.from_record(content[SITE])
        except SiteRefused as refusal:
            self.refused[node] = f"node {node}: {printable(str(refusal))[:400]}"
            return
        except (KeyError, TypeError, ValueError):
            self.refused[node] = f"node {node}: its greeting is not one of this program"
            return
        name = greeting.site
        namesakes = [other for other, known in self.known.items() if known == name and other != node]
        if not NAME.fullmatch(name):
            self.refused[node] = f"node {node}: its name is not made of letters, digits, '_', '.' and '-'"
        elif greeting.version != __version__:
            self.refused[node] = f"{name} runs sslmed_dist {printable(greeting.version)[:40]}, the server {__version__}"
        elif greeting.channels != self.channels:
            images = f"{name} has images of {greeting.channels} channels"
            self.refused[node] = f"{images}, the run's method takes {self.channels}"
        elif any(other in online for other in namesakes):
            self.refused[node] = f"node {node}: its name {name} is another site's"
        else:
            for other in namesakes:  # the site was started again and came back as another node
                del self.known[other]
            self.known[node] = name
            log.info("%s has joined with %d samples", name, greeting.samples)
