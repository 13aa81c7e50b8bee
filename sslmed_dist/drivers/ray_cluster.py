"""Joining a Ray cluster, or starting one on this machine, and waiting until it has room for the workers."""

import atexit
import importlib.util
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sslmed_dist import config
from sslmed_dist.drivers.ray_autoscaler import Autoscaler, autoscaler, label, room_it_can_make
from sslmed_dist.drivers.ray_room import refuse_too_little, too_little, whole_bundles
from sslmed_dist.endings import STOPPED, Stopped
from sslmed_dist.printable import said_lines, say
from sslmed_dist.training.stopping import Stop

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_COLOR_PREFIX": "0",
    "RAY_DEDUP_LOGS": "0",
    # Ray runs workers at niceness 15; beside its own dashboard and agents on a small machine that costs throughput.
    "RAY_worker_niceness": "0",
    # A busy machine needs longer than Ray's 30 s until its own programs have found each other.
    "RAY_raylet_start_wait_time_s": "120",
}
# How long Ray waits for room that it has counted but that a lost node no longer has, before it counts again. It covers
# no start of a worker, only the reservation.
ELASTIC = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20"}
ASKED_S = 15.0  # how long an autoscaler may take to see what it was asked for, before its answer counts


def set_environment(options: config.Ray) -> None:
    """Give Ray, which reads it from the environment, what the user has not."""
    for key, value in (ENVIRONMENT | (ELASTIC if options.elastic else {})).items():
        os.environ.setdefault(key, value)


def load() -> None:
    """Import what a worker, or the process that starts Ray, imports of it. ``ValueError`` where it is missing."""
    require_ray()
    import ray.train.torch  # noqa: F401


def require_ray() -> None:
    """``ValueError`` where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise ValueError("driver: ray is not installed: pip install 'sslmed-dist[ray]'; allowed here: local")


def cluster_address(options: config.Ray) -> str | None:
    """The cluster to join, ``ray.address`` or RAY_ADDRESS (which `ray job submit` sets for its job); None where there
    is none, and one is started on this machine. ``ValueError`` for the address of the jobs API."""
    address = options.address or os.environ.get("RAY_ADDRESS") or None
    if address is not None and address.startswith(("http://", "https://")):
        source = "ray.address" if options.address else "RAY_ADDRESS"
        raise ValueError(
            f"{source}={address}: jobs are submitted there (`ray job submit --address {address} -- sslmed train ...`); "
            "a driver joins at HOST:6379, or at auto on a node of the cluster"
        )
    return address


class Membership(threading.Thread):
    """The thread that joins the cluster, or starts one, and leaves it. Joining takes up to half a minute in which Ray
    hears no signal, so the main thread only waits. The thread lives as long as the cluster: the kernel ends the
    programs that it has started with it."""

    def __init__(self, options: config.Ray) -> None:
        super().__init__(name="ray-cluster", daemon=True)
        self.address = cluster_address(options)
        self.size = {} if self.address else {"num_cpus": max(options.most * options.cpus_per_worker, 2)}
        self.ready, self.leave = threading.Event(), threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        """Join, and leave when asked to."""
        import ray

        # Ray's programs inherit what is blocked here: a terminal that is closed, or its Ctrl-C, reaches this process
        # alone, which lets the workers save.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
        logging.getLogger("ray._private.worker").addFilter(lambda line: "SIGTERM handler is not" not in line.msg)
        try:
            # Without "local" Ray would look for a cluster that was started on this machine, and refuse a size for it.
            ray.init(address=self.address or "local", log_to_driver=True, **self.size)
        except BaseException as error:
            self.error = error
        self.ready.set()
        self.leave.wait()
        ray.shutdown()

    def end(self) -> None:
        """Leave, and wait until that is done."""
        self.leave.set()
        self.join()


@contextmanager
def cluster(options: config.Ray, stop: Stop) -> Iterator[None]:
    """Join the cluster, or start one on this machine; leave or stop it on exit. Nothing where Ray runs in this process
    alone, or this process has joined a cluster already. ``Stopped`` where a stop is asked for meanwhile.
    ``RuntimeError`` where there is no cluster at that address, or Ray does not start."""
    import ray

    if options.most == 0 or ray.is_initialized():
        yield
        return
    membership = Membership(options)
    try:
        with stop.at_once("stopped before the cluster was there; run the same command again"):
            membership.start()
            membership.ready.wait()
            stop.listen_again()  # Ray's handler of SIGTERM prints a stack first
        if membership.error is not None:
            raise no_cluster(membership) from membership.error
        yield
    except Stopped:
        # All is saved. Leaving in good order may take as long again as joining, and Ray's programs end with this one.
        atexit.register(leave_at_once)
        raise
    except BaseException:
        membership.end()
        raise
    membership.end()


def no_cluster(membership: Membership) -> RuntimeError:
    """What is said where Ray could not be joined or started, with the last line of its own words."""
    what = f"the cluster at {membership.address} cannot be joined" if membership.address else "Ray did not start here"
    said = said_lines(str(membership.error), type(membership.error).__name__)
    return RuntimeError(f"ray: {what}: {said[-1]}")


def leave_at_once() -> None:
    """At the interpreter's end after ``Stopped``: end the process before Python takes down what a thread, still inside
    Ray, is using. On a busy machine that ended a stop by SIGSEGV, after all was said and saved."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(STOPPED)


def require_room(options: config.Ray, stop: Stop) -> None:
    """``ValueError`` where the cluster can never hold the workers; Ray itself would wait for ever. Nodes that its
    autoscaler may add are asked for, and waited for ``ray.wait_s`` seconds at most; without one, nodes may join by
    themselves for ``ray.wait_nodes_s`` seconds. ``Stopped`` where a stop is asked for meanwhile."""
    if options.most == 0:
        return
    import ray
    from ray.autoscaler.sdk import request_resources

    begun, asked = time.monotonic(), False
    with stop.at_once("stopped before the cluster had room; run the same command again"):
        while (line := too_little(options, ray.nodes())) is not None:
            spent = time.monotonic() - begun
            known = autoscaler()
            grows = known is not None or any(label(node) for node in ray.nodes())
            if known is not None:
                refuse_for_ever(options, known, line, asked and spent > ASKED_S)
            key = "wait_s" if grows else "wait_nodes_s"
            patience: float = getattr(options, key)
            if spent >= patience:
                if not patience:
                    refuse_too_little(options, ray.nodes())
                raise ValueError(f"{line}; waited {patience:g} s for more nodes (ray.{key})")
            if not asked:
                say(f"{line}; waiting up to {patience:g} s for more nodes (ray.{key})")
                request_resources(bundles=whole_bundles(options))
                asked = True
            time.sleep(0.5)
    if asked:
        request_resources(bundles=[])  # Ray's own request follows, and nodes may go when the run has ended


def refuse_for_ever(options: config.Ray, known: Autoscaler, line: str, answered: bool) -> None:
    """``ValueError`` where the autoscaler can never make room; ``answered``: it has had the time to say so."""
    import ray

    if known.groups:
        workers = room_it_can_make(options, known, ray.nodes())
        if workers < options.fewest:
            raise ValueError(f"{line}; its autoscaler can make room for {workers:g}; smaller numbers, or larger groups")
    elif known.refuses and answered:
        raise ValueError(f"{line}; its autoscaler says that it can never provide them (`ray status` shows why)")
