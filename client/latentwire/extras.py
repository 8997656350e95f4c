"""Subcommands that live in the other import packages: loaded when called, or the extra named."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from latentwire.errors import MissingDependencyError


@dataclass(frozen=True)
class ExtraCommand:
    """A subcommand whose package needs an extra.

    Attributes:
        name: the subcommand.
        module: has `main(args: list[str]) -> int`.
        extra: the extra that installs what the module imports.
        dependencies: top-level modules of that extra. Only one of these missing means that the
            extra is; any other failed import is a defect and must be seen as one.
    """

    name: str
    module: str
    extra: str
    dependencies: frozenset[str]


SERVE = ExtraCommand(
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
            "pydantic_settings",
            "safetensors",
            "starlette",
            "torch",
            "transformers",
            "uvicorn",
        }
    ),
)
COLLECT = ExtraCommand(
    name="collect",
    module="latentwire_batch.__main__",
    extra="batch",
    dependencies=frozenset({"datasets", "ijson", "pyarrow", "pydantic_settings", "rich"}),
)
INSPECT = ExtraCommand(
    name="inspect",
    module="latentwire_batch.inspection.command",
    extra="batch",
    dependencies=COLLECT.dependencies,
)


def run_extra_command(command: ExtraCommand, args: list[str]) -> int:
    """Run a subcommand of another package.

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
