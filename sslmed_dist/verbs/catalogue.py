"""``sslmed list``: everything that a recipe can name, family by family, and one entry whole.

What an entry says is read from the code: its docstring, and its signature, which is the schema of its leaf.
"""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sslmed_dist import config, installation, plain_yaml, registry
from sslmed_dist.data import DATASETS, PARTITIONS, SUBSETS
from sslmed_dist.downstream import EVALUATORS
from sslmed_dist.federation.strategies import STRATEGIES
from sslmed_dist.losses import LOSSES, TEMPERATURES
from sslmed_dist.methods import METHODS
from sslmed_dist.models import ENCODERS, HEADS, PROTOTYPE_HEADS, SLICE_HEADS
from sslmed_dist.training.optim import OPTIMIZERS
from sslmed_dist.training.schedules import SCHEDULES
from sslmed_dist.verbs import recipes
from sslmed_dist.verbs.reproduce import read_table
from sslmed_dist.views import VIEWS


@dataclass(frozen=True)
class Family:
    """A table of constructors, ``where`` a recipe names an entry of it, and the arguments that the program ``supplies``
    itself."""

    table: registry.Table
    where: str
    supplies: tuple[str, ...] = ()


FAMILIES: Mapping[str, Family] = {
    "losses": Family(LOSSES, "method.loss"),
    "temperatures": Family(TEMPERATURES, "method.loss.temperature"),
    "views": Family(VIEWS, "views", ("channels", "value_range")),
    "methods": Family(METHODS, "method"),
    "encoders": Family(ENCODERS, "method.encoder", ("channels",)),
    "heads": Family(HEADS, "method.head", ("in_dim", "out")),
    "prototype_heads": Family(PROTOTYPE_HEADS, "method.head of cowpro"),
    "slice_heads": Family(SLICE_HEADS, "method.head of diagnose", ("in_dim", "out")),
    "datasets": Family(DATASETS, "data", ("split",)),
    "subsets": Family(SUBSETS, "data.subset", ("labels", "groups", "ids", "names", "scanners", "seed")),
    "partitions": Family(PARTITIONS, "federated.partition", ("labels", "groups", "sites", "ids", "seed")),
    "optimizers": Family(OPTIMIZERS, "optim", ("groups",)),
    "schedules": Family(SCHEDULES, "optim.schedule", ("total", "per_epoch")),
    "evaluators": Family(EVALUATORS, "evaluate.protocols"),
    "strategies": Family(STRATEGIES, "federated.strategy"),
}
FILES = ("recipes", "tables")  # families whose entries are files


def listing(family: str | None = None, name: str | None = None) -> list[str]:
    """The families; the entries of one; or one entry whole. ``ValueError`` names what there is."""
    if family is None:
        return [*families(), "`sslmed list FAMILY` lists one, `sslmed list FAMILY NAME` shows an entry whole"]
    if family not in (*FAMILIES, *FILES):
        raise ValueError(f"list: there is no family {family!r}; allowed: {', '.join((*FAMILIES, *FILES))}")
    if family in FILES:
        return files(family, name)
    table = FAMILIES[family].table
    if name is None:
        width = max(map(len, table))
        return [f"{entry:{width}}  {summary(table[entry])}" for entry in sorted(table)]
    if name not in table:
        raise ValueError(f"list: there is no {name!r} among the {family}; allowed: {', '.join(sorted(table))}")
    return whole(FAMILIES[family], name)


def families() -> list[str]:
    """A line for each family: its name, how many entries it has, where in a recipe one is named."""
    lines = [f"{name:16} {len(family.table):4}  {family.where}" for name, family in FAMILIES.items()]
    counts = {"recipes": len(installation.recipes()), "tables": len(read_table.shipped())}
    commands = {"recipes": "sslmed train NAME, sslmed federate NAME", "tables": "sslmed reproduce NAME"}
    return [*lines, *(f"{name:16} {counts[name]:4}  {commands[name]}" for name in FILES)]


def files(family: str, name: str | None) -> list[str]:
    """Recipes or tables: a line each, or the text of one."""
    if family == "recipes":
        return recipes.listing() if name is None else recipes.text(installation.recipe(name)).splitlines()
    if name is None:
        return [f"{table}  {read_table.load(read_table.find(table)).title}" for table in read_table.shipped()]
    return recipes.text(read_table.find(name)).splitlines()


