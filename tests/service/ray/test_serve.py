"""The service as a deployment of Ray Serve."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import pytest
import yaml

from latentwire import Client, LatentwireError, PlanLatent, PlanOptions, PromptTooLongError
from latentwire.protocol import InfoResponse
from latentwire_service.engine_factory import backend_factory
from latentwire_service.ray.in_process import InProcessService, open_engine
from support.network.ports import free_port
from support.ray import stand_in_backend
from support.ray.processes import Cluster, running_cluster, wait_until
from support.ray.stand_in_backend import StandIn
from support.tiny_models import save_model

SHORT: PlanOptions = {"max_new_tokens": 8, "seed": 3, "chat_template": "none"}
LONG: PlanOptions = {"max_new_tokens": 100, "do_sample": False, "chat_template": "none"}
REPLICA = "ServeReplica:latentwire"
ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "deploy" / "ray" / "serve.yaml"
# In a process of its own: Ray changes warnings, signals and loops of the process that imports it.
_PARSE = """
import json, sys, yaml
from ray.serve.schema import ServeDeploySchema
from latentwire_service.ray.serve import LatentService, ServeArgs
from latentwire_service.settings import Settings
from latentwire_service.ray.in_process import readable_settings

with open(sys.argv[1], encoding="utf-8") as file:
    schema = ServeDeploySchema.model_validate(yaml.safe_load(file))
