"""Hooks of mkdocs: pages of the site that are no files of ``docs/``, and links that leave it.

Pages that lie elsewhere in the repository (README.md, the list of recipes) are read from there. The reference is made
of the registries, the sections of a configuration and the command line, so that it cannot be out of date.
"""

import argparse
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from posixpath import normpath, relpath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from sslmed_dist import registry, sections
from sslmed_dist.cli_parser import parser
from sslmed_dist.federated_section import Federated
from sslmed_dist.verbs import catalogue

ROOT = Path(__file__).parents[1]
# Files of the repository that are pages of the site, by the name that they have there.
ELSEWHERE = {
    "README.md": "index.md",
    "configs/README.md": "recipes.md",
    "examples/README.md": "examples.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
SECTIONS = {
    "run": sections.Run,
    "plan": sections.Plan,
    "ray": sections.Ray,
    "evaluate": sections.Evaluate,
    "diagnose": sections.Diagnosis,
    "federated": Federated,
}
LINK = re.compile(r"\]\((?!\w+:)([^)#]+)?(#[^)]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Name the pages of the reference, and those of ``docs/`` that ``nav`` leaves out, in the navigation."""
    config.mdx_configs["toc"]["slugify"] = slug
    assert config.nav is not None
    parts = {name: pages for part in config.nav for name, pages in part.items()}
    parts["Reference"] += [f"reference/{name}.md" for name in reference()]
    named = set(re.findall(r"[\w/]+\.md", str(config.nav)))
    there = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    parts["How to"] += sorted(there - named)
    return config


def slug(text: str, separator: str) -> str:
    """A heading's anchor, as the repository's own viewer makes it: every blank becomes a dash, several stay several."""
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", separator)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are no files of ``docs/``."""
    for source, name in ELSEWHERE.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    for name, text in reference().items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links of the repository into links of the site. What is no page of it is named without a link."""
    own = page.file.src_uri
    source = {name: path for path, name in ELSEWHERE.items()}.get(own, f"docs/{own}")

    def replaced(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        if target is None:
            return match[0]
        place = normpath(f"{Path(source).parent}/{target}")
        inside = ELSEWHERE.get(place, place.removeprefix("docs/") if place.startswith("docs/") else None)
        if inside is not None:
            return f"]({relpath(inside, Path(own).parent)}{anchor})"
        if not (ROOT / place).exists():
            return match[0]  # a broken link: strict mode says so
        return f"] (`{place}`)"

    return LINK.sub(replaced, markdown)


def reference() -> dict[str, str]:
    """The text of every page of the reference by its name."""
    pages = {name: "\n".join(family_page(name, family)) for name, family in catalogue.FAMILIES.items()}
    return {**pages, "configuration": "\n".join(configuration_page()), "commands": "\n".join(commands_page())}


def family_page(name: str, family: catalogue.Family) -> Iterator[str]:
    """A registry: every entry with its leaf, what it computes, where it is written, who uses it."""
    yield f"# {name.replace('_', ' ').capitalize()}\n\nWhat `{family.where}` of a recipe may name."
    yield f"`sslmed list {name} NAME` prints the same.\n"
    for entry in sorted(family.table):
        yield f"## {entry}\n\n```text"
        yield from catalogue.whole(family, entry)
        yield "```\n"


def configuration_page() -> Iterator[str]:
    """The sections of a configuration: every key, its type and its default."""
    yield "# Configuration\n\nThe sections of a recipe whose keys do not depend on a name. `data`, `views`, `method`,"
    yield "`optim` and `federated.strategy` are leaves: their keys are the arguments of what they name."
    for name, section in SECTIONS.items():
        yield f"\n## {name}\n\n```text\n{inspect.getdoc(section)}\n```\n\n| key | type | default |\n| --- | --- | --- |"
        _, hints = registry.schema(section)
        for key in fields(section):
            yield f"| `{name}.{key.name}` | {cell(registry.readable(hints[key.name]))} | {cell(default_of(key))} |"


def default_of(key: Any) -> str:
    """A field's default as YAML; "required" without one."""
    if key.default is MISSING and key.default_factory is MISSING:
        return "required"
    value = key.default if key.default is not MISSING else key.default_factory()
    return catalogue.yaml_of(asdict(value) if is_dataclass(value) and not isinstance(value, type) else value)


def cell(text: str) -> str:
    """Text as it may stand between the bars of a table."""
    return "`" + text.replace("|", "or").replace("\n", " ") + "`"


def commands_page() -> Iterator[str]:
    """``--help`` of every verb and action."""
    yield "# Commands\n\nWhat `sslmed VERB --help` prints."
    for name, verb in verbs(parser()):
        yield f"\n## {name}\n\n```text\n{verb.format_help()}```"


def verbs(top: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """(name, parser) of the verbs below a parser; an action's name has its verb in front."""
    for action in top._actions:
        choices: Mapping[str, argparse.ArgumentParser] = action.choices if is_verbs(action) else {}  # type: ignore
        for name, verb in choices.items():
            yield name, verb
            yield from ((f"{name} {below}", leaf) for below, leaf in verbs(verb))


def is_verbs(action: argparse.Action) -> bool:
    """Whether an argument chooses among parsers."""
    return isinstance(action, argparse._SubParsersAction)
