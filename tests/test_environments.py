"""Every command under environments that people have: it works, or names the variable in a line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

import latentwire.plan_command
import latentwire_batch.__main__
import latentwire_service.__main__
from latentwire.plan_command import PlanSettings
from latentwire_batch.config import CollectSettings
from latentwire_service.settings import Settings
from support.batch.collecting import write_tasks
from support.batch.stub_replica import StubReplica

# Runs each command line of the first argument in one process: starting Python takes most of the
# time. Prints the exit statuses.
RUN_ALL = """
import json, sys, traceback
from latentwire.cli import app
from latentwire.terminal import replace_unencodable
replace_unencodable()
statuses = {}
for name, args in json.loads(sys.argv[1]).items():
    try:
        app(args, prog_name="latentwire")
    except SystemExit as ended:
        statuses[name] = ended.code
    except BaseException:
        traceback.print_exc()
        statuses[name] = "traceback"
sys.stderr.write(json.dumps(statuses) + "\\n")
"""
NOWHERE = "/dev/null/nowhere"
UNUSED_PROXY = "http://127.0.0.1:9"

# Starting a process with all commands takes seconds, so variables that do not meet share one.
ENVIRONMENTS: dict[str, dict[str, str | None]] = {
    "none of the usual variables": dict.fromkeys(("HOME", "LANG", "LC_ALL", "TMPDIR", "USER")),
    "a proxy and exceptions": {"HTTP_PROXY": UNUSED_PROXY, "NO_PROXY": "example.com"},
    "a proxy without a scheme": {"http_proxy": "127.0.0.1:9", "REQUEST_METHOD": "GET"},
    "SOCKS": {"ALL_PROXY": "socks5://127.0.0.1:9", "HTTPS_PROXY": UNUSED_PROXY},
    "SOCKS 4": {"all_proxy": "socks4://127.0.0.1:9"},
    "proxies that are no URL": {
        **{"HTTP_PROXY": "http://[", "ALL_PROXY": "nonsense://"},
        "NO_PROXY": "[::1, 10/8,*.x, ,http://",
    },
    "missing certificates": dict.fromkeys(
        ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE", "REQUESTS_CA_BUNDLE"), NOWHERE
    ),
    "a home and a PATH that do not exist": {
        **dict.fromkeys(("HOME", "XDG_CACHE_HOME", "HF_HOME", "TMPDIR"), NOWHERE),
        "PATH": "",
    },
    "a home that cannot be written": {"HOME": "/proc", "HF_HOME": "/proc"},
    "ASCII and a dumb terminal": {
        **{"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"},
        **{"TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "x", "TZ": "Nowhere/Nothing"},
    },
    "an unknown locale and tracing": {
        **{"LC_ALL": "xx_XX.ISO-8859-1", "LANG": "nonsense"},
        "OTEL_EXPORTER_OTLP_ENDPOINT": "nonsense",
    },
}


@pytest.fixture
def stub() -> Iterator[StubReplica]:
    with StubReplica() as replica:
        yield replica


def run_all(
    commands: dict[str, list[str]], environ: dict[str, str | None]
) -> tuple[dict[str, object], str]:
    merged = {**os.environ, "LATENTWIRE_API_KEY": None, **environ}
    child = {name: value for name, value in merged.items() if value is not None}
    ended = subprocess.run(
        [sys.executable, "-c", RUN_ALL, json.dumps(commands)],
        env=child,
        capture_output=True,
        check=False,
    )
    shown = (ended.stdout + ended.stderr).decode(errors="replace")
    return json.loads(ended.stderr.decode(errors="replace").splitlines()[-1]), shown


@pytest.mark.slow
@pytest.mark.parametrize("environ", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_each_command_works_with_a_local_service(
    environ: dict[str, str | None], stub: StubReplica, tmp_path: Path
) -> None:
    tasks, output = write_tasks(tmp_path / "tasks.jsonl", 3), str(tmp_path / "out")
    short = ["--max-new-tokens", "4", "--seed", "1"]
    collect = ["collect", "--dataset", str(tasks), "--output-dir", output, *short]
    statuses, shown = run_all(
        {
            "serve": ["serve", "--help"],
            "plan": ["plan", "Open a window", "--url", stub.base_url, *short],
            "collect": [*collect, "--replica", stub.base_url],
            "inspect": ["inspect", output, "--html", str(tmp_path / "report.html")],
        },
        environ,
    )
    assert statuses == dict.fromkeys(("serve", "plan", "collect", "inspect"), 0), shown
    assert "Traceback" not in shown


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({"HTTP_PROXY": "http://["}, "http://service.example"),
        ({"all_proxy": "nonsense://"}, "https://service.example"),
        ({"SSL_CERT_FILE": NOWHERE}, "https://service.example"),
        ({"SSLKEYLOGFILE": NOWHERE}, "https://service.example"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value,
)
def test_a_variable_that_cannot_be_used_is_named_in_one_line(
    environ: dict[str, str | None], url: str, tmp_path: Path
) -> None:
    (name,) = environ
    tasks = write_tasks(tmp_path / "tasks.jsonl", 1)
    collect = ["collect", "--dataset", str(tasks), "--output-dir", str(tmp_path / "out")]
    commands = {
        "plan": ["plan", "Open a window", "--url", url],
        "collect": [*collect, "--replica", url],
    }
    statuses, shown = run_all(commands, environ)
    assert statuses == {"plan": 2, "collect": 2}, shown
    assert len(shown.splitlines()) == 3
    assert all(f": {name}: " in line for line in shown.splitlines()[:2])
    assert not (tmp_path / "out").exists()


COMMANDS: dict[str, tuple[Callable[[list[str]], int], type[BaseSettings], list[str]]] = {
    "serve": (latentwire_service.__main__.main, Settings, []),
    "plan": (latentwire.plan_command.main, PlanSettings, ["Open a window"]),
    "collect": (
        latentwire_batch.__main__.main,
        CollectSettings,
        ["--dataset=x.jsonl", "--output-dir=y"],
    ),
}


def variables_that_are_no_text() -> Iterator[tuple[str, str]]:
    for command, (_, settings, _) in COMMANDS.items():
        for name, field in settings.model_fields.items():
            # A path is any text, and `serve` looks at what it names after it has opened its log.
            is_text = re.search(r"\b(int|float|bool|tuple)\b", str(field.annotation)) is None
            if not is_text and name not in {"bridge", "compressor", "dataset"}:
                yield command, name


@pytest.mark.parametrize(("command", "name"), [*variables_that_are_no_text()])
def test_a_wrong_value_is_blamed_on_the_variable_or_the_flag_that_gave_it(
    command: str,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    main, settings, args = COMMANDS[command]
    write_tasks(tmp_path / "x.jsonl", 1)
    monkeypatch.chdir(tmp_path)
    variable = f"{settings.model_config['env_prefix']}{name.upper()}"
    # Keys are split at commas, and a host or an origin is any text.
    junk = {"api_key": "a b", "allowed_host": "a/b", "cors_origin": "a/b"}.get(name, "junk")
    monkeypatch.setenv(variable, junk)
    assert main(args) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"latentwire {command}: {variable}: ")
    monkeypatch.setenv(variable.lower(), junk)
    monkeypatch.delenv(variable)
    assert main(args) == 2
    assert f": {variable.lower()}: " in capsys.readouterr().err


def test_the_flag_is_blamed_when_it_overrides_the_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LATENTWIRE_COLLECT_K", "1")
    monkeypatch.setenv("LATENTWIRE_COLLECT_SEED", "x")
    main, _, args = COMMANDS["collect"]
    assert main([*args, "--k=junk"]) == 2
    assert capsys.readouterr().err == (
        "latentwire collect: --k: must be a whole number; "
        "LATENTWIRE_COLLECT_SEED: must be a whole number\n"
    )
