"""``sslmed site``: what the people of a hospital do with their own side."""

import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from shlex import quote

from sslmed_dist import config
from sslmed_dist.atomic_files import refuse_links, write_atomically
from sslmed_dist.drivers.private_folder import clear_remains, private_folder
from sslmed_dist.federation import (
    housekeeping,
    ledger_page,
    messages,
    network_file,
    node_key,
    policy,
    resident,
    separation,
    site_file,
    site_key,
    site_privacy,
)
from sslmed_dist.federation.door import Door, pending_folder
from sslmed_dist.federation.ledger import Anchor, Entry, Ledger, is_digest, read, verify
from sslmed_dist.federation.local_round import first_sent
from sslmed_dist.federation.policy import Refusal, Request, Spent
from sslmed_dist.federation.policy_summary import spent_privacy, summary, worth
from sslmed_dist.federation.secure_sum import FEWEST
from sslmed_dist.federation.site_file import SiteFile
from sslmed_dist.federation.site_work import in_child, warm
from sslmed_dist.locks import alone
from sslmed_dist.printable import plural, say
from sslmed_dist.verbs import site_places
from sslmed_dist.verbs.site_init import add_site_line, network_of

Lines = list[str]
EACH_START = "only processes keep the two sides apart here: whoever runs code as this user reads all (separation)"


def check(path: Path, against: Path | None, overrides: list[str]) -> tuple[Lines, Lines]:
    """(what is in order, what is not): the file, the key, the ledger, the places, the separation of the two sides; or,
    with ``against``, what the rules would say to a recipe, without the data."""
    site = site_file.read(path)
    if against is not None:
        return judged(path, site, config.load(against, overrides))
    good, bad = [f"{path}: valid"], []
    key = site_key.load(site.key)
    site_key.require_of_others(site.peers, key)
    good += [f"key {key.public}", worth(site.policy.privacy)]
    for place in (path, Path(site.state)):
        if place.stat().st_mode & 0o077:
            bad.append(f"{place}: other users may look at it; chmod go= {quote(str(place))}")
    if site.ledger.exists():
        verdict = verify(site.ledger)
        good.append(f"ledger: {verdict.entries} entries in order")
        bad += [f"ledger: {problem}" for problem in verdict.problems]
    looked, wrong = site_places.data(site)
    proved, problems = separation.examine(site, separation.reachable())
    return [*good, *looked, *proved], [*bad, *wrong, *site_places.unwritable(site), *problems]


def judged(path: Path, site: SiteFile, settings: config.Config) -> tuple[Lines, Lines]:
    """What the rules say to a recipe, as (what it would do, what would be refused and why)."""
    tree = policy.opened(messages.encode(settings))
    objections = policy.objections(tree, site.policy)
    if objections:
        return [], [f"would be refused: {line}" for line in objections]
    asked = policy.request(tree, site.policy)
    try:
        if site.policy.privacy.noise_multiplier:  # the model is drawn for it; nearly its size with any channels
            channels = asked.settings.method.get("channels") or 1
            site_privacy.require_room(site, first_sent(config.replace(asked.settings, method={"channels": channels})))
    except Refusal as refusal:
        return [], [f"would be refused: {refusal}"]
    fed = asked.settings.federated
    if fed is not None and fed.secure is not None and len(site.peers) + 1 < FEWEST:
        return [], [f"would be refused: a secure sum needs {FEWEST} sites; peers of {path} has {len(site.peers)}"]
    lines = summary(asked, site.policy)
    if asked.digest in policy.accepted(entries_of(site), site.policy):
        return [*lines, "accepted already"], []
    filled = "what a server fills in (views.mean, views.std, method.channels, plan.epochs) makes the digest another"
    return [*lines, f"nothing of it is forbidden; it would wait for sslmed site accept; {filled}"], []


def entries_of(site: SiteFile) -> list[Entry]:
    """The ledger's entries, read only; none where nothing has left yet. ``ValueError`` for a ledger that is broken."""
    if not site.ledger.exists():
        return []
    entries, problems = read(site.ledger)
    if problems:
        raise ValueError(f"{site.ledger}: {problems[0]}; see `sslmed site ledger verify`")
    return entries


def waiting(site: SiteFile) -> dict[str, Request]:
    """The runs that wait for this site, by their digests. What the rules do not allow any more is left out."""
    found = {}
    for path in sorted(pending_folder(site).glob("*.json")):
        try:
            asked = policy.request(json.loads(path.read_text()), site.policy)
        except (Refusal, ValueError):
            continue
        found[asked.digest] = asked
    return found


def accept(path: Path, digest: str | None) -> Lines:
    """Show what waits; with a digest, accept that run and write so to the ledger. ``ValueError`` for a digest of
    nothing that waits."""
    site = site_file.read(path)
    runs = waiting(site)
    if digest is None:
        return [line for asked in runs.values() for line in summary(asked, site.policy)] or ["nothing waits"]
    if not is_digest(digest) or digest not in runs:
        raise ValueError(f"{digest[:80]}: no run with this digest waits; `sslmed site accept` without one lists them")
    if digest not in policy.accepted(entries_of(site), site.policy):
        Ledger(site.ledger).append("accepted", configuration=digest)
    (pending_folder(site) / f"{digest}.json").unlink(missing_ok=True)
    return [*summary(runs[digest], site.policy), "accepted"]


