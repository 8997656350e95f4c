"""The replicas of a run: which are up, how many rows each may have, and which is next."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from latentwire import (
    AsyncClient,
    ConnectionFailedError,
    InfoResponse,
    LatentwireError,
    NotReadyError,
    TransportError,
    TransportTimeoutError,
    UnauthorizedError,
)
from latentwire_batch.console import Notify
from latentwire_batch.errors import ReplicasLostError, UsageError
from latentwire_batch.replicas.health_watch import HANG_PATIENCE_S, until_hung
from latentwire_batch.replicas.identity import ModelIdentity
from latentwire_batch.replicas.replica import Replica, default_window

# Wait for the other replicas once one can take work; later ones join during the run.
_GRACE_S = 3.0
_REPORT_INTERVAL_S = 5.0
_MAX_REPORT_INTERVAL_S = 60.0
_MIN_PROBE_PAUSE_S = 0.25
_MAX_PROBE_PAUSE_S = 2.0
# Of each replica. A bad network would hide all other notices.
_NUM_DROPPED_SHOWN = 3


@dataclass(frozen=True)
class FleetSummary:
    """The replicas of a run as the manifest lists them, without their addresses.

    Attributes:
        count: replicas that were up.
        devices: kinds of device, sorted.
        versions: of the service, sorted.
    """

    count: int
    devices: tuple[str, ...]
    versions: tuple[str, ...]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FleetSummary:
        """Read what `to_json` returned.

        Raises:
            LookupError, TypeError, ValueError: when it is something else.
        """
        lists = [tuple(map(str, value[name])) for name in ("devices", "versions")]
        return cls(int(value["count"]), *lists)

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return asdict(self)


class Fleet:
    """All replicas of a run. Belongs to one event loop; `aclose` ends its tasks and clients.

    Args:
        clients: one per replica, by its address.
        concurrency: rows in flight per replica; None: see `default_window`.
        notify: receives notices about replicas that come and go.
        slots_of: returns how many of a replica's slots this process may fill.

    Attributes:
        replicas: all of them, in the order of their indices.
        changed: set when a row may be placed that could not be placed before.
    """

    def __init__(
        self,
        clients: Mapping[str, AsyncClient],
        concurrency: int | None,
        notify: Notify,
        slots_of: Callable[[int], int] = lambda num_slots: num_slots,
    ) -> None:
        self.replicas = [
            Replica(index, client, url) for index, (url, client) in enumerate(clients.items())
        ]
        self.changed = asyncio.Event()
        self._is_connected = asyncio.Event()
        self._concurrency = concurrency
        self._notify = notify
        self._slots_of = slots_of
        self._identity: ModelIdentity | None = None
        self._all_down_since_s: float | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._watches: dict[int, asyncio.Task[None]] = {}

    async def connect(self, patience_s: float) -> ModelIdentity:
        """Wait for the replicas and check that they serve the same model.

        Returns as soon as all are up, or some seconds after the first. Later ones join the run when
        they come up.

        Args:
            patience_s: longest wait for the first one, in seconds.

        Raises:
            ReplicasLostError: when none came up in time.
            UsageError: when one is no latentwire service, rejects the key, or serves a different
                model than the first.
        """
        first = list(self.replicas)
        answers = await self._first_answers(first, patience_s)
        self._identity = _common_identity(answers)
        for index, info in answers.items():
            self._come_up(self.replicas[index], info)
        self._is_connected.set()
        for replica in first:
            if not replica.is_up:
                self._notify(f"{replica.name} is not ready; the run continues without it")
                self._start(self._join(replica))
        return self._identity

    async def _first_answers(
        self, replicas: list[Replica], patience_s: float
    ) -> dict[int, InfoResponse]:
        """Return the `/info` of each replica that is up in time, by its index.

        Raises:
            ReplicasLostError: when none came up in time.
            UsageError: when one is no latentwire service or rejects the key.
        """
        waiting = asyncio.create_task(self._report_waiting())
        greetings = {
            replica.index: asyncio.create_task(self._greet(replica)) for replica in replicas
        }
        try:
            done, late = await asyncio.wait(
                greetings.values(), timeout=patience_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                raise ReplicasLostError(
                    f"no replica was ready within {patience_s:g} s ({self._states()}); "
                    "--replica-timeout waits longer"
                )
            if late:
                await asyncio.wait(late, timeout=_GRACE_S)
            return {index: task.result() for index, task in greetings.items() if task.done()}
        finally:
            waiting.cancel()
            for task in greetings.values():
                task.cancel()

    async def _report_waiting(self) -> None:
        started_s, pause_s = time.monotonic(), _REPORT_INTERVAL_S
        while True:
            await asyncio.sleep(pause_s)
            seconds = round(time.monotonic() - started_s)
            self._notify(f"waiting for replicas for {seconds} s: {self._states()}")
            pause_s = min(2 * pause_s, _MAX_REPORT_INTERVAL_S)

    def _states(self) -> str:
        """Describe the replicas that are not up; equal ones together."""
        by_state: dict[str, list[str]] = {}
        for replica in self.replicas:
            by_state.setdefault(replica.state, []).append(str(replica.index))
        return "; ".join(
            f"replica{'s' * (len(names) > 1)} {', '.join(names)} {state}"
            for state, names in by_state.items()
        )

    def add(self, url: str, client: AsyncClient) -> None:
        """Add a replica, which gets rows as soon as it is ready."""
        replica = Replica(len(self.replicas), client, url)
        self.replicas.append(replica)
        self._start(self._join(replica))

    def choose(self, avoid: frozenset[int]) -> Replica | None:
        """Pick the least loaded replica that can take a row now.

        Args:
            avoid: indices of replicas to pick only when no other one is up.

        Returns:
            The replica, or None when the row has to wait.
        """
        free = [
            replica
            for replica in self._preferred(avoid)
            if replica.num_in_flight < replica.window and not replica.is_apart
        ]
        return min(free, key=lambda replica: (replica.load, replica.index), default=None)

    def choose_idle(self, avoid: frozenset[int]) -> Replica | None:
        """Pick a replica without rows; arguments and result are those of `choose`."""
        idle = (replica for replica in self._preferred(avoid) if not replica.num_in_flight)
        return next(idle, None)

    def _preferred(self, avoid: frozenset[int]) -> list[Replica]:
        up = [replica for replica in self.replicas if replica.is_up]
        preferred = [replica for replica in up if replica.index not in avoid] or up
        now_s = time.monotonic()
        return [replica for replica in preferred if replica.cool_until_s <= now_s]

    def lose(self, replica: Replica) -> None:
        """Stop sending rows to a replica until it answers again."""
        if not replica.is_up:
            return
        replica.go_down()
        self._watches.pop(replica.index).cancel()
        if not any(other.is_up for other in self.replicas):
            self._all_down_since_s = time.monotonic()
        self._start(self._regain(replica, time.monotonic()))

    def _come_up(self, replica: Replica, info: InfoResponse) -> None:
        replica.come_up(info, self._slots_of(self._concurrency or default_window(info)))
        self._watches[replica.index] = self._start(self._watch(replica))

    async def _watch(self, replica: Replica) -> None:
        """Lose a replica that hangs, or that a broken network hides.

        Its connections stay open, so its rows would wait for an answer until their timeout.
        """
        num_answers = 0

        async def is_healthy() -> bool:
            nonlocal num_answers
            # A gateway may refuse the probes of a replica that answers rows.
            answered, num_answers = num_answers != replica.num_answers, replica.num_answers
            return answered or await replica.client.health()

        await until_hung(is_healthy, HANG_PATIENCE_S)
        self.lose(replica)
        replica.give_up()

    def has_other_up(self, replica: Replica) -> bool:
        """Whether a replica other than this one is up."""
        return any(other.is_up and other is not replica for other in self.replicas)

    def back_off(self, replica: Replica, delay_s: float) -> None:
        """Send fewer rows to an overloaded replica, and none for `delay_s` seconds."""
        replica.note_overload(time.monotonic() + delay_s)

    @property
    def all_down_since_s(self) -> float | None:
        """Moment since which no replica is up, `time.monotonic` seconds; None while one is."""
        return self._all_down_since_s

    def cool_ends_s(self) -> list[float]:
        """Return since or from when each replica may get rows, `time.monotonic` seconds."""
        return [replica.cool_until_s for replica in self.replicas if replica.is_up]

    def summary(self) -> FleetSummary:
        """Describe the replicas that were up."""
        infos = [replica.info for replica in self.replicas if replica.info is not None]
        return FleetSummary(
            count=len(infos),
            devices=tuple(sorted({info.device for info in infos})),
            versions=tuple(sorted({info.version for info in infos})),
        )

    async def aclose(self) -> None:
        """Stop watching and close the clients."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for replica in self.replicas:
            await replica.client.aclose()

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _join(self, replica: Replica) -> None:
        await self._is_connected.wait()
        await self._rejoin(replica)
        if replica.is_up:
            self._notify(f"{replica.name} is ready")

    async def _regain(self, replica: Replica, lost_s: float) -> None:
        """Let a replica rejoin that was up, and tell what became of it."""
        was_absent = False

        def note_absence() -> None:
            nonlocal was_absent
            if not was_absent:
                self._notify(f"{replica.name} does not answer; its rows are sent again")
            was_absent = True

        await self._rejoin(replica, note_absence)
        if not replica.is_up:
            return
        if was_absent:
            self._notify(f"{replica.name} is ready")
        elif replica.has_ended_since(lost_s, lost_s):
            self._notify(f"{replica.name} has started again; its rows are sent again")
        else:
            self._note_dropped(replica)

    def _note_dropped(self, replica: Replica) -> None:
        replica.num_dropped += 1
        if replica.num_dropped > _NUM_DROPPED_SHOWN:
            return
        is_last = replica.num_dropped == _NUM_DROPPED_SHOWN
        self._notify(
            f"a row got no answer from {replica.name}, which is up; the row is sent again"
            + "; further such rows are not shown" * is_last
        )

    async def _rejoin(
        self, replica: Replica, note_absence: Callable[[], None] = lambda: None
    ) -> None:
        try:
            info = await self._greet(replica, note_absence)
        except UsageError as error:
            self._notify(f"{error}; removed from this run")
            return
        if ModelIdentity.of(info) != self._identity:
            served = ModelIdentity.of(info)
            self._notify(f"{replica.name} now serves {served}; removed from this run")
            return
        self._come_up(replica, info)
        self._all_down_since_s = None
        self.changed.set()

    async def _greet(
        self, replica: Replica, note_absence: Callable[[], None] = lambda: None
    ) -> InfoResponse:
        """Wait, without a limit, until a replica can take work; return its `/info`."""
        pause_s = _MIN_PROBE_PAUSE_S
        while True:
            try:
                reason = await replica.client.unready_reason()
                if reason is None:
                    # Close to the answer: a process started between the two would look older.
                    sent_s = time.monotonic()
                    info = await replica.client.info()
                    replica.note_life(info.uptime_s, sent_s)
                    return info
                replica.state = _state_of(reason)
            except UnauthorizedError as error:
                raise UsageError(f"--api-key: {replica.name} rejected the key") from error
            except (TransportError, NotReadyError):
                # It was up a moment ago, and may be up again soon.
                pass
            except LatentwireError as error:
                if replica.info is None:
                    raise UsageError(
                        f"--replica: {replica.name} does not answer like a latentwire service"
                    ) from error
            replica.note_absence()
            note_absence()
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _MAX_PROBE_PAUSE_S)


def _state_of(reason: LatentwireError) -> str:
    """State why a replica is not ready, in words that hold no address."""
    match reason:
        case NotReadyError():
            return f"says: {reason.body.detail}"
        case ConnectionFailedError():
            return f"does not answer: {str(reason).rpartition(': ')[2]}"
        case TransportTimeoutError():
            return "does not answer in time"
        case _:
            return "is not reached: a gateway or proxy answers instead"


def _common_identity(answers: dict[int, InfoResponse]) -> ModelIdentity:
    first = min(answers)
    identity = ModelIdentity.of(answers[first])
    for index, info in answers.items():
        if ModelIdentity.of(info) != identity:
            raise UsageError(
                f"--replica: replica {index} serves {ModelIdentity.of(info)}, but "
                f"replica {first} serves {identity}"
            )
    return identity
