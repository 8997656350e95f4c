"""The OpenAPI document is committed, and describes the running service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from tools.openapi_document import DOCUMENT, generated, render

from latentwire.answer_form import LatentFields
from latentwire_service.settings import Settings
from support.backends import BACKENDS
from support.live_server import LiveServer

KEY = "key-of-the-test"


def test_the_committed_document_is_up_to_date() -> None:
    assert render(generated()) == DOCUMENT.read_text(), "run `make openapi`"


@pytest.fixture(scope="module")
def server(folder: Path, backend: str) -> Iterator[LiveServer]:
    live = LiveServer(
        Settings(
            model=str(folder),
            max_slots=8,
            max_model_len=256,
            max_new_tokens_limit=8,
            body_timeout=5,
            # Generated queries are long, and the limit of a head is below the described API.
            max_header_bytes=1_000_000,
            api_key=KEY,
        ),
        BACKENDS[backend],
    )
    yield live.wait_ready()
    live.close()


SOUGHT = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


OPERATIONS = [
    (method.upper(), path) for path, methods in generated()["paths"].items() for method in methods
]
# Only an operation with arguments can receive invalid ones.
WITH_ARGUMENTS = [
    ("GET", "/plan_latent"),
    ("POST", "/plan_latent"),
    ("POST", "/v1/chat/completions"),
]
CASES = [(*operation, GenerationMode.POSITIVE) for operation in OPERATIONS] + [
    (*operation, GenerationMode.NEGATIVE) for operation in WITH_ARGUMENTS
]


def make_it_fit(case: schemathesis.Case[Any]) -> None:
    """Cut a valid request to the limits of this service, which no schema states."""
    parts: tuple[Any, ...] = (case.body, case.query)
    for name in LatentFields.model_fields:
        if isinstance(case.body, dict) and isinstance(case.query, dict) and name in case.query:
            # Two different values are refused.
            case.body.pop(name, None)
    for fields in parts:
        if isinstance(fields, dict) and fields.get("compressor"):
            # The other part must not give another k.
            for other in parts:
                if isinstance(other, dict):
                    other.pop("k", None)
            make_compressor_fit(fields)
    is_chat = case.operation.path == "/v1/chat/completions"
    for fields in () if is_chat else parts:
        if isinstance(fields, dict) and ("task" in fields or "messages" in fields):
            fields["max_new_tokens"] = min(max(1, int(fields.get("max_new_tokens", 8))), 8)
            # JSON Schema accepts 3.0 as an integer; a query parameter must be written as one.
            for name in ("seed", "top_k"):
                if isinstance(fields.get(name), float):
                    fields[name] = int(fields[name])
            # The vocabulary's size; and JSON in a query, which generated text is not.
            for name in ("stop_token_ids", "logit_bias", "chat_template_kwargs"):
                fields.pop(name, None)
            # Fields that depend on each other, on loaded bridges and on the chat template.
            for name in ("latent_steps", "step_bridge", "plan", "system"):
                fields.pop(name, None)
            if fields.get("messages") is not None:
                fields.pop("prompt_template", None)
                fields["messages"] = [{"role": "user", "content": "Go"}]
                fields["task"] = None
            else:
                fields["task"] = (fields.get("task") or "Go")[:8]
                fields["prompt_template"] = fields.get("prompt_template", "")[:8] or "{task}"
    if is_chat and isinstance(case.body, dict):
        make_chat_fit(case.body)
    if case.headers and "x-request-timeout" in case.headers:
        case.headers["x-request-timeout"] = "60"


def make_compressor_fit(fields: dict[str, Any]) -> None:
    """Name a compressor of this service, and how many rows it shall return."""
    fields |= {"compressor": "mean-pool", "k": 2}


def make_chat_fit(body: dict[str, Any]) -> None:
    """Keep of a generated chat request what does not depend on the model or on other fields."""
    body["messages"] = [{"role": "user", "content": "Go"}]
    body["max_tokens"] = 8
    dependent = (
        "model",
        "max_new_tokens",
        "max_completion_tokens",
        "stream_options",
        "stop_token_ids",
        "logit_bias",
    )
    for name in (*dependent, "latent_steps", "step_bridge", "chat_template_kwargs"):
        body.pop(name, None)
    if body.get("latent"):
        body["latent"] = {"k": 2}
    for name in ("seed", "top_k"):
        if isinstance(body.get(name), float):
            body[name] = int(body[name])


@pytest.mark.slow
@pytest.mark.backends("fake")
@pytest.mark.parametrize(("method", "path", "mode"), CASES)
def test_the_service_answers_as_documented(
    server: LiveServer, method: str, path: str, mode: GenerationMode
) -> None:
    """Status, media type, headers and body of each answer must be documented."""
    validate(server, method, path, mode)


@pytest.mark.slow
@pytest.mark.backends("local")
@pytest.mark.parametrize(("method", "path"), WITH_ARGUMENTS)
def test_a_model_answers_as_documented(server: LiveServer, method: str, path: str) -> None:
    """The other operations, and invalid requests, do not reach the model."""
    validate(server, method, path, GenerationMode.POSITIVE)


def validate(server: LiveServer, method: str, path: str, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json", headers=server.headers)
    operation = schema[path][method]

    @SOUGHT
    @given(case=operation.as_strategy(generation_mode=mode))
    def each(case: schemathesis.Case[Any]) -> None:
        if mode is GenerationMode.POSITIVE:
            make_it_fit(case)
        case.call_and_validate(headers=server.headers)

    each()
