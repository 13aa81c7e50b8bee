"""The one file of a site: its data, its resources and its rules. Read strictly; what it must say is in
``site_template``."""

import math
import os
import pwd
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sslmed_dist import config, plain_yaml
from sslmed_dist.federated_section import LEAST_NOISE, MOST_NOISE
from sslmed_dist.federation.ledger import is_digest

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
MOST_LISTED = 16  # numbers in one list of a configuration
NOTE = "see the file that `sslmed site init` writes"


def require(condition: bool, field: str, allowed: str) -> None:
    """``ValueError`` naming the field unless the condition holds."""
    if not condition:
        raise ValueError(f"{field}: {allowed}; {NOTE}")


@dataclass(frozen=True)
class Resources:
    """What one round may use: device, threads, gigabytes of memory, seconds; and megabytes of one message."""

    device: Literal["cpu", "cuda", "auto"]
    threads: int
    memory_gb: float
    seconds: float
    message_mb: float

    def __post_init__(self) -> None:
        require(1 <= self.threads <= 1024, "resources.threads", "expected an integer from 1 to 1024")
        require(
            1 <= self.memory_gb <= 1 << 16, "resources.memory_gb", "expected a number >= 1 (torch alone takes half)"
        )
        require(1 <= self.seconds <= 1e6, "resources.seconds", "expected a number of seconds >= 1")
        require(0.01 <= self.message_mb <= 1 << 16, "resources.message_mb", "expected a number from 0.01 to 65536")

    @property
    def message_bytes(self) -> int:
        """Bytes of the longest message."""
        return int(self.message_mb * 1e6)


@dataclass(frozen=True)
class Keep:
    """How long a site keeps what belongs to a run: days since it was last written, and gigabytes of all runs."""

    days: float = 90.0
    gigabytes: float = 20.0

    def __post_init__(self) -> None:
        require(1 <= self.days <= 36500, "keep.days", "expected a number of days from 1 to 36500")
        require(0.001 <= self.gigabytes <= 1e6, "keep.gigabytes", "expected a number of gigabytes from 0.001 to 1e6")


@dataclass(frozen=True)
class Least:
    """The smallest amounts of data that a round may come from."""

    examinations: int
    batch: int
    steps: int
    statistics: int

    def __post_init__(self) -> None:
        for name in ("examinations", "batch", "steps", "statistics"):
            require(getattr(self, name) >= 1, f"policy.least.{name}", "expected an integer >= 1")


@dataclass(frozen=True)
class Life:
    """What may leave in the whole life of a data set."""

    rounds: int
    messages: int
    megabytes: float
    evaluations: int

    def __post_init__(self) -> None:
        for name in ("rounds", "messages", "megabytes", "evaluations"):
            require(getattr(self, name) >= 0, f"policy.life.{name}", "expected a number >= 0")


@dataclass(frozen=True)
class Incoming:
    """What a model that arrives may be."""

    first_weights: tuple[str, ...]
    largest: float
    change: float
    late: bool

    def __post_init__(self) -> None:
        require(all(map(is_digest, self.first_weights)), "policy.model.first_weights", "expected SHA-256, 64 digits")
        require(self.largest > 0 and self.change > 0, "policy.model", "largest and change: expected numbers > 0")


@dataclass(frozen=True)
class Outgoing:
    """What an update that leaves may be."""

    largest: float
    change: float

    def __post_init__(self) -> None:
        require(self.largest > 0 and self.change > 0, "policy.update", "largest and change: expected numbers > 0")


@dataclass(frozen=True)
class Measured:
    """How many patients figures of the held-out part must come from."""

    patients: int
    of_each_class: int

    def __post_init__(self) -> None:
        require(self.patients >= 1, "policy.figures.patients", "expected an integer >= 1")
        require(self.of_each_class >= 0, "policy.figures.of_each_class", "expected an integer >= 0")


@dataclass(frozen=True)
class Privacy:
    """How the change of a model is shortened and hidden in noise before it leaves, and the budget of epsilon."""

    clip: float | None
    noise_multiplier: float
    delta: float
    epsilon: float
    samples: int

    def __post_init__(self) -> None:
        where, noise = "policy.privacy", self.noise_multiplier
        require(self.clip is None or self.clip > 0, f"{where}.clip", "expected a number > 0, or null")
        require(
            noise == 0 or LEAST_NOISE <= noise <= MOST_NOISE,
            f"{where}.noise_multiplier",
            f"expected 0, or a number from {LEAST_NOISE:g} to {MOST_NOISE:g}",
        )
        require(noise == 0 or self.clip is not None, f"{where}.clip", "expected a number > 0, which noise needs")
        require(0 < self.delta <= 0.01, f"{where}.delta", "expected a number above 0, at most 0.01")
        require(0 < self.epsilon < math.inf, f"{where}.epsilon", "expected a number > 0")
        require(self.samples >= 1, f"{where}.samples", "expected an integer >= 1")


