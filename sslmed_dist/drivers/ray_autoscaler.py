"""What a cluster's autoscaler has told Ray: the one place that reads it, since Ray has no public way to ask."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sslmed_dist import config
from sslmed_dist.drivers.ray_room import room

READ = "2.55.1"  # the version of Ray whose answers ``autoscaler`` knows how to read
GROUP = "ray.io/node-group"  # Ray's label of nodes that an autoscaler has added, or may add to


@dataclass(frozen=True)
class Autoscaler:
    """``groups``: by name, the resources of a node of this kind, and how many there may be (infinity: no limit); empty
    where it has not said. ``refuses``: it has said that it cannot provide what it was asked for."""

    groups: dict[str, tuple[dict[str, float], float]]
    refuses: bool


def autoscaler() -> Autoscaler | None:
    """What the autoscaler of the joined cluster has reported; None where there is none, where it has reported nothing,
    and for another version of Ray than ``READ``."""
    import ray

    if ray.__version__ != READ:
        return None
    from ray._private.state import state
    from ray.autoscaler.v2.sdk import GcsClient
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    reply = GetClusterStatusReply()
    reply.ParseFromString(GcsClient(ray.get_runtime_context().gcs_address).get_cluster_status(timeout_s=10))
    told = reply.autoscaling_state
    nodes = state.get_cluster_config()
    if not told.autoscaler_state_version and nodes is None:
        return None
    groups = {
        group.name: (dict(group.resources), float("inf") if group.max_count < 0 else float(group.max_count))
        for group in (nodes.node_group_configs if nodes is not None else ())
    }
    return Autoscaler(groups, refuses=len(told.infeasible_cluster_resource_constraints) > 0)


def room_it_can_make(options: config.Ray, known: Autoscaler, nodes: Sequence[Mapping[str, Any]]) -> float:
    """Workers for which there could be room: on the living ``nodes`` (as of ``ray.nodes``) that the autoscaler did not
    add, and on as many as there may be of each of its groups."""
    own = [node for node in nodes if node["Alive"] and label(node) not in known.groups]
    workers = room(options, [node["Resources"] for node in own])
    for resources, count in known.groups.values():
        each = room(options, [resources])
        workers += each * min(count, float(options.fewest)) if each else 0.0
    return workers


def label(node: Mapping[str, Any]) -> str | None:
    """The group of a node, by its label."""
    group: str | None = (node.get("Labels") or {}).get(GROUP)
    return group
