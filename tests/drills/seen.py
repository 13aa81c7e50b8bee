"""What a person sees in a drill, written down for the table of docs/hospitals.md."""

import json
import os
import re
from pathlib import Path

FILE = "SSLMED_DRILLS"  # in the environment: where the lines go; without it they are checked alone
# Times, folders, keys and other numbers of one run say nothing to a reader.
MASKS = (
    (r"^(\d\d\d\d-\d\d-\d\d[T ])?\d\d:\d\d:\d\d[,.\d]* (INFO |WARNING |ERROR )?", ""),
    (r"/\S*?/(north|east|south|twin|late|new|misled|mallory)/", r"/srv/sslmed/"),
    (r"/\S*?/(server|expired)(?=[/`\s;])", "/srv/federation"),
    (r"/\S*?/state/", "/srv/sslmed/state/"),
    (r"SHA256:[A-Za-z0-9+/]{43}", "SHA256:..."),
    (r"\b[0-9a-f]{64}\b", "..."),
    (r"(localhost|127\.0\.0\.1):\d+", r"\1:8443"),
    (r"\bnode \d{6,}", "node ..."),
)


def plain(line: str) -> str:
    """A line without what is of one run alone."""
    for pattern, shown in MASKS:
        line = re.sub(pattern, shown, line.strip())
    return line


def saw(drill: str, site: str = "", server: str = "", then: str = "") -> None:
    """Write down a drill: the line at the site, that at the server, and how it goes on."""
    path = os.environ.get(FILE)
    if path:
        with Path(path).open("a") as out:
            row = {"drill": drill, "site": plain(site), "server": plain(server), "then": plain(then)}
            out.write(json.dumps(row) + "\n")


def line_with(text: str, said: str) -> str:
    """The last line of ``said`` that has ``text`` in it."""
    found = [line for line in said.splitlines() if text in line]
    assert found, f"no line has {text!r}: {said}"
    return found[-1]
