"""The table of all parts, in order of value: a new one is a function and a line here (docs/adding.md)."""

from tests.acceptance import correctness, learning, speed, training
from tests.acceptance.pack import CIFAR, CIFAR_SMALL, EPISODES
from tests.acceptance.part import Part

PARTS: tuple[Part, ...] = (
    Part("views", "correctness", correctness.VIEWS, 30),
    Part("losses", "correctness", correctness.EVERY_LOSS, 45),
    Part("losses across tiles", "correctness", correctness.TILES, 60),
    Part("batch norm", "correctness", correctness.BATCH_NORM, 30),
    Part("training step", "correctness", training.STEP, 45),
    Part("gradient cache", "correctness", training.CACHE, 45),
    Part("episodes", "correctness", correctness.EPISODES, 30),
    Part("batches", "correctness", correctness.BATCHES, 20),
    Part("rows", "correctness", correctness.ROWS, 30),
    Part("resume", "correctness", training.RESUME, 60, alone=True),
    Part("channels last", "correctness", training.CHANNELS_LAST, 30),
    Part("bf16", "correctness", training.BF16, 30),
    Part("fp16", "correctness", training.FP16, 30),
    Part("fp16 overflow", "correctness", training.SKIPPED, 30),
    Part("collectives", "correctness", correctness.COLLECTIVES, 45, alone=True),
    Part("jpeg", "correctness", correctness.JPEG, 30),
    Part("compile", "correctness", training.COMPILED, 90, alone=True),
    Part("cifar epoch", "speed", speed.cifar_epoch, 60, needs=(CIFAR,)),
    Part("speed of views", "speed", speed.views, 30),
    Part("speed of losses", "speed", speed.losses, 60),
    Part("speed of episodes", "speed", speed.episodes, 60),
    Part("resnet50", "speed", speed.resnet50, 60),
    *(Part(f"{loss} beside the CPU", "learning", run, 60, (CIFAR_SMALL,)) for loss, run in learning.BESIDE.items()),
    *(Part(f"{loss} on CIFAR-10", "learning", run, 300, (CIFAR,), shares=True) for loss, run in learning.WHOLE.items()),
    Part("cowpro", "learning", learning.cowpro, 150, needs=(EPISODES,), shares=True),
    Part("cowpro from weights", "learning", learning.cowpro_from_weights, 200, needs=(EPISODES,), shares=True),
)
