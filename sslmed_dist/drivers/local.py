"""This process as a driver, and every rank of a group that torchrun started."""

import sys

from sslmed_dist import distributed
from sslmed_dist.config import Config
from sslmed_dist.training import job


def train(settings: Config, resume: str = "auto") -> job.Job:
    """Train ``settings`` here; under torchrun, as one rank of its group. Returns the job as it ended."""
    joined = distributed.join_from_environment()
    try:
        ended_job = job.train(settings, resume=resume)
    finally:
        if joined:
            distributed.leave()
    if ended_job.state.stopped and distributed.rank() == 0:
        print(f"stopped at step {ended_job.state.step}; run the same command again to go on", file=sys.stderr)
    return ended_job
