"""The process with vLLM behind it: how it ends, and what becomes of its children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest

from support.engine import vllm_models
from support.engine.vllm_processes import command_of, runs
from support.requests import assert_problem

pytestmark = [pytest.mark.vllm, vllm_models.NEEDS_VLLM, pytest.mark.timeout(2400)]

PATIENCE_S = 1800.0


class Service:
    """`latentwire serve --engine vllm` with a tiny model, in a process of its own.

    Args:
        model: its directory.
        folder: of its log and of its temporary files.
    """

    def __init__(self, model: Path, folder: Path) -> None:
        flags = ["--port", "0", "--max-slots", "2", "--max-model-len", "500", "--log-level", "info"]
        for argument in vllm_models.ENGINE_ARGS[:2]:
            flags += ["--engine-arg", argument]
        flags += ["--engine-arg", "kv_cache_memory_bytes=16777216"]
        self.folder = folder
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "latentwire_service", "--engine", "vllm"]
                + ["--model", str(model), *flags],
                stderr=log,
                env=os.environ | {"TMPDIR": str(folder)},
            )

    def wait_ready(self) -> str:
        give_up_at = time.monotonic() + PATIENCE_S
        while time.monotonic() < give_up_at:
            assert self.process.poll() is None, self.log.read_text()
            urls = [line for line in self.log.read_text().splitlines() if "listening on" in line]
            if urls:
                url = urls[0].split()[-1]
                if httpx.get(f"{url}/ready", timeout=60).status_code == 200:
                    return url
            time.sleep(0.5)
        raise AssertionError(self.log.read_text())

    def children(self) -> list[Any]:
        """All processes that the service has started, and those of theirs."""
        import psutil

        found: list[Any] = psutil.Process(self.process.pid).children(recursive=True)
        return found

    def assert_nothing_is_left(self, children: list[Any]) -> None:
        give_up_at = time.monotonic() + 120
        while left := [each for each in children if runs(each)]:
            assert time.monotonic() < give_up_at, left
            time.sleep(0.1)
        assert not list(self.folder.glob("latentwire-*"))


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Service]]:
    """Two that start at the same time, because a start takes long."""
    model = vllm_models.save("llama", tmp_path_factory.mktemp("models") / "tiny")
    # The path of a socket has 107 characters at most.
    with ExitStack() as folders:
        names = [folders.enter_context(TemporaryDirectory()) for _ in range(2)]
        yield from _run(model, [Path(name) for name in names])


def _run(model: Path, folders: list[Path]) -> Iterator[list[Service]]:
    started = [Service(model, folder) for folder in folders]
    yield started
    for service in started:
        service.process.kill()
        service.process.wait()


def plan(url: str, max_new_tokens: int) -> httpx.Response:
    body = vllm_models.body_of("x", max_new_tokens)
    return httpx.post(f"{url}/plan_latent", json=body, timeout=PATIENCE_S)


def answers_until_it_ends(url: str) -> list[httpx.Response]:
    """What `/ready` answers, until nobody listens any more."""
    answers = []
    while True:
        try:
            answers.append(httpx.get(f"{url}/ready", timeout=60))
        except httpx.TransportError:
            return answers
        time.sleep(0.02)


def test_a_killed_engine_process_fails_what_runs_and_ends_the_service(
    services: list[Service],
) -> None:
    service = services[0]
    url = service.wait_ready()
    children = service.children()
    core = next(child for child in children if "EngineCore" in command_of(child))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(plan, url, 480)
        while "running 1.0" not in httpx.get(f"{url}/metrics", timeout=60).text:
            assert not running.done()
            time.sleep(0.02)
        core.kill()
        *_, last = answers_until_it_ends(url)
        assert assert_problem(last, 503, "not-ready").detail == "the service is failed"
        assert assert_problem(running.result(), 503, "not-ready").engine_failed
    assert service.process.wait(120) == 1
    service.assert_nothing_is_left(children)


def test_children_end_with_a_service_that_is_killed(services: list[Service]) -> None:
    service = services[1]
    url = service.wait_ready()
    assert plan(url, 3).status_code == 200
    children = service.children()
    assert len(children) >= 2
    os.kill(service.process.pid, signal.SIGKILL)
    service.process.wait(60)
    service.assert_nothing_is_left(children)
