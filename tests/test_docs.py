"""All pages: their code runs, their tables are the code's own, and whatever they name exists."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from tools.doc_tables import TABLES, rewrite

from latentwire import Client
from latentwire.cli import main as latentwire_main
from latentwire.plan_command import PlanSettings
from latentwire.protocol import ErrorBody, ErrorCode, PlanLatentResponse, StreamDone, StreamStep
from latentwire_batch import collect_hidden_states, compressed_latent_collect
from latentwire_batch.compression.command_settings import CompressSettings
from latentwire_batch.config import CollectSettings
from latentwire_batch.evaluation.settings import EvaluateSettings
from latentwire_batch.inspection.command import InspectSettings
from latentwire_batch.shards.merge_settings import MergeSettings
from latentwire_service.bridges.fitting.settings import FitSettings
from latentwire_service.compressors.fitting.settings import CompressorSettings
from latentwire_service.settings import Settings
from support.child import Child
from support.markdown import ADRS, DOCS, PAGES, README, ROOT, Page
from support.processes.command_lines import run_latentwire
from support.tiny_models import save_chat_model

URL = "http://127.0.0.1:8000"
COMMANDS = (
    *("serve", "plan", "collect", "merge", "compress", "inspect"),
    *("fit-bridge", "fit-compressor", "evaluate"),
)
# A path in the text is given from the repository's root or from one of these.
BASES = (
    ".",
    "tests",
    "examples",
    "client/latentwire",
    "service/latentwire_service",
    "batch/latentwire_batch",
)
# Variables that no setting has: prefixes, and those of the tests.
OTHER_VARIABLES = {
    *("LATENTWIRE_COLLECT", "LATENTWIRE_EVALUATE", "LATENTWIRE_FIT_BRIDGE"),
    *("LATENTWIRE_COMPRESS", "LATENTWIRE_MERGE"),
    "LATENTWIRE_TEST_DEVICE",
    "LATENTWIRE_TEST_DTYPE",
}
# What the shown commands printed in the workplace, `latentwire plan` last.
PLAN_OUTPUT = "printed by plan.txt"
# Flags in the text that belong to other programs.
FOREIGN_FLAGS = {"--constraint", "--no-deps", "--help"}


def ids(page: Page) -> str:
    return page.name


def with_blocks(language: str) -> list[Any]:
    found = [
        pytest.param(block, id=f"{page.name}-{number}")
        for page in PAGES
        for number, block in enumerate(page.blocks(language))
    ]
    assert found, f"no page has a block of {language}"
    return found


def flags_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]|(?<![\w-])--k\b", text))


def flags_of(command: str) -> set[str]:
    """The flags in a command's table, which another test holds against `--help`."""
    found = flags_in(DOCS["cli.md"].section(f"`latentwire {command}`"))
    assert found
    return found


def shell_words(*start: str) -> list[list[str]]:
    """The commands in all pages' shell blocks that begin with these words."""
    lines = [shlex.split(line) for page in PAGES for line in page.shell_lines()]
    found = [words for words in lines if words[: len(start)] == list(start)]
    assert found, f"no page shows the command {' '.join(start)}"
    return found


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("service")
    model = save_chat_model(folder / "tiny")
    options = ["--port", "0", "--device", "cpu", "--max-slots", "4", "--threads", "1"]
    child = Child("--model", str(model), *options)
    try:
        with Client(child.url) as client:
            client.wait_ready(120)
        yield child.url
    finally:
        child.close()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, service: str) -> Path:
    """A folder in which every command on the pages that needs no further machine was run."""
    folder = tmp_path_factory.mktemp("workplace")
    shutil.copytree(ROOT / "examples", folder / "examples")
    commands = [
        [*words[1:], "--replica", service]
        for words in shell_words("latentwire", "collect")
        if "--replica" not in words
    ]
    for command in ("merge", "compress", "inspect"):
        commands += [words[1:] for words in shell_words("latentwire", command)]
    (words,) = shell_words("latentwire", "plan")
    printed = run_latentwire([*commands, [*words[1:], "--url", service]], folder)
    (folder / PLAN_OUTPUT).write_text(printed)
    return folder


# One test, because the tests are shared by several processes, and the workplace takes most of the
# time.
@pytest.mark.slow
def test_commands_leave_the_files_that_they_name_and_python_runs(
    service: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = [
        words[words.index(flag) + 1]
        for words in shell_words("latentwire")
        if "--replica" not in words
        for flag in ("--output-dir", "--html", "--output")
        if flag in words
    ]
    assert len(named) == 8
    assert all((workplace / path).exists() for path in named)
    monkeypatch.chdir(workplace)
    for page in PAGES:
        for block in page.blocks("python"):
            exec(compile(block.replace(URL, service), page.name, "exec"), {"__name__": "page"})
    # The output of the one command that is shown with it.
    (shown,) = DOCS["cli.md"].blocks("text")
    printed = (workplace / PLAN_OUTPUT).read_text()
    assert lines_of_form(printed)[-3:] == lines_of_form(shown)[-3:]


def lines_of_form(output: str) -> list[str]:
    """The lines without the numbers and the finish reason, which depend on the model."""
    return [re.sub(r"\d+|(?<=finish_reason )\w+", "N", line) for line in output.splitlines()]


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page: Page) -> None:
    by_path = {other.path: other for other in PAGES}
    for path, fragment in page.links():
        assert path.exists(), f"{page.name} links to {path}"
        assert not fragment or fragment in by_path[path].anchors, f"{path.name}#{fragment}"


