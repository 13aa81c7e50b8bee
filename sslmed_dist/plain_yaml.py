"""YAML of plain data, read as a person reads it: strictly, and by the core rules of YAML 1.2.

PyYAML follows YAML 1.1, where ``1e-3`` is a word, ``010`` is eight, ``1:30`` is ninety, ``no`` is false and a key that
comes twice silently takes its last value. Here ``1e-3`` and ``010`` are numbers (a thousandth, ten), and ``1:30``,
``no`` and ``2026-11-26`` are text. Refused are a key that comes twice, tags, and anchors and aliases, which let a
kilobyte stand for gigabytes.
"""

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.error import Mark

MOST_BYTES, DEEPEST, MOST_DIGITS = 1 << 20, 50, 20
# Tag, pattern, and the characters with which the pattern can begin.
RULES = (
    ("null", r"(?:~|null|Null|NULL|)", ["~", "n", "N", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)", list("tTfF")),
    ("int", r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)", list("-+0123456789")),
    (
        "float",
        r"(?:[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))",
        list("-+.0123456789"),
    ),
)


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the rules above."""

    yaml_implicit_resolvers: dict[Any, Any] = {}
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """The next node. Refused is an alias, an anchor, a tag, or a node that lies too deep."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        for kind in ("anchor", "tag"):  # an alias has the name of its anchor
            if getattr(event, kind, None) is not None:
                raise refusal(f"{kind} {getattr(event, kind)!r}: write the value out as plain data", event.start_mark)
        if self.depth >= DEEPEST:
            raise refusal(f"more than {DEEPEST} levels", event.start_mark)
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node. Refused is a key that is no printable text or whole number, or that comes
        twice."""
        mapping: dict[Any, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if type(key) not in (str, int) or key == "<<" or not str(key).isprintable():
                raise refusal(f"the key {key!r:.80}: expected a name", key_node.start_mark)
            if str(key) in lines:  # 1 and "1" too: both are the same word of a dotted path
                first = lines[str(key)]
                raise refusal(f"the key {key!r:.80} comes twice, in lines {first} and {line}", key_node.start_mark)
            lines[str(key)] = line
            mapping[key] = self.construct_object(value_node, deep=deep)
        return mapping

    def construct_yaml_int(self, node: Any) -> int:
        """A whole number: in tens, or marked 0x or 0o."""
        text = str(node.value)
        if len(text) > MOST_DIGITS + 1:
            raise refusal(f"a whole number of {len(text)} characters, at most {MOST_DIGITS} digits", node.start_mark)
        return int(text, {"0x": 16, "0o": 8}.get(text[:2], 10))

    def construct_yaml_float(self, node: Any) -> float:
        """A number; ``.inf`` and ``.nan`` as Python writes them."""
        return float(re.sub(r"\.(?=[inIN])", "", node.value))


class Dumper(yaml.SafeDumper):
    """Writes text in quotes where YAML 1.1 or ``Loader`` would see something else in it, and never an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        """A list that stands in two places is written twice."""
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Text; PyYAML would write the rare line breaks as they are and read a plain one back."""
        style = '"' if re.search("[\x85\u2028\u2029]", data) else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


for tag, pattern, beginnings in RULES:
    for kind in (Loader, Dumper):
        kind.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern + r"\Z"), beginnings)
# Other readers of YAML 1.1 see a truth value in a single letter; PyYAML does not.
Dumper.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"[yYnN]\Z"), list("yYnN"))
for tag, construct in (("int", Loader.construct_yaml_int), ("float", Loader.construct_yaml_float)):
    Loader.add_constructor(f"tag:yaml.org,2002:{tag}", construct)
Dumper.add_representer(str, Dumper.represent_str)


def refusal(problem: str, mark: Mark) -> yaml.MarkedYAMLError:
    """An error at a place of the text."""
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def parse(text: str) -> Any:
    """Plain data from YAML. ``ValueError`` is one line with the place and what is wrong there."""
    if len(text) > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES:,} characters")
    try:
        return yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        mark, problem = error.problem_mark or error.context_mark, error.problem or "not plain data"
        context = f"{error.context}, " if error.context else ""
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        raise ValueError(" ".join(f"{place}{context}{problem}".split())) from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def read(path: Path) -> Any:
    """Plain data from a YAML file. ``ValueError`` is one line with the file, the place and what is wrong there."""
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    try:
        if len(content) > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES:,} bytes")
        return parse(content.decode())
    except ValueError as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from None


def write(tree: Any) -> str:
    """Plain data as YAML, keys in their order. ``parse`` and a reader of YAML 1.1 read the same values back."""
    return str(yaml.dump(tree, Dumper=Dumper, sort_keys=False, allow_unicode=True))
