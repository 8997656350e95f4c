"""A plan as `text/event-stream`: sent while it is generated, cancelled when its reader leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from fastapi import Response
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from latentwire.constants import EVENT_STREAM_MEDIA_TYPE
from latentwire.number_formats import has_scales
from latentwire.protocol import ErrorBody
from latentwire_service.api.disconnect import until_disconnect
from latentwire_service.api.error_handlers import error_body
from latentwire_service.api.rendering import AnswerContext, render_done, render_error, render_steps
from latentwire_service.api.request_scope import set_outcome
from latentwire_service.engine.backend import Step
from latentwire_service.model_service import Plan

# A request that is refused is refused sooner; one that waits longer gets its headers.
FIRST_ITEM_S = 5.0
# Gateways and clients close connections on which nothing arrives for about a minute.
KEEP_ALIVE_S = 15.0
# Clients ignore a comment. Callers see that the request waits, and that the connection works.
_COMMENT = b": waiting\n\n"


class EventForm(Protocol):
    """What the events of one stream look like."""

    def steps(self, steps: list[Step]) -> bytes:
        """Return the events of tokens and latent steps; may be empty."""

    def done(self, plan: Plan) -> bytes:
        """Return the last events of a finished plan."""

    def error(self, body: ErrorBody) -> bytes:
        """Return the event that ends a broken stream."""

    def takes_long(self, item: list[Step] | Plan) -> bool:
        """Whether making the events could hold up the event loop."""


class LatentEvents:
    """The events of `/plan_latent`: one per step, and `done` or `error`.

    Args:
        context: facts about the request and the model.
    """

    def __init__(self, context: AnswerContext) -> None:
        self._context = context
        self._texts: list[str] = []

    def steps(self, steps: list[Step]) -> bytes:
        """Return a `step` event for each."""
        self._texts += (step.text for step in steps)
        return render_steps(steps, self._context)

    def done(self, plan: Plan) -> bytes:
        """Return the `done` event."""
        return render_done(plan, self._context, "".join(self._texts))

    def error(self, body: ErrorBody) -> bytes:
        """Return the `error` event."""
        return render_error(body)

    def takes_long(self, item: list[Step] | Plan) -> bool:
        """Whether a large latent is encoded, or rows are rotated: 0.5 ms for 3584 values."""
        if isinstance(item, Plan):
            return item.compressed is not None
        return self._context.has_hidden_state and has_scales(self._context.dtype)


class PlanEvents:
    """The events of one plan.

    Args:
        items: items of `ModelService.stream`.
        form: what the events look like.
        on_plan: receives the finished plan.
        on_error: receives an error that becomes an `error` event.
    """

    def __init__(
        self,
        items: AsyncIterator[list[Step] | Plan],
        form: EventForm,
        on_plan: Callable[[Plan], None],
        on_error: Callable[[ErrorBody], None],
    ) -> None:
        self._items = items
        self._form = form
        self._on_plan = on_plan
        self._on_error = on_error
        self._pending: asyncio.Task[list[Step] | Plan | None] | None = None

    async def start(self) -> None:
        """Wait for the first item, so that a request that never runs gets an error status.

        Returns after `FIRST_ITEM_S` seconds in any case: a later error is an event.

        Raises:
            EngineError: as `ModelService.stream`.
        """
        item = await self._next(FIRST_ITEM_S)
        if item.done():
            item.result()

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the bytes of the events, and comments while there is none.

        An error becomes the last event.
        """
        timeout_s = 0.0
        try:
            while True:
                pending = await self._next(timeout_s)
                timeout_s = KEEP_ALIVE_S
                if not pending.done():
                    yield _COMMENT
                    continue
                self._pending = None
                item = pending.result()
                if item is None:
                    return
                if rendered := await self._rendered(item):
                    yield rendered
        except Exception as error:
            # The boundary: the status is already sent, so the stream itself reports the error.
            body, _ = error_body(error)
            self._on_error(body)
            yield self._form.error(body)

    async def aclose(self) -> None:
        """Cancel the request unless it is finished."""
        if self._pending is not None:
            self._pending.cancel()
            await asyncio.wait({self._pending})
        aclose = getattr(self._items, "aclose", None)
        if aclose is not None:
            await aclose()

    async def _next(self, timeout_s: float) -> asyncio.Task[list[Step] | Plan | None]:
        """Return the task of the next item, after `timeout_s` seconds even if it is not done.

        Its result is None after the last item.
        """
        if self._pending is None:
            self._pending = asyncio.create_task(self._take())
        await asyncio.wait({self._pending}, timeout=timeout_s)
        return self._pending

    async def _take(self) -> list[Step] | Plan | None:
        return await anext(self._items, None)

    async def _rendered(self, item: list[Step] | Plan) -> bytes:
        if isinstance(item, Plan):
            self._on_plan(item)
        if self._form.takes_long(item):
            return await asyncio.to_thread(self._render, item)
        return self._render(item)

    def _render(self, item: list[Step] | Plan) -> bytes:
        return self._form.done(item) if isinstance(item, Plan) else self._form.steps(item)


class EventStream(Response):
    """Sends the events of a plan.

    An error within `FIRST_ITEM_S` and before the first event is raised before anything is sent, and
    gets its own status.
    """

    media_type = EVENT_STREAM_MEDIA_TYPE
    # Both tell gateways not to collect the answer before they pass it on.
    _HEADERS = (("cache-control", "no-store"), ("x-accel-buffering", "no"))

    def __init__(self, events: PlanEvents) -> None:
        super().__init__(headers=dict(self._HEADERS))
        del self.headers["content-length"]
        self._events = events
        self._is_begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the last one, or until the reader leaves."""
        try:
            refusal = await until_disconnect(receive, self._send(send))
        except HTTPException as error:
            if not self._is_begun:
                raise
            set_outcome(scope, error.status_code)
            # The client exceeded the body limit during the stream: only the connection can end.
            return
        finally:
            await self._events.aclose()
        if refusal is None:
            return
        if self._is_begun:
            set_outcome(scope, refusal.status_code)
        else:
            await refusal(scope, receive, send)

    async def _send(self, send: Send) -> None:
        await self._events.start()
        self._is_begun = True
        await send(
            {"type": "http.response.start", "status": 200, "headers": self.raw_headers},
        )
        async for chunk in self._events.chunks():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