def test_links_are_found() -> None:
    assert len(list(README.links())) > 15
    assert "what-a-latent-is" in README.anchors
    assert "latentwire-serve" in DOCS["cli.md"].anchors


@pytest.mark.parametrize("page", [README, Page("CONTRIBUTING.md"), *DOCS.values(), *ADRS], ids=ids)
def test_named_paths_exist(page: Page) -> None:
    named = re.findall(r"`([\w./-]+\.(?:py|c|md|json|jsonl|yaml|yml|conf|toml|txt))`", page.prose)
    elsewhere = {
        "manifest.json",
        "generation_config.json",
        "failures.jsonl",
        "README.md",
        "bridge.json",
        "compressor.json",
        "shards.json",
        "utils.py",
    }
    for path in set(named) - elsewhere:
        if not path.startswith(".partial/"):
            assert any((ROOT / base / path).is_file() for base in BASES), f"{page.name}: {path}"


def test_the_map_names_every_module() -> None:
    page = DOCS["architecture.md"]
    for package in ("client/latentwire", "service/latentwire_service", "batch/latentwire_batch"):
        for path in (ROOT / package).rglob("*.py"):
            name = str(path.relative_to(ROOT / package))
            assert path.name.startswith("__") or f"`{name}`" in page.text, f"{package}: {name}"


@pytest.mark.parametrize("page", [README, *DOCS.values()], ids=ids)
def test_named_folders_exist(page: Page) -> None:
    for path in set(re.findall(r"`((?:\w+/)+)`", page.prose)) - {"hf_dataset/", "data/"}:
        if not path.startswith("outputs/"):
            assert any((ROOT / base / path).is_dir() for base in BASES), f"{page.name}: {path}"


@pytest.mark.parametrize("page", [README, Page("SECURITY.md"), *DOCS.values()], ids=ids)
def test_named_flags_exist(page: Page) -> None:
    known = FOREIGN_FLAGS.union(*(flags_of(command) for command in COMMANDS), classic_flags())
    prose = re.sub(r"<!-- begin.*?<!-- end", "", page.prose, flags=re.DOTALL)
    quoted = " ".join(re.findall(r"`([^`\n]+)`", prose))
    named = {word.rstrip(",:.") for word in quoted.split() if word.startswith("--")}
    compose = {"--profile", "--rm", "--build", "--wait", "--tag", "--target", "--publish"}
    assert named - compose <= known, page.name


def classic_flags() -> set[str]:
    parsers = (collect_hidden_states._parser(), compressed_latent_collect._parser())
    return {flag for parser in parsers for flag in parser._option_string_actions}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_named_variables_exist(page: Page) -> None:
    models: list[tuple[str, Any]] = [
        *[("", Settings), ("", PlanSettings), ("COLLECT_", CollectSettings)],
        *[("COMPRESS_", CompressSettings), ("INSPECT_", InspectSettings)],
        *[("MERGE_", MergeSettings), ("FIT_BRIDGE_", FitSettings)],
        *[("FIT_COMPRESSOR_", CompressorSettings), ("EVALUATE_", EvaluateSettings)],
    ]
    names = {f"{prefix}{name}" for prefix, model in models for name in model.model_fields}
    known = {f"LATENTWIRE_{name.upper()}" for name in names} | OTHER_VARIABLES
    named = set(re.findall(r"\bLATENTWIRE_[A-Z_]*[A-Z]\b", page.text))
    assert named <= known


@pytest.mark.parametrize("name", TABLES)
def test_each_table_is_marked_once(name: str) -> None:
    text = "".join(page.text for page in DOCS.values())
    assert text.count(f"<!-- begin {name} -->\n") == 1
    assert text.count(f"<!-- end {name} -->\n") == 1


@pytest.mark.parametrize("page", DOCS.values(), ids=ids)
def test_tables_are_those_of_the_code(page: Page) -> None:
    assert rewrite(page.text) == page.text, "run `make docs`"


