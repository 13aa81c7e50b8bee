"""One command that proves the GPU paths, and says how fast they are and what they learn.

    python -m tests.acceptance.gpu --minutes 8 --data FOLDER --out OUT      # FOLDER: made by make gpu-pack
    python -m tests.acceptance.gpu --rehearse --out OUT                     # on the CPU, at tiny sizes, on phantoms

Needs torch, torchvision, numpy and yaml alone. The parts run in order of value, each in a child process that is ended
at the part's limit. After each, OUT/results.json and OUT/table.md are written anew; what the parts print goes to
OUT/log.txt. The same command goes on where it stopped: what has a result of the same source, card and sizes is not run
again. Exit code 0: all that ran has passed (a goal of speed that was missed is said, and no failure), 1: a part has
failed, 2: a mistake in the arguments, no GPU, or missing data.
"""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sslmed_dist.printable import say
from tests.acceptance import rehearsal
from tests.acceptance.part import Bench, Part, state_of
from tests.acceptance.parts import PARTS
from tests.acceptance.results import LOG, Results, facts
from tests.acceptance.worker import Outcome, Worker

LEAST = 3.0  # seconds of a call below which no part is begun
OVER = "the time of the call was over"


def main(arguments: Sequence[str] | None = None, parts: Sequence[Part] = PARTS) -> int:
    """Parse, run what has no result yet, print the table; returns the exit code."""
    options = parser().parse_args(arguments)
    if options.list:
        for part in parts:
            print(f"{part.name:24} {part.group:12} at most {part.seconds:3.0f} s")
        return 0
    try:
        chosen = choose(options, parts)
        with tempfile.TemporaryDirectory(prefix="sslmed-acceptance-") as scratch:
            data = data_of(options, chosen, Path(scratch))
            device = options.device or ("cpu" if options.rehearse else "cuda")
            results = Results(options.out, facts(device, options.rehearse, options.disturb))
            run_all(chosen, [part.name for part in parts], results, options, data, Path(scratch))
    except ValueError as error:
        say(str(error))
        return 2
    print(results.table())
    return 1 if any(part["state"] == "failed" for part in results.parts.values()) else 0


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--minutes", type=float, default=8.0, help="of this call; a later one goes on")
    made.add_argument("--data", type=Path, help="the folder that make gpu-pack made")
    made.add_argument("--out", type=Path, default=Path("acceptance"), help="folder of the results")
    made.add_argument("--parts", help="names, with commas between them; default: all")
    made.add_argument("--again", action="store_true", help="run parts anew that have a result")
    made.add_argument("--rehearse", action="store_true", help="tiny sizes; phantoms where there is no --data")
    made.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda, in a rehearsal cpu")
    made.add_argument("--disturb", metavar="PART", help="break this comparison (or: all); it then has to fail")
    made.add_argument("--list", action="store_true", help="print the parts and their limits")
    return made


def choose(options: argparse.Namespace, parts: Sequence[Part]) -> list[Part]:
    """The parts that are asked for, in their own order. ``ValueError`` for a mistake in the options, or no GPU."""
    names = [part.name for part in parts]
    wanted = names if options.parts is None else options.parts.split(",")
    for option, given in (("--parts", wanted), ("--disturb", [options.disturb] if options.disturb else [])):
        for name in given:
            if name not in names and (option, name) != ("--disturb", "all"):
                raise ValueError(f"{option}: no part {name!r}; allowed: {', '.join(names)}")
    if not options.minutes > 0:
        raise ValueError(f"--minutes: expected a number > 0, got {options.minutes}")
    if options.device == "cpu" and not options.rehearse:
        raise ValueError("--device: cpu is for --rehearse; the sizes of the acceptance want a GPU")
    if (options.device or ("cpu" if options.rehearse else "cuda")) == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ValueError("--device: torch sees no CUDA device; allowed here: --rehearse")
    return [part for part in parts if part.name in wanted]


def data_of(options: argparse.Namespace, chosen: Sequence[Part], scratch: Path) -> Path:
    """The data folder; phantoms in ``scratch`` where a rehearsal is given none. ``ValueError`` that lists what the
    parts need and the folder lacks."""
    needed = dict.fromkeys(name for part in chosen for name in part.needs)
    if options.data is None and options.rehearse:
        return rehearsal.write(scratch / "phantoms") if needed else scratch
    if options.data is None:
        raise ValueError("--data: expected the folder that make gpu-pack made")
    missing = [name for name in needed if not (options.data / name).is_file()]
    if missing:
        raise ValueError(f"--data: {options.data} lacks {', '.join(missing)}; make gpu-pack DATA=FOLDER makes them")
    return Path(options.data)


def run_all(
    chosen: Sequence[Part],
    order: Sequence[str],
    results: Results,
    options: argparse.Namespace,
    data: Path,
    scratch: Path,
) -> None:
    """Run the parts that have no result yet, until the minutes are over."""
    if results.note:
        say(f"note: {results.note}")
    end = time.monotonic() + 60 * options.minutes
    waiting = [part for part in chosen if options.again or not results.has(part.name)]
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the child is ended
    worker = Worker(options.out / LOG)
    try:
        for number, part in enumerate(waiting):
            left = end - time.monotonic()
            sharing = sum(other.shares for other in waiting[number:])
            seconds = min(part.seconds, left / sharing if part.shares else left)
            bench = Bench(
                device=results.facts["device"],
                data=data,
                scratch=scratch / part.name,
                seconds=seconds,
                tiny=options.rehearse,
                disturb=options.disturb in (part.name, "all"),
            )
            bench.scratch.mkdir(parents=True)
            outcome = Outcome([], "not run", OVER) if seconds < LEAST else worker.run(part, bench)
            result = describe(part, seconds, outcome)
            results.put(order, part.name, result)
            print(f"{part.name}: {result['state']}, {result['seconds']:.1f} s", file=sys.stderr, flush=True)
    finally:
        worker.end()
        signal.signal(signal.SIGTERM, before)


def describe(part: Part, allowed: float, outcome: Outcome) -> dict[str, Any]:
    """A part's result as it stands in the JSON. ``limit``: the part's own; ``allowed``: what the call left for it."""
    return {
        "group": part.group,
        "state": outcome.ended or state_of(outcome.values),
        "seconds": round(outcome.seconds, 2),
        "limit": part.seconds,
        "allowed": round(max(0.0, allowed), 2),
        "values": [value.to_tree() for value in outcome.values],
        "error": outcome.error,
    }


if __name__ == "__main__":
    sys.exit(main())
