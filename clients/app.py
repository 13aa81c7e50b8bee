"""The ClientApp. At a hospital it is a relay: it imports neither torch nor our package, and knows no path but a socket.

A node that was started with ``--node-config 'socket="/run/sslmed/data.sock"'`` belongs to a site of two processes. This
one has the network and nothing else. It hands the one opaque payload of a message to the site's data side
(``sslmed site start``), and what comes back to the server. What may happen with it is decided there. A reply is read no
more than a request is.

A node without a socket is one of the launcher's own (``clients.research``): same machine, same user, research alone.
"""

import socket
import struct
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from clients.opaque import PAYLOAD, record

FAILED = 2  # Flower's code for an app that raised
MARK = "sslmed: "  # begins a reason that the server may show; as in ``federation.messages``
LENGTH = struct.Struct("<Q")
MOST = 1 << 33  # bytes of an answer

app = ClientApp()


@app.query()  # type: ignore[untyped-decorator]
def hello(message: Message, context: Context) -> Message:
    """Who this site is."""
    return answer(message, context, "introduce")


@app.train()  # type: ignore[untyped-decorator]
def train(message: Message, context: Context) -> Message:
    """One round."""
    return answer(message, context, "update")


@app.evaluate()  # type: ignore[untyped-decorator]
def evaluate(message: Message, context: Context) -> Message:
    """What the encoders are worth here."""
    return answer(message, context, "evaluate")


def answer(message: Message, context: Context, work: str) -> Message:
    """The data side's answer, or that of ``clients.research`` for a node of the launcher's own."""
    place = context.node_config.get("socket")
    if not place:
        from clients import research

        return research.answer(message, context, getattr(research, work))
    try:
        return Message(relayed(message, str(place)), reply_to=message)
    except KeyError:
        return refused(message, "the message has no payload for this site's data side; the server is of another kind")
    except (OSError, ValueError):  # of it the server learns no path
        return refused(message, "this site's data side does not answer; its own log says why")


def refused(message: Message, reason: str) -> Message:
    """An error reply."""
    return Message(Error(FAILED, MARK + reason), reply_to=message)


def relayed(message: Message, place: str) -> RecordDict:
    """The payload to the socket ``place``, the answer back. ``KeyError`` for a message without one, ``OSError`` where
    nobody answers before the message's own time is over."""
    payload = bytes(message.content[PAYLOAD][PAYLOAD].data)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(message.metadata.ttl)
        connection.connect(place)
        connection.sendall(LENGTH.pack(len(payload)))
        connection.sendall(payload)
        (length,) = LENGTH.unpack(received(connection, LENGTH.size))
        if not 0 < length <= MOST:
            raise ValueError("no answer")
        data = bytes(received(connection, length))
    return record(data)


def received(connection: Any, length: int) -> bytearray:
    """Exactly ``length`` bytes of a socket."""
    data = bytearray(length)
    start, view = 0, memoryview(data)
    while start < length:
        count = connection.recv_into(view[start:])
        if count == 0:
            raise OSError("closed")
        start += count
    return data
