"""Route handlers: parse a request, hand it to the service, render the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from latentwire.answer_form import LatentFields
from latentwire.protocol import (
    InfoResponse,
    PlanLatentBody,
    PlanLatentParams,
    PlanLatentQuery,
    PlanLatentRequest,
    StatusResponse,
)
from latentwire_service.api.access_policy import Policy
from latentwire_service.api.error_handlers import documented_responses
from latentwire_service.api.event_stream import LatentEvents
from latentwire_service.api.forms.request_form import plan_route
from latentwire_service.api.openapi_examples import (
    METRICS_RESPONSE,
    PLAN_RESPONSE,
    REQUEST_EXAMPLES,
)
from latentwire_service.api.plan_answers import (
    RequestTimeout,
    shortest,
    streamed_answer,
    whole_answer,
)
from latentwire_service.api.rendering import AnswerContext
from latentwire_service.api.request_scope import caller_of, tensors_of
from latentwire_service.api.wire_formats import check_stream_is_accepted, negotiate, render
from latentwire_service.engine.backend import BackendInfo
from latentwire_service.engine.errors import EngineUnavailableError, InvalidParamsError
from latentwire_service.model_service import ModelService, Plan, State
from latentwire_service.request_builder import Submission
from latentwire_service.telemetry.metrics import Metrics

# Each of the other query parameters has one value.
_REPEATABLE = frozenset(
    name for name, field in PlanLatentQuery.model_fields.items() if "list[" in str(field.annotation)
)


def create_router(
    service: ModelService,
    metrics: Metrics,
    describe: Callable[[BackendInfo], InfoResponse],
    policy: Policy,
    max_body_bytes: Callable[[], int],
) -> APIRouter:
    """Build the routes over one service.

    Args:
        service: runs the requests.
        metrics: answers `/metrics` and counts broken streams.
        describe: makes the answer of `/info` from the loaded model.
        policy: limits of a request.
        max_body_bytes: returns the most bytes of a body.
    """
    router = APIRouter()
    answers = _PlanAnswers(service, metrics, policy.request_timeout_s)
    _add_plan_routes(router, answers, max_body_bytes)
    _add_state_routes(router, service, describe)
    _add_metrics_route(router, service, metrics)
    return router


class _PlanAnswers:
    """Answers requests for plans, whole or as a stream."""

    def __init__(
        self, service: ModelService, metrics: Metrics, request_timeout_s: float | None
    ) -> None:
        self._service = service
        self._metrics = metrics
        self._request_timeout_s = request_timeout_s

    async def answer(
        self,
        request: Request,
        body: PlanLatentRequest,
        params: LatentFields,
        timeout_s: float | None,
    ) -> Response:
        """Answer one request.

        Args:
            request: carries the `Accept` header and the connection's state.
            body: of the request.
            params: what the answer holds of the latent.
            timeout_s: the client's own limit in seconds; None: it set none.
        """
        submission = Submission(
            body,
            params.k,
            caller_of(request.scope),
            shortest(self._request_timeout_s, timeout_s),
            tensors_of(request.scope),
            compressor=params.compressor,
            has_hidden_state=params.return_hidden_state,
        )
        info = self._service.info
        context = AnswerContext(
            body,
            params.k,
            info.model_id,
            info.revision,
            info.engine_name,
            has_hidden_state=params.return_hidden_state,
            dtype=params.dtype,
        )
        accept = ",".join(request.headers.getlist("accept"))
        if body.stream:
            check_stream_is_accepted(accept)
            items = self._service.stream(submission)
            return streamed_answer(request, items, LatentEvents(context), self._metrics)
        wire = negotiate(accept)

        def answer_of(plan: Plan) -> Response:
            content = render(wire, plan, context)
            return Response(content, media_type=wire.value, headers={"Vary": "Accept"})

        return await whole_answer(request, self._service.plan(submission), answer_of)


def _add_plan_routes(
    router: APIRouter, answers: _PlanAnswers, max_body_bytes: Callable[[], int]
) -> None:
    responses: dict[int | str, dict[str, Any]] = {
        200: PLAN_RESPONSE,
        **documented_responses(401, 406, 408, 413, 415, 421, 422, 429, 500, 503, 504),
    }

    async def plan_latent(
        request: Request,
        body: Annotated[PlanLatentBody, Body(openapi_examples=REQUEST_EXAMPLES)],
        params: Annotated[PlanLatentParams, Query()],
        x_request_timeout: RequestTimeout = None,
    ) -> Response:
        """Plan a task. The answer holds the plan's text and its hidden states."""
        return await answers.answer(
            request, body, _joined(request, params, body), x_request_timeout
        )

    async def get_plan_latent(
        request: Request,
        query: Annotated[PlanLatentQuery, Query()],
        x_request_timeout: RequestTimeout = None,
    ) -> Response:
        """Plan a task, as POST does. Each field of the body is a query parameter."""
        return await answers.answer(request, query.to_request(), query, x_request_timeout)

    for method, endpoint in (("POST", plan_latent), ("GET", get_plan_latent)):
        router.add_api_route(
            "/plan_latent",
            endpoint,
            methods=[method],
            responses=responses,
            response_class=Response,
            route_class_override=plan_route(max_body_bytes, _REPEATABLE),
        )


def _joined(request: Request, params: PlanLatentParams, body: PlanLatentBody) -> LatentFields:
    """Return the fields that may be in the query or in the body.

    Raises:
        InvalidParamsError: the two differ.
    """
    # FastAPI before 0.137 sets a query's defaults as if they were given.
    places = ((params, request.query_params.keys()), (body, body.model_fields_set))
    fields = {}
    for name in LatentFields.model_fields:
        # Null in the body is the same as an absent field.
        given = [getattr(each, name) for each, names in places if name in names]
        values = [value for value in given if value is not None]
        if len(values) == 2 and values[0] != values[1]:
            raise InvalidParamsError(name, "the query and the body give different values")
        if values:
            fields[name] = values[0]
    return LatentFields(**fields)


def _add_state_routes(
    router: APIRouter, service: ModelService, describe: Callable[[BackendInfo], InfoResponse]
) -> None:
    @router.get("/health", responses=documented_responses(503))
    async def health() -> StatusResponse:
        """Answer 200 while the process lives and its engine makes progress, else 503."""
        service.check_progress()
        return StatusResponse(status="ok")

    @router.get("/ready", responses=documented_responses(503))
    async def ready() -> StatusResponse:
        """Answer 200 if the service accepts requests, else 503 with the reason."""
        if service.state is not State.READY:
            raise EngineUnavailableError(f"the service is {service.state.value}")
        service.check_progress()
        return StatusResponse(status="ready")

    @router.get("/info", responses=documented_responses(401, 421, 503))
    async def info() -> InfoResponse:
        """Describe the model, the limits and the version of this service."""
        return describe(service.info).model_copy(update={"uptime_s": service.uptime_s})


def _add_metrics_route(router: APIRouter, service: ModelService, metrics: Metrics) -> None:
    responses: dict[int | str, dict[str, Any]] = {
        200: METRICS_RESPONSE,
        **documented_responses(401, 421),
    }

    @router.get("/metrics", response_class=Response, responses=responses)
    async def prometheus() -> Response:
        """Answer the metrics in the Prometheus text format."""
        occupancy = service.occupancy
        if occupancy is not None:
            max_slots = service.info.max_slots
            metrics.observe_load(occupancy.num_running, occupancy.num_waiting, max_slots)
        # It reads /proc.
        content = await asyncio.to_thread(metrics.render)
        return Response(content, media_type=CONTENT_TYPE_LATEST)
