"""`latentwire serve` as a process: start, end, exit status, and both clients."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from latentwire import (
    AsyncClient,
    Client,
    InvalidRequestError,
    NotReadyError,
    PlanLatent,
    PromptTooLongError,
    UnauthorizedError,
)
from support.child import TIMEOUT_S, Child
from support.tiny_shape import HIDDEN_SIZE

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Client]:
    child = Child("--model", str(folder), "--port", "0", "--threads", "1", "--max-slots", "2")
    with Client(child.url, max_retries=0) as client:
        client.wait_ready(TIMEOUT_S)
        yield client
    # As a terminal that closes does, sometimes twice.
    child.signal(signal.SIGHUP)
    child.wait_line("draining after SIGHUP")
    child.signal(signal.SIGHUP)
    child.wait_line("stopped with status 0")
    try:
        assert child.wait() == 0, child.output
    finally:
        child.close()


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a niceness on Linux")
def test_the_engine_thread_has_a_lower_priority_than_the_event_loop(
    serve: Callable[..., Child], folder: Path
) -> None:
    child = serve("--model", str(folder), "--port", "0", "--threads", "2")
    with Client(child.url) as client:
        client.wait_ready(TIMEOUT_S)
    own = os.getpriority(os.PRIO_PROCESS, child.process.pid)
    threads = [int(entry.name) for entry in Path(f"/proc/{child.process.pid}/task").iterdir()]
    assert any(os.getpriority(os.PRIO_PROCESS, thread) > own for thread in threads)


def assert_same(first: PlanLatent, second: PlanLatent) -> None:
    assert (first.plan, first.token_ids, first.seed) == (second.plan, second.token_ids, second.seed)
    np.testing.assert_allclose(first.hidden_state, second.hidden_state, atol=1e-4)


def test_both_clients_get_the_same_plan_for_a_seed(service: Client) -> None:
    def plan(**more: Any) -> PlanLatent:
        return service.plan_latent(
            "Wash the mug.", k=5, task_id="t", max_new_tokens=9, temperature=1.4, top_p=0.95, **more
        )

    async def plan_async(seed: int) -> PlanLatent:
        async with AsyncClient(base_url) as client:
            return await client.plan_latent(
                "Wash the mug.",
                k=5,
                task_id="t",
                max_new_tokens=9,
                temperature=1.4,
                top_p=0.95,
                seed=seed,
            )

    base_url = str(service._http.base_url)
    drawn = plan()
    assert drawn.hidden_state.shape == (5, HIDDEN_SIZE)
    assert drawn.hidden_state.dtype == np.float32
    assert len(drawn.token_ids) == 9
    assert (drawn.task_id, drawn.finish_reason, drawn.model) == ("t", "length", "tiny")
    assert drawn.to_torch().shape == (5, HIDDEN_SIZE)
    assert_same(plan(seed=drawn.seed), drawn)
    assert_same(asyncio.run(plan_async(drawn.seed)), drawn)
    assert plan(seed=drawn.seed + 1).token_ids != drawn.token_ids


def test_clients_share_the_slots(service: Client) -> None:
    alone = [
        service.plan_latent(f"Task {n}", max_new_tokens=8 + n, seed=n, top_p=1.0) for n in range(6)
    ]
    with ThreadPoolExecutor(6) as pool:
        together = list(
            pool.map(
                lambda n: service.plan_latent(f"Task {n}", max_new_tokens=8 + n, seed=n, top_p=1.0),
                range(6),
            )
        )
    for one, other in zip(alone, together, strict=True):
        assert_same(one, other)


def test_info_and_errors_reach_the_client(service: Client) -> None:
    info = service.info()
    assert (info.model, info.hidden_size, info.limits.max_slots) == ("tiny", HIDDEN_SIZE, 2)
    assert service.health()
    assert service.ready()
    with pytest.raises(PromptTooLongError, match="must not exceed 4096") as too_long:
        service.plan_latent("x" * 5000)
    assert too_long.value.body.max_model_len == 4096
    assert (too_long.value.body.prompt_tokens or 0) > 5000
    with pytest.raises(InvalidRequestError, match="the prompt has no tokens") as invalid:
        service.plan_latent("x", prompt_template="")
    assert invalid.value.body.field == "prompt_template"


HELD_MAIN = """
import sys
from latentwire_service import __main__, local_backend

load = local_backend.load_model

def load_when_told(*args, **kwargs):
    sys.stdin.readline()
    return load(*args, **kwargs)

