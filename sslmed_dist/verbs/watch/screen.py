"""What a person sees of a run, again and again until it is over."""

import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from sslmed_dist.endings import FAILED
from sslmed_dist.printable import note, printable
from sslmed_dist.verbs.watch.scalars import Scalars
from sslmed_dist.verbs.watch.situation import Situation, look

BAR = 40  # characters
LONGEST_S = 86_400.0  # between two looks
IN_SHORT = ("step", "round", "loss", "speed", "waiting", "left", "failures")  # what a line that is one of many says


def watch(folder: Path, say: Callable[[str], None], *, once: bool = False, every_s: float = 5.0) -> int:
    """Show how the run in ``folder`` stands, every ``every_s`` seconds until it is over or Ctrl-C; ``once``: now alone.

    On a terminal there is one screen (rich); elsewhere a line whenever something has changed. ``say`` prints a line.
    Returns the exit code: 1 where the run failed or is silent, else 0. ``ValueError`` for what is no run folder.
    """
    if not 0.1 <= every_s <= LONGEST_S:  # false of NaN, too
        raise ValueError(f"--every: expected 0.1 to {LONGEST_S:,.0f} seconds (a day), got {every_s:g}")
    scalars = Scalars(folder / "metrics.jsonl")
    now = look(folder, scalars.read(), time.time())
    if once:
        for line in lines_of(now):
            say(line)
        return code_of(now)
    try:
        with live() as screen:
            before: tuple[object, ...] = ()
            while True:
                now = look(folder, scalars.read(), time.time())
                if screen is not None:
                    screen.update(text([*lines_of(now), "", "Ctrl-C ends the watching, not the run"]), refresh=True)
                elif (now.state, now.done) != before:
                    say(in_short(now))
                before = (now.state, now.done)
                if now.over:
                    return code_of(now)
                time.sleep(every_s)
    except KeyboardInterrupt:
        return code_of(now)


def code_of(now: Situation) -> int:
    """The exit code that a script can ask for."""
    return FAILED if now.state in ("failed", "silent") else 0


def lines_of(now: Situation) -> list[str]:
    """All that is known, a line each."""
    width = max(len(what) for what, _ in now.lines)
    bar = []
    if now.total:
        full = min(BAR * now.done // now.total, BAR)
        bar = [f"{'':{width}}  {'#' * full}{'.' * (BAR - full)}"]
    first, *others = [printable(f"{what:{width}}  {words}") for what, words in now.lines]
    return [first, *bar, *others]


def in_short(now: Situation) -> str:
    """One line of many: the time, the state, and what changes."""
    clock = time.strftime("%H:%M:%S")
    said = [f"{what} {words}" for what, words in now.lines if what in IN_SHORT]
    return printable("; ".join([f"{clock} {now.name} {now.state}", *said]))


def live() -> Any:
    """The screen of a terminal as a context; None where there is no terminal, or rich is not installed (said)."""
    if not sys.stdout.isatty():
        return nullcontext(None)
    if importlib.util.find_spec("rich") is None:
        note("one screen needs rich: pip install 'sslmed-dist[report]'; a line now and then without it")
        return nullcontext(None)
    from rich.live import Live

    return Live(auto_refresh=False)


def text(lines: Sequence[str]) -> Any:
    """The lines as rich shows them: nothing in them is markup."""
    from rich.text import Text

    return Text("\n".join(lines))
