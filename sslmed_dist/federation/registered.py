"""Which sites may take part: ``sites.yaml`` in the server's run folder. It never travels.

    north: {samples: 1200}
    south: {samples: 800}

``samples`` is the most that the site may count, as agreed with it. Without the file the names are those of
``federated.site_names``, and a count is believed up to what the site said in its greeting.
"""

from collections.abc import Mapping
from pathlib import Path

from sslmed_dist import plain_yaml
from sslmed_dist.arguments import require_component
from sslmed_dist.config import Federated
from sslmed_dist.federation.messages import Unreadable, field, only

SITES = "sites.yaml"


def registered(folder: Path, fed: Federated) -> dict[str, int | None] | None:
    """By the name of a site that may take part, the most samples it may count, or None where nothing is said of that.
    None for all where nothing says which sites may take part. ``ValueError`` names what is wrong in the file."""
    path = folder / SITES
    if not path.exists():
        return None if fed.site_names is None else dict.fromkeys(fed.site_names)
    tree = plain_yaml.read(path)
    if not isinstance(tree, Mapping) or not tree:
        raise ValueError(f"{path}: expected sites by name, such as 'north: {{samples: 1200}}'")
    found: dict[str, int | None] = {}
    for name, entry in tree.items():
        require_component(str(path), str(name))
        try:
            only(entry if isinstance(entry, Mapping) else {}, ("samples",), f"{path}: {name}")
            samples: int = field(entry, "samples", int)
        except Unreadable as error:
            raise ValueError(f"{path}: {name}: expected {{samples: a whole number >= 1}} ({error})") from None
        if samples < 1:
            raise ValueError(f"{path}: {name}: samples: expected a whole number >= 1, got {samples}")
        found[str(name)] = samples
    strangers = sorted(set(fed.site_names or ()) - found.keys())
    if strangers:
        raise ValueError(f"{path}: has no {', '.join(strangers)} of federated.site_names")
    return found