local_backend.load_model = load_when_told
sys.exit(__main__.main(sys.argv[1:]))
"""


def test_the_service_is_alive_at_once_and_ready_later(
    folder: Path, serve: Callable[..., Child]
) -> None:
    child = serve("--model", str(folder), "--port", "0", command=("-c", HELD_MAIN))
    with Client(child.url) as client:
        assert client.health()
        assert not client.ready()
        child.tell("load")
        client.wait_ready(TIMEOUT_S)
        assert len(client.plan_latent("x", max_new_tokens=2).hidden_state) == 2
    child.signal()
    assert child.wait() == 0, child.output


def test_a_signal_during_loading_ends_the_service_with_status_0(
    folder: Path, serve: Callable[..., Child]
) -> None:
    child = serve("--model", str(folder), "--port", "0", command=("-c", HELD_MAIN))
    with Client(child.url) as client:
        assert client.health()
    child.signal()
    assert child.wait() == 0, child.output


BREAKING_MAIN = """
import sys
from latentwire_service import __main__
from latentwire_service.engine.engine import Engine

def break_down(*_args, **_kwargs):
    raise RuntimeError("CUDA error: device lost")

Engine._decode = break_down
sys.exit(__main__.main(sys.argv[1:]))
"""


def test_a_lost_device_is_503_to_all_and_exit_status_1(
    folder: Path, serve: Callable[..., Child]
) -> None:
    child = serve("--model", str(folder), "--port", "0", command=("-c", BREAKING_MAIN))
    url = child.url
    with Client(url, max_retries=0) as client:
        client.wait_ready(TIMEOUT_S)
        with pytest.raises(NotReadyError, match="the engine failed"):
            client.plan_latent("x", max_new_tokens=3)
    assert child.wait() == 1, child.output
    assert "device lost" in child.output


def test_a_lost_device_shows_on_ready_until_the_service_ends(
    folder: Path, serve: Callable[..., Child]
) -> None:
    # Longer than any test waits: a signal ends it.
    pause = "from latentwire_service import server\nserver._FAILED_S = 3600.0\n"
    child = serve("--model", str(folder), "--port", "0", command=("-c", pause + BREAKING_MAIN))
    url = child.url
    with Client(url, max_retries=0) as client:
        client.wait_ready(TIMEOUT_S)
        for reason in ("the engine failed", "the service is failed"):
            with pytest.raises(NotReadyError, match=reason):
                client.plan_latent("x", max_new_tokens=3)
    answer = httpx.get(f"{url}/ready", timeout=TIMEOUT_S)
    assert (answer.status_code, answer.json()["detail"]) == (503, "the service is failed")
    child.signal()
    assert child.wait() == 1, child.output


def test_a_bad_model_is_exit_status_2_and_one_error_line(
    tmp_path: Path, serve: Callable[..., Child]
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    child = serve("--model", str(tmp_path / "broken"), "--port", "0")
    assert child.wait() == 2
    assert child.output.count("ERROR") == 1
    assert "cannot serve the model: broken cannot be loaded: " in child.output
    assert str(tmp_path) not in child.output
    assert "Traceback" not in child.output


def test_bad_flags_are_exit_status_2(serve: Callable[..., Child]) -> None:
    unknown, wrong = serve("--modle", "x"), serve("--port", "eighty")
    from_outside = serve(LATENTWIRE_MAX_SLOTS="0")
    named = ((unknown, "--modle"), (wrong, "--port"), (from_outside, "LATENTWIRE_MAX_SLOTS"))
    for child, name in named:
        assert child.wait() == 2
        assert name in child.lines[-1]
        assert "Traceback" not in child.output


def test_settings_come_from_the_environment_and_flags_win(
    folder: Path, serve: Callable[..., Child]
) -> None:
    child = serve(
        *("--max-slots", "3"),
        LATENTWIRE_MODEL=str(folder),
        LATENTWIRE_PORT="0",
        LATENTWIRE_MAX_SLOTS="5",
        LATENTWIRE_MAX_MODEL_LEN="77",
        LATENTWIRE_MAX_QUEUE="9",
        LATENTWIRE_LOG_LEVEL="info",
        LATENTWIRE_API_KEY="one-key,another",
    )
    with Client(child.url) as stranger, pytest.raises(UnauthorizedError):
        stranger.info()
    with Client(child.url, api_key="another") as client:
        client.wait_ready(TIMEOUT_S)
        limits = client.info().limits
    assert (limits.max_slots, limits.max_model_len, limits.max_queue) == (3, 77, 9)


def test_a_port_in_use_is_reported_with_exit_status_1(
    folder: Path, serve: Callable[..., Child]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        child = serve("--model", str(folder), "--port", str(port))
        assert child.wait() == 1
    assert f"cannot listen on port {port} of --host: Address already in use" in child.output
    assert "choose another --port" in child.output
    assert "Traceback" not in child.output
