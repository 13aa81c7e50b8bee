"""What an inspection of data notes down, and the questions it asks of every kind of set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sslmed_dist.printable import plural

SHOWN = 5  # names in one line; a damaged set of a million files must not print a million names


@dataclass
class Findings:
    """What an inspection writes down: ``lines`` say what there is, ``problems`` what is wrong with it."""

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def classes(self, where: str, counts: Mapping[str, int]) -> None:
        """Note the number of samples per class, and as a problem the classes without any."""
        self.lines.append(f"{where}: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
        self.named(
            where,
            ("class without a sample", "classes without a sample"),
            [name for name, count in counts.items() if count == 0],
        )

    def named(self, where: str, what: tuple[str, str], names: Sequence[str]) -> None:
        """One problem line for a kind of fault, with its number and the first names; nothing when there is none.
        ``what`` says it of one and of several."""
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            self.problems.append(f"{where}: {plural(len(names), *what)}: {', '.join(names[:SHOWN])}{more}")

    def repeats(self, digests: Mapping[str, Sequence[tuple[str, bytes]]], kind: str) -> None:
        """Note contents that occur more than once. ``digests``: per split in order, (name, content hash) of samples.

        The first occurrence counts as the original, so of a picture in two splits the one in the later split is named.
        """
        origin: dict[bytes, str] = {}  # content hash -> split of its first occurrence
        for split, entries in digests.items():
            copies: dict[str, list[str]] = {}  # split of the original -> names of this split's copies
            for name, digest in entries:
                if digest in origin:
                    copies.setdefault(origin[digest], []).append(name)
                else:
                    origin[digest] = split
            for source, names in copies.items():
                one, several = ("repeats", "repeat") if source == split else ("also occurs in", "also occur in")
                of = "an earlier one" if source == split else source
                what = f"{kind.removesuffix('s')} {one} {of}", f"{kind} {several} {of}"
                self.named(split, what, names)
