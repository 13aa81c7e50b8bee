"""The one place that chooses where a run is trained, by its key ``driver``."""

from sslmed_dist.config import Config


def train(settings: Config, resume: str = "auto") -> int | None:
    """Train ``settings`` by its driver: in this process (and every rank of torchrun), or by Ray's workers. Returns the
    step at which the run was stopped; None where it reached its end. Errors are those of ``local.train`` and
    ``ray_train.train``."""
    if settings.driver == "ray":
        from sslmed_dist.drivers import ray_train

        return ray_train.train(settings, resume)
    from sslmed_dist.drivers import local

    return local.train(settings, resume)
