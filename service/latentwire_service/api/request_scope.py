"""Facts about one request that middleware and routes share in its ASGI scope."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from starlette.types import Scope

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_CALLER, _KEY_NAME, _PLAN_ID = "latentwire.caller", "latentwire.key", "latentwire.plan_id"
_OUTCOME, _TENSORS = "latentwire.outcome", "latentwire.tensors"

Tensors = Mapping[str, npt.NDArray[np.float32]]


def method_of(scope: Scope) -> str:
    """Return the method, or `other`: a client can send any text, and logs keep few names."""
    return scope["method"] if scope["method"] in _METHODS else "other"


def route_of(scope: Scope) -> str:
    """Return the path of the matched route, never the path of the request; else `other`."""
    return getattr(scope.get("route"), "path", "other")


def set_caller(scope: Scope, caller: str) -> None:
    """Note the caller, for the turns in the queue."""
    scope[_CALLER] = caller


def caller_of(scope: Scope) -> str:
    """Return the caller: the name of the API key, else the address."""
    caller: str = scope.get(_CALLER, "")
    return caller


def set_key_name(scope: Scope, name: str) -> None:
    """Note which API key the request carries."""
    scope[_KEY_NAME] = name


def key_name_of(scope: Scope) -> str:
    """Return the name of the request's API key; empty if no key was needed or none matched."""
    name: str = scope.get(_KEY_NAME, "")
    return name


def set_plan_id(scope: Scope, plan_id: str) -> None:
    """Note the answer id."""
    scope[_PLAN_ID] = plan_id


def plan_id_of(scope: Scope) -> str:
    """Return the answer id; empty for an answer without a plan."""
    plan_id: str = scope.get(_PLAN_ID, "")
    return plan_id


def set_outcome(scope: Scope, status: int) -> None:
    """Note the status that a broken stream would have if its headers had not been sent."""
    scope[_OUTCOME] = status


def outcome_of(scope: Scope, sent_status: int) -> int:
    """Return how the request ended: the status that was sent, unless its stream broke later."""
    status: int = scope.get(_OUTCOME, sent_status)
    return status


def set_tensors(scope: Scope, tensors: Tensors) -> None:
    """Note the tensors of the body: float32 matrices by name."""
    scope[_TENSORS] = tensors


def tensors_of(scope: Scope) -> Tensors:
    """Return the tensors of the body; none for a body in JSON."""
    tensors: Tensors = scope.get(_TENSORS, {})
    return tensors
