"""``~`` in a configuration is the home folder, as a shell would have it."""

import os
from collections.abc import Mapping
from typing import Any


def at_home(value: Any) -> Any:
    """Plain data in which every text that begins with ``~`` and a slash, or ``~USER``, is the path that a shell would
    make of it: such a text is a path, under whatever key it stands."""
    if isinstance(value, Mapping):
        return {key: at_home(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [at_home(item) for item in value]
    return os.path.expanduser(value) if isinstance(value, str) else value


def require_homes(paths: Mapping[str, str], where: str) -> None:
    """``ValueError`` naming the key of a path that ``at_home`` left as it is: there is no such user here."""
    for key, path in paths.items():
        if path.startswith("~"):
            user = path.partition("/")[0]
            raise ValueError(f"{where}: {key}: {path!r:.200}: the home folder of {user} is not known; write it out")
