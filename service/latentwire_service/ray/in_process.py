"""The service without HTTP: the same loading, checks, answers and errors in one process.

`latentwire collect --on ray` opens it by name in each of its actors.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import cast

from latentwire import PlanLatent, PlanOptions
from latentwire.answer_form import HIDDEN_STATE
from latentwire.call import plan_latent_call
from latentwire.errors import api_error
from latentwire.protocol import InfoResponse, PlanLatentRequest
from latentwire.settings_flags import FlagError, parse_settings
from latentwire_service.api.error_handlers import error_body
from latentwire_service.api.rendering import AnswerContext, answer_tensors, plan_response
from latentwire_service.engine.errors import EngineUnavailableError, QueueFullError
from latentwire_service.engine.hf.cpu.cpu_tuning import (
    drop_unreadable,
    keep_freed_memory,
    settle_heap,
    thread_environment,
)
from latentwire_service.engine_factory import backend_factory, engine_refusal
from latentwire_service.model_service import ModelService, Observers
from latentwire_service.request_builder import Submission
from latentwire_service.service_info import service_info
from latentwire_service.settings import Settings


def open_engine(flags: Sequence[str]) -> InProcessService:
    """Load the model; returns when it is ready.

    Args:
        flags: of `latentwire serve`; those about HTTP have no effect.

    Raises:
        ValueError: a setting or the model cannot be used.
        RuntimeError: loading failed for another reason.
    """
    settings = readable_settings(flags)
    prepare_process()
    return InProcessService(settings)


def readable_settings(flags: Sequence[str]) -> Settings:
    """Read flags of `latentwire serve`.

    Raises:
        ValueError: a flag is wrong, or the engine cannot be used with it.
    """
    try:
        settings = parse_settings(Settings, flags, "latentwire serve", "")
    except FlagError as error:
        raise ValueError(str(error)) from error
    refusal = engine_refusal(settings)
    if refusal is not None:
        raise ValueError(refusal)
    return settings


def prepare_process() -> None:
    """Set up threads and memory as `latentwire serve` does, before torch is imported."""
    drop_unreadable(os.environ)
    os.environ.update(thread_environment(os.environ))
    keep_freed_memory()


class InProcessService:
    """A loaded model that answers as the service does over HTTP.

    Args:
        settings: of the service.

    Attributes:
        info: what `/info` answers.

    Raises:
        ValueError: the model cannot be served.
        RuntimeError: loading failed for another reason.
    """

    def __init__(self, settings: Settings) -> None:
        self._service = ModelService(
            backend_factory(settings),
            Observers(on_loaded=settle_heap),
            settings.max_new_tokens_limit,
            settings.step_timeout,
        )
        self._service.start_loading()
        self._service.check_loaded()
        describe = partial(
            service_info,
            settings=settings,
            version=version("latentwire"),
            compressors=self._service.compressors,
        )
        self.info: InfoResponse = describe(self._service.info)

    async def plan_latent(
        self,
        task: str,
        *,
        k: int | None,
        task_id: str,
        timeout_s: float,
        options: Mapping[str, object],
    ) -> PlanLatent:
        """Plan one task.

        Args:
            task: in words.
            k: hidden rows to keep; None: all.
            task_id: returned as given.
            timeout_s: after which the request is cancelled, in seconds.
            options: the other fields of a request.

        Raises:
            InvalidArgumentError: an argument exceeds its limits.
            ApiError: the request is refused or fails, as over HTTP.
        """
        call = plan_latent_call(task, k, task_id, cast(PlanOptions, options))
        body = PlanLatentRequest.model_validate_json(json.dumps(call.body))
        try:
            plan = await self._service.plan(Submission(body, k, timeout_s=timeout_s))
            info = self._service.info
            context = AnswerContext(body, k, info.model_id, info.revision, info.engine_name)
            tensors = answer_tensors(plan, context)
        except Exception as error:
            # The boundary of the service: an unknown error becomes a 500, as over HTTP.
            problem, _ = error_body(error)
            retry_after_s = error.retry_after_s if isinstance(error, QueueFullError) else None
            raise api_error(problem, retry_after_s) from error
        response = plan_response(plan, context, tensors)
        rows = plan.completion.hidden_state
        return PlanLatent.from_parts(response, {HIDDEN_STATE: rows})

    def is_hung(self) -> bool:
        """Whether the current step has taken longer than `--step-timeout`."""
        try:
            self._service.check_progress()
        except EngineUnavailableError:
            return True
        return False

    def close(self) -> None:
        """Finish the accepted requests and end the engine."""
        self._service.drain()
