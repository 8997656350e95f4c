"""`latentwire serve` in environments that break its libraries: a line, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from support.batch.collecting import write_tasks
from support.tiny_models import llama_config, save_model

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
    {"LATENTWIRE_CACHE_DIR": "~nobody-here/cache"},
]
# In each, the service gets as far as the model, which does not exist. That takes seconds, so
# variables that do not meet share an environment.
ENDURED: list[dict[str, str | None]] = [
    {
        **{"HOME": None, "XDG_CACHE_HOME": None, "PATH": "/nowhere", "LANG": "xx_XX"},
        **{"LC_ALL": "xx_XX", "PYTHONWARNINGS": "nonsense", "MALLOC_ARENA_MAX": "x"},
        **{"WEB_CONCURRENCY": "many", "PROMETHEUS_MULTIPROC_DIR": "/nowhere"},
    },
    {
        **{"HOME": "/nowhere", "HF_HOME": "/proc/none", "TMPDIR": "/nowhere", **ENDPOINT},
        **{"OTEL_EXPORTER_OTLP_TIMEOUT": "soon", "OTEL_BSP_MAX_QUEUE_SIZE": "many"},
    },
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


def test_a_home_that_is_none_is_named() -> None:
    ended = serve({"HOME": "~nobody-here"})
    assert ended.returncode == 2
    assert ended.stderr == (
        "latentwire serve: --cache-dir: ~ is no home directory here; set HOME, or give a path "
        "without ~\n"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(n, "nonsense") for n in ("TQDM_MININTERVAL", "TORCH_LOGS", "HF_HUB_DOWNLOAD_TIMEOUT")],
        ("TORCHINDUCTOR_CACHE_DIR", "/dev/null/nowhere"),
    ],
)
def test_a_variable_that_a_library_cannot_read_is_named(name: str, value: str) -> None:
    ended = serve({name: value})
    assert ended.returncode == 2, ended.stderr
    reason = f"cannot serve the model: a library cannot use the variable {name}\n"
    assert reason in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("command", [["--help"], ["--version"]])
def test_a_full_disk_behind_the_output_is_one_line(command: list[str]) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "latentwire", *command],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
        )
    assert ended.returncode == 1
    reason = "the output cannot be written: No space left on device"
    assert ended.stderr == f"latentwire: {reason}\n"


JUNK = (
    *("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_SAMPLER", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT"),
    *("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "OTEL_PYTHON_CONTEXT", "OTEL_PYTHON_TRACER_PROVIDER"),
    *("OTEL_PYTHON_METER_PROVIDER", "OTEL_PYTHON_ID_GENERATOR", "OTEL_RESOURCE_ATTRIBUTES"),
    *("OMP_SCHEDULE", "KMP_AFFINITY", "TOKENIZERS_PARALLELISM", "CUDA_VISIBLE_DEVICES"),
    *("HIP_VISIBLE_DEVICES", "PYTORCH_ALLOC_CONF", "TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY"),
    *("DATASETS_VERBOSITY", "WEB_CONCURRENCY", "FORWARDED_ALLOW_IPS"),
    *("GOMP_CPU_AFFINITY", "OMP_NUM_THREADS", "OMP_PLACES", "MKL_NUM_THREADS"),
    *("OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMEXPR_MAX_THREADS"),
    *("ARROW_DEFAULT_MEMORY_POOL", "ARROW_IO_THREADS", "RAYON_NUM_THREADS"),
    *("POLARS_MAX_THREADS", "MALLOC_ARENA_MAX", "NOTIFY_SOCKET"),
    *("LISTEN_FDS", "PYTHONWARNINGS", "TZ", "COLUMNS"),
)
NOWHERE = (
    *("HF_HOME", "XDG_CACHE_HOME", "TORCH_HOME", "SSL_CERT_FILE"),
    *("SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "PROMETHEUS_MULTIPROC_DIR", "TMPDIR", "NETRC"),
)
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
WORKING: dict[str, dict[str, str | None]] = {
    "all of them are junk": {
        **dict.fromkeys(JUNK, "junk"),
        **dict.fromkeys(NOWHERE, "/dev/null/nowhere"),
        **dict.fromkeys(PROXIES, "http://["),
        "NO_PROXY": "[::1, ,http://",
    },
    "none of them is set": {
        **dict.fromkeys(("HOME", "PATH", "USER", "LANG", "LC_ALL", "TMPDIR")),
        **dict.fromkeys(PROXIES, "socks5://127.0.0.1:9"),
    },
}


# Both commands give their replicas the same environment, so each has one of the two.
@pytest.mark.parametrize(
    ("is_classic", "name"), [*zip([False, True], WORKING, strict=True)], ids=["collect", "classic"]
)
def test_own_replicas_serve_a_collection_in_it(is_classic: bool, name: str, tmp_path: Path) -> None:
    environment = WORKING[name]
    model = save_model(tmp_path / "tiny", llama_config())
    tasks = write_tasks(tmp_path / "tasks.jsonl", 2)
    if is_classic:
        command = ["latentwire_batch.collect_hidden_states", "--model_name_or_path", str(model)]
        command += ["--dataset_path", str(tasks), "--output_dir", str(tmp_path / "out")]
        command += ["--max_new_tokens", "4"]
    else:
        command = ["latentwire", "collect", "--model", str(model), "--device", "cpu"]
        command += ["--dataset", str(tasks), "--output-dir", str(tmp_path / "out")]
        command += ["--max-new-tokens", "4"]
    given = {name: value for name, value in (os.environ | environment).items() if value}
    ended = subprocess.run(
        [sys.executable, "-m", *command], env=given, capture_output=True, timeout=240
    )
    shown = ended.stderr.decode(errors="replace")
    assert ended.returncode == 0, shown
    assert "Traceback" not in shown
    assert pq.read_metadata(tmp_path / "out" / "data.parquet").num_rows == 2
