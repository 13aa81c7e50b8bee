"""From a message of Flower's to a reply of ours. What the message says of itself is looked at before its bytes are."""

from flwr.app import Message, RecordDict

from server.sealed import Sealed, SiteRefused
from sslmed_dist.federation.messages import ARRAYS, METRICS, SITE, Account, Unreadable, only
from sslmed_dist.federation.replies import Asked, Reply, screen

HEADER = 1 << 12  # bytes of an array beside its values: NumPy's own header is 128


def read(
    message: Message, asked: Asked, sealed: Sealed | None = None
) -> tuple[Reply | None, dict[str, float], str | None]:
    """The answer to what was ``asked`` as (the reply, its scalars, None), or (None, nothing, what is wrong with it).
    ``sealed`` opens the answers of sites of two processes."""
    try:
        content = message.content if sealed is None else sealed.update(message, asked)
        require_size(content, asked)
        account = Account.from_records(content[METRICS], content[SITE])
        arrays = dict(content[ARRAYS].to_torch_state_dict(keep_input=False))
    except SiteRefused as refusal:
        return None, {}, str(refusal)
    except Exception as error:  # bytes of a foreign program: whatever they raise, this site is left out
        why = str(error) if isinstance(error, Unreadable) else type(error).__name__
        return None, {}, f"unreadable reply ({why})"
    reason = screen(account, arrays, asked)
    if reason is not None:
        return None, {}, reason
    return Reply(account.site, arrays, account.samples), dict(account.scalars), None


def require_size(content: RecordDict, asked: Asked) -> None:
    """``Unreadable`` for records or tensors beside those that were asked for, and for a tensor of more bytes than its
    values need, before one is unpacked."""
    only(content, (ARRAYS, METRICS, SITE), "the reply's records")
    arrays = content[ARRAYS]
    only(arrays, asked.reference.keys(), "its tensors")
    for key, expected in asked.reference.items():
        most = expected.numel() * max(expected.element_size(), 8) + HEADER  # a type too wide is named by the screen
        if len(arrays[key].data) > most:
            raise Unreadable(f"tensor {key} has {len(arrays[key].data):,} bytes, allowed {most:,}")
