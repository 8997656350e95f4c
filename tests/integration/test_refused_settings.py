"""`latentwire serve` refuses models that it cannot serve as their files say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from support.processes.refused_services import serve_each
from support.tiny_models import build_tokenizer, save_model

pytestmark = pytest.mark.slow


def with_template(template: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tokenizer = build_tokenizer()
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)

    return change


def with_file(name: str, content: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_text(content)

    return change


REFUSED = {
    "a template that raises": (
        with_template("{{ raise_exception('only tools') }}"),
        "the model's chat template cannot be used: it raises TemplateError: only tools",
    ),
    "several templates": (
        with_template({"a": "{{ messages }}", "b": "{{ messages }}"}),
        "the model's chat template cannot be used",
    ),
    "beam search": (
        with_file("generation_config.json", json.dumps({"num_beams": 4})),
        "generation_config.json sets num_beams to 4, which this service does not do",
    ),
    "a damaged configuration": (
        with_file("generation_config.json", "{"),
        "generation_config.json cannot be read",
    ),
}


def test_a_model_that_cannot_be_served_as_its_files_say_is_exit_status_2(tmp_path: Path) -> None:
    command_lines = []
    for name, (change, _) in REFUSED.items():
        folder = save_model(tmp_path / name / "tiny")
        change(folder)
        command_lines.append(["--model", str(folder), "--port", "0", "--threads", "1"])
    outputs = serve_each(command_lines)
    for (_, reason), output in zip(REFUSED.values(), outputs, strict=True):
        (error,) = (line for line in output.splitlines() if "ERROR" in line)
        assert reason in error
        assert "Traceback" not in output
        assert str(tmp_path) not in output
