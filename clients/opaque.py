"""Opaque bytes in a message of Flower's. Like the relay that uses it, it imports neither torch nor our package."""

from flwr.app import Array, ArrayRecord, RecordDict

PAYLOAD = "payload"  # the record of a message, the array in it, and the array's type: bytes that Flower does not read


def record(data: bytes) -> RecordDict:
    """Opaque bytes as Flower carries them: one array whose type is not one of Flower's."""
    array = Array(dtype="uint8", shape=(len(data),), stype=PAYLOAD, data=data)
    return RecordDict({PAYLOAD: ArrayRecord({PAYLOAD: array})})
