"""``sslmed train --check``: what a run needs where its driver runs it.

For Ray's workers a group of as many processes takes steps together here, each with its share of the batch. Ray itself
is not started, because it writes and takes longer than all the rest: what it needs stands below, as it was measured.
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch

from sslmed_dist import config, distributed
from sslmed_dist.config import Config
from sslmed_dist.drivers import ray_cluster, ray_train
from sslmed_dist.drivers.processes import free_port
from sslmed_dist.printable import plural, said_lines
from sslmed_dist.training import check, job
from sslmed_dist.training.allocation import ONE_ARENA
from sslmed_dist.training.rehearsal import Need, peak_resident, process_age, rehearse

# Ray 2.55 on one machine, without this program's own processes (the workers and the one that starts them): MiB of all
# its processes and of what it adds to the one that starts it; and the time of its start and end, in units of the time
# in which an interpreter imports what this program imports. Two workers on 2 cores of an AMD EPYC, 2026-11-26.
RAY_MEMORY, RAY_TIME = 2900, 7.0
PATIENCE_S = 300.0  # the workers of a rehearsal import torch at the same time
SERVE = "from sslmed_dist.drivers.rehearsal import serve; serve()"


def check_lines(settings: Config, before_steps: Callable[[], object] = lambda: None) -> list[str]:
    """The lines of ``check.describe`` for the run of ``settings`` under its driver. ``before_steps``: see
    ``check.try_out``."""
    tried = check.try_out(settings, before_steps=before_steps)
    resolved = tried.settings
    if settings.driver == "ray" and settings.ray.most > 0:
        obstacle = hindrance(resolved)
        if obstacle is None:
            return check.describe(tried, *ray_lines(tried))
        memory, spent = check.need_lines(resolved, check.expected(tried))
        note = f"; one process with the whole batch, Ray not in it: {obstacle}"
        return check.describe(tried, memory + note, spent + note)
    return check.describe(tried, *check.need_lines(resolved, check.expected(tried)))


def hindrance(settings: Config) -> str | None:
    """Why the workers of ``settings`` cannot be tried here; None where they can."""
    options, cores = settings.ray, len(os.sched_getaffinity(0))
    if ray_cluster.cluster_address(options) is not None:
        return "the run joins a cluster"
    if options.gpus_per_worker or torch.cuda.is_available():
        return "workers with GPUs are not tried"
    if options.most * options.cpus_per_worker > cores:
        return f"{plural(options.most, 'worker')} of {options.cpus_per_worker} CPUs would share {cores} cores"
    return None


def ray_lines(tried: check.Tried) -> tuple[str, str]:
    """(memory, time) of a run by Ray's workers on this machine, in words."""
    settings, world = tried.settings, tried.settings.ray.most
    needs = group(settings, world)
    ray_cluster.load()  # this process starts Ray: its modules stay beside what the check has left
    own = peak_resident()
    spent = tried.start + tried.seconds
    ray_s = RAY_TIME * tried.start
    worst = max(need.memory for need in needs)
    whole = own + sum(need.memory for need in needs) + (RAY_MEMORY << 20)
    # The process that starts Ray tries two steps first; then Ray starts, then a worker's interpreter.
    need = dataclasses.replace(needs[0], start=spent + ray_s + needs[0].start, end=0.0)
    memory = (
        f"about {check.mebibytes(whole)} in all: {world} workers of {check.mebibytes(worst)}, this process "
        f"{check.mebibytes(own)}, Ray's own {RAY_MEMORY:,} MiB; what processes share counts in each"
    )
    return memory, check.time_words(settings, need, f" (Ray's {ray_s:.0f} s in it)")


def group(settings: Config, world: int) -> list[Need]:
    """What each of ``world`` workers needs, in the order of their ranks. ``RuntimeError`` where one of them fails."""
    whole = config.to_tree(ray_train.absolute_paths(settings))
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world), **ONE_ARENA}
    shared = {"OMP_NUM_THREADS": str(max(settings.ray.cpus_per_worker, 1)), **os.environ, **shared}
    workers = [start(whole, {**shared, "RANK": str(rank)}) for rank in range(world)]
    try:
        said = [worker.communicate(timeout=PATIENCE_S) for worker in workers]
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"--check: the {world} workers took longer than {PATIENCE_S:g} s") from None
    finally:
        for worker in workers:
            worker.kill()
    for worker, (_, errors) in zip(workers, said, strict=True):
        if worker.returncode:
            lines = said_lines(errors, f"exit code {worker.returncode}")
            raise RuntimeError(f"--check: a worker failed: {lines[-1]}")
    return [Need(**json.loads(output)) for output, _ in said]


def start(tree: Mapping[str, Any], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """One worker, which is given the configuration ``tree``."""
    command, pipe = [sys.executable, "-c", SERVE], subprocess.PIPE
    worker = subprocess.Popen(command, env=environment, text=True, stdin=pipe, stdout=pipe, stderr=pipe)
    assert worker.stdin is not None
    worker.stdin.write(json.dumps(tree))
    worker.stdin.close()
    worker.stdin = None  # ``communicate`` would write to it
    return worker


def serve() -> None:
    """A worker of a rehearsal: the configuration comes from stdin, what it needs goes to stdout."""
    born = process_age()
    settings = config.from_tree(json.load(sys.stdin), "check")
    ray_cluster.load()
    distributed.join_from_environment()
    work = job.assemble(settings)
    prepared = process_age()
    need = rehearse(work, start=born, prepare=prepared - born)
    distributed.leave()
    print(json.dumps(dataclasses.asdict(need)), flush=True)
