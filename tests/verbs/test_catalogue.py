"""``sslmed list``: every name that a recipe may use, and what is said of it."""

import re

import pytest

from sslmed_dist import plain_yaml, registry
from sslmed_dist.losses import LOSSES
from sslmed_dist.verbs import catalogue


@pytest.mark.parametrize("family", catalogue.FAMILIES)
def test_every_entry_says_what_it_is_in_one_sentence(family: str) -> None:
    lines = catalogue.listing(family)
    names = [line.split()[0] for line in lines]
    assert names == sorted(catalogue.FAMILIES[family].table)
    for line in lines:
        sentence = line.split(maxsplit=1)[1]
        assert len(sentence) > 12 and "``" not in sentence and not re.match(r"\w+ with its ", sentence), line


@pytest.mark.parametrize("family", catalogue.FAMILIES)
def test_the_printed_leaf_is_one_that_a_recipe_may_hold(family: str) -> None:
    table = catalogue.FAMILIES[family]
    for name in table.table:
        lines = catalogue.listing(family, name)
        text = lines[0].split(": ", 1)[1]
        leaf = plain_yaml.parse(re.sub(r"REQUIRED \(([^()]|\([^()]*\))*\)", "null", text))
        given = [key for key in registry.schema(table.table[name])[0] if key in table.supplies]
        asked = {key: value for key, value in leaf.items() if f"{key}: REQUIRED" not in text}
        for key in set(leaf) - set(asked):
            given.append(key)
        registry.check(table.table, asked, "leaf", given)
        assert any(line.startswith("written in: sslmed_dist/") for line in lines)


def test_an_entry_names_the_recipes_and_tables_that_use_it() -> None:
    lines = catalogue.listing("losses", "mio_v3")
    assert lines[0] == "method.loss: {name: mio_v3, temperature: 0.2}"
    recipes, tables = lines[-2], lines[-1]
    assert "cifar10_mio_v3_cpu" in recipes and "cifar10_simclr" not in recipes  # the latter is the former's base
    assert "table-5.8" in tables and "table-3.3" not in tables
    assert "terms" in catalogue.listing("losses", "sum")[0]


def test_the_families_are_counted() -> None:
    lines = catalogue.listing()
    assert f"losses {len(LOSSES)} method.loss" in " ".join(" ".join(line.split()) for line in lines)
    assert catalogue.listing("tables")[0].startswith("figure-5.1  ")
    assert catalogue.listing("recipes", "cifar10_mio_v3")[0].startswith("# MIOv3")


@pytest.mark.parametrize(
    ("family", "name", "line"),
    [
        ("loss", None, "list: there is no family 'loss'; allowed: losses, temperatures, "),
        ("losses", "mio", "list: there is no 'mio' among the losses; allowed: arb, "),
        ("tables", "table-9.9", "table 'table-9.9': not in "),
    ],
)
def test_what_there_is_not_is_named_with_what_there_is(family: str, name: str | None, line: str) -> None:
    with pytest.raises(ValueError, match=re.escape(line)):
        catalogue.listing(family, name)
