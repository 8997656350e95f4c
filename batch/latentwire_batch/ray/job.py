"""What a replica on a Ray cluster has to know of the run. Imports no Ray."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from latentwire import PlanLatent
from latentwire.protocol import InfoResponse
from latentwire_batch.compression.facts import CompressorFacts
from latentwire_batch.config import CollectSettings
from latentwire_batch.dispatch.session import RowRequest
from latentwire_batch.locations import Folder


@dataclass(frozen=True)
class Job:
    """The work of the replicas, as it is sent to their nodes.

    Attributes:
        settings: of the run, without keys.
        root: the directory that holds `.partial/`, absolute. Without `parts`, all nodes share it.
        parts: folder in a store that takes the rows; None: logs in `root` do.
        token: name of a file in `.partial/` or in `parts` that shows that a node sees the same.
        serve_flags: flags of `latentwire serve` that say how the model is computed.
        environ: `LATENTWIRE_*` variables of the driver that say the same.
        num_rows: rows of the input.
        request: what is sent with every row.
        compression: the compressors that the driver has; the node's must be equal.
    """

    settings: CollectSettings
    root: Path
    parts: Folder | None
    token: str
    serve_flags: tuple[str, ...]
    environ: Mapping[str, str]
    num_rows: int
    request: RowRequest
    compression: CompressorFacts


class Engine(Protocol):
    """The service's engine in this process, which answers as the service does over HTTP."""

    info: InfoResponse

    def plan_latent(
        self,
        task: str,
        *,
        k: int | None,
        task_id: str,
        timeout_s: float,
        options: Mapping[str, object],
    ) -> Awaitable[PlanLatent]:
        """Plan one task; raises the errors of `AsyncClient.plan_latent`."""
        ...

    def is_hung(self) -> bool:
        """Whether the current step has taken longer than the limit."""
        ...
