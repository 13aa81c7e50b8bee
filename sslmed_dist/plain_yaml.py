"""YAML of plain data, in which ``1e-3`` is a number as in YAML 1.2. PyYAML alone reads it as a word, unless it is
written ``1.0e-3``.
"""

import re
from typing import Any

import yaml

TAG, NUMBER, STARTS = "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader that also reads numbers such as ``1e-3``."""


class Dumper(yaml.SafeDumper):
    """Writes what ``Loader`` reads back: the word ``1e-3`` comes in quotes."""


Loader.add_implicit_resolver(TAG, NUMBER, STARTS)
Dumper.add_implicit_resolver(TAG, NUMBER, STARTS)


def parse(text: str) -> Any:
    """Plain data from YAML. Raises ``yaml.YAMLError``."""
    return yaml.load(text, Loader)


def write(tree: Any) -> str:
    """Plain data as YAML, keys in their order."""
    return str(yaml.dump(tree, Dumper=Dumper, sort_keys=False, allow_unicode=True))