def start(path: Path) -> Lines:
    """Open the door and answer until SIGTERM. ``ValueError`` where ``separation: enforced`` and a network can be
    reached, or both sides are one user, and where state, ledger or socket cannot be written."""
    path = path.absolute()
    site = site_file.read(path)
    way, together = separation.reachable(), site.network_user is None
    if site.separation == "enforced" and (way is not None or together):
        why = f"the data side can open connections ({way})" if way else "network_user is null"
        raise ValueError(f"{path}: separation: enforced, but {why}; see docs/hospitals.md, or `separation: processes`")
    for line in site_places.unwritable(site):
        raise ValueError(line)
    if site.separation == "processes":
        say(f"warning: {EACH_START}")
    state = Path(site.state)
    refuse_links(state)
    with alone(state, "a data side"):
        clear_remains(state)
        with private_folder(state) as (temporary, _):
            tempfile.tempdir = str(temporary)  # a kill leaves nothing for ever: the next start clears it
            warm(temporary)
            door = Door(site, partial(in_child, path))
            door.ledger.append("opened", reason=f"separation: {site.separation}")
            resident.serve(site, door, resident.until_signal(), timed)
    return [f"{site.site}: the door is closed"]


def timed(line: str) -> None:
    """A line of the data side's log."""
    say(f"{time.strftime('%H:%M:%S')} {line}")


def status(path: Path) -> Lines:
    """What this site has sent and spent, what waits, and the anchor of its ledger."""
    site = site_file.read(path)
    entries, life = entries_of(site), site.policy.life
    spent = Spent.of(entries, site.data_set)
    newest = Anchor(entries[-1]["number"], entries[-1]["digest"]).text if entries else "none"
    key = site_key.load(site.key)
    return [
        f"site {site.site}, key of the data side {node_key.fingerprint(key.public)}",
        f"peer key, for secure sums: {key.peer}; sites whose peer key stands in peers: {len(site.peers)}",
        *registration(path),
        f"the door is {'open' if resident.is_open(site) else 'closed'}: {site.socket}; separation: {site.separation}",
        f"spent of data set {site.data_set}: {spent.rounds} of {plural(life.rounds, 'round')}, {spent.messages} of "
        f"{life.messages} messages, {spent.size / 1e6:.1f} of {life.megabytes:g} megabytes, "
        + spent_privacy(site, spent),
        f"runs accepted: {len(policy.accepted(entries_of(site), site.policy))}, waiting: {len(waiting(site))}",
        *kept(site),
        f"ledger: {len(entries)} entries; newest {newest}",
        *(f"  {ledger_page.line(entry)}" for entry in entries[-5:]),
    ]


def registration(path: Path) -> Lines:
    """What the server's people have to know of this site's keys; a line that says so where this user may not read
    them."""
    try:
        network = network_file.read(network_of(path))
        shown = node_key.fingerprint(node_key.public(Path(network.node_key)))
        return [f"key of the network side {shown}; server {network.server}", add_site_line(path)]
    except (ValueError, OSError) as error:
        return [f"the key of the network side is not this user's to read ({error}); as root this shows both"]


def kept(site: SiteFile) -> Lines:
    """What the site keeps of its runs, and what of it goes next."""
    runs, going = housekeeping.kept_runs(site), housekeeping.due(site, time.time())
    size, rule = sum(run.size for run in runs), f"keep: {site.keep.days:g} days, {site.keep.gigabytes:g} gigabytes"
    lines = [f"kept of {plural(len(runs), 'run')}: {size / 1e6:.1f} megabytes ({rule})"]
    return lines + [f"  goes at the next start or day: {run.folder.name[:12]} ({why})" for run, why in going]


def reset(path: Path) -> Lines:
    """Let the data set's life begin anew. It is an entry of the ledger; nothing else brings back what was spent."""
    site = site_file.read(path)
    Ledger(site.ledger).append("reset", data_set=site.data_set)
    return [f"{site.data_set}: what was spent is set to nothing, which stands in the ledger"]


def verified(path: Path, head: str | None) -> tuple[Lines, Lines]:
    """(what is in order and what this check cannot see, what is wrong)."""
    site = site_file.read(path)
    verdict = verify(site.ledger, None if head is None else Anchor.parse(head))
    entries = read(site.ledger)[0]
    lines = [f"{verdict.entries} entries in order; the last is {verdict.entries}:{verdict.head}"]
    lines += [f"this check cannot see: {what}" for what in verdict.blind]
    if head is None:
        lines.append("it would see both with an entry that the server keeps (sites.json of a run folder): --head")
    left = ledger_page.undelivered(entries)
    lines += [f"delivery not recorded (counts as delivered): entries {', '.join(map(str, left))}"] if left else []
    return lines, list(verdict.problems)


def shown(path: Path) -> Lines:
    """The ledger, a line an entry."""
    return [ledger_page.line(entry) for entry in entries_of(site_file.read(path))]


def export(path: Path, out: Path) -> Lines:
    """The ledger as a table (``.csv``) or a page (``.md``). ``ValueError`` for another ending or a file in its
    place."""
    site = site_file.read(path)
    entries, form = entries_of(site), out.suffix
    writers: dict[str, Callable[[], str]] = {
        ".csv": lambda: ledger_page.as_csv(entries),
        ".md": lambda: ledger_page.page(site.site, entries, verify(site.ledger)),
    }
    if form not in writers:
        raise ValueError(f"{out}: expected a name that ends in .csv or .md")
    if out.exists():
        raise ValueError(f"{out}: exists; nothing is written over it")
    write_atomically(out, writers[form]().encode())
    return [str(out)]
