"""``sslmed export``: an encoder written in one of ``formats``, all of its files or none."""

from collections.abc import Mapping
from pathlib import Path

from sslmed_dist import outputs
from sslmed_dist.atomic_files import all_or_none, appearing, write_atomically
from sslmed_dist.printable import note
from sslmed_dist.training.pretrained import Part, load
from sslmed_dist.verbs.export.card import card_text, description
from sslmed_dist.verbs.export.format import Exported, Format
from sslmed_dist.verbs.export.formats import FORMATS

SUFFIXES = (".safetensors", ".json", ".md", ".pt", ".pth", ".onnx", ".npz", ".bin")


def export_encoder(
    source: Path,
    out: Path,
    which: str = "last",
    part: Part = "encoder",
    *,
    format: str = "safetensors",
    licence: str | None = None,
    data_licence: str | None = None,
    force: bool = False,
) -> tuple[Path, ...]:
    """Write the encoder (with ``part`` ``momentum`` its slow copy) in a format. Returns the files: the weights first,
    their description second, the card last.

    ``out``: the files' name, with or without the suffix of the format; of some formats the folder that is made.
    ``licence`` and ``data_licence`` go into the card; where one is missing the card says that nobody stated it.
    ``ValueError``: a format that is not there, a library that is not installed, an encoder that the format cannot
    hold, and where something is there already that ``outputs.require_writable`` keeps.
    """
    if format not in FORMATS:
        raise ValueError(f"--format: {format}: unknown; allowed: {', '.join(FORMATS)}")
    leaf = FORMATS[format]
    leaf.require(None)
    targets = places(leaf, out)
    if leaf.suffix:
        outputs.require_writable([(targets[end], known) for end, known in leaf.names.items()], force=force)
    else:
        require_new(out)
    trained = load(source, which, part=part)
    if trained.unfinished:
        note(f"{trained.file.name} is of {trained.unfinished}")
    leaf.require(trained)
    facts = description(trained, part, licence, data_licence)
    name = targets[leaf.suffix].stem if leaf.suffix else out.name
    contents = leaf.contents(Exported(name, trained, facts, lambda lines: card_text(name, facts, trained, lines)))
    assert contents.keys() == leaf.names.keys()
    write(targets, contents, out if not leaf.suffix else None)
    return tuple(sorted(targets.values(), key=rank))


def rank(file: Path) -> tuple[int, str]:
    """The order in which files are named: weights, descriptions, card."""
    return {".json": 1, ".md": 2}.get(file.suffix, 0), str(file)


def places(leaf: Format, out: Path) -> dict[str, Path]:
    """Where each file of a format goes. ``ValueError`` for an ``out`` that is no name of files, or has the suffix of
    another format."""
    if out.name in ("", ".."):
        raise ValueError(f"{out}: is a folder; --out expects the name of the files in it, such as {out / 'encoder'}")
    if not leaf.suffix:
        return {name: out / name for name in leaf.names}
    if out.is_dir():
        raise ValueError(f"{out}: is a folder; --out expects the name of the files in it, such as {out / 'encoder'}")
    allowed = tuple(leaf.names)
    if out.suffix in SUFFIXES and out.suffix not in allowed:
        raise ValueError(
            f"{out}: this format writes {', '.join(allowed)}; give a name without {out.suffix}, or another --format"
        )
    stem = out.name
    for suffix in allowed:  # a name may have other dots: resnet18-v0.2
        stem = stem.removesuffix(suffix)
    return {suffix: out.with_name(stem + suffix) for suffix in allowed}


def require_new(folder: Path) -> None:
    """``ValueError`` where a folder that is made whole is there already, with something in it, or is none."""
    outputs.require_folders(folder.parent)
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ValueError(f"{folder}: is a file or a link; expected the name of a folder that is made")
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder}: exists and is not empty; a folder is made whole and written over by nothing")


def write(targets: Mapping[str, Path], contents: Mapping[str, bytes], folder: Path | None) -> None:
    """All files or none: a folder appears as a whole."""
    if folder is None:
        with all_or_none(*targets.values()):
            for end, content in contents.items():
                write_atomically(targets[end], content)
        return
    with appearing(folder) as unfinished:
        for name, content in contents.items():
            write_atomically(unfinished / name, content)
