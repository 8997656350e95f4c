"""The service's HTTP app as a deployment of Ray Serve, one model in each replica.

Serve listens, balances and scales; the app is that of `latentwire serve`. `deploy/ray/serve.yaml`
names this module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict
from ray import serve

from latentwire.compressors import CompressorError
from latentwire_service.api.access_policy import Policy, PolicyError, policy_of
from latentwire_service.api.app import create_app
from latentwire_service.compression.catalog import load_catalog
from latentwire_service.engine.hf.cpu.cpu_tuning import settle_heap
from latentwire_service.engine_factory import backend_factory
from latentwire_service.model_service import ModelService, Observers, Plan, State
from latentwire_service.ray.in_process import prepare_process, readable_settings
from latentwire_service.service_info import service_info
from latentwire_service.settings import Settings
from latentwire_service.telemetry.metrics import Metrics

# Serve's proxy listens for other machines, so a Host header may name any.
_ANY_ADDRESS = "0.0.0.0"


class ServeArgs(BaseModel):
    """Arguments of the application in Serve's configuration.

    Attributes:
        flags: of `latentwire serve`; those about listening have no effect.
    """

    model_config = ConfigDict(extra="forbid")

    flags: list[str] = []


class LatentService:
    """One replica: a loaded model and its app.

    Args:
        flags: of `latentwire serve`.

    Raises:
        ValueError: a setting or the model cannot be used.
        RuntimeError: loading failed for another reason.
    """

    def __init__(self, flags: Sequence[str]) -> None:
        settings = readable_settings(flags)
        policy = _policy(settings)
        try:
            compressors = load_catalog(settings.compressor)
        except CompressorError as error:
            raise ValueError(f"--compressor: {error.reason}") from error
        prepare_process()
        package_version = version("latentwire")
        metrics = Metrics(package_version)

        def on_completion(plan: Plan, _backend: object) -> None:
            metrics.observe_completion(plan.completion)

        self._drain_timeout_s = settings.drain_timeout
        self._service = ModelService(
            backend_factory(settings),
            Observers(metrics.observe_step, on_completion, settle_heap),
            settings.max_new_tokens_limit,
            settings.step_timeout,
            compressors,
        )
        describe = partial(
            service_info, settings=settings, version=package_version, compressors=compressors
        )
        self._app = create_app(self._service, metrics, policy, package_version, describe)
        # Serve sends requests to a replica as soon as it is made.
        self._service.start_loading()
        self._service.check_loaded()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the app that answers this replica's requests."""
        return self._app

    def check_health(self) -> None:
        """Let Serve replace the replica when it could not answer `/ready`.

        Raises:
            EngineUnavailableError: the engine hangs.
            RuntimeError: the engine has failed.
        """
        if self._service.state is State.FAILED:
            raise RuntimeError("the engine has failed")
        self._service.check_progress()

    def __del__(self) -> None:
        """End the engine, after Serve has waited for the requests."""
        service: ModelService | None = getattr(self, "_service", None)
        if service is not None:
            service.drain(self._drain_timeout_s)


def _policy(settings: Settings) -> Policy:
    """Return what requests must satisfy; raises ValueError."""
    try:
        return policy_of(settings.model_copy(update={"host": _ANY_ADDRESS}))
    except PolicyError as error:
        raise ValueError(str(error)) from error


def app(args: Mapping[str, Any]) -> serve.Application:
    """Build the application of Serve's configuration.

    Args:
        args: from the configuration; see `ServeArgs`.
    """
    # Serve itself would not: it does not read annotations that are texts.
    flags = ServeArgs.model_validate(dict(args)).flags
    ingress: type = serve.ingress()(LatentService)
    deployment = serve.deployment(name=LatentService.__name__)(ingress)
    return deployment.bind(flags)
