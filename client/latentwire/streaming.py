"""A streamed plan: decodes events, types steps, assembles the plan. Sends nothing itself.

The two streams differ in their `await`s only: `PlanAssembly` knows what an event means.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Self

import httpx
import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from latentwire.answer_form import named_latents
from latentwire.call import Call
from latentwire.constants import REQUEST_ID_HEADER
from latentwire.errors import ConnectionFailedError, ProtocolError, api_error
from latentwire.exchange import check_form, error_of
from latentwire.plan_latent import NO_ROWS, PlanLatent, compressed_fields, decoded
from latentwire.protocol import ErrorBody, HiddenState, StreamDone, StreamStep
from latentwire.sse import Event, EventDecoder
from latentwire.tensors import decode_row
from latentwire.validation import describe


@dataclass(frozen=True, eq=False)
class PlanStep:
    """One generated token, or one latent step.

    Attributes:
        index: position among the latent steps and the generated tokens, from 0.
        token_id: the token; None for a latent step.
        text: the text that the token adds to the plan; empty while a character is incomplete.
        hidden_row: `[hidden_size]` float32, read-only: the row that predicted the token; None where
            the answer does not hold it, as after the first k rows.
    """

    index: int
    token_id: int | None
    text: str
    hidden_row: npt.NDArray[np.float32] | None = field(repr=False)


class PlanAssembly:
    """Reads the events of one plan and assembles the plan.

    Args:
        call: the request; the events do not repeat its task.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._request_id = call.request_id
        self._decoder = EventDecoder()
        self._steps: list[PlanStep] = []
        self._plan: PlanLatent | None = None

    @property
    def plan(self) -> PlanLatent:
        """The complete plan, once the `done` event is read.

        Raises:
            ProtocolError: before that.
        """
        if self._plan is None:
            raise ProtocolError("the stream has not reached its `done` event")
        return self._plan

    def begin(self, response: httpx.Response) -> None:
        """Take the request id from the head of the answer."""
        self._request_id = response.headers.get(REQUEST_ID_HEADER, self._request_id)

    def check_is_whole(self) -> None:
        """Raise ConnectionFailedError when the stream ended before its `done` event."""
        if self._plan is None:
            raise ConnectionFailedError("the stream ended before its `done` event")

    def feed(self, chunk: bytes) -> Iterator[PlanStep]:
        """Yield the steps that a chunk of the stream completes.

        Raises:
            ApiError: for an `error` event.
            ProtocolError: when an event breaks the contract.
        """
        for event in self._decoder.feed(chunk):
            step = self._read(event)
            if step is not None:
                yield step

    def _read(self, event: Event) -> PlanStep | None:
        try:
            match event.name:
                case "step":
                    return self._take(StreamStep.model_validate_json(event.data))
                case "done":
                    self._plan = self._finish(StreamDone.model_validate_json(event.data))
                case "error":
                    sent = ErrorBody.model_validate_json(event.data)
                    raise api_error(sent, request_id=self._request_id)
        except ValidationError as error:
            raise ProtocolError(
                f"a `{event.name}` event breaks the wire contract: {describe(error)}"
            ) from error
        return None

    def _take(self, sent: StreamStep) -> PlanStep:
        if sent.index != len(self._steps):
            raise ProtocolError(f"step {sent.index} arrived, but step {len(self._steps)} was next")
        step = PlanStep(sent.index, sent.token_id, sent.text, _row(sent.row))
        self._steps.append(step)
        return step

    def _finish(self, done: StreamDone) -> PlanLatent:
        rows = [step.hidden_row for step in self._steps if step.hidden_row is not None]
        num_rows, width = done.shape
        if len(rows) != num_rows or any(row.shape != (width,) for row in rows):
            raise ProtocolError(
                f"answer {done.id} has shape {list(done.shape)}, but {len(rows)} rows were sent"
            )
        matrix = np.array(rows, np.float32).reshape(num_rows, width)
        matrix.flags.writeable = False
        latents = named_latents(None, done.hidden_state_comp, done.hidden_state_comp_arrays)
        joined = "".join(step.text for step in self._steps)
        task = (self._call.body or {}).get("task")
        plan = PlanLatent(
            **done.shared(),
            task=None if task is None else str(task),
            plan=joined if done.plan is None else done.plan,
            hidden_state=matrix if self._call.has_hidden_state else NO_ROWS,
            **compressed_fields(done.compressor, decoded(latents)),
            token_ids=tuple(step.token_id for step in self._steps if step.token_id is not None),
        )
        plan.check_counts()
        return check_form(plan, self._call)


def _row(sent: str | HiddenState | None) -> npt.NDArray[np.float32] | None:
    """Decode the row of a step, `[hidden_size]` float32, read-only."""
    if sent is None:
        return None
    if isinstance(sent, str):
        return decode_row(sent)
    rows = decoded({"row": sent})["row"]
    if len(rows) != 1:
        raise ProtocolError(f"a step has {len(rows)} rows")
    row: npt.NDArray[np.float32] = rows[0]
    return row


class PlanStream:
    """The steps of one plan, as they are generated. Iterate once; close it to cancel the request.

    The request is sent when iteration starts. Iterating raises what `plan_latent` raises. The call
    is retried as there, but only until an answer begins.
    """

    def __init__(self, call: Call, opened: Callable[[], httpx.Response]) -> None:
        self._assembly = PlanAssembly(call)
        # The steps know nothing of this object: in a cycle, a stream that is dropped would keep its
        # request until the next garbage collection.
        self._steps = _steps(self._assembly, opened)

    @property
    def plan(self) -> PlanLatent:
        """The complete plan, as `plan_latent` returns it, once all steps are read.

        Raises:
            ProtocolError: before that.
        """
        return self._assembly.plan

    def __iter__(self) -> Generator[PlanStep, None, None]:
        """Return the steps."""
        return self._steps

    def close(self) -> None:
        """Close the connection, which cancels the request."""
        self._steps.close()

    def __enter__(self) -> Self:
        """Return the stream itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self.close()


class AsyncPlanStream:
    """`PlanStream` with awaits."""

    def __init__(self, call: Call, opened: Callable[[], Awaitable[httpx.Response]]) -> None:
        self._assembly = PlanAssembly(call)
        self._steps = _steps_async(self._assembly, opened)

    @property
    def plan(self) -> PlanLatent:
        """The complete plan, as `plan_latent` returns it, once all steps are read.

        Raises:
            ProtocolError: before that.
        """
        return self._assembly.plan

    def __aiter__(self) -> AsyncGenerator[PlanStep, None]:
        """Return the steps."""
        return self._steps

    async def aclose(self) -> None:
        """Close the connection, which cancels the request."""
        await self._steps.aclose()

    async def __aenter__(self) -> Self:
        """Return the stream itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connection."""
        await self.aclose()


def _steps(
    assembly: PlanAssembly, opened: Callable[[], httpx.Response]
) -> Generator[PlanStep, None, None]:
    response = opened()
    assembly.begin(response)
    try:
        for chunk in response.iter_bytes():
            yield from assembly.feed(chunk)
    except httpx.RequestError as error:
        raise error_of(error) from error
    finally:
        response.close()
    assembly.check_is_whole()


async def _steps_async(
    assembly: PlanAssembly, opened: Callable[[], Awaitable[httpx.Response]]
) -> AsyncGenerator[PlanStep, None]:
    response = await opened()
    assembly.begin(response)
    try:
        async for chunk in response.aiter_bytes():
            for step in assembly.feed(chunk):
                yield step
    except httpx.RequestError as error:
        raise error_of(error) from error
    finally:
        await response.aclose()
    assembly.check_is_whole()
