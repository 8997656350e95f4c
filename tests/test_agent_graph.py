"""`examples/langgraph_agents.py`: two agents over OpenAI's API, one of which reads a latent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from latentwire_service.settings import Settings
from support.gate import TIMEOUT_S
from support.live_server import LiveServer
from support.tiny_models import save_chat_model
from support.tiny_shape import HIDDEN_SIZE

EXAMPLE = Path(__file__).parents[1] / "examples" / "langgraph_agents.py"


def test_the_actor_reads_the_planners_latent(tmp_path: Path) -> None:
    pytest.importorskip("langgraph")
    pytest.importorskip("openai")
    model = save_chat_model(tmp_path / "tiny")
    live = LiveServer(Settings(model=str(model), max_slots=2, api_key="k"))
    try:
        live.wait_ready()
        given = ["--url", live.url, "--api-key", "k", "--task", "Wash", "--max-tokens", "5"]
        done = subprocess.run(
            [sys.executable, str(EXAMPLE), *given],
            capture_output=True,
            text=True,
            check=True,
            timeout=TIMEOUT_S,
        )
        live.wait_metric(2, "latentwire_requests_total", path="/v1/chat/completions", status="200")
    finally:
        live.close()
    assert f"rows of {HIDDEN_SIZE} values\nactor: " in done.stdout
    assert done.stdout.startswith("planner: ")