(application,) = schema.applications
(deployment,) = application.deployments
settings = readable_settings(ServeArgs(**application.args).flags)
print(json.dumps({
    "app": application.import_path,
    "is_known": deployment.name == LatentService.__name__,
    "gpus": deployment.ray_actor_options.num_gpus,
    "target": deployment.autoscaling_config["target_ongoing_requests"],
    "slots": settings.max_slots,
    "most": deployment.max_ongoing_requests,
    "drains_s": deployment.graceful_shutdown_timeout_s,
    "drain_timeout_s": settings.drain_timeout,
}))
"""


@pytest.mark.slow
def test_the_configuration_is_serves_own_and_names_the_deployment() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PARSE, str(CONFIG)],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["app"] == "latentwire_service.ray.serve:app"
    assert facts["is_known"]
    assert facts["gpus"] == 1
    # A replica is added before all slots of the others are taken.
    assert facts["target"] < facts["slots"] < facts["most"]
    assert facts["drains_s"] >= facts["drain_timeout_s"]


def flags_of(model: Path, *more: str) -> list[str]:
    return ["--model", str(model), "--device", "cpu", "--threads", "1", *more]


def config_of(port: int, flags: list[str]) -> dict[str, Any]:
    """Our configuration, for this machine: without GPUs, for few requests and without waiting."""
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    (application,) = config["applications"]
    application["args"]["flags"] = flags
    (deployment,) = application["deployments"]
    deployment["ray_actor_options"] = {"num_cpus": 1, "num_gpus": 0}
    deployment["autoscaling_config"] |= {
        "max_replicas": 2,
        "target_ongoing_requests": 2,
        "upscale_delay_s": 0.2,
        "downscale_delay_s": 1,
        "metrics_interval_s": 0.2,
        "look_back_period_s": 1,
    }
    return config


class Load:
    """Callers that each have one request in flight, all the time."""

    def __init__(self, client: Client, num_callers: int) -> None:
        self._client = client
        self._is_ending = threading.Event()
        self._pool = ThreadPoolExecutor(num_callers)
        self._callers = [self._pool.submit(self._call) for _ in range(num_callers)]

    def _call(self) -> list[PlanLatent]:
        answers = []
        while not self._is_ending.is_set():
            answers.append(self._client.plan_latent("Sort the mail", **LONG))
        return answers

    def end(self) -> list[PlanLatent]:
        """Return all answers, once the last requests have ended."""
        self._is_ending.set()
        self._pool.shutdown()
        return [answer for caller in self._callers for answer in caller.result()]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_serve_answers_as_the_engine_and_loses_no_request_when_replicas_come_and_go(
    tmp_path: Path,
) -> None:
    """The first model is a stand-in whose rows take time; a real one replaces it."""
    port = free_port()
    stand_in = StandIn(tmp_path / stand_in_backend.NAME)
    stand_in.slow_down()
    flags = flags_of(stand_in.path)
    other_flags = flags_of(save_model(tmp_path / "tiny"), "--max-slots", "3")
    with (
        running_cluster("6") as cluster,
        Client(f"http://127.0.0.1:{port}", uses_proxy=False, max_retries=0) as client,
    ):
        cluster.deploy(config_of(port, flags))
        wait_until(partial(is_ready, client))
        answers = [client.plan_latent("Sort the mail", **SHORT)]
        info = client.info()

        # More requests than one replica is to have, then as few as one may have.
        load = Load(client, 6)
        wait_until(lambda: len(cluster.actors(REPLICA)) == 2 and not is_starting(cluster))
        answers += load.end()
        load = Load(client, 2)
        wait_until(lambda: len(cluster.actors(REPLICA)) == 1)
        # Another configuration replaces the replica.
        before = cluster.actors(REPLICA)
        cluster.deploy(config_of(port, other_flags))
        wait_until(lambda: bool(set(cluster.actors(REPLICA)) - set(before)))
        wait_until(lambda: not set(cluster.actors(REPLICA)) & set(before))
        wait_until(lambda: client.info().limits.max_slots == 3)
        answers += load.end()

        other_info = client.info()
        answers.append(client.plan_latent("Sort the mail", **SHORT))
        stream = client.stream_plan_latent("Sort the mail", **SHORT)
        rows = [step.hidden_row for step in stream if step.hidden_row is not None]
        with pytest.raises(PromptTooLongError):
            client.plan_latent("Sort the mail", max_new_tokens=10**6, chat_template="none")
    stand_in.speed_up()
    expected = expected_answers(info, flags) | expected_answers(other_info, other_flags)
    assert {each.model for each in answers} == {stand_in_backend.NAME, "tiny"}
    for each in answers:
        wanted = expected[each.model, each.usage.completion_tokens]
        assert (each.plan, each.token_ids) == (wanted.plan, wanted.token_ids)
        # Rows of a real model that run together with others may differ in the last bits.
        is_short = len(each.token_ids) == SHORT["max_new_tokens"]
        tolerance = 0 if each.model == stand_in_backend.NAME else 1e-4 if is_short else 1e-3
        assert_equal_rows(each.hidden_state, wanted.hidden_state, tolerance)
    assert_equal_rows(np.stack(rows), answers[-1].hidden_state, 1e-4)


def expected_answers(info: InfoResponse, flags: list[str]) -> dict[tuple[str, int], PlanLatent]:
    """Ask the engine without Serve; by model and number of tokens."""
    with patch(
        "latentwire_service.ray.in_process.backend_factory",
        stand_in_backend.backend_factory(backend_factory),
    ):
        engine = open_engine(flags)
    try:
        assert engine.info == info.model_copy(update={"uptime_s": None})
        answers = [asyncio.run(engine_answer(engine, options)) for options in (SHORT, LONG)]
    finally:
        engine.close()
    return {(each.model, each.usage.completion_tokens): each for each in answers}


async def engine_answer(engine: InProcessService, options: Mapping[str, object]) -> PlanLatent:
    return await engine.plan_latent(
        "Sort the mail", k=None, task_id="t", timeout_s=600, options=options
    )


def assert_equal_rows(
    rows: npt.NDArray[np.float32], wanted: npt.NDArray[np.float32], tolerance: float
) -> None:
    np.testing.assert_allclose(rows, wanted, rtol=tolerance, atol=tolerance / 10)


def is_starting(cluster: Cluster) -> bool:
    """Whether the name of a replica's process says that it is being made."""
    steps = ("__init__", "initialize")
    return any(cluster.actors(f"{REPLICA}:LatentService.{step}") for step in steps)


def is_ready(client: Client) -> bool:
    try:
        return client.ready()
    except LatentwireError:
        # Serve listens before it knows the application.
        return False
