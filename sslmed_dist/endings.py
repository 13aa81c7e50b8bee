"""How a command ends: an exit code and, unless all went well, one line. No torch here."""

import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress

from sslmed_dist.printable import printable

STOPPED, FAILED, USER_ERROR, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141
LONGEST = 1000  # characters of a line
# What to do about an operating system's error; its own words say what happened.
ADVICE = {
    errno.ENOSPC: "free some space, then the same command again",
    errno.EDQUOT: "free some space, then the same command again",
    errno.EACCES: "this user may not; choose another place, or change the permissions",
    errno.EPERM: "this user may not; choose another place, or change the permissions",
    errno.EROFS: "choose another place",
    errno.EMFILE: "`ulimit -n` is too low",
}


class PartlyFailed(Exception):
    """Of several pieces of work some have failed in a way that nobody has thought of; each has its own line already."""


class Stopped(Exception):
    """A run was asked to stop, has saved what it had and can go on: no failure. The text says how to go on."""


def ending_of(work: Callable[[], int], verb: str, subject: object, traceback: bool) -> int:
    """Do the ``work`` of a verb; returns the exit code. Whatever goes wrong is one line on stderr (``line_of``), unless
    the ``traceback`` is asked for."""
    try:
        code = work()
        sys.stdout.flush()  # here and not at the interpreter's end, where nobody would catch a closed pipe
        return code
    except Stopped as stop:
        print(printable(str(stop)), file=sys.stderr)
        return STOPPED
    except BrokenPipeError:  # who read our output has gone (`| head`) and wants no more of it
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt as interrupt:
        with suppress(OSError):  # what is said of it is how to go on
            print(printable(": ".join(["interrupted", *map(str, interrupt.args)])), file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if traceback:
            raise
        line, code = line_of(error, verb, subject)
        print(line, file=sys.stderr)
        return code


def line_of(error: BaseException, verb: str, subject: object = None) -> tuple[str, int]:
    """One line on ``error``, raised by the verb ``verb`` of ``sslmed``, and the exit code. ``subject`` is what the verb
    was to work on, for errors that name nothing themselves.

    A ``ValueError`` is a user's mistake and says itself what is wrong. What nobody has thought of asks for a report.
    """
    line, code = reason_of(error, verb, subject)
    return f"sslmed {verb}: {line}", code


def reason_of(error: BaseException, verb: str, subject: object = None) -> tuple[str, int]:
    """``line_of`` without the name of the verb before it: for one of several pieces of work, which fails alone."""
    said = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    kind, about = type(error).__name__, "" if subject is None else f"{subject}: "
    if isinstance(error, UnicodeError):
        line, code = f"{about}not UTF-8 text ({said})", USER_ERROR
    elif isinstance(error, ValueError):
        line, code = said or kind, USER_ERROR
    elif isinstance(error, PartlyFailed):
        line, code = said, FAILED
    elif isinstance(error, OSError):
        line, code = system_line(error, about, said or kind), USER_ERROR
    elif isinstance(error, MemoryError):
        detail = f" ({said})" if said else ""
        line, code = f"{about}out of memory{detail}; a smaller batch, plan.micro_batch, or smaller inputs", FAILED
    elif isinstance(error, RecursionError):
        line, code = f"{about}nested too deeply to be read ({said})", FAILED
    elif isinstance(error, (RuntimeError, ArithmeticError)) and not isinstance(error, NotImplementedError):
        line, code = f"{kind}: {said}" if said else kind, FAILED
    else:
        what = f"{kind}: {said[: LONGEST // 2]}" if said else kind
        report = f"please report it with what `sslmed --traceback {verb} ...` says"
        line, code = f"{about}unexpected {what}; this is a fault of the program: {report}", FAILED
    return printable(line[:LONGEST]), code


def system_line(error: OSError, about: str, said: str) -> str:
    """What the operating system refused: the file, why, and what to do."""
    files = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    where = f"{files}: " if files else about
    reason = error.strerror or said
    advice = ADVICE.get(error.errno or 0)
    return f"{where}{reason}; {advice}" if advice else f"{where}{reason}"