def described(constructor: Any) -> str:
    """The docstring of a constructor, and that of the function of its own module that it says it is the same as."""
    own = inspect.getdoc(constructor) or ""
    same = re.search(r"\bas ``(\w+)``", own)
    function = getattr(inspect.getmodule(constructor), same[1], None) if same else None
    return own if function is None else f"{own}\n\n{inspect.getdoc(function)}"


def summary(constructor: Any) -> str:
    """The first sentence of what an entry says about itself, without marks."""
    paragraph = " ".join(described(constructor).split("\n\n")[0].split()).replace("``", "")
    return re.split(r"(?<!al\.)(?<!Eq\.)(?<!Sec\.)(?<!Fig\.)(?<=\.)\s+(?=[A-Z`])", paragraph, maxsplit=1)[0]


def whole(family: Family, name: str) -> list[str]:
    """An entry: its leaf with every argument and default, what it computes, where it is written, who uses it."""
    constructor = family.table[name]
    keys = family.where.split(" ")[0].split(".")
    used = [recipe for recipe, tree in recipe_trees().items() if name in names_below(tree, keys)]
    tables = [table for table, trees in table_trees().items() if any(name in names_below(tree, keys) for tree in trees)]
    return [
        f"{family.where}: {{{', '.join([f'name: {name}', *arguments(constructor, family.supplies)])}}}",
        "",
        *described(constructor).replace("``", "").splitlines(),
        "",
        f"written in: {written(constructor)}",
        f"recipes: {', '.join(used) or 'none'}",
        f"tables: {', '.join(tables) or 'none'}",
    ]


def arguments(constructor: Any, supplied: tuple[str, ...]) -> list[str]:
    """The arguments that a recipe may give, each with its default as YAML, or with its type where it has none."""
    parameters, hints = registry.schema(constructor)
    lines = []
    for name, parameter in parameters.items():
        if name in supplied:
            continue
        if parameter.default is inspect.Parameter.empty:
            lines.append(f"{name}: REQUIRED ({registry.readable(hints[name])})")
        else:
            lines.append(f"{name}: {yaml_of(parameter.default)}")
    return lines


def yaml_of(value: Any) -> str:
    """A default as it would stand in a recipe, on one line."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {yaml_of(item)}' for key, item in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(yaml_of, value))}]"
    return plain_yaml.write([value]).strip().removeprefix("- ")


def written(constructor: Any) -> str:
    """File and line of a constructor, from the package's own folder on."""
    _, line = inspect.getsourcelines(constructor)
    path = inspect.getsourcefile(constructor)
    assert path is not None
    return f"{path.removeprefix(str(installation.PACKAGE.parent) + '/')}:{line}"


@cache
def recipe_trees() -> dict[str, Mapping[str, Any]]:
    """The recipes, each with all that it is based on."""
    return {name: config.read(path) for name, path in installation.recipes().items()}


@cache
def table_trees() -> dict[str, list[Mapping[str, Any]]]:
    """What the rows and columns of the shipped tables change."""
    tables = {name: read_table.load(read_table.find(name)) for name in read_table.shipped()}
    return {
        name: [*table.rows.values(), *(column.overrides for column in table.columns.values())]
        for name, table in tables.items()
    }


def names_below(tree: Any, keys: Sequence[str]) -> list[str]:
    """The names of the leaves at ``keys``, where the leaves may be named as a mapping does (``evaluate.protocols``) and
    where a key may lie deeper than the path says (a loss's temperature, the terms of a sum)."""
    if not isinstance(tree, Mapping):
        return []
    found = tree.get(keys[0])
    if len(keys) > 1:
        return names_below(found, keys[1:])
    return list(named(found))


def named(leaf: Any) -> Iterator[str]:
    """The name of a leaf; those of the leaves in a mapping or list of them."""
    if isinstance(leaf, str):
        yield leaf
    elif isinstance(leaf, Mapping) and isinstance(leaf.get("name"), str):
        yield leaf["name"]
        yield from named(leaf.get("terms"))
    elif isinstance(leaf, (Mapping, list)):
        for item in leaf.values() if isinstance(leaf, Mapping) else leaf:
            yield from named(item)
