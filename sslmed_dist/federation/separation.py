"""Whether the two sides of a site are apart: tried by doing what must fail, under the user that must fail at it."""

import os
import pwd
import socket
import subprocess
from pathlib import Path

from sslmed_dist.federation.site_file import SiteFile
from sslmed_dist.printable import plural

# What runs as the network side: a shell and coreutils, because that user need not be able to start this Python. It
# prints the numbers of the places that it could read.
TRY = """
number=0
for place in "$@"; do
  if [ -d "$place" ]; then ls -A "$place" >/dev/null 2>&1; else head -c 1 "$place" >/dev/null 2>&1; fi && echo "$number"
  number=$((number + 1))
done
exit 0
"""
SECONDS = 30.0
NOWHERE = ("192.0.2.1", 9)  # an address that documents use (RFC 5737); nobody has it


def reachable() -> str | None:
    """How this process could reach a network, or None where it cannot. Nothing is sent: a datagram socket that is
    connected only asks the kernel for a way."""
    places = ((socket.AF_INET, NOWHERE), (socket.AF_INET, ("127.0.0.1", 9)), (socket.AF_INET6, ("::1", 9)))
    for family, address in places:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as attempt:
                attempt.connect(address)
                return f"the kernel knows a way to {address[0]}"
        except OSError:
            continue
    return None


def read_by(user: int, paths: list[Path]) -> list[Path] | None:
    """Which of the files and folders a process of ``user`` can read; None where this process may not try it (it is
    neither root nor that user)."""
    if os.getuid() not in (0, user):
        return None
    command = ["/bin/sh", "-c", TRY, "try", *map(str, paths)]
    other = {} if os.getuid() == user else {"user": user, "group": user, "extra_groups": groups_of(user)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, cwd="/", check=True, **other)  # type: ignore[call-overload]
    return [paths[int(number)] for number in done.stdout.split()]


def groups_of(user: int) -> list[int]:
    """The groups of a user of this machine; none for a number that has no name."""
    try:
        entry = pwd.getpwuid(user)
    except KeyError:
        return []
    return os.getgrouplist(entry.pw_name, entry.pw_gid)


def secrets(site: SiteFile) -> list[Path]:
    """What the network side must not read: the data and everything of the site's state."""
    state = Path(site.state)
    named = [Path(site.data), *(Path(path) for path in (site.data_cache, site.data_list) if path)]
    return [path for path in [*named, state, site.key, site.ledger, state / "errors.log"] if path.exists()]


def examine(site: SiteFile, network: str | None) -> tuple[list[str], list[str]]:
    """(what was proved, what is wrong or could not be proved), a line each. ``network`` says how the data side could
    reach a network, None that it cannot (``reachable``, tried by the data side itself)."""
    proved, problems = [], []
    allowed = ", as `separation: processes` allows for a trial" if site.separation == "processes" else ""
    peer = site.peer
    if peer == os.getuid() and site.network_user is None:
        problems.append(f"network_user: null, so both sides are one user: only processes keep them apart{allowed}")
    elif peer == 0:
        problems.append("network_user: is root, which reads everything")
    else:
        read = read_by(peer, secrets(site))
        if read is None:
            problems.append(f"not proved what user {peer} can read: run this as root, or as that user")
        elif read:
            problems += [f"user {peer} can read {path}" for path in read]
        else:
            proved.append(f"tried as user {peer}: none of {plural(len(secrets(site)), 'file')} and folders can be read")
    if network is None:
        proved.append("tried as the data side: no network can be reached, not even this machine's own")
    else:
        problems.append(f"the data side can open connections ({network}){allowed}")
    return proved, problems
