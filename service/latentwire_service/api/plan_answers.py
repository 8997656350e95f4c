"""One request from its submission to its response, whole or as a stream, in any form of answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Annotated, Any

from fastapi import Header, Request, Response

from latentwire.protocol import ErrorBody
from latentwire_service.api.disconnect import until_disconnect
from latentwire_service.api.error_handlers import sent_status
from latentwire_service.api.event_stream import EventForm, EventStream, PlanEvents
from latentwire_service.api.request_scope import set_outcome, set_plan_id
from latentwire_service.engine.backend import Step
from latentwire_service.model_service import Plan
from latentwire_service.telemetry.metrics import Metrics

RequestTimeout = Annotated[
    float | None,
    Header(
        gt=0,
        allow_inf_nan=False,
        description="Seconds after which the service cancels the request and answers 504. The "
        "service's own limit holds if it is shorter.",
    ),
]


def shortest(*limits_s: float | None) -> float | None:
    """Return the shortest of the time limits that are set; None if none is."""
    return min((limit_s for limit_s in limits_s if limit_s is not None), default=None)


async def whole_answer(
    request: Request,
    planning: Coroutine[Any, Any, Plan],
    render: Callable[[Plan], Response],
) -> Response:
    """Answer with the finished plan. A caller that leaves cancels the request.

    Args:
        request: the connection's state.
        planning: makes the plan.
        render: called on a worker thread, because encoding megabytes of base64 takes long.
    """

    async def work() -> Response:
        plan = await planning
        set_plan_id(request.scope, plan.plan_id)
        return await asyncio.to_thread(render, plan)

    return await until_disconnect(request.receive, work())


def streamed_answer(
    request: Request,
    items: AsyncIterator[list[Step] | Plan],
    form: EventForm,
    metrics: Metrics,
) -> Response:
    """Answer with events while the plan is generated.

    Args:
        request: the connection's state.
        items: items of `ModelService.stream`.
        form: what the events look like.
        metrics: counts broken streams.
    """

    def on_plan(plan: Plan) -> None:
        set_plan_id(request.scope, plan.plan_id)

    def on_error(body: ErrorBody) -> None:
        metrics.observe_stream_error(body)
        set_outcome(request.scope, sent_status(request.scope, body))

    return EventStream(PlanEvents(items, form, on_plan, on_error))
