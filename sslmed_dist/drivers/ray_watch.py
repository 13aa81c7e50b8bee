"""The workers of a run under watch: each says every second how far it is, to an actor beside the driver, which ends one
that hangs. The way is Ray's own messages and not the run folder, which may be what hangs."""

import os
import threading
import time
from typing import Any

from sslmed_dist import distributed
from sslmed_dist.drivers.heartbeats import SILENT_S, Beat, Ledger, Seen, hung, idle, line_of, speaking
from sslmed_dist.printable import say
from sslmed_dist.training.phases import STARTING
from sslmed_dist.training.pulse import Pulse

NAMESPACE = "sslmed"
EVERY_S = 1.0
LOOK_S = 2.0
ANSWER_S = 30.0  # how long a worker waits for an answer before it says its next word


class Speaker(threading.Thread):
    """In a worker: tells the ledger called ``name`` how the training of ``pulse`` stands, until the process ends."""

    def __init__(self, name: str, pulse: Pulse) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self.ledger_name, self.pulse = name, pulse

    def run(self) -> None:
        """Say it every second. Where nobody answers the ledger is being started again, or the driver has ended and Ray
        ends this process, too."""
        import ray

        context = ray.get_runtime_context()
        ledger = ray.get_actor(self.ledger_name, namespace=NAMESPACE)
        same = {
            "attempt": ":".join((os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"], str(distributed.world_size()))),
            "rank": distributed.rank(),
            "world": distributed.world_size(),
            "process": os.getpid(),
            "node": ray.util.get_node_ip_address(),
        }
        while True:
            try:
                beat = Beat(**same, **self.pulse.look())
                self.pulse.asked |= ray.get(ledger.beat.remote(beat, context.current_actor), timeout=ANSWER_S)
            except ray.exceptions.RayError:
                pass
            time.sleep(EVERY_S)


class Watch:
    """In the driver: the ledger and what is done about what it says. ``name`` is of this start of the run alone."""

    def __init__(self, name: str) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        # One that was lost, for want of memory say, comes back and learns all anew within a second.
        actor = ray.remote(num_cpus=0, max_restarts=-1)(Ledger)
        self.ledger = actor.options(name=name, namespace=NAMESPACE, scheduling_strategy=here).remote()
        self.asked: Any = None  # the answer that is waited for
        self.looked = self.heard = time.monotonic()
        self.ended: set[str] = set()  # attempts of which a worker was ended
        self.stopping = self.first_stop = -LOOK_S  # when the ledger was last told of a stop, and first
        self.workers = 0  # as many as there are now, or were before they failed
        self.waits = False  # whether they are there, know of a stop, and have not begun to train
        self.working = False  # whether one of them is there and past its start

    def look(self) -> bool:
        """Ask the ledger now and then, never waiting for its answer; end a worker that hangs. Returns whether workers
        are there in another number than before."""
        import ray

        now = time.monotonic()
        if self.asked is None:
            if now - self.looked >= LOOK_S:
                self.looked, self.asked = now, self.ledger.look.remote()
            return False
        if not ray.wait([self.asked], timeout=0)[0]:
            return False
        answer, self.asked, before = self.asked, None, self.workers
        try:
            seen: list[Seen] = ray.get(answer)
        except ray.exceptions.RayError:  # the ledger was lost
            return False
        beats = speaking(seen)
        self.waits, self.working = idle(seen), any(beat.phase != STARTING for beat in beats)
        if beats:
            self.heard, self.workers = now, beats[0].world
        self.end(hung(seen))
        return self.workers != before

    def end(self, worker: Seen | None) -> None:
        """End a worker that hangs, once."""
        import ray

        if worker is not None and worker.beat.attempt not in self.ended:
            self.ended.add(worker.beat.attempt)
            say(line_of(worker))
            ray.kill(ray.get(self.ledger.handle.remote(worker.beat.rank)))

    def ask_stop(self) -> None:
        """Ask the workers to save and stop, with the answer to their next beat."""
        if time.monotonic() - self.stopping >= LOOK_S:  # again, since a new ledger would not know
            self.stopping = time.monotonic()
            self.first_stop = max(self.first_stop, 0.0) or self.stopping
            self.ledger.ask_stop.remote()

    def idle(self) -> bool:
        """After a stop was asked for: whether no worker is past its start, by their own words, or by their silence for
        some seconds after the stop."""
        return self.waits or (not self.working and time.monotonic() - self.first_stop > SILENT_S)

    def require_workers(self, patience_s: float) -> None:
        """``RuntimeError`` where no worker was heard of for ``patience_s`` seconds: Ray itself waits for ever."""
        if time.monotonic() - self.heard > patience_s:
            raise RuntimeError(
                f"ray: no worker has run for {patience_s:g} s (ray.wait_s): others have the room, or a node is lost; "
                "what was trained is saved; run the same command again to go on"
            )
