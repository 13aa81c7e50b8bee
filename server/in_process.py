"""The whole federation in one process: Flower's apps on a grid without a network. Messages are still turned into bytes.

``python -m server.in_process --run-dir DIR`` runs the settings of ``DIR/config.yaml``. The launcher sets PYTHONPATH to
the app's folder, and the variables that tell sites where to find data and keep state. Sites train one after another.
Private names of Flower are used in this module only (checked with 1.41).
"""

import argparse
import sys
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.client_app import LoadClientAppError
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as Wire
from flwr.serverapp import Grid
from flwr.supercore.object_ref import load_app
from flwr.supercore.task_identity import TaskIdentity

from server.app import app as server_app
from sslmed_dist import config
from sslmed_dist.federation.messages import RunSettings
from sslmed_dist.federation.sites import expected_sites, federated_section
from sslmed_dist.printable import say

APP_FOLDER = Path(__file__).resolve().parent.parent
FAILED, GONE = 2, 5  # Flower's codes: the app raised, the node is not there


def round_trip(message: Message) -> Message:
    """The message as it is after its bytes went over a wire: what records cannot carry fails here."""
    return message_from_proto(Wire.FromString(message_to_proto(message).SerializeToString()))


class InProcessGrid(Grid):  # type: ignore[misc]
    """Nodes 1 to ``count``, each with a context of its own, that answer by a call of ``client``.

    Sites work one after another, so ``timeout`` holds for each site by itself. A site cannot be interrupted; a reply
    that took longer is dropped, as on a real grid.
    """

    def __init__(self, client: ClientApp, count: int, run_config: dict[str, Any]) -> None:
        TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
        self.client = client
        self.replies: dict[str, Message] = {}  # by the id of the message that they answer, until they are pulled
        self.took: dict[str, float] = {}  # seconds, by the same id
        self.contexts = {
            node: Context(
                run_id=1,
                node_id=node,
                node_config={"partition-id": node - 1, "num-partitions": count},
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for node in range(1, count + 1)
        }

    def set_run(self, run: Any) -> None:
        """There is one run only."""

    @property
    def run(self) -> Any:
        """The one run."""
        return SimpleNamespace(run_id=1)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message of this run."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes are always online."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Deliver the messages and keep the answers; returns the messages' ids."""
        message_ids = []
        for message in messages:
            message_id = str(uuid.uuid4())
            message.metadata.__dict__["_message_id"] = message_id
            started = time.monotonic()
            self.replies[message_id] = self.deliver(round_trip(message))
            self.took[message_id] = time.monotonic() - started
            message_ids.append(message_id)
        return message_ids

    def deliver(self, message: Message) -> Message:
        """One node's answer; whatever goes wrong there becomes an error reply, as at a SuperNode."""
        context = self.contexts.get(message.metadata.dst_node_id)
        if context is None:
            return round_trip(Message(Error(GONE, "no such node"), reply_to=message))
        try:
            return round_trip(self.client(message, context))
        except Exception as error:  # a SuperNode answers for an app that raises anything
            return round_trip(Message(Error(FAILED, type(error).__name__), reply_to=message))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The answers to these messages; each is handed out once."""
        return [self.replies.pop(message_id) for message_id in message_ids if message_id in self.replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Deliver and collect; replies that took longer than ``timeout`` are dropped."""
        replies = []
        for message_id in self.push_messages(messages):
            reply = next(iter(self.pull_messages([message_id])))
            if timeout is None or self.took.pop(message_id) <= timeout:
                replies.append(reply)
        return replies


def run(folder: Path, client: ClientApp | None = None) -> None:
    """Run the federation that ``folder/config.yaml`` describes. ``client`` replaces the app's own (in tests)."""
    settings = config.load(folder / "config.yaml")
    run_config = RunSettings.of(settings, folder.resolve()).to_record()
    if client is None:
        client = load_app("clients.app:app", LoadClientAppError, APP_FOLDER)
    count = expected_sites(federated_section(settings))
    grid = InProcessGrid(client, count, run_config)
    server_app(grid, Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=run_config))


def main() -> int:
    """The command line. Exit code 1 when the federation failed; ``federation.json`` says why."""
    parser = argparse.ArgumentParser(prog="server.in_process")
    parser.add_argument("--run-dir", type=Path, required=True)
    try:
        run(parser.parse_args().run_dir)
    except (ValueError, RuntimeError) as error:
        say(" ".join(str(error).split()))  # it may quote a name out of a file
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
