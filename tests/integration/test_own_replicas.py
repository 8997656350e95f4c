"""`latentwire collect` with replicas of its own: real services, as child processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from latentwire_batch.__main__ import main
from support.batch.collecting import write_tasks
from support.tiny_models import llama_config, save_model

pytestmark = pytest.mark.slow

# Settings of a public service on the same machine.
FOREIGN = {
    "LATENTWIRE_LOG_FORMAT": "text",
    "LATENTWIRE_LISTEN_FD": "99",
    "LATENTWIRE_API_KEY": "secret",
    "LATENTWIRE_ALLOWED_HOST": "example.org",
    "LATENTWIRE_MAX_NEW_TOKENS_LIMIT": "1",
    "LATENTWIRE_REVISION": "v2",
}


@pytest.fixture(autouse=True)
def _settings_of_another_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name, value in FOREIGN.items():
        monkeypatch.setenv(name, value)


def test_own_replicas_ignore_the_settings_of_another_service(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "tiny", llama_config())
    tasks = write_tasks(tmp_path / "tasks.jsonl", 3)
    args = ["--dataset", str(tasks), "--output-dir", str(tmp_path / "out")]
    args += ["--model", str(folder), "--threads", "1", "--max-new-tokens", "4"]
    assert main(args) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["counts"]["finished"] == 3
    assert manifest["replicas"]["count"] == 1


def test_the_reason_of_a_failed_start_is_shown_whatever_the_log_format_of_another_service(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = write_tasks(tmp_path / "tasks.jsonl", 1)
    args = ["--dataset", str(tasks), "--output-dir", str(tmp_path / "out")]
    assert main([*args, "--model", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.endswith(
        "own replica 0 failed to start (status 2):\n"
        "  ERROR latentwire_service.model_service: "
        "cannot serve the model: there is no directory nowhere\n"
    )
