"""What may travel as text between server and sites: the settings without their paths, and a site's own errors."""

import base64
import json

from sslmed_dist.config import Config, from_tree, to_tree


class SiteError(ValueError):
    """A site's mistake whose line may travel to the server: it names no file, path or patient."""


def encode(settings: Config) -> str:
    """The settings as the one base64 value that travels to the sites. What is a path is left out: where data lies
    (``data.root``), where runs are written, and a file of first weights (sites get the shared tensors instead)."""
    tree = to_tree(settings)
    tree["data"].pop("root", None)
    tree["run"].pop("dir")
    tree["run"].pop("start_from")
    if isinstance(tree["method"].get("encoder"), dict):
        tree["method"]["encoder"].pop("weights", None)
    return base64.b64encode(json.dumps(tree, sort_keys=True).encode()).decode()


def decode(text: str) -> Config:
    """The settings that ``encode`` wrote. ``ValueError`` for anything else."""
    try:
        tree = json.loads(base64.b64decode(text, validate=True))
    except ValueError:
        raise SiteError("the run configuration holds no settings; use `sslmed federate`") from None
    return from_tree(tree, "run configuration")
