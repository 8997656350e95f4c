"""`latentwire serve` refuses models that it cannot serve as their files say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from support.child import Child
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


@pytest.mark.parametrize("name", list(REFUSED))
def test_a_model_that_cannot_be_served_as_its_files_say_is_exit_status_2(
    tmp_path: Path, name: str
) -> None:
    change, reason = REFUSED[name]
    folder = save_model(tmp_path / "tiny")
    change(folder)
    child = Child("--model", str(folder), "--port", "0", "--threads", "1")
    try:
        assert child.wait() == 2
    finally:
        child.close()
    errors = [line for line in child.lines if "ERROR" in line]
    assert len(errors) == 1, child.output
    assert reason in errors[0]
    assert "Traceback" not in child.output
    assert str(tmp_path) not in child.output
