"""From a message of Flower's to a reply of ours. What the message says of itself is looked at before its bytes are."""

from flwr.app import Message

from sslmed_dist.federation.messages import ARRAYS, METRICS, SITE, Account, Unreadable, only
from sslmed_dist.federation.replies import Asked, Reply, screen

HEADER = 1 << 12  # bytes of an array beside its values: NumPy's own header is 128


def read(message: Message, asked: Asked) -> tuple[Reply | None, dict[str, float], str | None]:
    """The answer to what was ``asked`` as (the reply, its scalars, None), or (None, nothing, what is wrong with it)."""
    try:
        require_size(message, asked)
        account = Account.from_records(message.content[METRICS], message.content[SITE])
        arrays = dict(message.content[ARRAYS].to_torch_state_dict(keep_input=False))
    except Exception as error:  # bytes of a foreign program: whatever they raise, this site is left out
        why = str(error) if isinstance(error, Unreadable) else type(error).__name__
        return None, {}, f"unreadable reply ({why})"
    reason = screen(account, arrays, asked)
    if reason is not None:
        return None, {}, reason
    return Reply(account.site, arrays, account.samples), dict(account.scalars), None


def require_size(message: Message, asked: Asked) -> None:
    """``Unreadable`` for records or tensors beside those that were asked for, and for a tensor of more bytes than its
    values need, before one is unpacked."""
    only(message.content, (ARRAYS, METRICS, SITE), "the reply's records")
    arrays = message.content[ARRAYS]
    only(arrays, asked.reference.keys(), "its tensors")
    for key, expected in asked.reference.items():
        most = expected.numel() * max(expected.element_size(), 8) + HEADER  # a type too wide is named by the screen
        if len(arrays[key].data) > most:
            raise Unreadable(f"tensor {key} has {len(arrays[key].data):,} bytes, allowed {most:,}")
