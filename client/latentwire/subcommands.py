"""The subcommands: each module is imported when its command is called, or its extra is named."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from latentwire.errors import MissingDependencyError


@dataclass(frozen=True)
class Subcommand:
    """A subcommand and the module that implements it.

    Attributes:
        name: the subcommand.
        module: has `main(args: list[str]) -> int`.
        extra: the extra that installs what the module imports; None: the base package suffices.
        dependencies: top-level modules of that extra. When one of these is missing, the extra is
            missing; any other failed import is a defect and must show as one.
    """

    name: str
    module: str
    extra: str | None = None
    dependencies: frozenset[str] = frozenset()


PLAN = Subcommand(name="plan", module="latentwire.plan_command")


SERVE = Subcommand(
    name="serve",
    module="latentwire_service.__main__",
    extra="service",
    dependencies=frozenset(
        {
            "accelerate",
            "fastapi",
            "gguf",
            "h11",
            "huggingface_hub",
            "prometheus_client",
            "pyarrow",
            "rich",
            "safetensors",
            "starlette",
            "torch",
            "transformers",
            "uvicorn",
        }
    ),
)
FIT_BRIDGE = Subcommand(
    name="fit-bridge",
    module="latentwire_service.bridges.fitting.command",
    extra="service",
    dependencies=SERVE.dependencies,
)
FIT_COMPRESSOR = Subcommand(
    name="fit-compressor",
    module="latentwire_service.compressors.fitting.command",
    extra="service",
    dependencies=SERVE.dependencies,
)
COLLECT = Subcommand(
    name="collect",
    module="latentwire_batch.__main__",
    extra="batch",
    dependencies=frozenset({"datasets", "fsspec", "h11", "pyarrow", "rich"}),
)
INSPECT = Subcommand(
    name="inspect",
    module="latentwire_batch.inspection.command",
    extra="batch",
    dependencies=COLLECT.dependencies,
)
COMPRESS = Subcommand(
    name="compress",
    module="latentwire_batch.compression.command",
    extra="batch",
    dependencies=COLLECT.dependencies,
)
MERGE = Subcommand(
    name="merge",
    module="latentwire_batch.shards.merge_command",
    extra="batch",
    dependencies=COLLECT.dependencies,
)


EVALUATE = Subcommand(
    name="evaluate",
    module="latentwire_batch.evaluation.command",
    extra="batch",
    dependencies=COLLECT.dependencies,
)


def run_subcommand(command: Subcommand, args: list[str]) -> int:
    """Import and run a subcommand.

    Args:
        command: the subcommand.
        args: its arguments, as typed.

    Returns:
        Its exit status.

    Raises:
        MissingDependencyError: when its extra is not installed.
    """
    try:
        status: int = importlib.import_module(command.module).main(args)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in command.dependencies:
            raise
        raise MissingDependencyError(
            f"latentwire {command.name} needs the {command.extra} extra: "
            f'pip install "latentwire[{command.extra}]"'
        ) from error
    return status
