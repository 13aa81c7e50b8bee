"""Loading a pretrained encoder: from a run folder, a checkpoint file, an export, or weights of another program."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from sslmed_dist import checkpoint, config, distributed, registry, state_dicts, weights
from sslmed_dist.atomic_files import sha256
from sslmed_dist.config import Config
from sslmed_dist.json_files import read_object
from sslmed_dist.methods import Method
from sslmed_dist.models import ENCODERS
from sslmed_dist.models.interfaces import Encoder
from sslmed_dist.printable import plural, say
from sslmed_dist.run_folder import differences
from sslmed_dist.training.build import build_method

Part = Literal["encoder", "momentum"]
PREFIXES: dict[Part, str] = {"encoder": "encoder.", "momentum": "momentum_encoder."}
SCALE = "[0, 1] before mean"  # of the images that an encoder's mean and std are of, as an export says it
PATHS = ("run.start_from", "run.continue_from")
LARGEST_INPUT = 8192  # pixels: the side of what an encoder sees; an image of it in colour takes 800 MB
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Pretrained:
    """An encoder with its weights, the resolved settings it was trained under, and which file it came from."""

    encoder: Encoder
    settings: Config
    file: Path
    sha256: str
    taken: str | None = None  # of a file of weights: what was loaded and what was left aside
    samples: Mapping[str, Any] | None = None  # what the checkpoint knows of those that it was trained on
    unfinished: str = ""  # of a checkpoint from before the end of its run: which step of how many


def find(source: Path, which: str = "last") -> Path:
    """The checkpoint file: ``source`` itself where it is a file, else that of the run folder ``source`` which ``which``
    names: ``step_N``, ``round_N``, or ``last`` (the last round of a federation, else the last step). ``ValueError``
    lists what the folder has."""
    if source.is_file():
        return source
    folder = source / "checkpoints"
    if not folder.is_dir():
        raise ValueError(f"{source}: neither a checkpoint file nor a run folder with checkpoints")
    steps, rounds = (checkpoint.numbered(folder, word) for word in ("step", "round"))
    # By name without leading zeros: step_000000120.pt is "step_120".
    by_name = {f"{word}_{n}": files[n] for word, files in (("step", steps), ("round", rounds)) for n in files}
    if which == "last" and by_name:
        return list((rounds or steps).values())[-1]
    if which not in by_name:
        raise ValueError(f"{source}: no checkpoint {which!r}; allowed: last, {', '.join(by_name) or '(none yet)'}")
    return by_name[which]


def require_own(path: Path, saved: Mapping[str, Any]) -> None:
    """``ValueError`` where the checkpoint ``path`` of a training, whose content is ``saved``, lies in the folder of a
    run that ``config.yaml`` says to be another one: a file of another run would answer under this one's name. Where it
    started from does not count: that is a path, which may be written in two ways. Rounds of a federation are left
    alone: they have the settings of its sites."""
    file = path.parent.parent / "config.yaml"
    if saved["kind"] != "training" or path.parent.name != "checkpoints" or not file.is_file():
        return
    own, of = config.load(file), config.from_tree(saved["config"], str(path))
    different = [key for key in differences(config.essential(of), config.essential(own)) if key not in PATHS]
    if different:
        keys = ", ".join(different)
        raise ValueError(f"{path}: is of another run than {file} says (different: {keys}); put back the run's own")


def opened(path: Path, source: Path) -> tuple[dict[str, Any], Config]:
    """The content of the checkpoint ``path`` and its settings. ``ValueError`` as of ``require_own`` where a run folder
    ``source`` was asked for it; a file that was named itself may lie anywhere."""
    saved = checkpoint.load(path)
    if source.is_dir():
        require_own(path, saved)
    return saved, config.from_tree(saved["config"], str(path))


def untrained_method(settings: Config) -> Method:
    """The run's method in float32 with random weights: no ``weights`` file is read."""
    leaf = settings.method.get("encoder")
    if isinstance(leaf, Mapping) and "weights" in leaf:
        settings = config.replace(settings, method={"encoder": {"weights": None}})
    return build_method(settings).float()


def untrained(settings: Config) -> Encoder:
    """The encoder of ``untrained_method``."""
    return untrained_method(settings).encoder


