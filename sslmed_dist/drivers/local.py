"""This process as a driver, and every rank of a group that torchrun started."""

from sslmed_dist import distributed
from sslmed_dist.config import Config
from sslmed_dist.training import job


def train(settings: Config, resume: str = "auto") -> int | None:
    """Train ``settings`` here; under torchrun, as one rank of its group. Returns the step at which the run was stopped;
    None where it reached its end."""
    joined = distributed.join_from_environment()
    try:
        state = job.train(settings, resume=resume).state
    finally:
        if joined:
            distributed.leave()
    return state.step if state.stopped else None
