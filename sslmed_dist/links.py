"""Small messages between the processes of one machine, by sockets: what gloo's threads make slow.

A gloo message is received by a thread of gloo's, which then wakes the one that waits. Where every core computes, that
is two changes of thread for each of a synchronised batch norm's messages, and the system moves the ranks between cores
meanwhile. Here the thread that needs a message reads it itself.
"""

import os
import socket
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

# Bytes of a message at most. A rank is never more than one exchange ahead of another, so two messages have to fit into
# a socket's buffer; then no send waits for a reader, and no two ranks for each other.
LARGEST = 1 << 16
BUFFER = 4 * LARGEST  # the system counts its own bookkeeping too


class Links:
    """Connections of this rank to all others, made by ``connect``; ``peers[s]`` leads to rank s."""

    def __init__(self, peers: dict[int, socket.socket], timeout_s: float) -> None:
        self.peers, self.timeout_s = peers, timeout_s
        for peer in peers.values():
            peer.settimeout(None)  # the system's own limit instead, which costs no call
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", max(int(timeout_s), 1), 0))
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)

    def exchange(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Send ``parts[s]`` to rank s; return what the ranks sent to this one, in rank order. All are CPU tensors of
        one shape and type, of 1 to ``LARGEST`` bytes. ``RuntimeError`` names a rank that is gone or silent."""
        received = [part if s not in self.peers else torch.empty_like(part) for s, part in enumerate(parts)]
        for s, peer in self.peers.items():
            try:
                peer.sendall(content(parts[s]))
            except OSError as error:
                raise RuntimeError(f"rank {s} is gone: {error}") from None
        for s, peer in self.peers.items():
            self.receive(s, peer, content(received[s]))
        return received

    def close(self) -> None:
        """End the connections."""
        for peer in self.peers.values():
            peer.close()

    def receive(self, s: int, peer: socket.socket, into: memoryview) -> None:
        """Fill ``into`` from rank ``s``. ``RuntimeError``: see ``exchange``."""
        while into:
            try:
                count = peer.recv_into(into)
            except BlockingIOError:
                raise RuntimeError(f"rank {s} sent nothing for {self.timeout_s:g} s") from None
            except OSError as error:
                raise RuntimeError(f"rank {s} is gone: {error}") from None
            if not count:
                raise RuntimeError(f"rank {s} is gone: it closed its connection")
            into = into[count:]


def content(x: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, in place."""
    return x.detach().reshape(-1).view(torch.uint8).numpy().data


def connect(timeout_s: float) -> Links | None:
    """Connect all ranks of the group with each other; None, on all of them, where they are not all on one machine (or
    in containers that share no temporary folder). Every rank has to call it. ``timeout_s``: see ``Links.exchange``."""
    rank, world = dist.get_rank(), dist.get_world_size()
    with tempfile.TemporaryDirectory(prefix="sslmed-links-") as folder:  # for this user alone
        door = listen(Path(folder) / str(rank), world)
        doors: list[str | None] = [None] * world
        dist.all_gather_object(doors, None if door is None else door.getsockname())
        peers = call(doors[:rank], rank)
        agreed: list[bool] = [False] * world
        dist.all_gather_object(agreed, door is not None and peers is not None)
        if door is None or peers is None or not all(agreed):
            return None
        for _ in range(rank + 1, world):  # the higher ranks have called already
            peer, _address = door.accept()
            peers[struct.unpack("i", peer.recv(4, socket.MSG_WAITALL))[0]] = peer
        door.close()
    # Not all to rank 0 at first.
    return Links({s: peers[s] for s in ((rank + offset) % world for offset in range(1, world))}, timeout_s)


def listen(path: Path, world: int) -> socket.socket | None:
    """A socket at ``path`` that other ranks can call; None where the system has none, or the path is too long."""
    if not hasattr(socket, "AF_UNIX"):
        return None
    door = socket.socket(socket.AF_UNIX)
    try:
        door.bind(os.fspath(path))
    except OSError:
        door.close()
        return None
    door.listen(world)
    return door


def call(doors: Sequence[str | None], rank: int) -> dict[int, socket.socket] | None:
    """Connections to the ranks that listen at ``doors``, which are told our ``rank``; None where one is out of
    reach."""
    peers: dict[int, socket.socket] = {}
    for s, door in enumerate(doors):
        peers[s] = socket.socket(socket.AF_UNIX)
        try:
            peers[s].connect(door or "")
        except OSError:
            for peer in peers.values():
                peer.close()
            return None
        peers[s].sendall(struct.pack("i", rank))
    return peers
