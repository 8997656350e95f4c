"""Whether the autoscaler of a Ray cluster adds the nodes that replicas lack.

Ray has no call for this question. A placement group states the demand, and the autoscaler's own
report says whether it starts nodes for it.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

# The autoscaler looks at the demand every 5 s.
_PATIENCE_S = 30.0
_POLL_S = 0.25
_REPORT_KEY = "__autoscaling_status"
# A cluster without an autoscaler reports each node as a type of its own, named so.
_FIXED_NODE = "node_"


def can_add_nodes(ray: ModuleType, bundles: Sequence[Mapping[str, float]]) -> bool:
    """Whether the connected cluster is about to add nodes for a demand that exceeds it.

    Args:
        ray: with a connection to the cluster.
        bundles: the resources of each actor.

    Returns:
        False also when nothing was heard of the autoscaler for half a minute.
    """
    is_second = _is_second_version()
    if not is_second and not _is_managed(_first_report()):
        return False
    num_nodes = _num_alive(ray)
    group = ray.util.placement_group([dict(bundle) for bundle in bundles])
    try:
        ends_s = time.monotonic() + _PATIENCE_S
        while time.monotonic() < ends_s:
            if _num_alive(ray) > num_nodes:
                return True
            answer = _second_answer(ray) if is_second else _first_answer(_first_report())
            if answer is not None:
                return answer
            time.sleep(_POLL_S)
        return False
    finally:
        ray.util.remove_placement_group(group)


def _num_alive(ray: ModuleType) -> int:
    return sum(node["Alive"] for node in ray.nodes())


def _is_second_version() -> bool:
    from ray.autoscaler.v2.utils import is_autoscaler_v2

    return bool(is_autoscaler_v2(fetch_from_server=True))


def _second_answer(ray: ModuleType) -> bool | None:
    """Return what version 2 of the autoscaler makes of the demand; None: nothing yet."""
    # No type checker knows what is compiled, or made when it is imported.
    client: Any = importlib.import_module("ray._raylet").GcsClient
    messages: Any = importlib.import_module("ray.core.generated.autoscaler_pb2")
    reply = messages.GetClusterStatusReply()
    reply.ParseFromString(client(ray.get_runtime_context().gcs_address).get_cluster_status())
    state = reply.autoscaling_state
    if state.pending_instance_requests or state.pending_instances:
        return True
    return False if state.infeasible_gang_resource_requests else None


def _first_report() -> Mapping[str, Any]:
    """Return the report of version 1 of the autoscaler; empty when there is none."""
    from ray.experimental.internal_kv import _internal_kv_get

    raw = _internal_kv_get(_REPORT_KEY)
    report: Mapping[str, Any] = json.loads(raw).get("autoscaler_report") if raw else {}
    return report or {}


def _is_managed(report: Mapping[str, Any]) -> bool:
    """Whether an autoscaler wrote the report, and not the mirror of a fixed cluster."""
    types = (report.get("node_type_mapping") or {}).values()
    return any(not name.startswith(_FIXED_NODE) for name in types)


def _first_answer(report: Mapping[str, Any]) -> bool | None:
    return True if report.get("pending_launches") or report.get("pending_nodes") else None
