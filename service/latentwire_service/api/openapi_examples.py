"""Examples and schemas of the OpenAPI document that no model can state."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.models import Example

from latentwire.constants import (
    ARROW_STREAM_MEDIA_TYPE,
    EVENT_STREAM_MEDIA_TYPE,
    JSON_MEDIA_TYPE,
    SAFETENSORS_MEDIA_TYPE,
)
from latentwire.protocol import PlanLatentResponse
from latentwire_service.api.openai.error_form import is_openai_path

REQUEST_EXAMPLES: dict[str, Example] = {
    "defaults": {"summary": "A task with the default options", "value": {"task": "Clean a kettle"}},
    "repeatable": {
        "summary": "A seed makes the plan repeatable",
        "value": {"task": "Clean a kettle", "max_new_tokens": 128, "top_p": 0.9, "seed": 7},
    },
}

_PLAN: dict[str, Any] = {
    "id": "plan-3e2602731dac088d4ce2575e",
    "model": "SmolLM2-135M-Instruct.Q4_1",
    "task": "Clean a kettle",
    "task_id": "kettle-1",
    "plan": "1. Empty it.",
    "k": 1,
    "hidden_state": {
        "data": "AACAPwAAAMA=",
        "dtype": "float32",
        "byteorder": "little",
        "shape": [1, 2],
    },
    "latent": {
        "layer": "last",
        "normed": True,
        "alignment": "predicts",
        "model": "SmolLM2-135M-Instruct.Q4_1",
        "revision": None,
    },
    "token_ids": [33, 30, 30590, 357, 30, 2],
    "finish_reason": "stop",
    "seed": 7,
    "date": None,
    "usage": {"prompt_tokens": 41, "completion_tokens": 6, "latent_rows": 1, "latent_steps": 0},
    "timings": {"queue_ms": 0.1, "prefill_ms": 20.4, "decode_ms": 81.2},
}

# One event. Its data is the JSON of a StreamStep, a StreamDone or an ErrorBody.
_EVENT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "event": {"enum": ["step", "done", "error"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
    "required": ["event", "data"],
}
_EVENTS = (
    'event: step\ndata: {"index":0,"token_id":33,"text":"1","row":"AACAPwAAAMA="}\n\n'
    'event: step\ndata: {"index":1,"token_id":30,"text":".","row":null}\n\n'
    'event: done\ndata: {"id":"plan-3e2602731dac088d4ce2575e","model":"demo","task_id":null,'
    '"k":1,"latent":{"layer":"last","normed":true,"alignment":"predicts","model":"demo",'
    '"revision":null},"finish_reason":"length","seed":7,"date":null,"usage":{"prompt_tokens":41,'
    '"completion_tokens":2,"latent_rows":1,"latent_steps":0},"timings":{"queue_ms":0.1,'
    '"prefill_ms":20.4,'
    '"decode_ms":81.2},"shape":[1,2],"plan":null}\n\n'
)
_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}

PLAN_RESPONSE: dict[str, Any] = {
    "model": PlanLatentResponse,
    "description": "The plan and its latent, in the format that `Accept` prefers; with `stream` an "
    "event per token",
    "content": {
        JSON_MEDIA_TYPE: {"example": _PLAN},
        ARROW_STREAM_MEDIA_TYPE: _BINARY,
        SAFETENSORS_MEDIA_TYPE: _BINARY,
        EVENT_STREAM_MEDIA_TYPE: {"schema": _EVENT_SCHEMA, "example": _EVENTS},
    },
}
_KEY_SCHEME = "ApiKey"


class DescribedApp(FastAPI):
    """An app whose OpenAPI document says which paths need an API key.

    Attributes:
        open_paths: paths that need no key.
        has_keys: whether the service has keys; without any, every path is open.
    """

    open_paths: frozenset[str] = frozenset()
    has_keys: bool = False

    def openapi(self) -> dict[str, Any]:
        """Return the document."""
        document = super().openapi()
        document["components"]["securitySchemes"] = {
            _KEY_SCHEME: {
                "type": "http",
                "scheme": "bearer",
                "description": "A key of `--api-key` or `--api-key-file`, if the service has any.",
            }
        }
        needed: list[dict[str, list[str]]] = [{_KEY_SCHEME: []}]
        for path, operations in document["paths"].items():
            for operation in operations.values():
                if is_openai_path(path):
                    # Declared only to keep the framework's own form of it out of the document.
                    operation["responses"].pop("422", None)
                if path not in self.open_paths:
                    operation["security"] = needed if self.has_keys else [{}, *needed]
        return document


METRICS_RESPONSE: dict[str, Any] = {"content": {"text/plain": {"schema": {"type": "string"}}}}
