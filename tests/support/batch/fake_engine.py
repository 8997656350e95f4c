"""An engine for replicas on Ray that needs no model: it answers as the stub replicas do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from latentwire import PlanLatent
from latentwire.protocol import InfoResponse, PlanLatentResponse
from support.batch.stub_answers import Behaviour, answer_of, info


@dataclass
class FakeEngine:
    """Answers after some turns of the event loop.

    Attributes:
        special: called for its task before the answer; may raise.
        running: tasks that run now.
        together: for each task, those that ran when it ended.
        sent: tasks in the order in which they began.
    """

    special: Mapping[str, Callable[[], None]] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)
    together: dict[str, set[str]] = field(default_factory=dict)
    sent: list[str] = field(default_factory=list)

    @property
    def info(self) -> InfoResponse:
        return InfoResponse.model_validate(info(Behaviour()))

    async def plan_latent(
        self,
        task: str,
        *,
        k: int | None,
        task_id: str,
        timeout_s: float,
        options: Mapping[str, object],
    ) -> PlanLatent:
        del timeout_s
        self.sent.append(task)
        self.running.add(task)
        try:
            for _ in range(5):
                await asyncio.sleep(0)
            self.together[task] = set(self.running)
            if task in self.special:
                self.special[task]()
        finally:
            self.running.discard(task)
        body = {**options, "task": task, "task_id": task_id}
        answer, matrix = answer_of(Behaviour(), body, k)
        response = PlanLatentResponse.model_validate(answer)
        return PlanLatent.from_parts(response, {"hidden_state": matrix})

    def is_hung(self) -> bool:
        return False
