"""What the heartbeat of Ray's workers costs a step: nothing waits for it, so it is the processor's time that counts.

    python -m tests.benchmarks.heartbeats [--beats 500]

A process of Ray's tells the ledger ``--beats`` times how it stands, as ``ray_watch.Speaker`` does once a second. CPU
time of the teller (all its threads, Ray's among them) and of the ledger's process for one beat, as parts of the second
that one beat is for; and what ``Pulse`` notes in a step, 100,000 times.
"""

import argparse
import os
import time

from sslmed_dist.drivers.heartbeats import Beat, Ledger
from sslmed_dist.drivers.ray_cluster import set_environment
from sslmed_dist.drivers.ray_watch import EVERY_S
from sslmed_dist.sections import Ray
from sslmed_dist.training.pulse import Pulse


class Told(Ledger):
    """The ledger, and the processor's time of its process."""

    def spent(self) -> float:
        """Seconds of the processor so far, of all threads."""
        return time.process_time()


class Teller:
    """What a worker has of the heartbeat."""

    def tell(self, ledger: object, beats: int) -> tuple[float, float]:
        """Send so many beats one after another; seconds of the processor and of the clock for one."""
        import ray

        pulse, context = Pulse(), ray.get_runtime_context()
        same = {"attempt": "1", "rank": 0, "world": 1, "process": os.getpid(), "node": "here"}
        begun, spent = time.perf_counter(), time.process_time()
        for _ in range(beats):
            beat = Beat(**same, **pulse.look())  # type: ignore[arg-type]
            ray.get(ledger.beat.remote(beat, context.current_actor))  # type: ignore[attr-defined]
        return (time.process_time() - spent) / beats, (time.perf_counter() - begun) / beats


def noted(times: int) -> float:
    """Seconds that ``Pulse.average`` adds to one step in one process, where there is nothing to average."""
    pulse = Pulse()
    begun = time.process_time()
    for _ in range(times):
        pulse.average([])
    return (time.process_time() - begun) / times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beats", type=int, default=500)
    beats = parser.parse_args().beats
    set_environment(Ray())
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False)
    ledger, teller = ray.remote(num_cpus=0)(Told).remote(), ray.remote(Teller).remote()
    ray.get(teller.tell.remote(ledger, 20))  # connections are made at the first
    before = ray.get(ledger.spent.remote())
    spent, took = ray.get(teller.tell.remote(ledger, beats))
    heard = (ray.get(ledger.spent.remote()) - before) / beats
    ray.shutdown()
    print(f"a beat: {spent * 1000:.2f} ms of a worker's processor ({spent / EVERY_S:.2%}), ", end="")
    print(f"{heard * 1000:.2f} ms of the ledger's ({heard / EVERY_S:.2%} a worker); it took {took * 1000:.1f} ms")
    print(f"what a step notes: {noted(100_000) * 1e6:.1f} us")


if __name__ == "__main__":
    main()
