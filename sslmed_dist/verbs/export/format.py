"""What a format of ``sslmed export`` is. It names its files before anything is computed, so that what stands in their
place is refused first, and then gives their bytes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sslmed_dist import outputs
from sslmed_dist.training.pretrained import Pretrained

Json = dict[str, Any]


@dataclass(frozen=True)
class Exported:
    """What a format writes: the encoder, the name it was given, its description, and what makes a card of the lines
    that load it (``card.card_text``)."""

    name: str
    trained: Pretrained
    facts: Json
    card: Callable[[list[str]], str]

    def tensors(self) -> dict[str, Any]:
        """The encoder's own tensors by its own names, contiguous."""
        return {key: value.contiguous() for key, value in self.trained.encoder.state_dict().items()}


class Format(ABC):
    """A way to write an encoder. ``suffix``: of the file with the weights; "" where a whole folder is written."""

    suffix: str

    @property
    @abstractmethod
    def names(self) -> Mapping[str, outputs.Recogniser]:
        """The files: what each ends in after the stem (of a folder: its path within) and what knows it again."""

    @abstractmethod
    def require(self, trained: Pretrained | None) -> None:
        """``ValueError`` where a library is missing, or, of a loaded encoder, where it does not go into this format."""

    @abstractmethod
    def contents(self, what: Exported) -> Mapping[str, bytes]:
        """The bytes of each of ``names``."""


def require_library(asked_by: str, module: str, extra: str) -> None:
    """``ValueError`` with the line that installs ``extra`` where ``module`` is not there."""
    import importlib.util

    if importlib.util.find_spec(module) is None:
        raise ValueError(f"{asked_by} needs {module}: pip install 'sslmed-dist[{extra}]'")
