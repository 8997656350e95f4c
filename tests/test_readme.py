"""The README's code runs, its tables are the code's own, and its commands exist."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast, get_args

import pytest
import yaml
from tools.readme_tables import README, TABLES, rewrite

from latentwire import Client
from latentwire.cli import main as latentwire_main
from latentwire.protocol import ErrorBody, ErrorCode, PlanLatentResponse
from latentwire_service.api.routes import create_router
from support.tiny_models import save_model

ROOT = README.parent
TEXT = README.read_text()
URL = "http://127.0.0.1:8000"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def shell_commands() -> list[list[str]]:
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines]


def section(heading: str) -> str:
    return TEXT.partition(f"\n{heading}\n")[2].partition("\n#")[0]


def table_column(text: str, head: str, column: int) -> list[str]:
    """Cells of one column of the table whose head line starts with `head`."""
    lines = text[text.index(f"| {head} |") :].partition("\n\n")[0].splitlines()
    return [line.strip("| ").split(" | ")[column].strip("`") for line in lines[2:]]


def flags_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]|(?<![\w-])--k\b", text))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("service")
    model = save_model(folder / "tiny")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "latentwire_service", "--model", str(model)]
    options = ["--port", str(port), "--device", "cpu", "--max-slots", "4", "--threads", "1"]
    with (folder / "log").open("w") as log, subprocess.Popen(command + options, stderr=log) as run:
        try:
            with Client(url) as client:
                client.wait_ready(120)
            yield url
        finally:
            run.terminate()
            run.wait(60)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, service: str) -> Path:
    """A folder in which the README's dataset example finds its dataset."""
    folder = tmp_path_factory.mktemp("workplace")
    shutil.copytree(ROOT / "examples", folder / "examples")
    (command,) = (
        c for c in shell_commands() if c[:2] == ["latentwire", "collect"] and "--seed" in c
    )
    module = [sys.executable, "-m", *command]
    subprocess.run([*module, "--replica", service], cwd=folder, check=True)
    return folder


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.splitlines()[0])
def test_python_runs(
    block: str, service: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    exec(compile(block.replace(URL, service), "README.md", "exec"), {"__name__": "readme"})


def test_first_python_example_is_five_lines() -> None:
    assert len(blocks("python")[0].strip().splitlines()) == 5


@pytest.mark.parametrize("name", TABLES)
def test_table_is_marked(name: str) -> None:
    assert TEXT.count(f"<!-- begin {name} -->\n") == 1
    assert TEXT.count(f"<!-- end {name} -->\n") == 1


def test_tables_are_those_of_the_code() -> None:
    assert rewrite(TEXT) == TEXT, "run `make readme`"


@pytest.mark.parametrize("command", ["serve", "plan", "collect"])
def test_flags_are_those_of_help(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Wide, so that no flag is cut; without colour, so that none is interrupted.
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "argv", ["latentwire", command, "--help"])
    with pytest.raises(SystemExit) as ended:
        latentwire_main()
    assert ended.value.code in (None, 0)
    listed = flags_in(capsys.readouterr().out) - {"--help"}
    table = section(f"### `latentwire {command}`")
    rows = "\n".join(table_column(table, "Flag", 0))
    assert flags_in(rows) == listed


def test_commands_use_flags_that_exist() -> None:
    used = [command for command in shell_commands() if command[0] == "latentwire"]
    assert {command[1] for command in used} == {"serve", "plan", "collect", "inspect"}
    for command in used:
        table = section(f"### `latentwire {command[1]}`")
        assert flags_in(" ".join(command)) <= flags_in(table)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)", "".join(blocks("sh"))))
    assert named == {"demo", "test"}
    assert named <= targets


def test_compose_profiles_and_services_exist() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    profiles = {name for spec in compose["services"].values() for name in spec["profiles"]}
    section_text = section("## One replica per GPU with Docker Compose")
    named = set(re.findall(r"--profile (\w+)", section_text)) | set(
        re.findall(r"`(gpu\d)`", section_text)
    )
    assert named == profiles - {"batch"}
    assert "batch" in compose["services"]


def test_routes_are_the_services() -> None:
    rows = " ".join(table_column(section("## HTTP"), "Method and path", 0))
    documented = set(re.findall(r"(GET|POST) (/[a-z_.]+)", rows))
    router = create_router(cast(Any, None), cast(Any, None))
    served = {
        (method, route.path) for route in cast(Any, router.routes) for method in route.methods
    }
    assert documented == served | {("GET", "/docs"), ("GET", "/openapi.json")}


def test_answer_fields_are_the_protocols() -> None:
    answer_table = section("## HTTP").partition("Fields of an answer")[2]
    documented = ", ".join(table_column(answer_table, "Field", 0)).replace("`", "").split(", ")
    assert set(documented) == set(PlanLatentResponse.model_fields)


def test_error_codes_are_the_protocols() -> None:
    assert sorted(table_column(section("## HTTP"), "Status", 1)) == sorted(get_args(ErrorCode))


def test_answers_shown_have_the_protocols_fields() -> None:
    answer, error = blocks("json")
    # What the text says is cut out is not JSON.
    shown = json.loads(answer.replace("..., ", ""))
    assert list(shown) == list(PlanLatentResponse.model_fields)
    assert ErrorBody.model_validate_json(error).code == "prompt-too-long"


def test_named_paths_exist() -> None:
    for cell in table_column(section("## Layout"), "Path", 0):
        for path in cell.replace("`", "").split(", "):
            assert (ROOT / path).exists(), path
