"""CPU time of an episode in training, as a recipe trains it: data, views, encoder, loss, backward pass, optimiser.

    python -m tests.benchmarks.cowpro_steps configs/segmentation/chaos_cowpro_cpu.yaml data.root=PATH [KEY=VALUE ...]

To compare two versions, run it in two clones in turn. The first two steps are not counted; the losses of all others are
printed, so that it is seen how far two versions compute the same. ``--fill`` goes through the steps once before, so
that what ``method.cache`` keeps is there.
"""

import argparse
import time

import torch

from sslmed_dist import config, distributed
from sslmed_dist.training import job
from sslmed_dist.training.step import Stepper


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("recipe")
    arguments.add_argument("overrides", nargs="*")
    arguments.add_argument("--steps", type=int, default=8)
    arguments.add_argument("--fill", action="store_true")
    options = arguments.parse_args()
    settings = config.load(options.recipe, ["run.threads=1", "plan.log_every=1", *options.overrides])
    work = job.assemble(settings)
    torch.set_num_threads(1)
    work.method.train()
    plan = work.settings.plan
    stepper = Stepper(work.method, work.views, plan, work.batches, work.state, distributed.leave_gradients, None)
    batches = work.batches.epoch(0)
    if options.fill:
        first = [next(batches) for _ in range(options.steps + 2)]
        batches = iter(first)
    losses = []
    for step in range(options.steps + 2):
        if step == 2:
            started = time.process_time()
        logged = stepper.step(next(batches), 0, False)
        assert logged is not None
        losses.append(logged["loss"])
    spent = (time.process_time() - started) / options.steps / plan.batch_size
    print(f"{1e3 * spent:.1f} ms CPU an episode; losses {', '.join(f'{loss:.6f}' for loss in losses)}")


if __name__ == "__main__":
    main()
