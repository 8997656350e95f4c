"""A folder is a layer, and imports point down only. Imports are read from the source, not run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CLIENT = ROOT / "client" / "latentwire"
SERVICE = ROOT / "service" / "latentwire_service"
BATCH = ROOT / "batch" / "latentwire_batch"
HEAVY = {"torch", "transformers", "fastapi", "starlette", "uvicorn", "pyarrow", "datasets"}


def imports_of(source: str) -> Iterator[str]:
    """Top-level names of all imports, those inside functions too, those for types only not."""
    tree = ast.parse(source)
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield (node.module or "").partition(".")[0]


def module_level_imports_of(source: str) -> set[str]:
    """Those that run when the module is imported."""
    body = [
        node
        for node in ast.parse(source).body
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    ]
    return set(imports_of(ast.unparse(ast.Module(body=body, type_ignores=[]))))


def modules(folder: Path) -> list[Path]:
    found = sorted(folder.rglob("*.py"))
    assert found, f"no modules in {folder.name}"
    return found


def offenders(folder: Path, forbidden: set[str]) -> dict[str, set[str]]:
    """Module names to the forbidden names that they import."""
    found = {file: set(imports_of(file.read_text())) & forbidden for file in modules(folder)}
    return {str(file.relative_to(ROOT)): names for file, names in found.items() if names}


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        (CLIENT, {"latentwire_service", "latentwire_batch"}),
        (CLIENT, HEAVY - {"torch"}),
        (SERVICE, {"latentwire_batch"}),
        (BATCH, {"latentwire_service"}),
        (SERVICE / "engine", {"fastapi", "starlette", "uvicorn", "httpx", "pydantic"}),
        (SERVICE / "engine", {"pydantic_settings", "prometheus_client", "latentwire"}),
    ],
)
def test_no_module_imports_what_is_above_it(folder: Path, forbidden: set[str]) -> None:
    assert offenders(folder, forbidden) == {}


def test_importing_the_client_imports_no_torch() -> None:
    # Inside a function it may: `to_torch()` is for those who have it.
    assert not [
        file.name
        for file in modules(CLIENT)
        if "torch" in module_level_imports_of(file.read_text())
    ]


def test_the_engine_imports_nothing_of_the_service_around_it() -> None:
    for file in modules(SERVICE / "engine"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("latentwire"):
                assert (node.module or "").startswith("latentwire_service.engine"), file.name


@pytest.mark.parametrize("name", ["scheduler.py", "request.py", "prompt.py", "detokenizer.py"])
def test_what_needs_no_tensors_imports_no_torch(name: str) -> None:
    source = (SERVICE / "engine" / name).read_text()
    assert not set(imports_of(source)) & {"torch", "transformers"}


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import a.b, c", {"a", "c"}),
        ("from a.b import c", {"a"}),
        ("def f():\n    import a", {"a"}),
        ("if TYPE_CHECKING:\n    import a\nimport b", {"b"}),
        ("if typing.TYPE_CHECKING:\n    from a import x", set()),
    ],
)
def test_the_walk_sees_every_import(source: str, names: set[str]) -> None:
    assert set(imports_of(source)) == names
