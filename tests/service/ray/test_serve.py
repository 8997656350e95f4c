"""The service as a deployment of Ray Serve."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from latentwire import Client, PromptTooLongError
from latentwire_service.ray.in_process import open_engine
from support.ray.processes import running_cluster
from support.tiny_models import save_model

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


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_serve_answers_with_the_rows_of_the_engine(tmp_path: Path) -> None:
    model = save_model(tmp_path / "tiny")
    flags = ["--model", str(model), "--device", "cpu", "--threads", "1"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (
        running_cluster("4", str(port), *flags),
        Client(f"http://127.0.0.1:{port}", uses_proxy=False) as client,
    ):
        assert client.ready()
        info = client.info()
        answer = client.plan_latent("Sort the mail", max_new_tokens=8, seed=3, chat_template="none")
        stream = client.stream_plan_latent(
            "Sort the mail", max_new_tokens=8, seed=3, chat_template="none"
        )
        rows = [step.hidden_row for step in stream if step.hidden_row is not None]
        with pytest.raises(PromptTooLongError):
            client.plan_latent("Sort the mail", max_new_tokens=10**6, chat_template="none")
    engine = open_engine(flags)
    try:
        assert engine.info == info
        expected = asyncio.run(
            engine.plan_latent(
                "Sort the mail",
                k=None,
                task_id="t",
                timeout_s=60,
                options={"max_new_tokens": 8, "seed": 3, "chat_template": "none"},
            )
        )
    finally:
        engine.close()
    assert answer.plan == expected.plan
    assert answer.token_ids == expected.token_ids
    np.testing.assert_allclose(answer.hidden_state, expected.hidden_state, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.stack(rows), expected.hidden_state, rtol=1e-4, atol=1e-5)
