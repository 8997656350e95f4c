"""The committed OpenAPI document of the service: `make openapi` writes it from the code."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from latentwire_service.api.access_policy import policy_of
from latentwire_service.api.app import create_app
from latentwire_service.engine_factory import backend_factory
from latentwire_service.model_service import ModelService, Observers
from latentwire_service.service_info import service_info
from latentwire_service.settings import Settings
from latentwire_service.telemetry.metrics import Metrics

DOCUMENT = Path(__file__).parents[1] / "docs" / "openapi.json"


def generated() -> dict[str, Any]:
    """Return the document that a service with default settings shows at `/openapi.json`."""
    settings, metrics = Settings(_env_file=None), Metrics()
    service = ModelService(backend_factory(settings), Observers())
    describe = partial(
        service_info,
        settings=settings,
        version="0.0.0",
        compressors=service.compressors,
    )
    return create_app(service, metrics, policy_of(settings), "0.0.0", describe).openapi()


def render(document: dict[str, Any]) -> str:
    """Return the document as the text that is committed."""
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(render(generated()), encoding="utf-8")
