"""Flower's SuperNode, which looks for work more often than every three seconds, and leaves no answer lying; when its
loop ends, the process ends.

``python -m clients.supernode ARGUMENTS`` takes Flower's own arguments. Two names of Flower's loop are replaced (checked
with Flower 1.41; where they are not there, it is said and Flower's own ones hold):

- ``time.sleep``. Flower sleeps 3 s while there is no work and 0.5 s while its app works. Here it sleeps a tenth of what
  it has waited already, from 0.1 s up to Flower's own times: nothing is found more than a tenth late, and an idle site
  asks no more often than before.
- ``_pull_and_store_message``. Flower sends an answer only after a message has come. When a server was killed while it
  sent a message, the app answers that one first, which nobody wants any more; its answer to the next message would wait
  for yet another one, and the server for it.
"""

import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn


class Clock:
    """The module ``time`` with a shorter sleep."""

    def __init__(self) -> None:
        self.since = self.ended = 0.0  # when the waiting began, and when the last sleep ended

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def sleep(self, seconds: float) -> None:
        """At most ``seconds``."""
        now = time.monotonic()
        if now - self.ended > 0.5:  # something was done meanwhile, so a new waiting begins
            self.since = now
        time.sleep(min(seconds, max(0.1, (now - self.since) / 10)))
        self.ended = time.monotonic()


def ready(state: Any) -> bool:
    """Whether an answer lies there that was not sent."""
    entries = list(state.msg_store.values())
    return any(not entry.is_retrieved and entry.message.metadata.reply_to_message_id for entry in entries)


def sending(pull: Any) -> Any:
    """Flower's ``pull``, which returns None where no message came, and then nothing is sent; here 0 where an answer is
    ready, so that it is."""

    def pulled(*, state: Any, **others: Any) -> int | None:
        run: int | None = pull(state=state, **others)
        return 0 if run is None and ready(state) else run

    return pulled


def to_its_end(program: Callable[[], object]) -> NoReturn:
    """Run a program, and end this process when it ends. Flower's SuperNode has a thread that serves the app; where its
    main loop ends by an error (the server answered 500 once), that thread alone would keep the process, which then asks
    the server for nothing any more, and nobody would start another."""
    code: Any = 0
    try:
        program()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def main() -> None:
    """The command line."""
    os.environ.pop("PYTHONPATH", None)  # the app that arrives must not be found beside this program
    from flwr.supernode import start_client_internal as loop
    from flwr.supernode.cli import flower_supernode
    from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

    known = getattr(loop, "time", None) is time and hasattr(loop, "_pull_and_store_message")
    if known and hasattr(InMemoryNodeState(None), "msg_store"):
        loop.time = Clock()
        loop._pull_and_store_message = sending(loop._pull_and_store_message)
    else:
        print("this version of Flower works in another way; its own loop holds (3 s without work)", flush=True)
    sys.argv[0] = "flower-supernode"
    to_its_end(flower_supernode)


if __name__ == "__main__":
    main()
