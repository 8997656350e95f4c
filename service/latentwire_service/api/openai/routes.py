"""OpenAI's routes: parse a request, hand it to the service, render the answer."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Body, Request, Response
from starlette.exceptions import HTTPException

from latentwire.constants import JSON_MEDIA_TYPE
from latentwire_service.api.access_policy import Policy
from latentwire_service.api.forms.request_form import plan_route
from latentwire_service.api.openai.answers import ChatContext, Chunks, render_completion
from latentwire_service.api.openai.chat_request import ChatRequest
from latentwire_service.api.openai.documents import (
    CHAT_EXAMPLES,
    CHAT_RESPONSE,
    ModelCard,
    ModelList,
    refusals,
)
from latentwire_service.api.openai.error_form import UnknownModelError
from latentwire_service.api.openai.translation import ChatPlans, chat_plan
from latentwire_service.api.plan_answers import (
    RequestTimeout,
    shortest,
    streamed_answer,
    whole_answer,
)
from latentwire_service.api.request_scope import caller_of, tensors_of
from latentwire_service.engine.backend import BackendInfo
from latentwire_service.model_service import ModelService, Plan
from latentwire_service.request_builder import Submission
from latentwire_service.telemetry.metrics import Metrics


def create_openai_router(
    service: ModelService,
    metrics: Metrics,
    version: str,
    policy: Policy,
    max_body_bytes: Callable[[], int],
) -> APIRouter:
    """Build the routes over one service.

    Args:
        service: runs the requests.
        metrics: counts broken streams.
        version: of the service; a part of the fingerprint.
        policy: limits of a request.
        max_body_bytes: returns the most bytes of a body.
    """
    router = APIRouter()
    chat = _Chat(service, metrics, version, policy.request_timeout_s)

    async def create_chat_completion(
        request: Request,
        body: Annotated[ChatRequest, Body(openapi_examples=dict(CHAT_EXAMPLES))],
        x_request_timeout: RequestTimeout = None,
    ) -> Response:
        """Answer a conversation, as OpenAI's API does. The answer can hold its latent."""
        return await chat.answer(request, body, x_request_timeout)

    router.add_api_route(
        "/v1/chat/completions",
        create_chat_completion,
        methods=["POST"],
        responses={
            200: CHAT_RESPONSE,
            **refusals(400, 401, 404, 408, 413, 415, 421, 422, 429, 500, 503, 504),
        },
        response_class=Response,
        route_class_override=plan_route(max_body_bytes, frozenset()),
    )
    _add_model_routes(router, service)
    return router


class _Chat:
    """Answers chat requests, whole or as a stream."""

    def __init__(
        self,
        service: ModelService,
        metrics: Metrics,
        version: str,
        request_timeout_s: float | None,
    ) -> None:
        self._service = service
        self._metrics = metrics
        self._version = version
        self._request_timeout_s = request_timeout_s

    async def answer(
        self, request: Request, chat: ChatRequest, timeout_s: float | None
    ) -> Response:
        """Answer one request.

        Args:
            request: the connection's state.
            chat: body of the request.
            timeout_s: the client's own limit in seconds; None: it set none.

        Raises:
            UnknownModelError: the request names another model.
        """
        info = self._service.info
        if chat.model is not None and chat.model != info.model_id:
            raise UnknownModelError(chat.model, info.model_id)
        plan = chat_plan(chat)
        context = ChatContext(
            answer_id=f"chatcmpl-{secrets.token_hex(12)}",
            model=info.model_id,
            revision=info.revision,
            engine=info.engine_name,
            fingerprint=_fingerprint(info, self._version),
            has_latent=plan.has_latent,
            has_usage=plan.has_usage,
        )
        submission = Submission(
            plan.body,
            plan.k,
            caller_of(request.scope),
            shortest(self._request_timeout_s, timeout_s),
            tensors_of(request.scope),
            plan_id=context.answer_id,
            is_length_open=plan.is_length_open,
        )
        plans = ChatPlans(self._service, plan.names)
        if plan.body.stream:
            items = plans.stream(submission)
            return streamed_answer(request, items, Chunks(context), self._metrics)

        def answer_of(finished: Plan) -> Response:
            return Response(render_completion(finished, context), media_type=JSON_MEDIA_TYPE)

        return await whole_answer(request, plans.plan(submission), answer_of)


def _add_model_routes(router: APIRouter, service: ModelService) -> None:
    started = int(time.time())

    def card() -> ModelCard:
        info = service.info
        return ModelCard(id=info.model_id, created=started, max_model_len=info.max_model_len)

    @router.get("/v1/models", responses=refusals(401, 421, 503))
    async def models() -> ModelList:
        """List the served model."""
        return ModelList(data=[card()])

    # The name of a model on a hub has a slash.
    @router.get("/v1/models/{model:path}", responses=refusals(401, 404, 421, 422, 503))
    async def model(model: str) -> ModelCard:
        """Describe the served model."""
        if not model:
            raise HTTPException(404)
        served = card()
        if model != served.id:
            raise UnknownModelError(model, served.id)
        return served


def _fingerprint(info: BackendInfo, version: str) -> str:
    facts = (info.model_id, info.revision, info.dtype, info.device, version)
    return "fp_" + hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
