"""Weights that another program wrote, or ``sslmed export``: which tensors of a file are the encoder's.

Read are what ``torch.save`` writes (with ``weights_only=True``: no code of a file is run) and safetensors. Programs
wrap a network in different ways: ``{"state_dict": {"module.encoder_q.conv1.weight": ...}}``. So the whole file is
flattened to dotted names, and the encoder is where all of its own names stand behind one prefix. All of them or none:
a part of an encoder is never loaded.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sslmed_dist import checkpoint, state_dicts
from sslmed_dist.outputs import LARGEST_HEADER
from sslmed_dist.printable import plural
from sslmed_dist.zip_files import open_zip

# A network whose name has one of these words is the slow copy of one that is trained: momentum_encoder, encoder_k,
# teacher, target_network, model_ema, backbone_momentum.
SLOW = {"momentum", "k", "key", "teacher", "target", "ema"}
DEEPEST = 8  # of nested mappings


@dataclass(frozen=True)
class Found:
    """An encoder's tensors under its own names, the prefix they had in the file, and how many tensors of the file were
    left aside (classifiers, heads, slow copies, optimisers)."""

    state: dict[str, Tensor]
    prefix: str
    aside: int

    def __str__(self) -> str:
        where = f"under {self.prefix!r}" if self.prefix else "as they are"
        return f"{plural(len(self.state), 'tensor')} taken {where}, {self.aside} others in the file left aside"


def is_checkpoint(path: Path) -> bool:
    """Whether the file is a checkpoint of this program, or a torn archive that may be one."""
    if not is_archive(path):
        return False
    try:
        with open_zip(path) as archive:
            pickles = [member for member in archive.infolist() if member.filename.endswith("/data.pkl")]
            if not all(checkpoint.plain_member(member, path) for member in pickles):
                return True
            return any(checkpoint.FORMAT.encode() in archive.read(member) for member in pickles)
    except checkpoint.UNREADABLE:
        return True  # ``checkpoint.load`` says what is wrong with it


def is_archive(path: Path) -> bool:
    """Whether the file begins as archives of ``torch.save`` do."""
    with path.open("rb") as file:
        return file.read(len(checkpoint.MAGIC)) == checkpoint.MAGIC


def is_torchscript(path: Path) -> bool:
    """Whether an archive is what ``torch.jit.save`` writes: a program, with its constants beside the weights."""
    try:
        with open_zip(path) as archive:
            return any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in archive.namelist())
    except checkpoint.UNREADABLE:
        return False  # reading it says what is wrong with it


def is_safetensors(path: Path) -> bool:
    """Whether the file begins as safetensors do: the length of a JSON header (8 bytes), then the header."""
    with path.open("rb") as file:
        start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    return start[8:] == b"{" and length <= path.stat().st_size - 8


def read(path: Path, where: str) -> dict[str, Tensor]:
    """Every tensor of a file by its dotted name, on the CPU. ``where`` begins each ``ValueError``: no such file, not
    readable without running its code, damaged, without a tensor, or with tensors of far more bytes than it has."""
    if not path.is_file():
        raise ValueError(f"{where}: no such file")
    content = read_safetensors(path, where) if is_safetensors(path) else read_torch(path, where)
    tensors: dict[str, Tensor] = {}
    for name, value in flat(content):
        if name in tensors:
            raise ValueError(f"{where}: two tensors are called {name}")
        tensors[name] = value
    if not tensors:
        raise ValueError(f"{where}: expected a state dict of tensors, got {type(content).__name__} without any")
    state_dicts.require_held(tensors, path.stat().st_size, where)
    return tensors


def read_torch(path: Path, where: str) -> object:
    """What ``torch.save`` wrote. ``ValueError`` where that needs more than tensors and plain data."""
    if is_archive(path):
        if is_torchscript(path):
            how = "torch.save(torch.jit.load(FILE).state_dict(), OUT)"
            raise ValueError(f"{where}: TorchScript, a program; allowed: its weights alone, which are written by {how}")
        checkpoint.verify(path)  # files from before torch 1.6 are no archives and have no checksums
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling reports foreign content in many ways; weights_only refuses code
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it holds a Python object, {named[1]}" if named else type(error).__name__
        raise ValueError(
            f"{where}: not a state dict that torch can read ({reason}); allowed: tensors and plain data, or safetensors"
        ) from None


def read_safetensors(path: Path, where: str) -> object:
    """The tensors of a safetensors file. ``ValueError`` where safetensors is not installed, the file is damaged, or its
    header is larger than ``LARGEST_HEADER``."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > LARGEST_HEADER:
        raise ValueError(f"{where}: a header of {length:,} bytes; allowed: {LARGEST_HEADER:,}")
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise ValueError(f"{where}: needs safetensors: pip install 'sslmed-dist[report]'") from None
    try:
        return load_file(path)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{where}: torn or damaged safetensors ({error})") from None


