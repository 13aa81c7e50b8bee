"""Which site a node belongs to: decided by the key that it signs with, and not by what its app says."""

from collections.abc import Mapping

from flwr.serverapp import Grid

from sslmed_dist.federation import node_key
from sslmed_dist.federation.registered import Registered


class Owners:
    """The sites of a list by the keys of their nodes. A SuperLink with ``--enable-supernode-auth`` takes a message from
    a node only with a signature of the key that the node was registered with."""

    def __init__(self, listed: Mapping[str, Registered]) -> None:
        keys = {name: site.node_key for name, site in listed.items()}
        self.names = {node_key.pem(key): name for name, key in keys.items() if key is not None}
        self.nodes: dict[int, str] = {}

    def look(self, grid: Grid) -> None:
        """Take over the keys of the nodes that are online; nothing where no site has a registered key."""
        if self.names:
            known = {node.node_id: self.names.get(bytes(node.public_key)) for node in grid.get_nodes()}
            self.nodes |= {node: name for node, name in known.items() if name is not None}

    def name(self, node: int) -> str | None:
        """The site of a node; None where its key is nobody's."""
        return self.nodes.get(node)

    def who(self, node: int) -> str:
        """A node as people know it: by its site, where its key is one of the list."""
        name = self.name(node)
        return f"node {node}" if name is None else f"{name} (node {node})"
