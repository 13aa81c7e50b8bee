"""Training steps of a small run on the device, against the same steps in other arithmetic; resume; overflow."""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from sslmed_dist import checkpoint, config, distributed
from sslmed_dist.training import engine, job
from tests import device_cases, tiny
from tests.acceptance.correctness import full_float32
from tests.acceptance.part import Bench, Comparison
from tests.differences import Tensors, Tolerance

STEPS = 4
SCALE, OVERFLOW = 2.0**10, 2.0**60  # of the loss under float16; the second is beyond every float16 gradient


def settings(bench: Bench, device: str, **plan: Any) -> config.Config:
    """NT-Xent on keyed 32-px images with a small ResNet, ``STEPS`` steps."""
    width, batch = (4, 16) if bench.tiny else (16, 64)
    folder = bench.scratch / "steps"
    folder.mkdir(exist_ok=True)
    images = folder / "tiny.npz"
    if not images.exists():
        tiny.write_images(images, train=STEPS * 64, val=12, test=24, size=32)
    return tiny.settings(
        folder,
        run={"device": device},
        views={"size": 32, "blur": 0.0},
        method={
            "encoder": {"name": "resnet", "depth": 9, "stem": "cifar", "width": width},
            "head": {"name": "projection", "hidden": 64, "out": 32},
        },
        plan={"epochs": 1, "steps_per_epoch": STEPS, "batch_size": batch, "checkpoint_every": 1000, **plan},
    )


def trained(made: job.Job) -> dict[str, Tensor]:
    """The loss and the gradient of the first step, the losses of all, and the running statistics after the last.

    The first loss is what says most: kinks of ReLU and batch norm amplify a rounding error in everything after it."""
    gradients: list[Tensor] = []
    losses: list[float] = []

    def keep(parameters: Any, extras: Any) -> list[Tensor]:
        parameters = list(parameters)
        if not gradients:
            scale = made.state.scaler.get_scale() if made.state.scaler else 1.0
            gradients.append(torch.cat([p.grad.double().flatten() for p in parameters if p.grad is not None]) / scale)
        return distributed.leave_gradients(parameters, extras)

    plan, views = made.settings.plan, made.views
    with full_float32():
        engine.fit(
            made.method,
            made.batches,
            plan,
            views=views,
            state=made.state,
            average=keep,
            on_step=lambda state, values: losses.append(values["loss"]),
        )
    running = [value.double().flatten() for name, value in made.method.named_buffers() if "running" in name]
    every = torch.tensor(losses, dtype=torch.float64)
    found = {"gradient": gradients[0], "running statistics": torch.cat(running)}
    return {"first loss": every[0], "losses": every, **found}


def in_float16(made: job.Job, device: str, scale: float) -> job.Job:
    """The run, turned to float16 with a scaler: on a CPU, where a run refuses it, for the rehearsal."""
    made.settings = config.replace(made.settings, plan={"precision": "fp16"})
    made.state.scaler = GradScaler(device, init_scale=scale)
    return made


def step_tolerance(name: str) -> Tolerance:
    """float32 against float64, or in another order of operations."""
    return Tolerance("norm", {"first loss": 1e-4, "losses": 5e-3}.get(name, 0.02))


def half_tolerance(name: str) -> Tolerance:
    """Every activation of the network is rounded to 8 or 11 bits."""
    return Tolerance("norm", {"first loss": 0.01, "losses": 0.03, "gradient": 0.4}.get(name, 0.05))


def exact(bench: Bench) -> Tensors:
    """On the CPU in float64."""
    return trained(job.assemble(settings(bench, "cpu", precision="float64")))


def plain(bench: Bench) -> Tensors:
    """On the device in float32."""
    return trained(job.assemble(settings(bench, bench.device)))


def laid_out(bench: Bench) -> Tensors:
    """The same with channels last."""
    return trained(job.assemble(settings(bench, bench.device, channels_last=True)))


def compiled(bench: Bench) -> Tensors:
    """The same with a compiled encoder."""
    return trained(job.assemble(settings(bench, bench.device, compile=True)))


