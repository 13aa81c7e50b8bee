"""What a site's rules say of a request: an allow-list over the whole configuration. What it does not know is refused.

Nothing here looks at data. So ``sslmed site check --against CONFIG`` gives the answers that the data side would give.
"""

import base64
import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sslmed_dist import config
from sslmed_dist.config import Config
from sslmed_dist.federation import accountant
from sslmed_dist.federation.ledger import Entry
from sslmed_dist.federation.site_file import MOST_LISTED, NAME, Rules, SiteFile, hours
from sslmed_dist.printable import excerpt

DEEPEST, MOST_KEYS = 12, 2000  # of a configuration
MOST_CONFIG = 1 << 19  # bytes of it as it travels
MISSING = object()
FIGURES = ("evaluate", "federated.compare")  # play a part only where ``federated.evaluate`` is true


class Refusal(ValueError):
    """Why a request gets no work done. Its line may leave the site: it holds no number, name or path of the data."""


@dataclass(frozen=True)
class Request:
    """A configuration that a server sent, without what the rules call unused: as plain data, as settings, and the
    digest of it."""

    tree: Mapping[str, Any]
    settings: Config
    digest: str


def opened(text: str) -> dict[str, Any]:
    """The configuration in the text that travels (``messages.encode``), as plain data and unchecked. ``Refusal`` for
    anything else."""
    try:
        if len(text) > MOST_CONFIG:
            raise ValueError
        tree = json.loads(base64.b64decode(text, validate=True))
    except (ValueError, RecursionError):
        tree = None
    if not isinstance(tree, dict):
        raise Refusal("the request holds no configuration")
    return tree


def request(tree: Mapping[str, Any], rules: Rules) -> Request:
    """``tree`` without what the rules call unused. The digest is that of what is left, so it names what will be done.
    ``Refusal`` names the first key that the rules do not allow, and says how many more there are."""
    problems = objections(tree, rules)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise Refusal(f"{problems[0]}{more}")
    kept = without_unused(tree, allow_list(tree, rules))
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return Request(kept, readable_settings(kept), hashlib.sha256(text.encode()).hexdigest())


def readable_settings(tree: Mapping[str, Any]) -> Config:
    """The configuration in a tree. ``Refusal`` where it is none of this version's; its line quotes what the server
    sent, and of that only the first words."""
    try:
        return config.from_tree(tree, "configuration")
    except ValueError as error:
        raise Refusal(f"the configuration is not valid: {excerpt(str(error), 160)}") from None


def allow_list(tree: Mapping[str, Any], rules: Rules) -> Mapping[str, Any]:
    """``policy.allow`` for this configuration: where it asks for no evaluation, what evaluations need is unused."""
    asks = config.below(tree, ["federated", "evaluate"]) is True
    return rules.allow if asks else {**rules.allow, **dict.fromkeys(FIGURES, "unused")}


