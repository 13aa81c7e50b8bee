"""What our own federated code costs beside local training, without Flower's start-up and transport.

    python -m tests.benchmarks.rounds [--width 32] [--steps 10]

One site does the same optimiser steps twice in one process, in interleaved repetitions: as one plain ``fit``, and as
rounds (assemble, load the shared tensors, restore and save the site's state, screen, average, write the round).
Target: overhead <= 5 % of local training time.
"""

import argparse
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from sslmed_dist import config
from sslmed_dist.federation.averages import Round, WeightedMean
from sslmed_dist.federation.local_round import initial_arrays, local_update
from sslmed_dist.federation.messages import Account
from sslmed_dist.federation.replies import Asked, Reply, screen
from sslmed_dist.federation.round_files import save_round
from sslmed_dist.federation.shared import model_digest
from sslmed_dist.federation.sites import Site, federated_section, simulated_sites, training_settings
from sslmed_dist.federation.updates import Plausibility
from sslmed_dist.training import build, engine, job
from tests import tiny

ROUNDS = 3


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--width", type=int, default=32)
    arguments.add_argument("--steps", type=int, default=10)
    arguments.add_argument("--repeat", type=int, default=3)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    overheads = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        settings = recipe(folder, options.width, options.steps)
        site = simulated_sites(settings)[0]
        settings = training_settings(build.resolve(settings, site.pretrain))
        for turn in range(options.repeat):
            plain = timed(lambda: local(settings, site))
            rounds = timed(lambda turn=turn: federate(settings, site, folder / str(turn)))
            overheads.append(rounds / plain - 1)
            print(f"local {plain:.2f} s, {ROUNDS} rounds {rounds:.2f} s CPU time")
    label = f"ResNet-18 width {options.width}, {options.steps} steps a round, batch 64, 32 px"
    print(f"overhead: {statistics.median(overheads):.1%} of local training (target <= 5 %; {label})")


def timed(function: object) -> float:
    """CPU seconds."""
    started = time.process_time()
    function()  # type: ignore[operator]
    return time.process_time() - started


def recipe(folder: Path, width: int, steps: int) -> config.Config:
    """One site with all data, ``steps`` optimiser steps a round."""
    images = tiny.write_images(folder / "images.npz", train=512, val=64, test=64, size=32)
    return tiny.settings(
        folder,
        data={"root": str(images)},
        views={"size": 32, "blur": 0.0},
        method={"encoder": {"name": "resnet", "depth": 18, "stem": "cifar", "width": width}},
        plan={"batch_size": 64, "steps_per_epoch": steps, "log_every": 10},
        federated={"rounds": ROUNDS, "partition": {"name": "iid", "count": 1}, "quorum": 1, "runtime": "in_process"},
    )


def local(settings: config.Config, site: Site) -> None:
    """The same steps as one ``fit``."""
    work = job.assemble(settings, site.pretrain)
    engine.fit(work.method, work.batches, work.settings.plan, views=work.views, state=work.state)


def federate(settings: config.Config, site: Site, folder: Path) -> None:
    """The same steps as rounds, with all that server and site do of our own."""
    shared = initial_arrays(settings)
    plausible = Plausibility(federated_section(settings).screen)
    for number in range(ROUNDS):
        arrays, scalars = local_update(settings, site.name, site.pretrain, number, shared, folder / "site")
        reply = Reply(site.name, arrays, len(site.pretrain))
        asked = Asked(site.name, number, model_digest(shared), shared, len(site.pretrain))
        account = Account(site.name, reply.samples, scalars, number, model_digest(shared))
        assert screen(account, arrays, asked) is None and not plausible.judge([reply], shared)
        shared = WeightedMean().combine(Round([reply], {site.name: 1.0}, shared, 1, lambda: 1.0))
        save_round(folder, number + 1, shared, settings)


if __name__ == "__main__":
    main()
