"""`latentwire serve` in environments that break its libraries: a line, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
# Each is refused before the service is imported.
REFUSED = [
    {"LATENTWIRE_PORT": "eighty"},
    {"LATENTWIRE_MAX_SLOTS": "0"},
    {"LATENTWIRE_ALLOWED_HOST": "example.org:8000"},
    {"LATENTWIRE_CORS_ORIGIN": "example.org"},
    {"LATENTWIRE_API_KEY": "a,,b"},
    {"LATENTWIRE_API_KEY_FILE": "/nowhere/keys"},
    {"LATENTWIRE_LOG_LEVEL": "loud"},
    {"LATENTWIRE_STEP_TIMEOUT": "-1"},
    {"OTEL_PROPAGATORS": "pigeon"},
]
# In each, the service gets as far as the model, which does not exist.
ENDURED: list[dict[str, str | None]] = [
    {"HOME": None, "XDG_CACHE_HOME": None},
    {"HOME": "/nowhere", "HF_HOME": "/proc/none", "TMPDIR": "/nowhere"},
    {"PATH": "/nowhere", "LANG": "xx_XX", "LC_ALL": "xx_XX", "PYTHONWARNINGS": "nonsense"},
    {"WEB_CONCURRENCY": "many", "PROMETHEUS_MULTIPROC_DIR": "/nowhere", "MALLOC_ARENA_MAX": "x"},
    {**ENDPOINT, "OTEL_EXPORTER_OTLP_TIMEOUT": "soon", "OTEL_BSP_MAX_QUEUE_SIZE": "many"},
]


def serve(
    environment: dict[str, str | None], umask: int = 0o22
) -> subprocess.CompletedProcess[str]:
    given = {name: value for name, value in (os.environ | environment).items() if value}
    return subprocess.run(
        [sys.executable, "-m", "latentwire_service", "--model", "/nowhere/model", "--port", "0"]
        if "LATENTWIRE_PORT" not in environment
        else [sys.executable, "-m", "latentwire_service"],
        env=given,
        capture_output=True,
        text=True,
        timeout=120,
        umask=umask,
    )


@pytest.mark.parametrize("environment", REFUSED, ids=lambda e: next(iter(e)))
def test_a_variable_that_cannot_be_used_is_one_line(environment: dict[str, str | None]) -> None:
    ended = serve(environment)
    assert ended.returncode == 2, ended.stderr
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"latentwire serve: {next(iter(environment))}: ")


@pytest.mark.parametrize("environment", ENDURED, ids=range(len(ENDURED)))
def test_no_environment_gives_a_traceback(environment: dict[str, str | None]) -> None:
    ended = serve(environment, umask=0o777)
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "cannot serve the model" in ended.stderr.splitlines()[-2]


def test_the_working_directory_may_be_gone(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    command = 'rmdir "$PWD" && exec "$0" -m latentwire_service --model /nowhere/model --port 0'
    ended = subprocess.run(
        ["/bin/sh", "-c", command, sys.executable],
        cwd=gone,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in ended.stderr