@pytest.mark.parametrize("command", COMMANDS)
def test_tables_have_the_flags_of_help(
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
    section = DOCS["cli.md"].section(f"`latentwire {command}`")
    rows = re.findall(r"^\| (`--.*?) \|", section, re.MULTILINE)
    assert flags_in("\n".join(rows)) == listed


@pytest.mark.parametrize("command", COMMANDS)
def test_shown_commands_use_flags_that_exist(command: str) -> None:
    for words in shell_words("latentwire", command):
        assert flags_in(" ".join(words)) <= flags_of(command)


def test_every_shown_latentwire_command_exists() -> None:
    assert {words[1] for words in shell_words("latentwire")} == set(COMMANDS)


@pytest.mark.parametrize("module", [collect_hidden_states, compressed_latent_collect])
def test_shown_classic_commands_are_understood(module: Any) -> None:
    script = f"batch/{module.__name__.rpartition('.')[2]}.py"
    lines = [line for page in PAGES for line in page.shell_lines() if script in line]
    assert lines
    for line in lines:
        assert (ROOT / script).is_file()
        module._parser().parse_args(shlex.split(line.partition(script)[2]))


def test_named_modules_exist() -> None:
    named = {
        name
        for page in PAGES
        for name in re.findall(r"python -m ((?:benchmarks|latentwire)[\w.]*)", page.text)
    }
    assert named
    assert all(importlib.util.find_spec(name) for name in named)


def test_named_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = "\n".join(page.text for page in PAGES if page.name != "CHANGELOG.md")
    named = set(re.findall(r"(?:`|^)(?:\w+=\w+ )?make ([a-z-]+)", text, re.MULTILINE))
    assert {"demo", "test", "check", "docs"} <= named
    assert named <= targets


def test_compose_profiles_services_and_variables_exist() -> None:
    file = ROOT / "docker-compose.yml"
    compose = yaml.safe_load(file.read_text())
    profiles = {name for spec in compose["services"].values() for name in spec["profiles"]}
    page = DOCS["deployment.md"]
    named = set(re.findall(r"--profile (\w+)", page.text)) | set(
        re.findall(r"`(gpu\d)`", page.text)
    )
    assert named == profiles
    assert "batch" in compose["services"]
    variables = {cell.strip("`") for cell in page.column("Variable", 0)}
    # Variables of the commands themselves are in cli.md.
    used = {
        name for name in re.findall(r"\$\{(\w+)", file.read_text()) if "LATENTWIRE_" not in name
    }
    assert variables == used
    defaults = dict(re.findall(r"\$\{(\w+):?-([^}]+)\}", file.read_text()))
    no_file = "./deploy/compose/empty"
    defaults = {
        name: value for name, value in defaults.items() if name in used and value != no_file
    }
    shown = dict(zip(page.column("Variable", 0), page.column("Variable", 2), strict=True))
    assert defaults == {
        name.strip("`"): value.strip("`") for name, value in shown.items() if "`" in value
    }


def test_answer_fields_are_the_protocols() -> None:
    section = DOCS["http-api.md"].section("Answer")
    documented = re.findall(r"^\| (`.+?`) \|", section, re.MULTILINE)
    names = ", ".join(documented).replace("`", "").split(", ")
    assert set(names) == set(PlanLatentResponse.model_fields)


def test_events_are_the_protocols() -> None:
    rows = DOCS["http-api.md"].column("Event", 2)
    step, done, _ = rows
    assert set(re.findall(r"`(\w+)`", step)) == set(StreamStep.model_fields)
    of_answer = set(PlanLatentResponse.model_fields) | {"shape"}
    assert set(StreamDone.model_fields) <= of_answer
    assert "`shape`" in done


def test_error_codes_are_the_protocols() -> None:
    codes = [code.strip("`") for code in DOCS["http-api.md"].column("Status", 1)]
    assert sorted(codes) == sorted(get_args(ErrorCode))


@pytest.mark.parametrize("block", with_blocks("json"))
def test_shown_answers_have_the_protocols_fields(block: str) -> None:
    answer = json.loads(block)
    if "plan" in answer:
        assert list(answer) == list(PlanLatentResponse.model_fields)
        PlanLatentResponse.model_validate(answer)
    else:
        ErrorBody.model_validate(answer)


@pytest.mark.parametrize("block", with_blocks("mermaid"))
def test_pictures_are_well_formed(block: str) -> None:
    first, *lines = [line.strip() for line in block.splitlines() if line.strip()]
    assert re.fullmatch(r"flowchart (LR|TB)|sequenceDiagram|stateDiagram-v2", first)
    without_text = re.sub(r'"[^"\n]*"', '""', "\n".join(lines))
    assert without_text.count('"') % 2 == 0
    for opening, closing in ("[]", "()", "{}"):
        assert without_text.count(opening) == without_text.count(closing)
    if first.startswith("flowchart"):
        assert len(re.findall(r"^subgraph\b", without_text, re.MULTILINE)) == lines.count("end")
        # A bare `end` as a node's name breaks the parser.
        assert not re.search(r"(-->|---)\s*end\b", without_text)
    elif first == "sequenceDiagram":
        blocks = re.findall(r"^(?:loop|alt|opt|par|rect)\b", without_text, re.MULTILINE)
        assert len(blocks) == lines.count("end")


def test_the_supported_versions_are_the_declared_ones() -> None:
    declared = (ROOT / "pyproject.toml").read_text()
    oldest, below = re.findall(r'"transformers>=5\.(\d+),<5\.(\d+)"', declared)[0]
    (torch,) = re.findall(r'"torch>=([\d.]+)"', declared)
    stated = f"transformers 5.{oldest} to 5.{int(below) - 1} and torch {torch} and newer"
    assert stated in DOCS["deployment.md"].text
