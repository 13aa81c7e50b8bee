"""Parsing, and the arguments that several verbs have. Standard library only."""

import argparse
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from sslmed_dist import installation
from sslmed_dist.addresses import is_address, without_secrets
from sslmed_dist.endings import USER_ERROR
from sslmed_dist.printable import printable

WHICH = "last, best (of a run with plan.validate), step_N, or round_N of a federation"
Verbs: TypeAlias = "argparse._SubParsersAction[Parser]"


class Once(argparse.Action):
    """Stores the value of an option that may be given once: argparse would let the last one count without a word."""

    given = False

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        if option is not None and self.given:
            parser.error(f"argument {option}: stands on the command line twice; give it once")
        self.given = True
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """argparse with mistakes in one line, which names ``--help`` instead of printing the usage. An option counts once;
    one of several words may come again and adds to them."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        for name in (None, "store"):
            self.register("action", name, Once)

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"{self.prog}: {printable(message)}; see {self.prog} --help\n")


def output(verb: argparse.ArgumentParser, what: str) -> None:
    """``--out``, as every verb that writes somewhere has it. The same as a word without option is taken, too."""
    verb.add_argument("out_word", nargs="?", type=path, metavar="OUT", help="the same as --out OUT")
    verb.add_argument("--out", type=path, help=what)


def place(top: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Decide ``out`` where it may be given in two ways: it has to be given in one of them."""
    word = arguments.out_word
    if word is not None and "=" in str(word) and arguments.out is not None:  # an override that stood in its place
        arguments.overrides, word = [str(word), *arguments.overrides], None
    if word is not None and arguments.out is not None:
        top.error(f"{arguments.verb}: where to write stands on the command line twice: {arguments.out}, {word}")
    arguments.out = arguments.out or word
    if arguments.out is None:
        top.error(f"{arguments.verb}: says not where to write; give --out OUT")


def path(text: str) -> Path:
    """A path of the command line; an empty one, as an unset variable of a shell gives, is no path."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; expected a path")
    if is_address(text):
        raise argparse.ArgumentTypeError(f"{without_secrets(text)}: is an address; expected a path of this machine")
    return Path(text)


def recipe(text: str) -> Path:
    """The file of a recipe, which may be given by its name."""
    try:
        return installation.recipe(str(path(text)))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def forcing(verb: argparse.ArgumentParser, what: str) -> None:
    """``--force``. What this program did not write is never written over, with or without it."""
    verb.add_argument("--force", action="store_true", help=f"write over {what}")


def configuration(verb: argparse.ArgumentParser) -> None:
    """The arguments of every verb that reads a configuration."""
    verb.add_argument(
        "config", type=recipe, metavar="CONFIG", help="recipe: a .yaml, or a name of `sslmed list recipes`"
    )
    overriding(verb, "keys of the recipe, such as plan.epochs=3")


def overriding(verb: argparse.ArgumentParser, what: str, form: str = "SECTION.KEY=VALUE") -> None:
    """Words of the ``form`` ``SECTION.KEY=VALUE``, or ``KEY=VALUE``."""
    verb.add_argument("overrides", nargs="*", default=[], metavar=form, help=what)


def resuming(verb: argparse.ArgumentParser) -> None:
    """``--resume``, of every verb that trains."""
    verb.add_argument("--resume", choices=("auto", "never"), default="auto", help="go on with a run of this name")


def checkpoint(verb: argparse.ArgumentParser) -> None:
    """Which checkpoint of a run, and which encoder in it."""
    verb.add_argument("--which", default="last", help=WHICH)
    verb.add_argument(
        "--part",
        choices=("encoder", "momentum"),
        default="encoder",
        help="momentum: its slow copy, as of MoCo",
    )
