"""The service as a deployment of Ray Serve."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from latentwire import Client, LatentwireError, PlanLatent, PlanOptions, PromptTooLongError
from latentwire_service.ray.in_process import InProcessService, open_engine
from support.ray.processes import Cluster, running_cluster, wait_until
from support.tiny_models import llama_config, save_model

SHORT: PlanOptions = {"max_new_tokens": 8, "seed": 3, "chat_template": "none"}
# 507 tokens.
LONG: PlanOptions = {"max_new_tokens": 900, "do_sample": False, "chat_template": "none"}
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


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose plans may be long, so that replicas are removed while requests run."""
    config = llama_config(max_position_embeddings=1024)
    return save_model(tmp_path_factory.mktemp("model") / "tiny", config)


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
    model: Path,
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = flags_of(model)
    with (
        running_cluster("6") as cluster,
        Client(f"http://127.0.0.1:{port}", uses_proxy=False, max_retries=0) as client,
    ):
        cluster.deploy(config_of(port, flags))
        wait_until(partial(is_ready, client))
        info = client.info()
        answer = client.plan_latent("Sort the mail", **SHORT)
        stream = client.stream_plan_latent("Sort the mail", **SHORT)
        rows = [step.hidden_row for step in stream if step.hidden_row is not None]
        with pytest.raises(PromptTooLongError):
            client.plan_latent("Sort the mail", max_new_tokens=10**6, chat_template="none")

        # More requests than one replica is to have, then as few as one may have.
        load = Load(client, 6)
        wait_until(lambda: len(cluster.actors(REPLICA)) == 2 and not is_starting(cluster))
        answers = load.end()
        load = Load(client, 2)
        wait_until(lambda: len(cluster.actors(REPLICA)) == 1)
        # Another configuration replaces the replica.
        before = cluster.actors(REPLICA)
        cluster.deploy(config_of(port, flags_of(model, "--max-slots", "3")))
        wait_until(lambda: bool(set(cluster.actors(REPLICA)) - set(before)))
        wait_until(lambda: not set(cluster.actors(REPLICA)) & set(before))
        wait_until(lambda: client.info().limits.max_slots == 3)
        answers += load.end()
    engine = open_engine(flags)
    try:
        assert engine.info == info.model_copy(update={"uptime_s": None})
        expected = engine_answer(engine, SHORT)
        long = engine_answer(engine, LONG)
    finally:
        engine.close()
    assert answer.plan == expected.plan
    assert answer.token_ids == expected.token_ids
    np.testing.assert_allclose(answer.hidden_state, expected.hidden_state, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.stack(rows), expected.hidden_state, rtol=1e-4, atol=1e-5)
    assert len(long.hidden_state) > 500
    for each in answers:
        assert each.token_ids == long.token_ids
        np.testing.assert_allclose(each.hidden_state, long.hidden_state, rtol=1e-3, atol=1e-4)


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


def engine_answer(engine: InProcessService, options: Mapping[str, object]) -> PlanLatent:
    return asyncio.run(
        engine.plan_latent("Sort the mail", k=None, task_id="t", timeout_s=60, options=options)
    )