def leaves(tree: Any, allow: Mapping[str, Any], above: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """The values of a configuration by their dotted keys. A leaf in short (``loss: mio_v3``) counts as its name; the
    leaves of a list (``evaluate.protocols``) each count by the list's own key. What stands below an unused key is not
    looked at. ``Refusal`` where it is nested too deeply."""
    if depth > DEEPEST:
        raise Refusal("the configuration is nested too deeply")
    for key, value in tree.items():
        dotted = f"{above}.{key}" if above else str(key)
        if "." in str(key):
            yield f"{dotted} (a key with a dot)", MISSING
        elif allow.get(dotted) == "unused":
            continue
        elif isinstance(value, Mapping):
            yield from leaves(value, allow, dotted, depth + 1)
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            for item in value:
                yield from leaves(item, allow, dotted, depth + 1)
        elif isinstance(value, str) and dotted not in allow and f"{dotted}.name" in allow:
            yield f"{dotted}.name", value
        else:
            yield dotted, value


def objections(tree: Mapping[str, Any], rules: Rules) -> list[str]:
    """Everything in a configuration that the rules do not allow, a line each: the key, and what would be allowed."""
    allow, found = allow_list(tree, rules), []
    for count, (key, value) in enumerate(leaves(tree, allow)):
        if count >= MOST_KEYS:
            raise Refusal("the configuration has too many keys")
        rule = allow.get(key, MISSING)
        if rule is MISSING:
            found.append(f"{excerpt(key)}: this site's rules do not know this key")
        elif not allowed(value, rule):
            found.append(f"{excerpt(key)}: not allowed here; allowed: {readable(rule)}")
    return found + amounts(tree, rules)


def amounts(tree: Mapping[str, Any], rules: Rules) -> list[str]:
    """What asks for fewer samples a step, or fewer steps a round, than ``policy.least``. A key that is missing has the
    default of this version."""
    plan, fed = config.Plan(), config.Federated()
    batch = config.below(tree, ["plan", "batch_size"])
    steps = config.below(tree, ["plan", "steps_per_epoch"])
    epochs = config.below(tree, ["federated", "local_epochs"])
    found = []
    if not isinstance(tree.get("federated"), Mapping):
        found.append("federated: missing; only federated runs are served")
    if not whole(plan.batch_size if batch is None else batch, rules.least.batch):
        found.append(f"plan.batch_size: too small for this site; allowed: at least {rules.least.batch}")
    local = fed.local_epochs if epochs is None else epochs
    enough = whole(steps, 1) and whole(local, 1) and steps * local >= rules.least.steps
    if not enough:
        found.append(f"plan.steps_per_epoch: too few steps a round; allowed: at least {rules.least.steps} a round")
    return found


def whole(value: Any, least: int) -> bool:
    """Whether this is an integer of at least ``least``."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def allowed(value: Any, rule: Any) -> bool:
    """Whether a value follows its rule. Types count: true is not 1."""
    if isinstance(rule, list):
        return any(type(value) is type(item) and value == item for item in rule)
    if rule == "name":
        return isinstance(value, str) and NAME.fullmatch(value) is not None
    if "each" in rule:
        return isinstance(value, list) and len(value) <= MOST_LISTED and all(allowed(v, rule["each"]) for v in value)
    if value is None:
        return bool(rule.get("or_null", False))
    if isinstance(value, list):
        return 0 < len(value) <= MOST_LISTED and all(in_range(item, rule) for item in value)
    return in_range(value, rule)


def in_range(value: Any, rule: Mapping[str, Any]) -> bool:
    """Whether this is a finite number within the rule's bounds."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and bool(rule["from"] <= value <= rule["to"])  # false for NaN and infinity


def readable(rule: Any) -> str:
    """A rule in words."""
    if isinstance(rule, list):
        return ", ".join("null" if item is None else str(item).lower() for item in rule)
    if rule == "name":
        return "letters, digits, '_', '.' and '-'"
    if "each" in rule:
        return f"a list of {readable(rule['each'])}"
    return f"{rule['from']} to {rule['to']}" + (" or null" if rule.get("or_null") else "")


def without_unused(tree: Mapping[str, Any], allow: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """A configuration without the keys that the list calls unused."""
    kept = {}
    for key, value in tree.items():
        dotted = f"{above}.{key}" if above else str(key)
        if allow.get(dotted) != "unused":
            kept[str(key)] = without_unused(value, allow, dotted) if isinstance(value, Mapping) else value
    return kept


def require_hour(rules: Rules, now: time.struct_time) -> None:
    """``Refusal`` outside the hours in which the site works."""
    begin, end = hours(rules.hours)
    minute = now.tm_hour * 60 + now.tm_min
    within = begin <= minute < end if begin < end else (minute >= begin or minute < end)
    if not within:
        raise Refusal(f"this site works from {rules.hours.replace('-', ' to ')}, its local time")


def accepted(entries: list[Entry], rules: Rules) -> set[str]:
    """The digests of the runs that a site has accepted: by its ledger, or by its rules."""
    return {entry["configuration"] for entry in entries if entry["kind"] == "accepted"} | set(rules.digests)


@dataclass(frozen=True)
class Spent:
    """What a data set has spent since the last reset by the site's own command. ``rho`` is the privacy
    (``federation.accountant``); infinite once a round had no noise."""

    rounds: int
    messages: int
    size: int
    evaluations: int = 0
    rho: float = 0.0

    @classmethod
    def of(cls, entries: list[Entry], data_set: str) -> "Spent":
        """Counted from the ledger: what was reserved counts, whether or not the work was ever done."""
        rounds = messages = size = evaluations = 0
        rho = 0.0
        for entry in entries:
            if entry["kind"] == "reset" and entry["data_set"] == data_set:
                rounds, messages, size, evaluations, rho = 0, 0, 0, 0, 0.0
            elif entry["kind"] == "reserved" and entry["data_set"] == data_set:
                rounds, size = rounds + entry["count"], size + entry["size"]
                evaluations += entry.get("message") == "evaluate"
                rho += entry.get("rho", math.inf) if entry["count"] else 0.0
            elif entry["kind"] in ("answer", "refusal") and entry["data_set"] == data_set:
                messages += 1
        return cls(rounds, messages, size, evaluations, rho)


def require_budget(site: SiteFile, spent: Spent, rounds: int, size: int) -> None:
    """``Refusal`` where ``rounds`` more rounds with ``size`` bytes are more than the data set's life allows."""
    life, privacy = site.policy.life, site.policy.privacy
    if spent.rounds + rounds > life.rounds:
        raise Refusal("this site's rounds are spent; only the site can allow more")
    if spent.size + size > life.megabytes * 1e6:
        raise Refusal("this site's bytes are spent; only the site can allow more")
    if rounds and privacy.noise_multiplier:
        cost = rounds * accountant.rho(privacy.noise_multiplier)
        if math.isinf(spent.rho):
            raise Refusal("rounds of this site's data left without noise, so no epsilon holds; only the site can reset")
        if accountant.epsilon(spent.rho + cost, privacy.delta) > privacy.epsilon:
            raise Refusal("this site's privacy (epsilon) is spent; only the site can allow more")


def require_evaluations(site: SiteFile, spent: Spent) -> None:
    """``Refusal`` where one more evaluation is more than the data set's life allows, and where noise is required:
    figures carry none."""
    if site.policy.privacy.noise_multiplier:
        raise Refusal("this site adds noise to what leaves; figures of an evaluation carry none, so it gives none")
    if spent.evaluations >= site.policy.life.evaluations:
        raise Refusal("this site's evaluations are spent; only the site can allow more")