def load(source: Path, which: str = "last", device: torch.device | str = "cpu", part: Part = "encoder") -> Pretrained:
    """Build the encoder that the checkpoint describes, in float32 and evaluation mode, and load its weights. ``part``
    ``momentum`` loads those of its slow copy, the momentum encoder. ``which`` ``best``: those at the lowest validation
    loss, of a run with ``plan.validate``. A file that is no checkpoint is read as
    ``load_described`` says. ``ValueError`` where the weights do not fit, or the checkpoint has no such copy."""
    path = find(source, "last" if which == "best" else which)
    if source.is_file() and not weights.is_checkpoint(source):
        return load_described(source, device, part)
    saved, settings = opened(path, source)
    per_epoch = settings.plan.steps_per_epoch  # null: as many as the data gives
    checkpoint.require_step(saved, path, None if per_epoch is None else per_epoch * settings.plan.epochs)
    if which == "best" and "best" not in saved:
        raise ValueError(f"{path}: holds no best weights (plan.validate was null); allowed: last, step_N")
    require_input(settings.views.get("size"), f"{path}: views.size")
    encoder = outlined(lambda: untrained_method(settings), f"{path}: method").encoder
    prefix, of_method = PREFIXES[part], saved["best" if which == "best" else "method"]
    # Of the method's state only this part, under the names that the encoder itself uses.
    state = {key.removeprefix(prefix): value for key, value in of_method.items() if key.startswith(prefix)}
    if part == "momentum" and not state:
        raise ValueError(f"{path}: has no momentum encoder (method {settings.method['name']}); allowed part: encoder")
    # A federation leaves integer counters at the sites; in evaluation they play no part.
    whole = {**state_dicts.counters(encoder.state_dict()), **state}
    checkpoint.require_fit(encoder, whole, path)
    fill(encoder, whole)
    return Pretrained(
        encoder.to(device).eval(), settings, path, sha256(path), None, saved.get("samples"), stage(saved, settings)
    )


def load_method(source: Path, which: str = "last") -> tuple[Method, Config]:
    """The whole method of a checkpoint in evaluation mode, and its resolved settings. ``ValueError`` where the
    checkpoint does not hold all of it: a federation leaves queues and the like at the sites."""
    path = find(source, which)
    saved, settings = opened(path, source)
    require_input(settings.views.get("size"), f"{path}: views.size")
    method = untrained_method(settings)
    whole = {**state_dicts.counters(method.state_dict()), **saved["method"]}
    absent = [key for key in method.state_dict() if key not in whole]
    if saved["kind"] == "encoder" and absent:
        names = ", ".join(dict.fromkeys(key.split(".")[0] for key in absent))
        raise ValueError(
            f"{path}: a round of a federation holds what its sites share; the rest of the method ({names}: "
            f"{plural(len(absent), 'tensor')}) stays at each site, and only a run of one place holds all of it"
        )
    checkpoint.load_method(method, whole, path)
    return method.eval(), settings


def stage(saved: Mapping[str, Any], settings: Config) -> str:
    """Which step of how many the checkpoint of a run stands at; "" at its end, which may have come early by the
    validation loss, and where it does not say."""
    state = saved["state"] if saved["kind"] == "training" else {}
    per_epoch = state.get("steps_per_epoch") or settings.plan.steps_per_epoch
    total = (per_epoch or 0) * settings.plan.epochs
    step = state.get("step")  # what a federation's site keeps for itself counts no steps
    if state.get("watch", {}).get("ended"):
        return ""
    return f"step {step} of {total}: before the end of its run" if step is not None and step < total else ""