@dataclass(frozen=True)
class Rules:
    """The section ``policy``."""

    accept: Literal["each", "listed"]
    digests: tuple[str, ...]
    hours: str
    least: Least
    life: Life
    model: Incoming
    update: Outgoing
    figures: Measured
    privacy: Privacy
    scalars: tuple[str, ...]
    sums: Literal["optional", "required"]
    allow: Mapping[str, Any]

    def __post_init__(self) -> None:
        require(all(map(is_digest, self.digests)), "policy.digests", "expected SHA-256, 64 digits each")
        hours(self.hours)
        for key, rule in self.allow.items():
            require_rule(str(key), rule)


@dataclass(frozen=True)
class SiteFile:
    """The whole file."""

    site: str
    data_set: str
    data: str
    data_cache: str | None
    data_list: str | None
    state: str
    socket: str
    network_user: str | int | None
    peers: Mapping[str, str]
    separation: Literal["enforced", "processes"]
    resources: Resources
    policy: Rules
    keep: Keep = Keep()

    def __post_init__(self) -> None:
        for field in ("site", "data_set"):
            value = getattr(self, field)
            require(bool(NAME.fullmatch(value)), field, "expected up to 64 letters, digits, '_', '.' and '-'")
        for field in ("data", "data_cache", "data_list", "state", "socket"):
            value = getattr(self, field)
            require(value is None or Path(value).is_absolute(), field, "expected an absolute path")
        for name, key in self.peers.items():
            good = NAME.fullmatch(str(name)) is not None and name != self.site and is_digest(key)
            require(good, f"peers.{name}", "expected another site's name and its peer key, 64 hexadecimal digits")
        require(len(set(self.peers.values())) == len(self.peers), "peers", "expected a different key of every site")
        require(len(self.socket.encode()) <= 107, "socket", "a Unix socket's path has at most 107 bytes")

    @property
    def key(self) -> Path:
        """The data side's own key (``site_key``)."""
        return Path(self.state) / "key"

    @property
    def ledger(self) -> Path:
        """The outbound ledger."""
        return Path(self.state) / "ledger.jsonl"

    @property
    def peer(self) -> int:
        """The user id that may connect. ``ValueError`` where there is no such user."""
        if self.network_user is None:
            return os.getuid()
        if isinstance(self.network_user, int):
            return self.network_user
        try:
            return pwd.getpwnam(self.network_user).pw_uid
        except KeyError:
            raise ValueError(f"network_user: {self.network_user!r:.80} is no user of this machine") from None


def read(path: Path) -> SiteFile:
    """The file of a site. ``ValueError`` names the file, the line's key and what is allowed."""
    if not path.is_file():
        raise ValueError(f"{path}: no such site file; `sslmed site init` writes one")
    site: SiteFile = config.section(SiteFile, plain_yaml.read(path), str(path), "")
    return site


def hours(text: str) -> tuple[int, int]:
    """``HH:MM-HH:MM`` as minutes of the day. ``ValueError`` for anything else."""
    match = re.fullmatch(r"(\d\d):(\d\d)-(\d\d):(\d\d)", text)
    begin, end = (int(match[1]) * 60 + int(match[2]), int(match[3]) * 60 + int(match[4])) if match else (-1, -1)
    fine = match is not None and int(match[2]) < 60 and int(match[4]) < 60 and begin <= 1440 and end <= 1440
    require(fine and begin != end, "policy.hours", 'expected "HH:MM-HH:MM", two different times')
    return begin, end


def require_rule(key: str, rule: Any) -> None:
    """``ValueError`` naming the key of ``policy.allow`` whose rule is none."""
    where, form = f"policy.allow.{key}", "expected [values], {from: a, to: b}, {each: [values]}, name or unused"
    if isinstance(rule, Mapping) and "each" in rule:
        require(len(rule) == 1 and isinstance(rule["each"], list), where, form)
        require_rule(key, rule["each"])
    elif isinstance(rule, list):
        require(bool(rule) and not any(isinstance(item, (list, dict)) for item in rule), where, form)
    elif isinstance(rule, Mapping):
        numbers: list[Any] = [rule.get("from"), rule.get("to")]
        plain = all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in numbers)
        known = rule.keys() <= {"from", "to", "or_null"} and isinstance(rule.get("or_null", False), bool)
        require(known and plain and numbers[0] <= numbers[1], where, form)
    else:
        require(rule in ("name", "unused"), where, form)
