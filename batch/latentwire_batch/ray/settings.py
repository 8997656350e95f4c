"""Flags that say where replicas run. Imports no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, Field

from latentwire.settings_flags import flag_of
from latentwire_batch.errors import UsageError


class PlacementFields(BaseModel):
    """Where collect runs its own replicas."""

    on: Literal["local", "ray"] = Field(
        default="local",
        description="Where own replicas run: processes of this machine, or actors of a Ray "
        "cluster. ray needs the extra latentwire[ray].",
    )
    ray_address: str | None = Field(
        default=None,
        description="--on ray: auto for the cluster of this machine, or HOST:PORT of its head. "
        "Without it and without the variable RAY_ADDRESS, collect starts Ray on this machine.",
    )
    replicas: int | None = Field(
        default=None,
        ge=1,
        description="--on ray: number of replicas. Default: as many as the cluster's GPUs allow, "
        "or 1 without GPUs.",
    )
    gpus_per_replica: int | None = Field(
        default=None,
        ge=0,
        description="--on ray: GPUs of one replica; 0 runs it on CPUs, as many as --threads says. "
        "Default: what --tensor-parallel-size and --pipeline-parallel-size need, else 1, and 0 "
        "with --device cpu.",
    )


def check_placement(fields: PlacementFields, given: Sequence[str]) -> None:
    """Refuse flags that contradict each other.

    Args:
        fields: the flags.
        given: addresses of replicas that run already.

    Raises:
        UsageError: naming the flag.
    """
    if fields.on == "ray":
        if given:
            raise UsageError("--replica: cannot be used with --on ray, which starts its own")
        return
    unused = PlacementFields.model_fields.keys() & fields.model_fields_set - {"on"}
    if unused:
        raise UsageError(f"{flag_of(min(unused))}: needs --on ray")