def outlined(build: Callable[[], Module], where: str) -> Module:
    """The module that ``build`` makes, on torch's meta device: names and shapes of its tensors, and no memory for them.
    A file may describe a network of any size; what it holds is compared with this first. ``ValueError``, which begins
    with ``where``, for more bytes than this machine's memory."""
    try:
        with torch.device("meta"):
            module = build()
    except (RuntimeError, OverflowError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ValueError(f"{where}: describes a network that cannot be built: {reason}") from None
    size = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory:
        raise ValueError(f"{where}: describes a network of {size:,} bytes; this machine has {memory:,} bytes of memory")
    return module


def fill(outline: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give an outline memory on the CPU and the values of ``state``, which fits it. A counter of batch norm on the meta
    device has none, and starts at 0."""
    persistent = outline.state_dict().keys()
    hidden = [name for name, _ in outline.named_buffers() if name not in persistent]
    assert not hidden, f"an encoder's state dict has to hold all of it; missing: {hidden}"
    outline.to_empty(device="cpu")
    values = {key: torch.zeros_like(value, device="cpu") if value.is_meta else value for key, value in state.items()}
    outline.load_state_dict(values)


def require_input(size: object, where: str) -> None:
    """``ValueError`` for an input of more than ``LARGEST_INPUT`` pixels: what an image is enlarged to may come from a
    file. Anything but a whole number is for others to refuse."""
    if isinstance(size, int) and size > LARGEST_INPUT:
        raise ValueError(f"{where}: {size:,} pixels; allowed: at most {LARGEST_INPUT:,}")


def load_described(file: Path, device: torch.device | str = "cpu", part: Part = "encoder") -> Pretrained:
    """An encoder from a file of weights (any program's, ``weights.find``), which the JSON file beside it describes:
    ``sslmed export`` writes both. ``ValueError``: no description, one that lacks something, or weights that do not fit.

    Of the description are read ``architecture`` (a leaf of ``ENCODERS``), ``channels``, ``input`` (``size``, ``mean``,
    ``std``), and where they are there ``method``, ``part`` and ``prefix``: what the names in the file lack at their
    beginning, where they are another library's.
    """
    card = file.with_suffix(".json")
    tensors = weights.read(file, str(file))
    facts = read_card(card, file)
    made_of = facts.get("part", part)
    if made_of != part:
        raise ValueError(f"{card}: holds the part {made_of}, asked for {part}; allowed here: {made_of}")
    architecture = {key: value for key, value in facts["architecture"].items() if key != "weights"}
    leaf = f"{card}: architecture"

    def build() -> Encoder:
        encoder: Encoder = registry.build(ENCODERS, architecture, leaf, channels=facts["channels"])
        return encoder

    encoder = outlined(build, leaf)
    tensors = {facts.get("prefix", "") + key: value for key, value in tensors.items()}
    found = weights.find(tensors, encoder.state_dict(), str(file))
    fill(encoder, found.state)
    method = {**facts.get("method", {"name": "unknown"}), "encoder": architecture, "channels": facts["channels"]}
    settings = Config(data={}, views=facts["input"], method=method)
    return Pretrained(encoder.float().to(device).eval(), settings, file, sha256(file), str(found))


def read_card(card: Path, file: Path) -> dict[str, Any]:
    """The description of the weights in ``file``. ``ValueError`` names what is missing or of the wrong type."""
    wanted = "architecture, channels and input (size, mean, std)"
    if not card.is_file():
        raise ValueError(
            f"{file}: neither a checkpoint of this program nor described: {card.name} beside it would have to say "
            f"{wanted}, as sslmed export writes it"
        )
    facts = read_object(card)
    if not isinstance(facts.get("input"), dict):
        raise ValueError(f"{card}: expected a mapping with {wanted}")
    channels, scale = facts.get("channels"), facts["input"]
    for name, value in (("channels", channels), ("input.size", scale.get("size"))):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{card}: {name}: expected an integer >= 1, got {value!r}")
    require_input(scale["size"], f"{card}: input.size")
    for name in ("mean", "std"):
        values = scale.get(name)
        numbers = isinstance(values, list) and registry.matches(values, tuple[float, ...])
        if not numbers or len(values) != channels or (name == "std" and min(values) <= 0):
            raise ValueError(
                f"{card}: input.{name}: expected {channels} finite numbers, one per channel, got {values!r}"
            )
    require_scale(scale, card)
    for name in ("architecture", "method"):
        if not isinstance(facts.get(name, {} if name == "method" else None), dict):
            raise ValueError(f"{card}: {name}: expected a mapping, got {facts.get(name)!r}")
    if not isinstance(facts.get("prefix", ""), str):
        raise ValueError(f"{card}: prefix: expected text, got {facts['prefix']!r}")
    return facts


def require_scale(scale: Mapping[str, Any], card: Path) -> None:
    """``ValueError`` where a description says that mean and standard deviation are of another scale than [0, 1], in
    which images are normalised: the features of such images would mean nothing."""
    stated = scale.get("scale", SCALE)
    if stated != SCALE:
        raise ValueError(f"{card}: input.scale: got {str(stated)[:80]!r}; allowed: {SCALE!r}, with mean and std of it")


def first_method(settings: Config) -> Method:
    """The method before its first step. Its weights are drawn (``build_method``), but where ``run.start_from`` names a
    run or file, the encoder's are loaded from there: of this program, or of another one (``weights.find``). What is
    taken of a file of weights is said on standard error. ``ValueError`` names a file of another architecture."""
    method = build_method(settings)
    said = method.encoder.taken
    if settings.run.start_from is not None:
        source = Path(settings.run.start_from).expanduser()
        if source.is_file() and not weights.is_checkpoint(source):
            where = f"run.start_from: {source}"
            found = weights.find(weights.read(source, where), method.encoder.state_dict(), where)
            method.encoder.load_state_dict(found.state)
            said = f"run.start_from: {found}"
        else:
            start = load(source)
            checkpoint.load_method(method.encoder, start.encoder.state_dict(), start.file)
    if said is not None and distributed.rank() == 0:
        say(said)  # counts and prefixes, no name of a file: a site's log may be read elsewhere
    return method
