"""Handlers: parse, hand to the serving layer, render."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request, Response
from fastapi.openapi.models import Example
from prometheus_client import CONTENT_TYPE_LATEST

from latentwire.protocol import (
    HiddenState,
    InfoResponse,
    LatentInfo,
    PlanLatentParams,
    PlanLatentQuery,
    PlanLatentRequest,
    PlanLatentResponse,
    StatusResponse,
    Timings,
    Usage,
)
from latentwire.tensors import encode_base64
from latentwire_service.engine.errors import EngineUnavailableError, InvalidParamsError
from latentwire_service.error_handlers import documented_responses
from latentwire_service.metrics import Metrics
from latentwire_service.serving import Plan, Serving, State

# The caller is gone and reads no status; this one (nginx's) is for the metrics.
_CLIENT_CLOSED_REQUEST = 499

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


def create_router(serving: Serving, metrics: Metrics) -> APIRouter:
    """Build the routes over one serving layer."""
    router = APIRouter()
    plan_responses: dict[int | str, dict[str, Any]] = {
        200: {
            "model": PlanLatentResponse,
            "content": {"application/json": {"example": _RESPONSE_EXAMPLE}},
        },
        **documented_responses(413, 422, 429, 500, 503),
    }

    @router.post("/plan_latent", responses=plan_responses, response_class=Response)
    async def plan_latent(
        request: Request,
        body: Annotated[PlanLatentRequest, Body(openapi_examples=_REQUEST_EXAMPLES)],
        params: Annotated[PlanLatentParams, Query()],
    ) -> Response:
        """Plan a task; answer the plan's text and its hidden states."""
        return await _until_disconnect(request, _answer(serving, body, params.k))

    @router.get("/plan_latent", responses=plan_responses, response_class=Response)
    async def get_plan_latent(
        request: Request, query: Annotated[PlanLatentQuery, Query()]
    ) -> Response:
        """Do the same for quick use: every field of the body is a query parameter."""
        return await _until_disconnect(request, _answer(serving, query, query.k))

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

    @router.get("/info", responses=documented_responses(503))
    async def info() -> InfoResponse:
        """Say what is served."""
        return serving.info()

    @router.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def prometheus() -> Response:
        """Answer Prometheus metrics."""
        serving.observe_load()
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)

    return router


async def _answer(serving: Serving, body: PlanLatentRequest, k: int | None) -> Response:
    if body.stream:
        raise InvalidParamsError("stream", "streaming is not offered; leave it false")
    _check_is_unicode(body)
    plan = await serving.plan(body, k)
    info = serving.info()
    # Megabytes of base64 are not the event loop's work.
    content = await asyncio.to_thread(render_plan, plan, body, k, info.model, info.revision)
    return Response(content, media_type="application/json")


def _check_is_unicode(body: PlanLatentRequest) -> None:
    """Refuse half of a surrogate pair: JSON can escape one, but no text holds it."""
    for field in ("task", "task_id", "prompt_template"):
        try:
            (getattr(body, field) or "").encode()
        except UnicodeEncodeError as error:
            raise InvalidParamsError(field, "must be Unicode text") from error


def render_plan(
    plan: Plan, body: PlanLatentRequest, k: int | None, model: str, revision: str | None
) -> bytes:
    """Return the JSON of a `PlanLatentResponse`.

    The base64 text is put in afterwards: passing megabytes through the model would copy and scan
    them. `"data":""` cannot occur earlier, because quotes inside JSON strings are escaped.
    """
    completion = plan.completion
    rows, width = completion.hidden_state.shape
    response = PlanLatentResponse(
        id=plan.request_id,
        model=model,
        task=body.task,
        task_id=body.task_id,
        plan=completion.text,
        k=k,
        hidden_state=HiddenState(data="", shape=(rows, width)),
        latent=LatentInfo(model=model, revision=revision),
        token_ids=completion.token_ids,
        finish_reason=completion.finish_reason.value,
        seed=plan.seed,
        usage=Usage(
            prompt_tokens=completion.prompt_tokens,
            completion_tokens=len(completion.token_ids),
            latent_steps=rows,
        ),
        timings=Timings(
            queue_ms=round(completion.queue_s * 1e3, 3),
            prefill_ms=round(completion.prefill_s * 1e3, 3),
            decode_ms=round(completion.decode_s * 1e3, 3),
        ),
    )
    before, _, after = response.model_dump_json().encode().partition(b'"data":""')
    data = encode_base64(completion.hidden_state)
    return b"".join([before, b'"data":"', data, b'"', after])


async def _until_disconnect(request: Request, answer: Coroutine[Any, Any, Response]) -> Response:
    """Await an answer, but give it up when the client goes: its slot serves somebody else."""
    working = asyncio.create_task(answer)
    watching = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        # Raises where there was no going, but a body that is larger than it may be.
        watching.result()
        return Response(status_code=_CLIENT_CLOSED_REQUEST)
    finally:
        watching.cancel()
        working.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