def bfloat16(bench: Bench) -> Tensors:
    """The same in bfloat16 with channels last, as a recipe trains on a GPU."""
    return trained(job.assemble(settings(bench, bench.device, precision="bf16", channels_last=True)))


def float16(bench: Bench) -> Tensors:
    """The same in float16 with its scaler."""
    return trained(in_float16(job.assemble(settings(bench, bench.device)), bench.device, SCALE))


def micro(bench: Bench) -> int:
    """Samples of a micro-batch."""
    return 4 if bench.tiny else 16


def exact_cached(bench: Bench) -> Tensors:
    """On the CPU in float64, by the gradient cache."""
    return trained(job.assemble(settings(bench, "cpu", precision="float64", micro_batch=micro(bench))))


def cached(bench: Bench) -> Tensors:
    """On the device in float32, by the gradient cache."""
    return trained(job.assemble(settings(bench, bench.device, micro_batch=micro(bench))))


def untouched(bench: Bench) -> Tensors:
    """The first weights, and half the scale: what is left after a step that overflows."""
    made = job.assemble(settings(bench, bench.device))
    return {"weights": weights(made), "scale": torch.tensor(OVERFLOW / 2)}


def overflowed(bench: Bench) -> Tensors:
    """One step in float16 under a scale that no gradient survives."""
    made = in_float16(job.assemble(settings(bench, bench.device, steps_per_epoch=1)), bench.device, OVERFLOW)
    trained(made)
    assert made.state.scaler is not None
    return {"weights": weights(made), "scale": torch.tensor(made.state.scaler.get_scale())}


def weights(made: job.Job) -> Tensor:
    """All parameters as one vector."""
    return torch.cat([p.detach().flatten() for p in made.method.parameters()])


def deterministic(bench: Bench, name: str) -> config.Config:
    """Two epochs under ``plan.deterministic``, in the arithmetic that a recipe takes on the device, in a run folder."""
    half: dict[str, Any] = {"precision": "bf16", "channels_last": True} if bench.on_gpu else {}
    plan = {"epochs": 2, "steps_per_epoch": 5 if bench.tiny else 20, "deterministic": True, **half}
    made = settings(bench, bench.device, **{**plan, "checkpoint_every": None})
    return config.replace(made, run={"dir": str(bench.scratch), "name": name})


def undisturbed(bench: Bench) -> Tensors:
    """Everything that the last checkpoint of a run keeps."""
    made = deterministic(bench, "whole")
    job.train(made)
    return kept(made.folder)


def resumed(bench: Bench) -> Tensors:
    """Of a second run that lost its last checkpoint and went on from the one before."""
    made = deterministic(bench, "again")
    job.train(made)
    last = sorted((made.folder / "checkpoints").glob("step_*.pt"))[-1]
    last.unlink()
    (made.folder / "checkpoints" / "latest.json").unlink(missing_ok=True)
    job.train(made)
    return kept(made.folder)


def kept(folder: Path) -> dict[str, Tensor]:
    """The tensors of method and optimiser in a run's last checkpoint, each kind as one vector. The folder is removed,
    so that the part can be repeated."""
    saved = checkpoint.load(sorted((folder / "checkpoints").glob("step_*.pt"))[-1])
    moments = [value for state in saved["state"]["optimizer"]["state"].values() for value in state.values()]
    shutil.rmtree(folder)
    return {
        "method": torch.cat([value.double().flatten().cpu() for value in saved["method"].values()]),
        "optimiser": torch.cat([value.double().flatten().cpu() for value in moments if isinstance(value, Tensor)]),
        "step": torch.tensor(saved["step"]),
    }


STEP = Comparison(exact, plain, step_tolerance)
CACHE = Comparison(exact_cached, cached, step_tolerance)
CHANNELS_LAST = Comparison(plain, laid_out, step_tolerance)
COMPILED = Comparison(plain, compiled, step_tolerance)
BF16 = Comparison(plain, bfloat16, half_tolerance)
FP16 = Comparison(plain, float16, half_tolerance)
SKIPPED = Comparison(untouched, overflowed, device_cases.bits)
RESUME = Comparison(undisturbed, resumed, device_cases.bits)
