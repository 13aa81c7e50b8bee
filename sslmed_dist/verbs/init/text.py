"""A recipe as a person reads it: a header, and above each section why it says what it says."""

import textwrap
from collections.abc import Sequence
from typing import Any

import yaml

from sslmed_dist import plain_yaml
from sslmed_dist.printable import printable

MARK = "# Written by sslmed init"  # how every such file begins: what --force may write over
WIDTH = 118


def comment(words: str) -> list[str]:
    """Lines of comment; what is read from files is made printable."""
    lines = textwrap.wrap(printable(words), WIDTH - 2, break_long_words=False, break_on_hyphens=False)
    return [f"# {line}" for line in lines]


def command(words: str) -> str:
    """A command of the header, in one line, to be copied."""
    return f"#   {printable(words)}"


def flow(value: Any) -> str:
    """A value in one line of YAML."""
    text = str(
        yaml.dump({"k": value}, Dumper=plain_yaml.Dumper, sort_keys=False, allow_unicode=True, width=10**6)
        if not isinstance(value, (dict, list))
        else yaml.dump(
            {"k": value},
            Dumper=plain_yaml.Dumper,
            sort_keys=False,
            allow_unicode=True,
            width=10**6,
            default_flow_style=True,
        )
    ).strip()
    return text[len("{k: ") : -1] if isinstance(value, (dict, list)) else text[len("k: ") :]


def section(name: str, remarks: Sequence[str], keys: dict[str, Any] | str) -> list[str]:
    """A section with a key a line; one of a single word, such as the driver, in one."""
    above = [line for words in remarks for line in comment(words)]
    if isinstance(keys, str):
        return [*above, f"{name}: {flow(keys)}"]
    return [*above, f"{name}:", *(f"  {key}: {flow(value)}" for key, value in keys.items())]
