"""The replicas of a run: which are up, how much each may be given, and who is asked next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from latentwire import (
    AsyncClient,
    InfoResponse,
    LatentwireError,
    NotReadyError,
    TransportError,
    UnauthorizedError,
)
from latentwire_batch.console import Notify
from latentwire_batch.errors import ReplicasLostError, UsageError
from latentwire_batch.replicas.replica import Replica
from latentwire_batch.run_settings import ModelIdentity

# How long the run waits for the others once one replica can take work; they may join later.
_GRACE_S = 3.0
_MIN_PROBE_PAUSE_S = 0.25
_MAX_PROBE_PAUSE_S = 2.0


class Fleet:
    """All replicas of a run. Belongs to one event loop; `aclose` ends its tasks and clients.

    Args:
        clients: one per replica.
        concurrency: rows in flight per replica; None: see `default_window`.
        clock: monotonic seconds.
        notify: told about replicas that come and go.
    """

    def __init__(
        self,
        clients: list[AsyncClient],
        concurrency: int | None,
        clock: Callable[[], float],
        notify: Notify,
    ) -> None:
        self.replicas = [Replica(index, client) for index, client in enumerate(clients)]
        self.changed = asyncio.Event()
        self._is_connected = asyncio.Event()
        self._concurrency = concurrency
        self._clock = clock
        self._notify = notify
        self._identity: ModelIdentity | None = None
        self._all_down_since_s: float | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def connect(self, patience_s: float) -> ModelIdentity:
        """Wait for the replicas and make sure that they serve the same model.

        Returns as soon as all are up, or one is and the others had a moment more; those that come
        later join then.

        Args:
            patience_s: longest wait for the first one, in seconds.

        Raises:
            ReplicasLostError: when none came up in time.
            UsageError: when one is no latentwire service, wants another key, or serves another
                model than the first.
        """
        greetings = {
            replica.index: asyncio.create_task(self._greet(replica)) for replica in self.replicas
        }
        try:
            done, late = await asyncio.wait(
                greetings.values(), timeout=patience_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                raise ReplicasLostError(f"no replica was ready within {patience_s:g} s")
            if late:
                await asyncio.wait(late, timeout=_GRACE_S)
            answers = {index: task.result() for index, task in greetings.items() if task.done()}
        finally:
            for task in greetings.values():
                task.cancel()
        self._identity = _common_identity(answers)
        for index, info in answers.items():
            self.replicas[index].come_up(info, self._concurrency)
        self._is_connected.set()
        for replica in [self.replicas[index] for index in greetings]:
            if not replica.is_up:
                self._notify(f"{replica.name} is not ready; going on without it until it is")
                self._start(self._rejoin(replica))
        return self._identity

    def add(self, client: AsyncClient) -> None:
        """Take in one more replica, which gets rows when it is ready."""
        replica = Replica(len(self.replicas), client)
        self.replicas.append(replica)
        self._start(self._join(replica))

    def choose(self, avoid: frozenset[int]) -> Replica | None:
        """Pick the least loaded replica that may be given a row now.

        Args:
            avoid: indices of replicas that are only taken when no other one is up.

        Returns:
            None when the row has to wait.
        """
        up = [replica for replica in self.replicas if replica.is_up]
        preferred = [replica for replica in up if replica.index not in avoid] or up
        now_s = self._clock()
        free = [
            replica
            for replica in preferred
            if replica.num_in_flight < replica.window and replica.cool_until_s <= now_s
        ]
        return min(free, key=lambda replica: (replica.load, replica.index), default=None)

    def lose(self, replica: Replica) -> None:
        """Stop sending rows to a replica until it answers again."""
        if not replica.is_up:
            return
        replica.is_up = False
        self._notify(f"{replica.name} does not answer; its rows go to others")
        if not any(other.is_up for other in self.replicas):
            self._all_down_since_s = self._clock()
        self._start(self._rejoin(replica))

    def back_off(self, replica: Replica, delay_s: float) -> None:
        """Send fewer rows to an overloaded replica, and none for `delay_s` seconds."""
        replica.note_overload(self._clock() + delay_s)

    @property
    def all_down_since_s(self) -> float | None:
        """Since when no replica is up, on the fleet's clock; None while one is."""
        return self._all_down_since_s

    def next_cool_end_s(self) -> float | None:
        """When the next replica may be sent rows again, on the fleet's clock."""
        now_s = self._clock()
        ends = [r.cool_until_s for r in self.replicas if r.is_up and r.cool_until_s > now_s]
        return min(ends, default=None)

    def summary(self) -> dict[str, Any]:
        """Describe the replicas that were up, without saying where they are."""
        infos = [replica.info for replica in self.replicas if replica.info is not None]
        return {
            "count": len(infos),
            "devices": sorted({info.device for info in infos}),
            "versions": sorted({info.version for info in infos}),
        }

    async def aclose(self) -> None:
        """Stop watching and close the clients."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for replica in self.replicas:
            await replica.client.aclose()

    def _start(self, coroutine: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _join(self, replica: Replica) -> None:
        await self._is_connected.wait()
        await self._rejoin(replica)

    async def _rejoin(self, replica: Replica) -> None:
        try:
            info = await self._greet(replica)
        except UsageError as error:
            self._notify(f"{error}: it is not asked any more")
            return
        if ModelIdentity.of(info) != self._identity:
            served = _described(ModelIdentity.of(info))
            self._notify(f"{replica.name} now serves {served}: it is not asked any more")
            return
        replica.come_up(info, self._concurrency)
        self._all_down_since_s = None
        self._notify(f"{replica.name} is ready")
        self.changed.set()

    async def _greet(self, replica: Replica) -> InfoResponse:
        """Wait, without end, until a replica can take work, and ask what it serves."""
        pause_s = _MIN_PROBE_PAUSE_S
        while True:
            try:
                if await replica.client.ready():
                    return await replica.client.info()
            except UnauthorizedError as error:
                raise UsageError(f"--api-key: {replica.name} does not accept it") from error
            except (TransportError, NotReadyError):
                # It was up a moment ago, and may be again.
                pass
            except LatentwireError as error:
                if replica.info is None:
                    raise UsageError(
                        f"--replica: {replica.name} does not answer like a latentwire service"
                    ) from error
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _MAX_PROBE_PAUSE_S)


def _common_identity(answers: dict[int, InfoResponse]) -> ModelIdentity:
    first = min(answers)
    identity = ModelIdentity.of(answers[first])
    for index, info in answers.items():
        if ModelIdentity.of(info) != identity:
            raise UsageError(
                f"--replica: replica {index} serves {_described(ModelIdentity.of(info))}, but "
                f"replica {first} serves {_described(identity)}"
            )
    return identity


def _described(identity: ModelIdentity) -> str:
    revision = f" at {identity.revision}" if identity.revision else ""
    return f"{identity.model!r}{revision} (hidden size {identity.hidden_size}, {identity.dtype})"
