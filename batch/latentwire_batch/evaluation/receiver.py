"""The service that reads the messages: found or started, checked, and asked for likelihoods."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from latentwire import (
    AsyncClient,
    InfoResponse,
    LatentwireError,
    UnauthorizedError,
)
from latentwire.errors import ApiError, WaitTimeoutError
from latentwire.protocol import BridgeInfo
from latentwire_batch.console import Notify
from latentwire_batch.dispatch.watchdog import Guard, guarded
from latentwire_batch.errors import ReplicasLostError, UsageError
from latentwire_batch.evaluation.bridge_files import ChosenBridge
from latentwire_batch.evaluation.settings import EvaluateSettings
from latentwire_batch.replicas.endpoints import parse_address
from latentwire_batch.replicas.given import GivenReplicas
from latentwire_batch.replicas.local import LocalReplicas
from latentwire_batch.replicas.local_plan import plan_local_replicas
from latentwire_batch.replicas.select import read_api_key
from latentwire_batch.replicas.source import ReplicaSource

_NEEDED = ("latents-in", "scoring")

Messages = Sequence[Mapping[str, Any]]
ResultT = TypeVar("ResultT")


class RefusedError(Exception):
    """The service refuses one request, for a reason in the task; the text is for the terminal."""


@dataclass(frozen=True, slots=True)
class Scored:
    """How likely the receiver finds a plan after a message.

    Attributes:
        nll: negative log-likelihood of the whole plan, in nats.
        num_tokens: tokens of the plan.
    """

    nll: float
    num_tokens: int

    @property
    def per_token(self) -> float:
        """Its mean over the tokens, in nats."""
        return self.nll / self.num_tokens


class Receiver:
    """A service that is ready.

    Args:
        client: of the service.
        info: its answer to `/info`.
        concurrency: maximum number of requests in flight.
    """

    def __init__(self, client: AsyncClient, info: InfoResponse, concurrency: int) -> None:
        self.info = info
        self.concurrency = concurrency
        self._client = client
        self._slots = asyncio.Semaphore(concurrency)

    async def score(self, messages: Messages, plan: str) -> Scored:
        """Score a plan after a conversation; its tokens are those of the receiver.

        Raises:
            RefusedError: the service refuses the request.
            BatchError: the service does not answer.
        """
        async with self._slots:
            # Its hidden rows are not needed.
            answer = await _settled(self._client.plan_latent(messages=messages, plan=plan, k=0))
        if answer.logprob is None or not np.isfinite(answer.logprob):
            raise RefusedError("the service gives the plan no finite likelihood")
        return Scored(-answer.logprob, len(answer.token_ids))

    async def solve(self, messages: Messages, max_new_tokens: int) -> str:
        """Return what the receiver writes, greedily; raises like `score`."""
        async with self._slots:
            call = self._client.plan_latent(
                messages=messages, k=0, do_sample=False, max_new_tokens=max_new_tokens
            )
            answer = await _settled(call)
        return answer.plan


@asynccontextmanager
async def opened_receiver(
    settings: EvaluateSettings, bridge: ChosenBridge, notify: Notify
) -> AsyncIterator[tuple[Receiver, Guard]]:
    """Connect to the service at `--url`, or start an own replica with the bridge.

    Args:
        settings: of the command.
        bridge: for an own replica.
        notify: receives notices about an own replica.

    Yields:
        The receiver, and a guard of its process: see `guarded`.

    Raises:
        BatchError: the service cannot be reached or started.
    """
    source = _source(settings, bridge, notify)
    guard = Guard()
    try:
        url = (await source.start())[0]
        guard.add(source.watch(lambda _: None))
        async with source.connect(url) as client:
            info = await guarded(_ready_info(client, source.patience_s), guard)
            source.note_ready()
            concurrency = settings.concurrency or info.limits.max_slots
            yield Receiver(client, info, concurrency), guard
    finally:
        await source.stop(at_once=False)
        await guard.aclose()


def find_bridge(info: InfoResponse, bridge: ChosenBridge) -> BridgeInfo:
    """Find the chosen bridge among those of the service.

    Args:
        info: of the service.
        bridge: that `--bridge` names.

    Raises:
        UsageError: the service cannot score messages, or has not loaded this bridge.
    """
    lacking = [name for name in _NEEDED if name not in info.capabilities]
    if lacking:
        raise UsageError(
            f"the service cannot be evaluated: its engine has no {' and no '.join(lacking)}"
        )
    if bridge.content_hash is not None:
        for loaded in info.bridges:
            if loaded.content_hash == bridge.content_hash:
                return loaded
    loaded_names = ", ".join(each.name for each in info.bridges)
    named = next((each for each in info.bridges if each.name == bridge.name), None)
    if named is None:
        raise UsageError(
            f"--bridge: the service has not loaded {bridge.name}; it has: {loaded_names or 'none'}"
        )
    if bridge.content_hash is not None:
        raise UsageError(
            f"--bridge: the service has loaded a bridge {bridge.name} with another content: "
            f"{named.content_hash[:12]}, not {bridge.content_hash[:12]}"
        )
    return named


def _source(settings: EvaluateSettings, bridge: ChosenBridge, notify: Notify) -> ReplicaSource:
    timeout_s, max_retries = settings.timeout, settings.max_retries
    if settings.url is not None:
        try:
            parse_address(settings.url)
        except UsageError as error:
            raise UsageError("--url: must be like http://127.0.0.1:8000") from error
        api_key = read_api_key(settings.api_key, settings.api_key_file)
        patience_s = settings.ready_timeout
        return GivenReplicas([settings.url], api_key, timeout_s, patience_s, max_retries)
    flags = () if bridge.directory is None else ("--bridge", str(bridge.directory))
    # One replica, also on a machine with several GPUs.
    specs = plan_local_replicas(settings, os.environ, flags=flags)[:1]
    return LocalReplicas(specs, timeout_s, notify, max_retries)


async def _ready_info(client: AsyncClient, patience_s: float) -> InfoResponse:
    try:
        await client.wait_ready(patience_s)
        return await client.info()
    except UnauthorizedError as error:
        raise UsageError("--api-key: the service rejected the key") from error
    except WaitTimeoutError as error:
        # Without the address, which notices do not hold.
        reason = str(error).rpartition(": ")[2]
        raise ReplicasLostError(
            f"the service was not ready within {patience_s:g} s ({reason}); --ready-timeout waits "
            "longer"
        ) from error
    except LatentwireError as error:
        raise UsageError("--url: does not answer like a latentwire service") from error


async def _settled(call: Coroutine[Any, Any, ResultT]) -> ResultT:
    try:
        return await call
    except UnauthorizedError as error:
        raise UsageError("--api-key: the service rejected the key") from error
    except ApiError as error:
        raise RefusedError(str(error)) from error
    except LatentwireError as error:
        reason = str(error).rpartition(": ")[2]
        raise ReplicasLostError(f"the service does not answer any more: {reason}") from error