def flat(content: object, above: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """(dotted name, tensor) of all tensors in nested mappings whose keys are text."""
    if isinstance(content, Mapping) and depth < DEEPEST:
        for key, value in content.items():
            if isinstance(value, Tensor) and isinstance(key, str):
                yield above + key, value
            elif isinstance(key, str):
                yield from flat(value, f"{above}{key}.", depth + 1)


def find(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> Found:
    """The tensors of an encoder whose own state dict is ``expected``, wherever they stand in a file.

    Of a network and its slow copy (``SLOW``) the network is taken. A tensor that stands within the encoder (its first
    name is one that the encoder has) but is none of its own means a deeper network, and is refused. ``ValueError``: no
    prefix holds all of the encoder, several do and differ, or a tensor does not fit (``state_dicts.misfit``).
    """
    whole = complete(tensors, expected)
    chosen = [prefix for prefix in whole if not is_slow(prefix)] or whole
    states = [within(tensors, prefix, expected) for prefix in chosen]
    if len(states) > 1 and not all(equal(states[0], state) for state in states):
        raise ValueError(f"{where}: holds {len(states)} encoders, {', '.join(map(repr, chosen))}; save one alone")
    if not states:
        # What comes nearest says best what is missing; of equals the shortest prefix.
        counts = counted(tensors, expected)
        nearest = min(counts, key=lambda prefix: (-counts[prefix], len(prefix)), default="")
        chosen, states = [nearest], [within(tensors, nearest, expected)]
    state = {**state_dicts.counters(expected), **states[0]}
    problem = state_dicts.misfit(expected, state)
    if problem:
        place = f" (looked under {chosen[0]!r})" if chosen[0] else ""
        raise ValueError(f"{where}: does not fit this encoder{place}: {problem}")
    if blank(state):
        raise ValueError(f"{where}: all weights of this encoder are 0 in it; expected those of a trained network")
    return Found(state, chosen[0], len(tensors) - len(states[0]))


def blank(state: Mapping[str, Tensor]) -> bool:
    """Whether every kernel and matrix of an encoder is 0: nothing of an image would come through it. Offsets and scales
    may begin at 0."""
    kernels = [value for value in state.values() if value.is_floating_point() and value.ndim > 1]
    return bool(kernels) and not any(bool(value.any()) for value in kernels)


def complete(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """The prefixes behind which all names of ``expected`` stand, counters of batch norm apart; sorted."""
    needed = sum(not key.endswith(state_dicts.COUNTER) for key in expected)
    return sorted(prefix for prefix, count in counted(tensors, expected).items() if count == needed)


def counted(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Counter[str]:
    """How many names of ``expected``, counters of batch norm apart, stand behind each prefix."""
    wanted = {key for key in expected if not key.endswith(state_dicts.COUNTER)}
    return Counter(prefix for name in tensors for prefix in prefixes(name, wanted))


def prefixes(name: str, wanted: set[str]) -> Iterator[str]:
    """The prefixes, ending in a dot or empty, behind which ``name`` is one of the ``wanted`` names."""
    starts = [0, *(match.end() for match in re.finditer(r"\.", name))]
    return (name[:start] for start in starts if name[start:] in wanted)


def is_slow(prefix: str) -> bool:
    """Whether one of the prefix's names has a word of ``SLOW``."""
    return bool(SLOW & set(re.split(r"[._]", prefix.lower())))


def within(tensors: Mapping[str, Tensor], prefix: str, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors behind ``prefix`` whose first name is one that the encoder has, under the names behind it."""
    own = {key.partition(".")[0] for key in expected}
    behind = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    return {key: value for key, value in behind.items() if key.partition(".")[0] in own}


def equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Whether both hold the same bits under the same names."""
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
