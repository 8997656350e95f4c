"""Handlers: parse, hand to the serving layer, render."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Query, Request, Response
from fastapi.openapi.models import Example
from prometheus_client import CONTENT_TYPE_LATEST

from latentwire.constants import (
    ARROW_STREAM_MEDIA_TYPE,
    EVENT_STREAM_MEDIA_TYPE,
    SAFETENSORS_MEDIA_TYPE,
)
from latentwire.protocol import (
    InfoResponse,
    PlanLatentParams,
    PlanLatentQuery,
    PlanLatentRequest,
    PlanLatentResponse,
    StatusResponse,
)
from latentwire_service.api.disconnect import until_disconnect
from latentwire_service.api.error_handlers import documented_responses
from latentwire_service.api.event_stream import EventStream, PlanEvents
from latentwire_service.api.guards import caller_of
from latentwire_service.api.rendering import Asked
from latentwire_service.api.wire_formats import WireFormat, negotiate, render
from latentwire_service.engine.errors import EngineUnavailableError
from latentwire_service.model_service import Serving, State
from latentwire_service.request_builder import Ask
from latentwire_service.telemetry.metrics import Metrics

RequestTimeout = Annotated[
    float | None,
    Header(gt=0, allow_inf_nan=False, description="Seconds after which the answer is of no use."),
]

_REQUEST_EXAMPLES: dict[str, Example] = {
    "defaults": {"summary": "A task and nothing else", "value": {"task": "Clean the kettle"}},
    "repeatable": {
        "summary": "The same plan each time",
        "value": {"task": "Clean the kettle", "max_new_tokens": 128, "top_p": 0.9, "seed": 7},
    },
}
_RESPONSE_EXAMPLE: dict[str, Any] = {
    "id": "plan-3e2602731dac088d4ce2575e",
    "model": "SmolLM2-135M-Instruct.Q4_1",
    "task": "Clean the kettle",
    "task_id": "kettle-1",
    "plan": "1. Empty it.",
    "k": 1,
    "hidden_state": {
        "data": "AACAPwAAAMA=",
        "dtype": "float32",
        "byteorder": "little",
        "shape": [1, 2],
    },
    "latent": {
        "layer": "last",
        "normed": True,
        "alignment": "predicts",
        "model": "SmolLM2-135M-Instruct.Q4_1",
        "revision": None,
    },
    "token_ids": [33, 30, 30590, 357, 30, 2],
    "finish_reason": "stop",
    "seed": 7,
    "usage": {"prompt_tokens": 41, "completion_tokens": 6, "latent_steps": 1},
    "timings": {"queue_ms": 0.1, "prefill_ms": 20.4, "decode_ms": 81.2},
}
# Of one event: its data is the JSON of a StreamStep, a StreamDone or an ErrorBody.
_STREAM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "event": {"enum": ["step", "done", "error"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
    "required": ["event", "data"],
}
_STREAM_EXAMPLE = (
    'event: step\ndata: {"index":0,"token_id":33,"text":"1","row":"AACAPwAAAMA="}\n\n'
    'event: step\ndata: {"index":1,"token_id":30,"text":".","row":null}\n\n'
    'event: done\ndata: {"id":"plan-3e2602731dac088d4ce2575e","model":"demo","task_id":null,'
    '"k":1,"shape":[1,2],"latent":{"layer":"last","normed":true,"alignment":"predicts",'
    '"model":"demo","revision":null},"finish_reason":"length","seed":7,"usage":'
    '{"prompt_tokens":41,"completion_tokens":2,"latent_steps":1},"timings":{"queue_ms":0.1,'
    '"prefill_ms":20.4,"decode_ms":81.2},"plan":null}\n\n'
)


def create_router(
    serving: Serving, metrics: Metrics, request_timeout_s: float | None = None
) -> APIRouter:
    """Build the routes over one serving layer.

    Args:
        serving: the model's life.
        metrics: where answers are counted.
        request_timeout_s: most that a request may take; None: as long as it needs.
    """
    router = APIRouter()
    plan_responses: dict[int | str, dict[str, Any]] = {
        200: {
            "model": PlanLatentResponse,
            "content": {
                "application/json": {"example": _RESPONSE_EXAMPLE},
                ARROW_STREAM_MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}},
                SAFETENSORS_MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}},
                EVENT_STREAM_MEDIA_TYPE: {
                    "schema": _STREAM_SCHEMA,
                    "example": _STREAM_EXAMPLE,
                },
            },
        },
        **documented_responses(401, 408, 413, 421, 422, 429, 500, 503, 504),
    }

    @router.post("/plan_latent", responses=plan_responses, response_class=Response)
    async def plan_latent(
        request: Request,
        body: Annotated[PlanLatentRequest, Body(openapi_examples=_REQUEST_EXAMPLES)],
        params: Annotated[PlanLatentParams, Query()],
        x_request_timeout: RequestTimeout = None,
    ) -> Response:
        """Plan a task; answer the plan's text and its hidden states."""
        timeout_s = _shorter(request_timeout_s, x_request_timeout)
        ask = Ask(body, params.k, caller_of(request.scope), timeout_s)
        return await _answer(serving, metrics, ask, request)

    @router.get("/plan_latent", responses=plan_responses, response_class=Response)
    async def get_plan_latent(
        request: Request,
        query: Annotated[PlanLatentQuery, Query()],
        x_request_timeout: RequestTimeout = None,
    ) -> Response:
        """Do the same for quick use: every field of the body is a query parameter."""
        timeout_s = _shorter(request_timeout_s, x_request_timeout)
        ask = Ask(query, query.k, caller_of(request.scope), timeout_s)
        return await _answer(serving, metrics, ask, request)

    @router.get("/health")
    async def health() -> StatusResponse:
        """Answer 200 while the process lives."""
        return StatusResponse(status="ok")

    @router.get("/ready", responses=documented_responses(503))
    async def ready() -> StatusResponse:
        """Answer 200 when requests are taken; else 503 with the reason."""
        if serving.state is not State.READY:
            raise EngineUnavailableError(f"the service is {serving.state.value}")
        return StatusResponse(status="ready")

    @router.get("/info", responses=documented_responses(401, 421, 503))
    async def info() -> InfoResponse:
        """Say what is served."""
        return serving.info()

    @router.get(
        "/metrics",
        response_class=Response,
        responses={
            200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
            **documented_responses(401, 421),
        },
    )
    async def prometheus() -> Response:
        """Answer Prometheus metrics."""
        serving.observe_load()
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)

    return router


def _shorter(one_s: float | None, other_s: float | None) -> float | None:
    return min((s for s in (one_s, other_s) if s is not None), default=None)


async def _answer(serving: Serving, metrics: Metrics, ask: Ask, request: Request) -> Response:
    info = serving.info()
    asked = Asked(ask.body, ask.k, info.model, info.revision)
    if ask.body.stream:
        return EventStream(PlanEvents(serving.stream(ask), asked, metrics.observe_stream_error))
    wire = negotiate(request.headers.get("accept", ""))
    return await until_disconnect(request.receive, _whole(serving, ask, asked, wire))


async def _whole(serving: Serving, ask: Ask, asked: Asked, wire: WireFormat) -> Response:
    plan = await serving.plan(ask)
    # Megabytes of base64 are not the event loop's work.
    content = await asyncio.to_thread(render, wire, plan, asked)
    return Response(content, media_type=wire.value, headers={"Vary": "Accept"})
