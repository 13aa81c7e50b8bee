"""Flower's grid over a network, asked for replies more often than every three seconds."""

import time
from collections.abc import Iterable
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid


def pause(waited: float) -> float:
    """Seconds until the next look after ``waited`` seconds without success: a tenth of them, from 0.1 to 3. So nothing
    is found more than a tenth late, and nobody is asked more often than that takes."""
    return min(3.0, max(0.1, waited / 10))


class BriskGrid(Grid):  # type: ignore[misc]
    """Another grid with its own wait for replies; all else is that grid's."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def set_run(self, run: Any) -> None:
        """The run of the other grid."""
        self.grid.set_run(run)

    @property
    def run(self) -> Any:
        """The run of the other grid."""
        return self.grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message of the other grid."""
        return self.grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Ids of the nodes that are online."""
        return self.grid.get_node_ids()  # type: ignore[no-any-return]

    def get_nodes(self) -> Any:
        """The nodes that are online."""
        return self.grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send the messages; returns their ids."""
        return self.grid.push_messages(messages)  # type: ignore[no-any-return]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are there."""
        return self.grid.pull_messages(message_ids)  # type: ignore[no-any-return]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send the messages and wait for the replies, ``timeout`` seconds at most."""
        waiting = set(self.push_messages(messages))
        del messages  # their tensors need not be kept while sites work
        begun, found = time.monotonic(), time.monotonic()
        replies: list[Message] = []
        while waiting and (timeout is None or time.monotonic() - begun < timeout):
            new = list(self.pull_messages(waiting))
            if new:
                found = time.monotonic()
            replies += new
            waiting -= {reply.metadata.reply_to_message_id for reply in new}
            if waiting:
                time.sleep(pause(time.monotonic() - found))
        return replies


def brisk(grid: Grid) -> Grid:
    """``grid``, asked more often where it is one over a network."""
    return BriskGrid(grid) if type(grid).__name__ == "HttpGrid" else grid
