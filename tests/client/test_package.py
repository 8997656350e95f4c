from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import latentwire
from latentwire import errors
from latentwire.protocol import ErrorBody
from latentwire.subcommands import COLLECT, SERVE, Subcommand

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
HEAVY = (
    "torch fastapi pyarrow datasets typer pydantic_settings transformers "
    "latentwire_service latentwire_batch"
)


def test_importing_the_client_imports_nothing_heavy() -> None:
    script = f"import latentwire, sys; print(*(set(sys.modules) & set('{HEAVY}'.split())))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


def test_public_names_are_exactly_those_exported() -> None:
    public = {
        name
        for name, value in vars(latentwire).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert public | {"__version__"} == set(latentwire.__all__)


def test_every_error_is_exported() -> None:
    classes = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert classes <= set(latentwire.__all__)
    assert all(issubclass(getattr(errors, name), errors.LatentwireError) for name in classes)


def test_error_tree_of_the_docstring_is_complete() -> None:
    drawn = {word for word in (errors.__doc__ or "").split() if word.endswith("Error")}
    assert drawn == {name for name in vars(errors) if name.endswith("Error")}


def test_version_is_the_distributions() -> None:
    assert latentwire.__version__ == tomllib.loads(PYPROJECT.read_text())["project"]["version"]


@pytest.mark.parametrize("command", [SERVE, COLLECT], ids=lambda command: command.name)
def test_extras_name_the_dependencies_of_pyproject(command: Subcommand) -> None:
    extras = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    # Of those for some platforms only, none is needed.
    names = {
        requirement.partition(">")[0].replace("-", "_")
        for requirement in extras[command.extra]
        if ";" not in requirement
    }
    assert command.dependencies == names


def test_api_error_shows_code_status_and_detail() -> None:
    body = ErrorBody(title="Full", status=429, code="queue-full", detail="64 requests wait")
    assert str(errors.api_error(body)) == "queue-full (429): 64 requests wait"
