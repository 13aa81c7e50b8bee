"""Self-supervised image encoders: one trainer for a laptop, a Ray cluster and hospitals joined by Flower.

In Python: ``import sslmed_dist as sd``. Packages are attributes (``sd.losses.MIOv3``, ``sd.views.ContrastiveViews``),
as are ``sd.load_encoder``, ``sd.knn`` and ``sd.train`` (see ``sslmed_dist.interface``). Nothing is imported before it
is used: the import itself takes no torch.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

PACKAGES = ("analysis", "data", "downstream", "federation", "losses", "methods", "models", "training", "views")
FUNCTIONS = ("FrozenEncoder", "images_of", "knn", "load_encoder", "train")  # of ``sslmed_dist.interface``
__all__ = [*PACKAGES, *FUNCTIONS]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    """A package or function at its first use."""
    if name in PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in FUNCTIONS:
        return getattr(importlib.import_module(f"{__name__}.interface"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join([*PACKAGES, *FUNCTIONS])}")


def __dir__() -> list[str]:
    """What the module has, for a shell's completion."""
    return sorted([*globals(), *PACKAGES, *FUNCTIONS])
