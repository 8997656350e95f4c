from __future__ import annotations

import json
import socket

import pytest

from latentwire_batch.replicas.child_environment import PASSED_ON, child_environment
from latentwire_batch.replicas.child_output import ChildOutput
from latentwire_batch.replicas.child_process import ChildProcess
from latentwire_batch.replicas.local_plan import LocalReplicaSpec
from latentwire_service.settings import Settings

# Settings of a service for its callers and its log: an own replica's are the collection's.
KEPT_AWAY = {
    *("MODEL", "REVISION", "TRUST_REMOTE_CODE", "BRIDGE", "LATENT_GENERATOR"),
    *("COMPRESSOR", "ENGINE", "ENGINE_ARG", "QUANTIZATION", "GPU_MEMORY_UTILIZATION"),
    *("TENSOR_PARALLEL_SIZE", "PIPELINE_PARALLEL_SIZE"),
    *("HOST", "PORT", "LISTEN_FD", "API_KEY", "API_KEY_FILE", "ALLOWED_HOST", "CORS_ORIGIN"),
    *("METRICS_PUBLIC", "REQUEST_TIMEOUT", "MAX_NEW_TOKENS_LIMIT", "MAX_QUEUE", "DRAIN_TIMEOUT"),
    *(
        "MAX_BODY_BYTES",
        "MAX_HEADER_BYTES",
        "BODY_TIMEOUT",
        "STEP_TIMEOUT",
        "LOG_LEVEL",
        "LOG_FORMAT",
    ),
}


def record(level: str, message: str, **more: str) -> str:
    return json.dumps({"time": "t", "level": level, "logger": "a.b", "message": message} | more)


def output(*lines: str) -> ChildOutput:
    written = ChildOutput()
    for line in lines:
        written.add(line)
    return written


def test_a_childs_port_cannot_be_taken_before_it_starts() -> None:
    child = ChildProcess(LocalReplicaSpec(0, None, ("module",)))
    port = int(child.url.rpartition(":")[2])
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port))
    child.close()
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))


def test_every_setting_of_the_service_reaches_own_replicas_or_is_kept_away() -> None:
    settings = {name.upper() for name in Settings.model_fields}
    assert {f"LATENTWIRE_{name}" for name in settings - KEPT_AWAY} == PASSED_ON
    assert settings >= KEPT_AWAY


@pytest.mark.parametrize("name", sorted(KEPT_AWAY))
def test_a_setting_of_another_service_does_not_reach_own_replicas(name: str) -> None:
    environ = {f"LATENTWIRE_{name}": "x", f"latentwire_{name.lower()}": "x", "HOME": "/h"}
    assert child_environment(environ, gpu=None) == {"HOME": "/h"}


def test_settings_of_the_computation_reach_own_replicas() -> None:
    environ = {"LATENTWIRE_COMPILE": "true", "LATENTWIRE_COLLECT_K": "3", "RANK": "1"}
    assert child_environment(environ, gpu="5") == {
        "LATENTWIRE_COMPILE": "true",
        "CUDA_VISIBLE_DEVICES": "5",
    }


def test_logged_errors_are_the_reason() -> None:
    written = output(
        "a warning from a library",
        record("error", "no model", exception="  f.py:1 in f\nOSError: gone"),
        *[record("info", "an ERROR in the text only")] * 20,
    )
    assert written.reason == "ERROR a.b: no model\n  f.py:1 in f\nOSError: gone"


def test_without_a_logged_error_the_end_of_the_output_is_the_reason() -> None:
    lines = ["Traceback", *map(str, range(20)), "[1]", '{"level": "error"}', record("info", "x")]
    assert output(*lines).reason.split("\n") == [
        *map(str, range(11, 20)),
        *("[1]", '{"level": "error"}', "INFO a.b: x"),
    ]
