"""Where the files are that come with the program: the recipes and the Flower app. Standard library only.

In a checkout they lie beside the package (``configs``, ``server``, ``clients``); a wheel has the same files below
``sslmed_dist/shipped``.
"""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
TABLES = ("thesis", "tables")  # folders of configs that hold tables, not recipes


def root() -> Path:
    """The folder of ``configs``, ``server``, ``clients`` and ``pyproject.toml``: that of the wheel, or the checkout."""
    shipped = PACKAGE / "shipped"
    return shipped if shipped.is_dir() else PACKAGE.parent


def recipes() -> dict[str, Path]:
    """The recipes by name, which is that of the file without its suffix. No two families share one."""
    found = (path for path in sorted((root() / "configs").glob("*/*.yaml")) if path.parent.name not in TABLES)
    return {path.stem: path for path in found}


def recipe(text: str) -> Path:
    """What ``text`` on a command line means: a file that is there; else the recipe of that name, which may be written
    with its family (``federated/pneumonia_mio_v3``) or as the path of a checkout (``configs/smoke/byol.yaml``). Text
    with a suffix or of several folders stays the path that it is. ``ValueError`` for a bare word that is neither."""
    path = Path(text)
    if path.exists():
        return path
    *family, name = path.parts or ("",)
    in_checkout = family[:1] == ["configs"] and path.suffix == ".yaml"
    if not in_checkout and ("." in name or len(family) > 1):
        return path
    known = recipes().get(path.stem if in_checkout else name)
    if known is not None and (not family or family[-1] == known.parent.name):
        return known
    if in_checkout:
        return path
    raise ValueError(
        f"{text}: no such file, and no recipe of this program has that name; `sslmed list recipes` names them"
    )
