"""This process as a driver, and every rank of a group that torchrun started."""

import sys

from sslmed_dist import distributed
from sslmed_dist.config import Config
from sslmed_dist.training import job


def train(settings: Config, resume: str = "auto") -> job.Job:
    """Train ``settings`` here; under torchrun, as one rank of its group."""
    joined = distributed.join_from_environment()
    try:
        done = job.train(settings, resume=resume)
    finally:
        if joined:
            distributed.leave()
    if done.state.stopped and distributed.rank() == 0:
        print(f"stopped at step {done.state.step}; run the same command again to go on", file=sys.stderr)
    return done
